"""transformers and peft: logits of a model folder, with or without a PEFT adapter."""

import json
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

asked = json.load(sys.stdin)
model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32, attn_implementation="eager")
if asked.get("adapter"):
    model = PeftModel.from_pretrained(model, asked["adapter"])
with torch.no_grad():
    logits = model.eval()(torch.tensor([asked["ids"]])).logits[0]
print(json.dumps({"logits": logits.tolist()}))

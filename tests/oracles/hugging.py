"""transformers and peft: logits of a model folder, with or without a PEFT adapter.

In float64, so that a comparison shows what is computed, and not how a machine rounds.
"""

import json
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

asked = json.load(sys.stdin)
model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float64, attn_implementation="eager")
if asked.get("adapter"):
    model = PeftModel.from_pretrained(model, asked["adapter"])
with torch.no_grad():
    logits = model.double().eval()(torch.tensor([asked["ids"]])).logits[0]
print(json.dumps({"logits": logits.tolist()}))

"""llama.cpp: tokens, greedy continuations and logits of a GGUF model, with or without a LoRA."""

import json
import sys

import numpy as np
from llama_cpp import Llama

asked = json.load(sys.stdin)
lora = {"lora_path": asked["lora"]} if asked.get("lora") else {}
# Its threads would wait for each other by spinning, which takes ages on a busy machine.
alone = {"n_threads": 1, "n_threads_batch": 1}
model = Llama(asked["model"], n_ctx=asked.get("context", 256), logits_all=True, verbose=False, **alone, **lora)
answer = {"tokens": [model.tokenize(text.encode(), special=True) for text in asked.get("texts", [])]}
answer["greedy"] = []
for ids in asked.get("prompts", []):
    model.reset()
    model.eval(ids)
    said = []
    for _ in range(asked["max_tokens"]):
        said.append(int(np.argmax(model.scores[model.n_tokens - 1])))
        model.eval(said[-1:])
    answer["greedy"].append(said)
if "ids" in asked:
    model.reset()
    model.eval(asked["ids"])
    answer["logits"] = model.scores[: len(asked["ids"])].tolist()
print(json.dumps(answer))

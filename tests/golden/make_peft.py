"""Make PEFT adapters on the tiny llama, and what transformers and peft compute with them.

Made with Python 3.11, torch 2.13.0 (CPU, one thread), transformers 5.24.0, peft 0.21.2 and numpy 2.4.6, with eager
attention; the adapters are fp32, the logits fp64. `README.md` beside this file says how to run it again.

The rule: the folders are as `save_pretrained` wrote them, byte for byte, but for the version that it notes and the
model card; the logits are of the base with the adapter on the first row of the case.
"""

import json
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
SEED = 20261125
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = {
    "lora": {"r": 4, "lora_alpha": 8, "target_modules": ALL},
    "dora": {"r": 4, "lora_alpha": 8, "target_modules": ALL, "use_dora": True},
    "patterns": {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": ["q_proj", "down_proj"],
        "layers_to_transform": [0, 2],
        "layers_pattern": "layers",
        "rank_pattern": {"down_proj": 2},
        "alpha_pattern": {"q_proj": 3},
        "use_rslora": True,
    },
}


def main() -> None:
    torch.set_num_threads(1)
    with np.load(HERE / "llama" / "numbers.npz") as archive:
        ids = archive["ids"][:1]
    logits = {}
    for name, settings in CASES.items():
        torch.manual_seed(SEED)
        base = AutoModelForCausalLM.from_pretrained(HERE / "llama", dtype=torch.float32, attn_implementation="eager")
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **settings))
        with torch.no_grad():
            for key, value in model.named_parameters():
                if "lora_B" in key:
                    value.normal_(0.0, 0.1)
                if "magnitude" in key:
                    value.mul_(1.0 + 0.1 * torch.randn_like(value))
        folder = HERE / "peft" / name
        model.save_pretrained(folder)
        with torch.no_grad():  # In float64, so that a comparison shows the rounding of the other side alone.
            logits[name] = model.double().eval()(torch.tensor(ids)).logits[0].numpy()
        (folder / "README.md").unlink()
        config = folder / "adapter_config.json"
        told = {**json.loads(config.read_text()), "base_model_name_or_path": "llama"}
        told.pop("peft_version", None)
        config.write_text(json.dumps(told, indent=2, sort_keys=True) + "\n")
    np.savez(HERE / "peft" / "logits.npz", **logits)


if __name__ == "__main__":
    main()

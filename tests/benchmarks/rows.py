"""The rows that both sides train on, and a model whose vocabulary is far wider than its body."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from tests.benchmarks.sides import ROOT

BUNDLED = ROOT / "recipes" / "data" / "addresses" / "train.jsonl"
SHORT_MIX = ["chatterbot/english.jsonl", "devils_dictionary_sft/train.jsonl", "shell_commands/train.jsonl"]
WIDTH, INNER, LAYERS, VOCABULARY = 256, 768, 4, 151_936
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


def find_rows(data: Path | None, folder: Path) -> dict[str, Path]:
    """Return the files to train on, by name; without the shared data, only the addresses that macft comes with."""
    if data is None:
        return {"addresses": BUNDLED}
    files = [*(data / name for name in SHORT_MIX), BUNDLED]
    lines = [line for file in files for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    random.Random(0).shuffle(lines)
    chats = [json.dumps({"messages": json.loads(line)["messages"]}, ensure_ascii=False) for line in lines]
    short = folder / "short_mix.jsonl"
    short.write_text("\n".join(chats) + "\n", encoding="utf-8")
    return {"short_mix": short, "bench_mix": data / "bench_mix" / "train.jsonl"}


WIDE_BYTES = 4 * (VOCABULARY * WIDTH + LAYERS * (3 * WIDTH * (WIDTH + INNER) + 2 * WIDTH) + WIDTH)
"""What the weights of the wide model take, once."""


def write_wide_model(folder: Path, tokenizer: Path) -> Path:
    """Write a small random llama with a vocabulary of 152k, and another model's tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _TOKENIZER:
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
    }
    (folder / "config.json").write_text(json.dumps(config))
    generator = np.random.default_rng(0)
    shapes = {"model.embed_tokens": (VOCABULARY, WIDTH)}
    for layer in range(LAYERS):
        shapes |= {f"model.layers.{layer}.self_attn.{name}_proj": (WIDTH, WIDTH) for name in "qo"}
        shapes |= {f"model.layers.{layer}.self_attn.{name}_proj": (WIDTH // 2, WIDTH) for name in "kv"}
        shapes |= {f"model.layers.{layer}.mlp.{name}_proj": (INNER, WIDTH) for name in ("gate", "up")}
        shapes[f"model.layers.{layer}.mlp.down_proj"] = (WIDTH, INNER)
    norms = [
        f"model.layers.{layer}.{kind}_layernorm" for layer in range(LAYERS) for kind in ("input", "post_attention")
    ]
    weights = {
        f"{name}.weight": generator.normal(0, shape[1] ** -0.5, shape).astype(np.float32)
        for name, shape in shapes.items()
    } | {f"{name}.weight": np.ones(WIDTH, np.float32) for name in [*norms, "model.norm"]}
    save_file(weights, folder / "model.safetensors", metadata={"format": "mlx"})
    return folder

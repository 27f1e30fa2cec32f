"""A tokenizer for the tiny models that have none."""

import json
from pathlib import Path

from tests.golden import HERE


def lend_tokenizer(folder: Path) -> None:
    """Give a tiny model a byte-level tokenizer that llama.cpp has a name for; ids are handed over, never texts.

    One rare byte's token becomes a merge, since llama.cpp loads no vocabulary without one.
    """
    told = json.loads((HERE / "llama" / "tokenizer.json").read_text(encoding="utf-8"))
    told["pre_tokenizer"]["use_regex"] = True
    vocabulary = told["model"]["vocab"]
    rare = max(vocabulary, key=lambda token: vocabulary[token])
    vocabulary["th"] = vocabulary.pop(rare)
    told["model"]["merges"] = [["t", "h"]]
    (folder / "tokenizer.json").write_text(json.dumps(told), encoding="utf-8")
    settings = (HERE / "llama" / "tokenizer_config.json").read_text(encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(settings, encoding="utf-8")

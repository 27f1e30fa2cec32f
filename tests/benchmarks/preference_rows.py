"""The pairs that all sides of the preference bench train on, as token ids, so that nothing depends on a template.

The rule: macft tokenizes, as it does in training, and every side is handed the same ids.
"""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from macft.bench.engine import read_rows
from macft.data.response_rows import ResponseRows
from macft.recipe import make_recipe

PROMPT_TOKENS = (150, 250)
"""Prompts of about 200 tokens: what `long prompts` keeps of bench_mix."""
PROMPT_CHARACTERS = (200, 2000)
"""Longer and shorter ones are not even tokenized."""
PARTS = ("prompt", "chosen", "rejected")


def write_pairs(data: Path, model: Path, folder: Path) -> dict[str, Path]:
    """Write both sets of pairs as token ids and return the files by name."""
    tone = _tokenize(data / "devils_vs_wordnet_dpo" / "train.jsonl", model)
    mixed = folder / "bench_mix_pairs.jsonl"
    mixed.write_text("".join(json.dumps(pair) + "\n" for pair in _pair_up(data)), encoding="utf-8")
    long = [row for row in _tokenize(mixed, model) if PROMPT_TOKENS[0] <= len(row[0]) <= PROMPT_TOKENS[1]]
    return {
        "long prompts": _write_ids(folder / "long_prompts.jsonl", long),
        "tone": _write_ids(folder / "tone.jsonl", tone),
    }


def read_ids(file: Path) -> ResponseRows:
    """Read rows of token ids."""
    rows = [[json.loads(line)[part] for part in PARTS] for line in file.read_text().splitlines()]
    return pack([[np.array(ids, np.int32) for ids in row] for row in rows])


def pack(rows: list[list[Any]]) -> ResponseRows:
    """Put rows of a prompt, a chosen and a rejected response together."""
    parts = [part for row in rows for part in row]
    return ResponseRows(
        ids=np.concatenate(parts),
        offsets=np.cumsum([0, *map(len, parts)], dtype=np.int64),
        responses=2,
        labels=None,
        margins=np.full(len(rows), np.nan, np.float32),
        where=[f"pair {number}" for number in range(1, len(rows) + 1)],
    )


def _pair_up(data: Path) -> list[dict[str, Any]]:
    """Return each chat's prompt with its answer, chosen, and the answer of another chat, rejected."""
    lines = (data / "bench_mix" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    chats = [json.loads(line)["messages"] for line in lines]
    least, most = PROMPT_CHARACTERS
    chats = [chat for chat in chats if least <= sum(len(message["content"]) for message in chat[:-1]) <= most]
    random.Random(0).shuffle(chats)
    pairs = []
    for place, chat in enumerate(chats):
        others = (other[-1] for other in chats[place - 1 :: -1] + chats[:place:-1])
        rejected = next(answer for answer in others if answer != chat[-1])
        pairs.append({"prompt": chat[:-1], "chosen": [chat[-1]], "rejected": [rejected]})
    return pairs


def _tokenize(file: Path, model: Path) -> list[list[Any]]:
    recipe = make_recipe(
        {
            "model": str(model),
            "method": "dpo",
            "data": {"train": [str(file)], "valid_fraction": 0.0, "strings": "chat"},
        }
    )
    rows = read_rows(recipe, model)
    return [rows.parts(index) for index in range(len(rows))]


def _write_ids(file: Path, rows: list[list[Any]]) -> Path:
    lines = [json.dumps({part: ids.tolist() for part, ids in zip(PARTS, row, strict=True)}) for row in rows]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file

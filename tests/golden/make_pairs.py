"""Make the golden hashes of preference rows with TRL's own trainers.

Made with Python 3.11, trl 1.10.0, transformers 5.24.0, tokenizers 0.23.3, datasets 5.2.0, torch 2.13.0 (CPU) and
numpy 2.4.6; mlx-lm 0.32.2 is needed to build the tokenizers of `tests.data.formats`. `README.md` beside this file says
how to run it again.

The rule: a row is told apart by what TRL does with it, never by what macft does. `parity` rows must be tokenized alike;
the others are counted, and the test proves why they are not.
"""

import json
import logging
import os
import tempfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

os.environ["HF_HUB_OFFLINE"] = "1"

import transformers
from datasets import Dataset, disable_progress_bars
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
from trl.data_utils import extract_prompt

from tests.data.formats import load
from tests.data.preference_rows import CLASSES, PARITY_ROWS, SETS, TRICKY, RowSet, hash_parts, make_rows

HERE = Path(__file__).parent


def make_trainer(rows: RowSet, tokenizer: transformers.PreTrainedTokenizerFast) -> Any:
    """Give the rows of a set to the trainer of their method."""
    table = []
    for number, row in enumerate(make_rows(rows)):
        changed = {"tools": json.dumps(row["tools"])} if "tools" in row else {}
        if is_chat(row):
            changed["chat_template_kwargs"] = {"enable_thinking": rows.thinking}
        table.append({**row, **changed, "number": number})
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = transformers.LlamaConfig(vocab_size=len(tokenizer), **size)
    model, reference = transformers.LlamaForCausalLM(config), transformers.LlamaForCausalLM(config)
    made, settings = (KTOTrainer, KTOConfig) if rows.method == "kto" else (DPOTrainer, DPOConfig)
    common = {"max_length": rows.max_length, "report_to": [], "use_cpu": True, "bf16": False}
    arguments = settings(output_dir=tempfile.mkdtemp(), per_device_train_batch_size=2, **common)
    data = Dataset.from_list(table)
    return made(model=model, ref_model=reference, args=arguments, train_dataset=data, processing_class=tokenizer)


def is_chat(row: dict[str, Any]) -> bool:
    return not isinstance(row.get("prompt", row.get("chosen")), str)


def tokenized(rows: RowSet, trainer: Any) -> dict[int, list[list[int]]]:
    """Return what the trainer's collator would make of each row: prompts and responses, cut to the longest length."""
    found = defaultdict(list)
    for example in trainer.train_dataset:
        prompt = example["prompt_ids"]
        found[example["number"]].append(prompt)
        for name in ("completion_ids", "chosen_ids", "rejected_ids"):
            if name in example:
                found[example["number"]].append((prompt + example[name])[: rows.max_length][len(prompt) :])
    return found


def classify(rows: RowSet, row: dict[str, Any], parts: list[list[int]], tokenizer: Any) -> str:
    """Say what TRL does with a row."""
    if TRICKY.get(rows.format, "\0") in json.dumps(row, ensure_ascii=False):
        return "control"
    if not parts:
        return "parity"
    if not is_prefix(rows, row, tokenizer):
        return "border"
    if len(parts) == 3 and parts[1] == parts[2]:
        return "same"
    return "parity"


def is_prefix(rows: RowSet, row: dict[str, Any], tokenizer: Any) -> bool:
    """Ask what TRL warns of when it is not so: does each tokenized whole begin with the tokenized prompt?

    The same is asked of the prompts that earlier answers in a chat were given to.
    """
    split = extract_prompt(row) if "prompt" not in row else row
    responses = [split[name] for name in ("chosen", "rejected", "completion") if name in split]
    if not is_chat(row):
        start = tokenizer(split["prompt"])["input_ids"]
        wholes = [tokenizer(split["prompt"] + response)["input_ids"] for response in responses]
    else:
        options = {"tools": row.get("tools"), "enable_thinking": rows.thinking, "return_dict": False}
        start = tokenizer.apply_chat_template(split["prompt"], add_generation_prompt=True, **options)
        wholes = [tokenizer.apply_chat_template(split["prompt"] + response, **options) for response in responses]
        for place in (place for place, turn in enumerate(split["prompt"]) if turn["role"] == "assistant"):
            asked = {**options, "add_generation_prompt": True}
            text, whole = (
                tokenizer.apply_chat_template(turns, tokenize=False, **options_)
                for turns, options_ in ((split["prompt"][:place], asked), (split["prompt"], options))
            )
            before = tokenizer.apply_chat_template(split["prompt"][:place], **asked)
            if whole.startswith(text) and any(ids[: len(before)] != before for ids in wholes):
                return False
    return all(whole[: len(start)] == start for whole in wholes)


def main() -> None:
    """Write a hash and a class for every row."""
    logging.disable(logging.WARNING)
    disable_progress_bars()
    hashes, classes = [], []
    for rows in SETS:
        tokenizer = load(rows.format)._tokenizer
        found = tokenized(rows, make_trainer(rows, tokenizer))
        for number, row in enumerate(make_rows(rows)):
            parts = found.get(number, [])
            hashes.append(hash_parts(parts))
            classes.append(CLASSES.index(classify(rows, row, parts, tokenizer)))
        print(f"{rows.name:40}", dict(Counter(CLASSES[index] for index in classes[-rows.count :])))
    counts = Counter(CLASSES[index] for index in classes)
    print(dict(counts))
    if counts["parity"] != PARITY_ROWS:
        raise RuntimeError(f"{counts['parity']} rows to be alike (expected {PARITY_ROWS})")
    np.savez_compressed(HERE / "pairs.npz", hashes=np.array(hashes, np.uint64), classes=np.array(classes, np.uint8))


if __name__ == "__main__":
    main()

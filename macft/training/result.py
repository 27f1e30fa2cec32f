"""What a run leaves behind: the adapter or the model, and the score of Base against tuned.

The rule: a result is written aside and renamed, holds no absolute path, and loads in stock mlx-lm as it is.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import save_model

from macft.chat.generate import answer_batch
from macft.data.questions import Question
from macft.disk import PRIVATE_FILE, flush, replace_folder
from macft.errors import RunError
from macft.events import Scored
from macft.measure.answers import score_answers
from macft.measure.table import pick_examples
from macft.models.adapters import adapter_parameters, adapters_off, write_adapter_files
from macft.models.companions import copy_tokenizer
from macft.models.stacked import folded_parameters, is_stacked
from macft.run import Run


def write_adapter(run: Run, model: nn.Module, config: dict[str, Any], provenance: dict[str, Any]) -> Path:
    """Write `RUN/adapter/`, a plain mlx-lm adapter folder; of two adapters, one over the other, it is their sum."""
    tensors = folded_parameters(model, config) if is_stacked(model) else adapter_parameters(model)
    return _replace(
        run, "adapter", lambda aside: write_adapter_files(aside, tensors, config, provenance, disk=run.disk)
    )


def write_model(run: Run, model: nn.Module, base: Path, config: dict[str, Any], provenance: dict[str, Any]) -> Path:
    """Write `RUN/model/`, a model folder with the tokenizer of its base."""

    def fill(aside: Path) -> None:
        save_model(aside, model)
        # Full fine-tuning is done in float32, and its updates would be rounded away in less.
        told = {key: "float32" if key in {"dtype", "torch_dtype"} else value for key, value in config.items()}
        (aside / "config.json").write_text(json.dumps(told, indent=2), encoding="utf-8")
        (aside / "macft.json").write_text(json.dumps(provenance, indent=2), encoding="utf-8")
        copy_tokenizer(base, aside)

    return _replace(run, "model", fill)


def score(
    tuned: nn.Module,
    base: nn.Module | None,
    tokenizer: TokenizerWrapper,
    questions: Sequence[Question],
    *,
    max_tokens: int,
    progress: Callable[[int, int], None],
) -> Scored:
    """Let Base and tuned answer held-back questions, in batches, and score both.

    Args:
        tuned: The trained model.
        base: The model before training; None when it is `tuned` without its adapter.
        tokenizer: Of both.
        questions: With references.
        max_tokens: Longest answer.
        progress: Told (answers done, all answers of both).
    """
    prompts, references = [question.ids for question in questions], [question.reference for question in questions]

    def answers(model: nn.Module, before: int) -> list[str]:
        def told(done: int, _: int) -> None:
            progress(before + done, 2 * len(prompts))

        return [answer.text for answer in answer_batch(model, tokenizer, prompts, max_tokens=max_tokens, progress=told)]

    tuned.eval()
    of_tuned = answers(tuned, 0)
    if base is None:
        with adapters_off(tuned):
            of_base = answers(tuned, len(prompts))
    else:
        of_base = answers(base, len(prompts))
    before, after = score_answers(of_base, references), score_answers(of_tuned, references)
    examples = pick_examples(before, after, [question.text for question in questions])
    return Scored(rows=len(prompts), base=before.metrics, tuned=after.metrics, examples=examples)


def _replace(run: Run, name: str, fill: Callable[[Path], None]) -> Path:
    folder, disk = run.path / name, run.disk
    aside = folder.with_name(f".{name}.tmp")
    try:
        disk.remove(aside)
        disk.make_folder(aside)
        fill(aside)
        for file in disk.list(aside):
            file.chmod(PRIVATE_FILE)
            flush(file, disk)
        flush(aside, disk)
        replace_folder(aside, folder, disk)
    except (OSError, RuntimeError) as error:
        with suppress(OSError):
            disk.remove(aside)
        fix = "Free disk space, then `macft resume` writes it from the last checkpoint."
        raise RunError(f"{folder} could not be written ({error})", fix=fix) from None
    return folder

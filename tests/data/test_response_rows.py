"""Rows of preferences against TRL: the same tokens, but for three kinds of rows that are told apart and proved."""

from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest

from macft.data.chat_template import decode
from macft.data.outcomes import Outcome, make_reader, read_row
from macft.data.response_rows import SAME_WHEN_CUT
from macft.data.rows import Settings
from macft.data.sources import Row
from macft.recipe import DataTable
from tests.data.formats import load
from tests.data.preference_rows import CLASSES, PARITY_ROWS, SETS, TRICKY, RowSet, hash_parts, make_rows

with np.load(Path(__file__).parents[1] / "golden" / "pairs.npz") as golden:
    HASHES, KINDS = golden["hashes"], np.array(CLASSES)[golden["classes"]]
STRINGS = ("strings", "transcripts", "labeled_strings")
STARTS = dict(zip(SETS, accumulate((rows.count for rows in SETS), initial=0), strict=False))


def read(rows: RowSet, value: dict) -> list[Outcome]:
    data = DataTable(enable_thinking=rows.thinking)
    settings = Settings(data, load(rows.format), rows.method, rows.max_length, vocab_size=10_000)
    return read_row(Row(value, "rows.jsonl:1", "rows.jsonl", 1), make_reader(settings))


def parts_of(outcomes: list[Outcome]) -> list[list[int]]:
    made = [row for outcome in outcomes if outcome.made for row in outcome.made.rows]
    return [part.tolist() for row in made for part in (row.prompt, *row.responses)]


def test_ten_thousand_rows_are_compared_and_the_others_are_few():
    counts = {kind: int((kind == KINDS).sum()) for kind in CLASSES}
    assert counts["parity"] == PARITY_ROWS == 10_000
    assert sum(counts.values()) == len(HASHES) == sum(rows.count for rows in SETS)
    assert counts["control"] + counts["border"] + counts["same"] < 0.07 * len(HASHES)


@pytest.mark.parametrize("rows", SETS, ids=lambda rows: rows.name)
def test_rows_are_tokenized_as_trl_does(rows):
    for number, value in enumerate(make_rows(rows), start=STARTS[rows]):
        outcomes, kind = read(rows, value), KINDS[number]
        assert not any(outcome.problem for outcome in outcomes)
        is_alike = hash_parts(parts_of(outcomes)) == HASHES[number]
        if kind == "control":
            assert not (assert_control_tokens_stay_text(rows, outcomes) and is_alike)
            continue
        assert is_alike == (kind == "parity"), (kind, value, outcomes)
        if kind == "same":
            assert [outcome.dropped for outcome in outcomes] == [SAME_WHEN_CUT]
        elif kind == "border":
            assert_no_word_is_lost(rows, outcomes)


def assert_control_tokens_stay_text(rows: RowSet, outcomes: list[Outcome]) -> int:
    """What looks like a control token is spelled out wherever people wrote it, but for the end of a response.

    Returns:
        How many are spelled out.
    """
    tokenizer, token = load(rows.format), TRICKY[rows.format]
    end, spelled = tokenizer.eos_token if rows.kind in STRINGS else "", 0
    for outcome in outcomes:
        parts = parts_of([outcome])
        ids = sum(part.count(tokenizer.convert_tokens_to_ids(token)) for part in parts)
        found = sum(decode(tokenizer, part).count(token) for part in parts) - ids
        example = outcome.example
        words = [words_of(example.prompt), *(words_of(response).removesuffix(end) for response in example.responses)]
        if parts and not outcome.made.is_truncated:
            assert found == sum(text.count(token) for text in words)
        spelled += found
    return spelled


def words_of(turns: object) -> str:
    return turns if isinstance(turns, str) else "\n".join(turn.content for turn in turns)


def assert_no_word_is_lost(rows: RowSet, outcomes: list[Outcome]) -> None:
    """Prompt and response together are the whole text, where TRL leaves out what lies across the border."""
    tokenizer = load(rows.format)
    for outcome in outcomes:
        if not outcome.made.rows or outcome.made.is_truncated:
            continue
        row, example = outcome.made.rows[0], outcome.example
        for ids, response in zip(row.responses, example.responses, strict=True):
            text = decode(tokenizer, [*row.prompt, *ids])
            if isinstance(response, str):
                assert text.endswith(f"{example.prompt}{response}{tokenizer.eos_token}")
            else:
                assert f"{response[0].content.strip()}<" in text

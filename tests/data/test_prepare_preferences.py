"""Files of preferences in, rows of a prompt and its responses out: sides, lengths, what is left out and where."""

import json

import numpy as np
import pytest

from macft.data.cache import prepare_once
from macft.data.chat_template import decode
from macft.data.examples import EMPTY_TURN
from macft.data.inspect import detect, view_row
from macft.data.preferences import SAME
from macft.data.prepare import Prepared, prepare
from macft.data.response_rows import PLAIN_STRINGS, SAME_WHEN_CUT, SCORED_AGAINST
from macft.data.rows import ANSWER_CUT_OFF, TOO_LONG
from macft.errors import DataError
from macft.recipe import DataTable, EvaluateTable
from tests.data.formats import load

TOKENIZER = load("chatml")
ASKED = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def write(path, rows) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pairs(count: int, start: int = 0, *, each: int = 1) -> list[dict]:
    numbers = [n for n in range(start, start + count) for _ in range(each)]
    return [
        {"prompt": f"question {n}", "chosen": f"good {n} {at}", "rejected": f"bad {n}"} for at, n in enumerate(numbers)
    ]


def ready(*, method="dpo", max_seq_length=512, evaluate=None, vocab_size=10_000, **data) -> Prepared:
    data = {"strings": "chat", "valid_fraction": 0.0, **data}
    return prepare(
        DataTable(**data),
        TOKENIZER,
        method=method,
        max_seq_length=max_seq_length,
        vocab_size=vocab_size,
        evaluate=EvaluateTable(**evaluate or {}),
    )


def texts(rows) -> list[list[str]]:
    return [[decode(TOKENIZER, part) for part in rows.parts(index)] for index in range(len(rows))]


@pytest.mark.parametrize("method", ["dpo", "orpo", "simpo", "cpo"])
def test_pairs_come_back_as_prompt_chosen_and_rejected(tmp_path, method):
    made = ready(train=[write(tmp_path / "a.jsonl", pairs(2))], method=method)
    rows = made.train
    assert texts(rows)[1] == [ASKED.format("question 1"), "good 1 1<|im_end|>\n", "bad 1<|im_end|>\n"]
    assert (len(rows), rows.responses, rows.labels) == (2, 2, None)
    assert rows.where == ["a.jsonl:1", "a.jsonl:2"]
    for index in range(2):
        prompt, chosen, rejected = map(len, rows.parts(index))
        assert rows.lengths[index] == prompt + chosen + rejected
        assert rows.longest[index] == prompt + max(chosen, rejected)
        assert rows.supervised[index] == chosen + rejected
    assert rows.lengths.sum() == len(rows.ids) == made.report.tokens
    assert np.isnan(rows.margins).all()
    assert made.report.formats == {"pair": 2}


def test_kto_reads_labels_and_pairs(tmp_path):
    labeled = {"prompt": "q", "completion": "fine", "label": "thumbs up"}
    made = ready(train=[write(tmp_path / "a.jsonl", [labeled, *pairs(1)])], method="kto")
    assert [row[1] for row in texts(made.train)] == ["fine<|im_end|>\n", "good 0 0<|im_end|>\n", "bad 0<|im_end|>\n"]
    assert made.train.labels.tolist() == [True, True, False]
    assert made.train.where == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:2"]
    assert made.report.responses["desirable"]["rows"] == 2
    assert made.report.responses["undesirable"]["rows"] == 1


def test_all_pairs_of_a_prompt_stay_on_one_side(tmp_path):
    rows = pairs(120, each=3)
    several = ready(train=[write(tmp_path / "a.jsonl", rows)], valid_fraction=0.2, evaluate={"samples": 500})
    sides = [{row[0] for row in texts(side)} for side in (several.train, several.valid)]
    assert not sides[0] & sides[1]
    assert len(several.valid) == 3 * len(sides[1]) > 30
    assert len(several.samples) == len(sides[1])  # a prompt is asked once
    single = ready(train=[write(tmp_path / "b.jsonl", pairs(120))], valid_fraction=0.2)
    assert {row[0] for row in texts(single.valid)} == sides[1]
    unpaired = ready(train=[write(tmp_path / "a.jsonl", rows)], valid_fraction=0.2, method="kto")
    assert {row[0] for row in texts(unpaired.valid)} == sides[1]


def test_what_is_left_out_is_named_by_line(tmp_path):
    rows = [
        *pairs(1),
        {"prompt": "q", "chosen": "a", "rejected": "a"},
        {"prompt": "q", "chosen": "", "rejected": "a"},
        {"prompt": "long " * 80, "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "word " * 80 + "a", "rejected": "word " * 80 + "b"},
        {"prompt": "q", "chosen": "word " * 80 + "a", "rejected": "b"},
        {"prompt": "q", "chosen": "a", "rejected": "a"},
    ]
    path = write(tmp_path / "a.jsonl", rows)
    made = ready(train=[path], max_seq_length=64)
    assert made.report.dropped_where == {
        SAME: ["a.jsonl:2", "a.jsonl:7"],
        EMPTY_TURN: ["a.jsonl:3"],
        ANSWER_CUT_OFF: ["a.jsonl:4"],
        SAME_WHEN_CUT: ["a.jsonl:5"],
    }
    assert made.report.dropped == {SAME: 2, EMPTY_TURN: 1, ANSWER_CUT_OFF: 1, SAME_WHEN_CUT: 1}
    assert made.train.where == ["a.jsonl:1", "a.jsonl:6"]
    assert made.train.longest.max() == 64
    assert min(len(part) for index in range(2) for part in made.train.parts(index)) > 0
    assert made.report.truncated_rows == 1
    warnings = dict(made.report.list_warnings())
    assert warnings[f"left out: {SAME} (rows: 2)"].startswith("a.jsonl:2, a.jsonl:7. ")
    assert ready(train=[path], max_seq_length=64, too_long="drop").report.dropped_where[TOO_LONG] == [
        f"a.jsonl:{line}" for line in (4, 5, 6)
    ]
    with pytest.raises(DataError) as caught:
        ready(train=[path], max_seq_length=64, too_long="split")
    assert [problem.where for problem in caught.value.problems] == [f"a.jsonl:{line}" for line in (4, 5, 6)]
    assert "cannot be split" in caught.value.problems[0].what


def test_length_bias_and_doubtful_scores_are_told(tmp_path):
    rows = [{"prompt": f"q{n}", "chosen": "word " * 30, "rejected": "word " * 9, "margin": -n} for n in range(3)]
    report = ready(train=[write(tmp_path / "a.jsonl", rows)]).report
    chosen, rejected = (report.responses[kind]["mean_tokens"] for kind in ("chosen", "rejected"))
    assert report.length_bias == f"chosen is {chosen / rejected:.1f} times longer: expect longer answers"
    assert report.length_bias in dict(report.list_warnings())
    assert report.notes == {SCORED_AGAINST: 2}
    turned = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    bias = ready(train=[write(tmp_path / "b.jsonl", turned)]).report.length_bias
    assert bias.endswith("times shorter: expect shorter answers")
    alike = [{"prompt": f"q{n}", "chosen": "1", "rejected": "2"} for n in range(3)]
    assert ready(train=[write(tmp_path / "c.jsonl", alike)]).report.length_bias == ""


def test_strings_are_text_as_they_stand_and_the_report_says_so(tmp_path):
    row = {"prompt": "2+2=", "chosen": " 4", "rejected": " 5<|im_end|>"}
    made = ready(train=[write(tmp_path / "a.jsonl", [row])], strings="text")
    assert texts(made.train) == [["2+2=", " 4<|im_end|>", " 5<|im_end|>"]]
    assert made.report.notes == {PLAIN_STRINGS: 1}


def test_held_out_prompts_and_test_rows_are_asked_once_with_the_chosen_answer(tmp_path):
    train, held = write(tmp_path / "a.jsonl", pairs(2, 5)), write(tmp_path / "v.jsonl", pairs(3, each=2))
    made = ready(train=[train], valid=[held], test=[held], evaluate={"samples": 2, "test_rows": 9})
    assert [(question.text, question.reference) for question in made.samples] == [
        ("question 0", "good 0 0"),
        ("question 1", "good 1 2"),
    ]
    assert [question.text for question in made.test] == ["question 0", "question 1", "question 2"]
    assert decode(TOKENIZER, made.test[0].ids) == ASKED.format("question 0")
    bad = [{"prompt": "q", "completion": "x", "label": False}]
    unpaired = ready(train=[train], valid=[write(tmp_path / "b.jsonl", bad)], method="kto")
    assert unpaired.samples[0].reference == ""


def test_a_prompt_that_is_trained_on_leaks_whatever_its_responses(tmp_path):
    train = write(tmp_path / "a.jsonl", pairs(3))
    other = write(tmp_path / "v.jsonl", [row | {"chosen": "another"} for row in pairs(2)])
    assert ready(train=[train], valid=[other]).report.leaked_rows == 2


def test_ids_beyond_the_embedding_are_a_problem(tmp_path):
    with pytest.raises(DataError, match=r"a.jsonl:1: has the token id \d+, beyond the model's vocabulary of 300"):
        ready(train=[write(tmp_path / "a.jsonl", pairs(1))], vocab_size=300)


def test_the_template_of_a_model_without_one_is_missed(tmp_path):
    row = {"prompt": [{"role": "user", "content": "q"}], "chosen": "a", "rejected": "b"}
    with pytest.raises(DataError, match=r"a.jsonl:1: is a chat, but the model has no chat template"):
        prepare(
            DataTable(train=[write(tmp_path / "a.jsonl", [row])]),
            load("chatml", template=False),
            method="dpo",
            max_seq_length=64,
            vocab_size=10_000,
        )


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_rows_from_the_disk_are_the_same(tmp_path, method):
    rows = [row | {"margin": 1.5} for row in pairs(20)]
    table = DataTable(train=[write(tmp_path / "a.jsonl", rows)], valid_fraction=0.3, strings="chat")
    calls = []

    def make() -> Prepared:
        calls.append(1)
        return prepare(table, TOKENIZER, method=method, max_seq_length=64, vocab_size=10_000)

    first, second = (prepare_once(tmp_path / "cache", table, (method,), make) for _ in range(2))
    assert len(calls) == 1
    for ours, theirs in ((first.train, second.train), (first.valid, second.valid)):
        assert texts(ours) == texts(theirs)
        assert (ours.where, ours.fingerprint, ours.responses) == (theirs.where, theirs.fingerprint, theirs.responses)
        assert np.array_equal(ours.margins, theirs.margins, equal_nan=True)
        assert (ours.labels is None) == (theirs.labels is None) == (method == "dpo")
        assert ours.labels is None or np.array_equal(ours.labels, theirs.labels)
    assert second.report.to_dict() == json.loads(json.dumps(second.report.to_dict())) | {
        "histogram": second.report.histogram
    }
    assert second[2:4] == first[2:4]


def test_a_row_is_shown_in_parts(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"prompt": "q", "responses": ["👩‍👩‍👧 a", "b"], "scores": [2, 1]}, *pairs(1)])
    table = DataTable(train=[path], strings="chat")
    shown = view_row(table, 1, TOKENIZER)
    assert [(part.kind, part.text, part.margin) for part in shown.parts] == [
        ("prompt", ASKED.format("q"), None),
        ("chosen", "👩‍👩‍👧 a<|im_end|>\n", 1.0),
        ("rejected", "b<|im_end|>\n", None),
    ]
    assert [trained for _, trained in shown.spans] == [False, True, True]
    assert decode(TOKENIZER, shown.encoded.ids) == "".join(part.text for part in shown.parts)
    assert [part.kind for part in view_row(table, 2, TOKENIZER, "kto").parts] == ["prompt", "desirable", "undesirable"]
    assert detect(table) == "dpo"
    with pytest.raises(DataError, match=r"a.jsonl:2: is a preference pair"):
        view_row(table, 2, TOKENIZER, "sft")

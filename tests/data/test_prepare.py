"""Files in, token rows out: splits that never move, lengths that are counted, and all problems at once."""

import json

import numpy as np
import pytest

from macft.data.chat_template import Encoded, decode, encode
from macft.data.examples import CompletionExample, TextExample
from macft.data.prepare import ALL_HELD_OUT, NO_ROOM, NOTHING_TO_ASK, TEST_NOT_ASKED, Prepared, prepare
from macft.data.report import render_row
from macft.data.rows import ANSWER_CUT_OFF, TOO_LONG
from macft.data.token_rows import NOTHING_TO_LEARN, split_windows
from macft.errors import DataError
from macft.recipe import DataTable, EvaluateTable
from tests.data.formats import load


def write(path, rows) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def pairs(count: int, start: int = 0) -> list[dict[str, str]]:
    return [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(start, start + count)]


def ready(
    tokenizer=None, *, method="sft", max_seq_length=512, vocab_size=10_000, evaluate=None, progress=None, **data
) -> Prepared:
    return prepare(
        DataTable(**data),
        tokenizer or load("chatml"),
        method=method,
        max_seq_length=max_seq_length,
        vocab_size=vocab_size,
        evaluate=EvaluateTable(**evaluate or {}),
        progress=progress,
    )


def test_rows_come_back_as_they_were_encoded(tmp_path):
    made = ready(train=[write(tmp_path / "rows.jsonl", pairs(3))], valid_fraction=0)
    assert len(made.train) == 3
    assert made.train.where == ["rows.jsonl:1", "rows.jsonl:2", "rows.jsonl:3"]
    for number in range(3):
        alone = encode(
            CompletionExample(f"question {number}", f"answer {number}"), load("chatml"), train_on="assistant"
        )
        row = made.train.row(number)
        assert row.ids.tolist() == alone.ids.tolist()
        assert row.mask.tolist() == alone.mask.tolist()
        assert made.train.lengths[number] == len(alone.ids)
        assert made.train.supervised[number] == alone.mask.sum()
    assert made.report.tokens == len(made.train.ids)
    assert made.report.supervised_tokens == made.train.mask.sum()
    assert json.loads(json.dumps(made.report.to_dict()))["schema"] == 1


def test_a_split_never_moves_when_rows_come_and_go(tmp_path):
    every = {"samples": 1000}
    small = ready(train=[write(tmp_path / "a.jsonl", pairs(200))], valid_fraction=0.1, evaluate=every)
    large = ready(train=[write(tmp_path / "b.jsonl", pairs(300)[::-1])], valid_fraction=0.1, evaluate=every)
    held = [{question.text for question in made.samples} for made in (small, large)]
    assert [len(made.samples) for made in (small, large)] == [len(made.valid) for made in (small, large)]
    assert held[0] == {prompt for prompt in held[1] if int(prompt.split()[1]) < 200}
    assert 5 < len(held[0]) < 40
    assert len(small.train) + len(small.valid) == 200


def test_one_row_is_always_left_to_train_on(tmp_path):
    made = ready(train=[write(tmp_path / "a.jsonl", pairs(1))], valid_fraction=0.999999)
    assert (len(made.train), len(made.valid)) == (1, 0)
    assert ALL_HELD_OUT in made.report.notes


def test_fingerprints_follow_the_content(tmp_path):
    first = ready(train=[write(tmp_path / "a.jsonl", pairs(5))], valid_fraction=0).train
    again = ready(train=[write(tmp_path / "b.jsonl", pairs(5))], valid_fraction=0).train
    other = ready(train=[write(tmp_path / "c.jsonl", pairs(5))], valid_fraction=0, train_on="all").train
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_a_folder_with_train_valid_and_test_is_read_as_such(tmp_path):
    for name, count, start in (("train", 4, 0), ("valid", 3, 10), ("test", 2, 0)):
        write(tmp_path / f"{name}.jsonl", pairs(count, start))
    made = ready(train=[str(tmp_path)], evaluate={"test_rows": 9})
    assert (len(made.train), len(made.valid), len(made.test)) == (4, 3, 2)
    assert made.report.test_rows == 2
    assert made.report.leaked_rows == 2
    assert len(ready(train=[str(tmp_path)], valid=[write(tmp_path / "mine.jsonl", pairs(1))]).valid) == 1


REFUSED = {"messages": [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]}
ANSWER_ONLY = {"messages": [{"role": "assistant", "content": "hello"}]}


def test_what_will_be_asked_is_rendered_with_the_rows(tmp_path):
    train, test = write(tmp_path / "a.jsonl", pairs(3)), write(tmp_path / "t.jsonl", [*pairs(1), REFUSED])
    prompts = ["fine", "\ufdd0", "long " * 600]
    with pytest.raises(DataError) as caught:
        ready(load("gemma"), train=[train], test=[test], evaluate={"prompts": prompts})
    assert [str(problem).partition(" (")[0] for problem in caught.value.problems] == [
        "evaluate.prompts[1]: holds a Unicode noncharacter",
        f"evaluate.prompts[2]: {NO_ROOM}",
        "t.jsonl:2: the chat template refuses the row: Conversation roles must alternate "
        "user/assistant/user/assistant/...",
    ]
    with pytest.raises(DataError, match=r"t.jsonl:1: has the token id \d+, beyond the model's vocabulary of 500"):
        ready(
            method="pretrain",
            train=[write(tmp_path / "b.jsonl", [{"text": "a"}])],
            vocab_size=500,
            test=[
                write(tmp_path / "t.jsonl", [{"text": "<|im_end|> The quick brown fox jumps over the lazy dog." * 9}])
            ],
            valid_fraction=0,
        )


def test_prompts_of_the_recipe_come_before_those_of_the_rows(tmp_path):
    train, valid = (write(tmp_path / f"{name}.jsonl", pairs(9)) for name in "ab")
    made = ready(train=[train], valid=[valid], evaluate={"prompts": ["one?", "two?"]})
    assert [question.text for question in made.samples] == ["one?", "two?"]
    made = ready(train=[train], valid=[valid], evaluate={"samples": 2})
    assert [(question.text, question.reference) for question in made.samples] == [
        ("question 0", "answer 0"),
        ("question 1", "answer 1"),
    ]


def test_a_row_with_nothing_before_its_answer_is_learned_from_and_not_asked(tmp_path):
    rows = write(tmp_path / "a.jsonl", [ANSWER_ONLY, *pairs(2)])
    made = ready(train=[rows], valid=[rows], test=[rows], evaluate={"test_rows": 9})
    assert (len(made.train), len(made.valid)) == (3, 3)
    assert [question.text for question in made.samples] == ["question 0", "question 1"]
    assert [question.text for question in made.test] == ["question 0", "question 1"]
    assert made.report.notes[f"{TEST_NOT_ASKED} {NOTHING_TO_ASK}"] == 1


@pytest.mark.parametrize("policy", ["drop", "truncate", "split"])
def test_only_rows_that_were_kept_and_prompts_that_fit_are_asked(tmp_path, policy):
    rows = [
        {"prompt": "word " * 100, "completion": "late"},
        {"prompt": "early", "completion": "word " * 100},
        *pairs(1),
    ]
    held = write(tmp_path / "v.jsonl", rows)
    train = write(tmp_path / "a.jsonl", pairs(2, 10))
    made = ready(
        train=[train], valid=[held], test=[held], too_long=policy, max_seq_length=40, evaluate={"test_rows": 9}
    )
    asked = ["question 0"] if policy == "drop" else ["early", "question 0"]
    assert [question.text for question in made.samples] == asked
    assert [question.text for question in made.test] == ["early", "question 0"]
    assert max(len(question.ids) for question in made.test) < 40
    assert made.report.notes == {f"{TEST_NOT_ASKED} {NO_ROOM}": 1}


def test_as_many_test_rows_are_asked_as_wanted_and_all_are_checked(tmp_path):
    train, test = write(tmp_path / "a.jsonl", pairs(2)), write(tmp_path / "t.jsonl", pairs(5, 1))
    made = ready(train=[train], valid_fraction=0, test=[test], evaluate={"test_rows": 2})
    assert [question.text for question in made.test] == ["question 1", "question 2"]
    assert (made.report.test_rows, made.report.leaked_rows) == (5, 1)
    assert ready(train=[train], valid_fraction=0, test=[test]).test == []


def test_a_report_warns_of_all_that_was_cut_left_out_or_stands_twice(tmp_path):
    train = write(tmp_path / "a.jsonl", [*LONG, *pairs(2)])
    made = ready(train=[train], valid=[write(tmp_path / "v.jsonl", pairs(1))], max_seq_length=40)
    warnings = made.report.list_warnings()
    assert [message for message, _ in warnings] == [
        "longer than max_seq_length, so their end is cut off (rows: 1)",
        f"left out: {ANSWER_CUT_OFF} (rows: 1)",
        "repeat an earlier training row (rows: 2)",
        "in data.valid or data.test are also trained on (rows: 1)",
    ]
    assert all(fix and "\n" not in message + fix for message, fix in warnings)
    split = ready(train=[train], valid_fraction=0, max_seq_length=40, too_long="split").report.list_warnings()
    assert split[0][0] == "longer than max_seq_length, so they are split (rows: 2)"
    documents = write(tmp_path / "d.jsonl", [{"text": "word " * 200}])
    assert ready(method="pretrain", train=[documents], valid_fraction=0, max_seq_length=40).report.list_warnings() == []


LONG = [{"prompt": "short", "completion": "word " * 100}, {"prompt": "word " * 100, "completion": "late"}, *pairs(2)]


@pytest.mark.parametrize(
    ("policy", "lengths", "counts"),
    [
        ("drop", 2, {"dropped": {TOO_LONG: 2}, "truncated_rows": 0, "split_rows": 0}),
        ("truncate", 3, {"dropped": {ANSWER_CUT_OFF: 1}, "truncated_rows": 1, "split_rows": 0}),
        ("split", None, {"dropped": {}, "truncated_rows": 0, "split_rows": 2}),
    ],
)
def test_too_long(tmp_path, policy, lengths, counts):
    made = ready(train=[write(tmp_path / "a.jsonl", LONG)], valid_fraction=0, too_long=policy, max_seq_length=40)
    assert {name: getattr(made.report, name) for name in counts} == counts
    assert made.train.lengths.max() <= 40
    assert made.train.supervised.min() >= 1
    assert not any(made.train.row(index).mask[0] for index in range(len(made.train)))
    if lengths:
        assert len(made.train) == lengths
    else:  # every token to learn is learned once
        whole = ready(train=[write(tmp_path / "a.jsonl", LONG)], valid_fraction=0, max_seq_length=4096)
        assert made.train.mask.sum() == whole.train.mask.sum()
    with pytest.raises(DataError) as caught:
        ready(train=[write(tmp_path / "a.jsonl", LONG)], valid_fraction=0, too_long="error", max_seq_length=40)
    assert [problem.where for problem in caught.value.problems] == ["a.jsonl:1", "a.jsonl:2"]
    assert caught.value.problems[0].what.endswith(" tokens (max_seq_length is 40)")


def test_windows_overlap_by_the_token_that_predicts():
    ids = np.arange(10, dtype=np.int32)
    windows = split_windows(Encoded(ids, ids > 0), 4)
    assert [window.ids.tolist() for window in windows] == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
    assert np.concatenate([window.ids[window.mask] for window in windows]).tolist() == list(range(1, 10))


def test_pretraining_throws_nothing_away(tmp_path):
    texts = ["word " * 300, "a short one", "你好" * 200]
    path = write(tmp_path / "docs.jsonl", [{"text": text} for text in texts])
    (tmp_path / "more.md").write_text("# A file\n\nis a document", encoding="utf-8")
    made = ready(method="pretrain", train=[path, str(tmp_path / "more.md")], valid_fraction=0, max_seq_length=64)
    tokenizer = load("chatml")
    whole = [encode(TextExample(text), tokenizer, train_on="all") for text in (*texts, "# A file\n\nis a document")]
    assert made.train.mask.sum() == sum(row.mask.sum() for row in whole)
    assert made.train.lengths.max() == 64
    assert all(row.ids[-1] == tokenizer.eos_token_id for row in whole)
    assert made.report.dropped == {}


def test_all_problems_are_told_at_once(tmp_path):
    rows = [
        {"prompt": "a", "completion": ""},
        {"text": "x"},
        *pairs(1),
        {"messages": [{"role": "user", "content": None}]},
    ]
    path = write(tmp_path / "a.jsonl", rows)
    with open(path, "a", encoding="utf-8") as file:
        file.write("not json\n")
    with pytest.raises(DataError) as caught:
        ready(train=[path], valid=[str(tmp_path / "none.jsonl")], test=[write(tmp_path / "t.jsonl", [{}])])
    told = [str(problem) for problem in caught.value.problems]
    assert told[0] == "a.jsonl:1: completion is empty (expected text)"
    assert told[1].startswith("a.jsonl:2: is plain text, which sft learns from only with")
    assert told[2] == "a.jsonl:4: messages[0].content is null (expected text)"
    assert told[3] == "a.jsonl:5: is not valid JSON: expecting value at column 1"
    assert told[4] == f"{tmp_path}/none.jsonl: no such file or folder"
    assert told[5].startswith("t.jsonl:1: has no column that macft knows")
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ({}, "data.train: names no file to learn from"),
        ({"columns": {"promt": "q"}}, "data.columns.promt: is not a column of macft's (expected one of messages, "),
    ],
)
def test_the_data_table_is_checked(data, problem):
    with pytest.raises(DataError) as caught:
        ready(**data)
    assert str(caught.value).startswith(problem)


def test_ids_beyond_the_embedding_are_a_problem(tmp_path):
    with pytest.raises(DataError, match=r"a.jsonl:1: has the token id \d+, beyond the model's vocabulary of 300"):
        ready(train=[write(tmp_path / "a.jsonl", pairs(1))], vocab_size=300)


def test_pretraining_reads_text_even_beside_messages(tmp_path):
    row = {"messages": [{"role": "user", "content": "x"}], "text": "the text"}
    made = ready(method="pretrain", train=[write(tmp_path / "a.jsonl", [row])], valid_fraction=0)
    assert decode(load("chatml"), made.train.row(0).ids) == "the text<|im_end|>"
    with pytest.raises(DataError, match=r'a.jsonl:1: has no column "text", which method = "pretrain" reads'):
        ready(method="pretrain", train=[write(tmp_path / "a.jsonl", pairs(1))])


def test_nothing_left_is_an_error(tmp_path):
    path = write(tmp_path / "a.jsonl", LONG[:2])
    with pytest.raises(DataError, match=r"data.train: leaves nothing to train on: 2 longer than max_seq_length"):
        ready(train=[path], too_long="drop", max_seq_length=16)


def test_duplicates_and_formats_are_counted(tmp_path):
    made = ready(train=[write(tmp_path / "a.jsonl", [*pairs(3), *pairs(2)])], valid_fraction=0)
    assert made.report.duplicate_rows == 2
    assert made.report.formats == {"completion": 5}
    assert NOTHING_TO_LEARN not in made.report.dropped
    assert sum(count for _, count in made.report.histogram) == 5


def test_progress_ends_at_the_number_of_rows(tmp_path):
    calls: list[tuple[int, int]] = []
    path = write(tmp_path / "a.jsonl", pairs(600))
    ready(train=[path], progress=lambda done, total: calls.append((done, total)))
    assert calls[0] == (256, 600)
    assert calls[-1] == (600, 600)


@pytest.mark.parametrize("format", ["chatml", "llama2", "gemma"])
@pytest.mark.parametrize("answer", ["👩‍👩‍👧 done", "你好，世界", "plain"])
def test_a_shown_row_is_its_text_with_no_character_torn(format, answer):
    tokenizer = load(format)
    for train_on in ("assistant", "all"):
        encoded = encode(CompletionExample("😀 ask", answer), tokenizer, train_on=train_on)
        runs = render_row(encoded, tokenizer)
        assert "".join(text for text, _ in runs) == decode(tokenizer, encoded.ids)
        assert not any("\ufffd" in text for text, _ in runs)
        assert any(answer in text and trained for text, trained in runs)

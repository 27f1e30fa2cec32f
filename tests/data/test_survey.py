"""A survey sees what training will see: `prepare` is its oracle."""

import json
from pathlib import Path

import numpy as np
import pytest

from macft.data.chat_template import decode
from macft.data.inspect import encode_row, list_tokens
from macft.data.prepare import prepare
from macft.data.rewrite import Rewrite, read_edited
from macft.data.sources import Row, read_rows
from macft.data.survey import FLAGS, Seen, Survey, contains, describe_oddness
from macft.errors import DataError, MacftError
from macft.recipe import DataTable
from tests.data.formats import BY_NAME, load

TOKENIZER = load("chatml")
LIMIT = 100_000


def write(path: Path, rows: list[object]) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def chat(*turns: tuple[str, str]) -> dict[str, object]:
    return {"messages": [{"role": role, "content": text} for role, text in turns]}


def survey(*files: str, method: str = "sft", limit: int = LIMIT, **more: object) -> Survey:
    data = DataTable.model_validate({"train": list(files), **more})
    return Survey(data, TOKENIZER, method=method, max_seq_length=limit, vocab_size=10_000)


def look(made: Survey) -> list[Seen]:
    rows = []
    while not made.is_done:
        rows += made.go_on(0.0)
    return rows


def names(seen: Seen) -> set[str]:
    return {name for bit, name in enumerate(FLAGS) if seen.flags >> bit & 1}


def test_what_is_seen_is_what_training_counts(tmp_path: Path) -> None:
    rows = [chat(("user", f"question {n % 40}"), ("assistant", f"answer {n % 40} é🎉")) for n in range(50)]
    file = write(tmp_path / "rows.jsonl", rows)
    seen = look(survey(file))
    data = DataTable(train=[file], valid_fraction=0)
    made = prepare(data, TOKENIZER, method="sft", max_seq_length=LIMIT, vocab_size=10_000)
    assert [row.tokens for row in seen] == made.train.lengths.tolist()
    assert [row.supervised for row in seen] == made.train.supervised.tolist()
    assert sum("duplicate" in names(row) for row in seen) == made.report.duplicate_rows == 10
    assert [row.same_as for row in seen[40:]] == list(range(1, 11))
    assert {row.turns for row in seen} == {2}


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_pairs_are_seen_as_training_counts_them(tmp_path: Path, method: str) -> None:
    rows = [{"prompt": f"p {n}", "chosen": f"good {n}" * (n + 1), "rejected": f"bad {n}"} for n in range(20)]
    file = write(tmp_path / "rows.jsonl", [*rows, {"prompt": "p", "chosen": "x", "rejected": "x"}])
    seen = look(survey(file, method=method))
    data = DataTable(train=[file], valid_fraction=0)
    made = prepare(data, TOKENIZER, method=method, max_seq_length=LIMIT, vocab_size=10_000)
    assert sum(row.supervised for row in seen[:20]) == made.train.supervised[: 20 if method == "dpo" else 40].sum()
    assert sum(row.tokens for row in seen) >= made.train.lengths.sum() > 0
    assert names(seen[20]) == {"nothing"}


def test_what_is_the_matter_is_flagged(tmp_path: Path) -> None:
    answer = ("assistant", "fine")
    long = "word " * 200
    file = write(
        tmp_path / "rows.jsonl",
        [
            chat(("user", "hi"), answer),
            "{broken",
            {"messages": [{"role": "judge", "content": "hm"}]},
            chat(("user", "hi"), answer),
            chat(("user", "a"), ("user", "b"), answer),
            chat(("user", "short"), ("assistant", long)),
            chat(("user", long), answer),
        ],
    )
    made = survey(file, limit=60)
    seen = look(made)
    assert [names(row) for row in seen] == [
        set(),
        {"unusable"},
        {"unusable"},
        {"duplicate"},
        {"odd_roles"},
        {"too_long"},
        {"too_long", "nothing"},
    ]
    assert [row.line for row in seen] == [1, 2, 3, 4, 5, 6, 7]
    assert made.problems[2].startswith("is not valid JSON")
    assert 'role is "judge"' in made.problems[3]
    assert seen[5].tokens > 200, "a long row is seen uncut"
    assert made.places.read(made.place(4)).where == "rows.jsonl:4"


def test_a_missing_file_is_a_row_that_says_so(tmp_path: Path) -> None:
    made = survey(str(tmp_path / "none.jsonl"), str(tmp_path / "notes.xyz"))
    assert [names(row) for row in look(made)] == [{"unusable"}] * 2
    assert made.problems[1] == "no such file or folder"


def test_a_row_with_nothing_to_learn_still_has_its_length(tmp_path: Path) -> None:
    silent = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "x", "train": False}]}
    rows = [chat(("user", "hi"), ("assistant", "there")), silent]
    seen = look(survey(write(tmp_path / "rows.jsonl", rows)))
    assert "unusable" in names(seen[1]), "no turn of it may be learned from"
    text = look(survey(write(tmp_path / "text.jsonl", [{"text": "a"}]), method="pretrain"))
    assert text[0].tokens >= 1
    assert text[0].turns == 0


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        ("system user assistant", ""),
        ("user assistant tool tool assistant", ""),
        ("", ""),
        ("system", "nothing but a system text"),
        ("assistant user assistant", "the first turn is the assistant's"),
        ("user system assistant", "amid the turns"),
        ("user user assistant", "two turns of the user"),
        ("user tool assistant", "a tool answers the user"),
        ("user assistant user", "the last turn is the user's"),
    ],
)
def test_odd_orders_of_turns(roles: str, said: str) -> None:
    assert said in describe_oddness(roles.split())
    assert bool(describe_oddness(roles.split())) == bool(said)


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_tokens_join_to_the_text(name: str) -> None:
    tokenizer = load(name)
    text = "Ünïcode 🎉🎊 family 👨‍👩‍👧 and\n\n  spaces\tand 中文字"
    row = Row(chat(("user", text), ("assistant", text[::-1])), "x:1", "x", 1)
    (piece,) = encode_row(row, DataTable(), tokenizer, "sft")
    whole = list_tokens(piece.encoded, tokenizer, 0, 10**6)
    assert "".join(token.text for token in whole) == decode(tokenizer, piece.encoded.ids)
    assert [id for token in whole for id in token.ids] == piece.encoded.ids.tolist()
    mask = np.concatenate([[token.is_trained] * len(token.ids) for token in whole])
    assert (mask != piece.encoded.mask).sum() <= sum(len(token.ids) > 1 for token in whole)
    part = list_tokens(piece.encoded, tokenizer, 5, 4)
    assert [id for token in part for id in token.ids][:4] == piece.encoded.ids[5:9].tolist()


def test_words_are_found_in_texts_and_reasons(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [chat(("user", "Hello There"), ("assistant", "yes")), "{broken"])
    rows = [row for _, row in survey(file).read()]
    assert [contains(row, ["there", "hello"]) for row in rows] == [True, False]
    assert [contains(row, ["valid json"]) for row in rows] == [False, True]


def test_a_copy_splits_as_training_would(tmp_path: Path) -> None:
    rows = [chat(("user", f"question {n}"), ("assistant", f"answer {n}")) for n in range(200)]
    file = write(tmp_path / "rows.jsonl", [*rows, "{broken", {"strange": 1}])
    made = survey(file)
    look(made)
    new = chat(("user", "question 7"), ("assistant", "another answer"))
    rewrite = Rewrite(
        made, tmp_path / "copy", dropped={1, 2}, edited={8: json.dumps(new, indent=2)}, valid_fraction=0.2
    )
    while not rewrite.is_done:
        rewrite.go_on(0.001)
    rewrite.close()
    written = {name: list(read_rows([str(tmp_path / "copy" / f"{name}.jsonl")], [])) for name in ("train", "valid")}
    data = DataTable(train=[write(tmp_path / "kept.jsonl", rows[2:])], valid_fraction=0.2)
    oracle = prepare(data, TOKENIZER, method="sft", max_seq_length=LIMIT, vocab_size=10_000)
    assert rewrite.written._asdict() == {
        "train": len(written["train"]),
        "valid": len(written["valid"]),
        "dropped": 2,
        "unusable": 2,
    }
    held = {rows[int(where.split(":")[1]) + 1]["messages"][0]["content"] for where in oracle.valid.where}  # type: ignore[index]
    ours = {row.value["messages"][0]["content"] for row in written["valid"]}
    assert ours ^ held <= {"question 7"}, "only the row that was written anew may have moved"
    assert new in [row.value for part in written.values() for row in part]
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == ["train.jsonl", "valid.jsonl"]


def test_a_copy_that_is_not_finished_leaves_nothing(tmp_path: Path) -> None:
    made = survey(write(tmp_path / "rows.jsonl", [chat(("user", "a"), ("assistant", "b"))] * 5))
    rewrite = Rewrite(made, tmp_path / "copy")
    rewrite.close()
    assert not (tmp_path / "copy").exists()
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "mine").touch()
    with pytest.raises(MacftError, match="there already"):
        Rewrite(made, tmp_path / "copy")


def test_an_edited_row_must_be_one() -> None:
    row = Row({}, "rows.jsonl:3", "rows.jsonl", 3)
    assert read_edited('{\n"text":\n"x"}', row).value == {"text": "x"}
    with pytest.raises(DataError, match=r"rows\.jsonl:3: is not valid JSON"):
        read_edited("{", row)
    with pytest.raises(DataError, match="is a list"):
        read_edited("[]", row)

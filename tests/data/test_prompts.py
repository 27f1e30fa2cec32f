import io
import json
from pathlib import Path

import pytest

from macft.data.prompts import read_prompts
from macft.errors import DataError

USER = {"role": "user", "content": "what?"}
ANSWER = {"role": "assistant", "content": "that"}


def read(tmp_path: Path, *rows: dict) -> list[tuple[tuple[str, str], ...]]:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return [prompt.turns for prompt in read_prompts(str(path))]


def test_a_text_file_is_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeffone\n\n  two words\u2028still  \n", encoding="utf-8")
    assert [(prompt.turns, prompt.where) for prompt in read_prompts(str(path))] == [
        ((("user", "one"),), "prompts.txt:1"),
        ((("user", "two words\u2028still"),), "prompts.txt:3"),
    ]


@pytest.mark.parametrize(
    ("row", "turns"),
    [
        ({"prompt": "what?"}, (("user", "what?"),)),
        ({"prompt": "what?", "system": "kind"}, (("system", "kind"), ("user", "what?"))),
        ({"prompt": [USER, ANSWER, USER]}, (("user", "what?"), ("assistant", "that"), ("user", "what?"))),
        ({"prompt": [USER], "chosen": "a", "rejected": "b"}, (("user", "what?"),)),
        ({"prompt": "what?", "completion": "that"}, (("user", "what?"),)),
        ({"messages": [USER]}, (("user", "what?"),)),
        ({"messages": [USER, ANSWER]}, (("user", "what?"),)),
        ({"instruction": "what?", "output": "that"}, (("user", "what?"),)),
        ({"text": "Once upon"}, (("user", "Once upon"),)),
    ],
)
def test_a_row_is_asked_up_to_its_last_answer(tmp_path: Path, row: dict, turns: tuple) -> None:
    assert read(tmp_path, row) == [turns]


def test_bad_rows_are_all_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, {"prompt": ""}, {"messages": [USER]}, {"other": 1})
    assert [problem.where for problem in caught.value.problems] == ["prompts.jsonl:1", "prompts.jsonl:3"]


@pytest.mark.parametrize(("content", "said"), [(b"\n \n", "holds no prompt"), (b"\xff", "is not UTF-8 text")])
def test_a_file_without_prompts_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_prompts(str(path))
    with pytest.raises(DataError, match="No such file"):
        read_prompts(str(tmp_path / "missing.txt"))


@pytest.mark.parametrize("typed", [b'{"prompt": "what?"}\n', b"what?\n"])
def test_stdin_is_lines_or_objects(typed: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(typed))))
    (prompt,) = read_prompts("-")
    assert prompt.turns == (("user", "what?"),)
    assert prompt.where == "stdin:1"

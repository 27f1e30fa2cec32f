"""`macft eval`: figures on stdout, as a table or as JSON."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from macft.cli.main import run
from tests.shelf import Shelf


@pytest.fixture
def macft(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setenv("MACFT_HOME", str(shelf.home))
    monkeypatch.setenv("MACFT_RUNS", str(shelf.runs))
    shelf.add_run("one", seed=1)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(["eval", *arguments, "--max-tokens", "4"])
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"prompt": "what is {n}?", "completion": "it is {n}"}}\n' for n in range(5)))
    return str(path)


def test_json_has_base_and_tuned(macft: Callable, rows: str) -> None:
    code, out, _ = macft("one", "--data", rows, "--limit", "3", "--json")
    told = json.loads(out)
    assert code == 0
    assert (told["schema"], told["rows"], told["questions"]) == (1, 3, 3)
    assert {"loss", "perplexity", "exact_match", "f1"} <= set(told["base"]) & set(told["tuned"])
    assert set(told["intervals"]["base"]) == set(told["base"])
    assert len(told["worst"]) == 3


def test_a_table_has_intervals_and_the_worst_rows(macft: Callable, rows: str) -> None:
    code, out, err = macft("one@2", "--data", rows)
    assert code == 0
    head, loss, *_ = out.splitlines()
    assert head.split() == ["5", "rows", "Base", "95%", "tuned", "95%", "p"]
    assert loss.split()[0] == "loss"
    assert "5 answers: fixed 0 · broken 0 · right in both 0 · wrong in both 5" in out
    assert out.count("expected") == 3
    assert "answers were as long as allowed" in err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["one"], 2, "the recipe names no test or validation rows"),
        (["one", "--data", "-"], 2, "rows are read twice"),
        (["tiny", "--data", "{rows}"], 3, "no Base beside it"),
        (["nothing", "--data", "{rows}"], 3, "is no run, adapter folder or model"),
        (["one", "--data", "gone.jsonl"], 3, "no such file"),
        (["one", "--data", "{rows}", "--limit", "0"], 2, "limit"),
    ],
)
def test_what_cannot_be_measured_is_said(
    macft: Callable, rows: str, arguments: list[str], code: int, said: str
) -> None:
    found, out, err = macft(*(word.format(rows=rows) for word in arguments))
    assert (found, out) == (code, "")
    assert said in err

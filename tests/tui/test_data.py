"""Data as a person uses it: what is listed, what is shown of a row, and what became of changes."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, TextArea

from macft.data.sources import read_rows
from tests.shelf import Shelf
from tests.tui.rows_child import RowsInProcess
from tests.tui.stage import LARGE, SMALL, Act, check_snapshot, perform, screen_text, until
from tui.app import Studio
from tui.draft import Draft
from tui.rows import Row, RowTable
from tui.screens.data import DataScreen
from tui.screens.train import TrainScreen
from tui.widgets.row_list import RowList
from tui.widgets.row_view import mark_differences

FLAGS = ("unusable", "nothing", "too_long", "duplicate", "odd_roles")


def chat(question: str, answer: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


CHATS: list[object] = [
    *(chat(f"What is {n} and {n}?", f"It is {2 * n}.") for n in range(1, 15)),
    chat("What is 3 and 3?", "It is 6."),
    '{"messages": [}',
    {
        "messages": [
            {"role": "user", "content": "Hi"},
            {"role": "user", "content": "Hi?"},
            *chat("?", "Hi!")["messages"],
        ]
    },  # type: ignore[misc]
    {"messages": [{"role": "judge", "content": "Hm."}]},
    chat("Tell me everything.", "And then there was one more thing. " * 12),
    *(chat(f"Who is number {n}?", f"You are number {n}.") for n in range(15, 30)),
]
PAIRS: list[object] = [
    {"prompt": 'Define "yoke".', "chosen": "A word that joins two.", "rejected": "A frame that joins two oxen."},
    {"prompt": 'Define "year".', "chosen": "A period of disappointments.", "rejected": "A period of 365 days."},
]


@pytest.fixture
def rows(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write rows where the studio's recipe looks for them, and put a model there."""
    monkeypatch.setenv("MACFT_HOME", str(shelf.home))

    def write(values: list[object], name: str = "rows.jsonl") -> Path:
        lines = [value if isinstance(value, str) else json.dumps(value) for value in values]
        path = shelf.home / name
        path.write_text("\n".join(lines) + "\n")
        return path

    return write


def use(path: Path, act: Act, size: tuple[int, int] = LARGE, *, recipe: str = "quickstart") -> None:
    """Open Data on a file and let `act` use it."""

    async def go(pilot: "Pilot[None]") -> None:
        assert isinstance(pilot.app, Studio)
        values = {"model": "tiny", "data.train": str(path), "data.valid": "[]", "data.test": "[]"}
        pilot.app.draft = Draft(recipe).change_all({**values, "max_seq_length": "100"})
        await pilot.press("3")
        await until(pilot, lambda: isinstance(pilot.app.screen, DataScreen) and pilot.app.screen.is_done)
        await until(pilot, lambda: bool(data(pilot).told))
        await pilot.pause()
        await act(pilot)

    runs = path.parent / "no-runs"
    perform(runs, go, size, start_rows=RowsInProcess)


def data(pilot: "Pilot[None]") -> DataScreen:
    screen = pilot.app.screen
    assert isinstance(screen, DataScreen)
    return screen


def listed(pilot: "Pilot[None]") -> list[int]:
    rows = data(pilot).query_one(RowList)
    return list(range(1, rows.count + 1)) if rows.numbers is None else rows.numbers


async def go_to(pilot: "Pilot[None]", number: int) -> None:
    data(pilot).query_one(RowList).move_to(listed(pilot).index(number))
    await until(pilot, lambda: data(pilot).told["row"] == number)
    await pilot.pause()


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_rows_are_listed_beside_the_one_that_is_read(rows, size: tuple[int, int]) -> None:
    async def act(pilot: "Pilot[None]") -> None:
        await check_snapshot(pilot, "data-chats")
        await pilot.press("G")
        await until(pilot, lambda: data(pilot).told["row"] == 34)
        await check_snapshot(pilot, "data-last")

    use(rows(CHATS), act, size)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_row_is_shown_token_by_token(rows, size: tuple[int, int]) -> None:
    async def act(pilot: "Pilot[None]") -> None:
        await pilot.press("t")
        await check_snapshot(pilot, "data-tokens")
        ids = [id for _, ids, _ in data(pilot).told["parts"][0]["tokens"] for id in ids]
        assert all(str(id) in screen_text(pilot) for id in ids[:5])
        await pilot.press("t", "m")
        await until(pilot, lambda: '"role": "user"' in screen_text(pilot))
        await pilot.press("m")
        await until(pilot, lambda: "as the model sees it" in screen_text(pilot))

    use(rows(CHATS), act, size)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_pairs_stand_side_by_side(rows, size: tuple[int, int]) -> None:
    async def act(pilot: "Pilot[None]") -> None:
        await check_snapshot(pilot, "data-pair")
        await pilot.press("enter")
        await until(pilot, lambda: data(pilot).has_class("reading"))
        await pilot.pause()
        await check_snapshot(pilot, "data-pair-read")
        await pilot.press("escape", "v")
        await until(pilot, lambda: "▸ prompt" in screen_text(pilot) and "as the model" in screen_text(pilot))

    use(rows(PAIRS), act, size, recipe="dpo-lora-tone")


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_what_is_the_matter_is_listed_by_itself(rows, size: tuple[int, int]) -> None:
    async def act(pilot: "Pilot[None]") -> None:
        await pilot.press("f")
        assert listed(pilot) == [15, 16, 17, 18, 19]
        await go_to(pilot, 16)
        await check_snapshot(pilot, "data-flags")
        assert "rows.jsonl:16: is not" in screen_text(pilot)
        await go_to(pilot, 17)
        assert "two turns of the user" in screen_text(pilot)
        await pilot.press("f")
        assert len(listed(pilot)) == 34

    use(rows(CHATS), act, size)


def test_the_filter_finds_words_in_the_file(rows) -> None:
    async def act(pilot: "Pilot[None]") -> None:
        await pilot.press("slash", *"who 2", "enter")
        await until(pilot, lambda: listed(pilot) == [*range(25, 35)])
        await until(pilot, lambda: data(pilot).told["row"] == 25)
        await pilot.press("escape")
        await until(pilot, lambda: len(listed(pilot)) == 34)
        assert data(pilot).query_one(RowList).current == 25

    use(rows(CHATS), act)


def test_duplicates_are_dropped_and_come_back(rows) -> None:
    async def act(pilot: "Pilot[None]") -> None:
        await pilot.press("d")
        assert data(pilot).rows.dropped == {15}
        await pilot.press("x")
        assert data(pilot).rows.dropped == {1, 15}
        await until(pilot, lambda: "– 2 dropped" in screen_text(pilot))
        await pilot.press("u", "u", "u")
        assert data(pilot).rows.dropped == set()

    use(rows(CHATS), act)


def test_an_edited_row_is_read_anew_and_copied(rows) -> None:
    path = rows(CHATS)

    async def act(pilot: "Pilot[None]") -> None:
        before = data(pilot).rows[2]
        await go_to(pilot, 2)
        await pilot.press("e")
        await until(pilot, lambda: bool(pilot.app.screen.query(TextArea)))
        await pilot.pause()
        pilot.app.screen.query_one(TextArea).text = "{"
        await pilot.press("ctrl+s")
        await until(pilot, lambda: bool(pilot.app.screen.query("#edit-problem")))
        await until(pilot, lambda: "not valid JSON" in screen_text(pilot))
        pilot.app.screen.query_one(TextArea).text = json.dumps(chat("What now?", "Now there are more words."), indent=2)
        await pilot.press("ctrl+s")
        await until(pilot, lambda: isinstance(pilot.app.screen, DataScreen) and 2 in data(pilot).rows.edited)
        await until(pilot, lambda: "more words" in screen_text(pilot))
        assert data(pilot).rows[2].tokens != before.tokens
        await pilot.press("d", "a")
        assert isinstance(pilot.app.screen, DataScreen), "changes are copied first"
        await pilot.press("s")
        await pilot.pause()
        pilot.app.screen.query_one(Input).value = f"{path.parent / 'copy'} 20%"
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, DataScreen) and data(pilot).path.endswith("copy"))
        await until(pilot, lambda: data(pilot).is_done)

    use(path, act)
    copied = list(read_rows([str(path.parent / "copy")], []))
    assert len(copied) == 31
    assert chat("What now?", "Now there are more words.") in [row.value for row in copied]
    assert path.read_text().count("\n") == len(CHATS), "the file itself stays as it is"


def test_the_rows_are_trained_on_with_a_recipe_for_such_rows(rows) -> None:
    path = rows(PAIRS)

    async def act(pilot: "Pilot[None]") -> None:
        assert "sft cannot" in screen_text(pilot)
        data(pilot).open_path(str(path))
        await until(pilot, lambda: data(pilot).opened.get("method") == "dpo")
        await pilot.press("a")
        await until(pilot, lambda: isinstance(pilot.app.screen, TrainScreen))
        await until(pilot, lambda: "dpo-lora-tone" in screen_text(pilot))
        assert isinstance(pilot.app, Studio)
        recipe = pilot.app.draft.recipe()
        assert recipe.method == "dpo"
        assert [Path(path).name for path in recipe.data.train] == ["rows.jsonl"]
        assert recipe.data.valid == []
        assert recipe.model == "tiny"

    use(path, act)


def test_a_folder_shows_what_is_held_out(rows, shelf: Shelf) -> None:
    folder = shelf.home / "folder"
    folder.mkdir()
    for name in ("train", "valid", "test"):
        rows([chat(f"{name} {n}", "yes") for n in range(3)], f"folder/{name}.jsonl")

    async def act(pilot: "Pilot[None]") -> None:
        assert "p: valid, test" in screen_text(pilot)
        await pilot.press("p")
        await until(pilot, lambda: "valid 0" in screen_text(pilot))
        await pilot.press("p")
        await until(pilot, lambda: "test 0" in screen_text(pilot))
        await pilot.press("p")
        await until(pilot, lambda: "train 0" in screen_text(pilot))

    use(folder, act)


def test_another_file_is_opened_by_its_path(rows, shelf: Shelf) -> None:
    other = rows(PAIRS, "other.jsonl")

    async def act(pilot: "Pilot[None]") -> None:
        await pilot.press("o")
        await pilot.pause()
        pilot.app.screen.query_one(Input).value = str(other)
        await pilot.press("enter")
        await until(
            pilot, lambda: isinstance(pilot.app.screen, DataScreen) and data(pilot).opened.get("method") == "dpo"
        )
        await pilot.press("o")
        await pilot.pause()
        pilot.app.screen.query_one(Input).value = str(shelf.home / "nothing.jsonl")
        await pilot.press("enter")
        await until(pilot, lambda: "no such file or folder" in screen_text(pilot))
        await pilot.press("l")
        await pilot.pause()
        pilot.app.screen.query_one(Input).value = "./no-model"
        await pilot.press("enter")
        await until(pilot, lambda: "l names another model" in screen_text(pilot))

    use(rows(CHATS), act)


def test_a_child_that_dies_is_started_again(rows) -> None:
    async def act(pilot: "Pilot[None]") -> None:
        reader = data(pilot).reader
        assert reader is not None
        assert reader.process is not None
        reader.process.kill()
        reader._start = RowsInProcess
        await pilot.press("j")
        await until(pilot, lambda: "no rows are open" in screen_text(pilot))
        await pilot.press("r")
        await until(pilot, lambda: data(pilot).is_done and len(listed(pilot)) == 34)

    use(rows(CHATS), act)


def test_a_long_row_is_read_in_windows(rows) -> None:
    async def act(pilot: "Pilot[None]") -> None:
        await until(pilot, lambda: data(pilot).told["parts"][0]["count"] > 2000)
        first = screen_text(pilot)
        await pilot.press("right_square_bracket")
        await until(pilot, lambda: data(pilot).told["start"] == 1000)
        await pilot.pause()
        assert screen_text(pilot) != first
        await pilot.press("left_square_bracket", "left_square_bracket")
        await until(pilot, lambda: data(pilot).told["start"] == 0)

    use(rows([chat("Count.", " ".join(map(str, range(2000))))]), act)


def test_a_recipe_without_rows_says_what_to_open(tmp_path: Path) -> None:
    async def act(pilot: "Pilot[None]") -> None:
        assert isinstance(pilot.app, Studio)
        pilot.app.draft = pilot.app.draft.change("data.train", "[]")
        await pilot.press("3")
        await until(pilot, lambda: isinstance(pilot.app.screen, DataScreen))
        await check_snapshot(pilot, "data-empty")

    for size in (SMALL, LARGE):
        perform(tmp_path, act, size, start_rows=RowsInProcess)


def test_a_million_rows_scroll_as_ten_do(rows) -> None:
    def table(count: int) -> RowTable:
        made = RowTable(names=FLAGS)
        made.add([[0, n, 2, 50 + n % 400, 20, 8 if n % 10 == 9 else 0, n // 2] for n in range(1, count + 1)], {})
        return made

    tables = {count: table(count) for count in (100, 1_000_000)}
    spent = dict[int, float]()

    async def act(pilot: "Pilot[None]") -> None:
        shown = data(pilot).query_one(RowList)
        for count, rows in tables.items():
            data(pilot).rows = rows
            shown.show(rows, None)
            started = time.process_time()
            for _ in range(10):
                shown.action_move_to(-1)
                await pilot.pause()
                shown.action_move_to(0)
                shown.action_move_page(1)
                await pilot.pause()
            spent[count] = time.process_time() - started
            assert shown.count == count

    use(rows(CHATS), act)
    assert spent[1_000_000] < 3 * spent[100] + 0.3
    large = tables[1_000_000]
    assert large.percentile(0.5) == 249
    assert len(large.flagged(0)) == 100_000
    assert len(large) * len(Row._fields) * 4 < 32 * 2**20


def test_words_that_differ_are_marked() -> None:
    left, right = mark_differences("a word joins two", "a frame joins two oxen")
    assert [text for text, style in left if style] == ["word"]
    assert [text.strip() for text, style in right if style] == ["frame", "oxen"]
    assert "".join(text for text, _ in right) == "a frame joins two oxen"

"""Compare over a child that speaks the worker's lines, and once over the real one."""

import fcntl
import json
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input, OptionList, TextArea

from macft import api
from macft.chat.panes import Sampling
from macft.machine import home
from tests.shelf import Shelf
from tests.tui.stage import (
    FAKE_WORKER,
    LARGE,
    SMALL,
    Act,
    check_snapshot,
    notices,
    perform,
    screen_text,
    stage_result,
    until,
)
from tui.screens.ask import AskScreen
from tui.screens.compare import CompareScreen
from tui.screens.edit import EditScreen
from tui.screens.settings import SettingsScreen
from tui.screens.train import TrainScreen
from tui.screens.voices import VoicesScreen
from tui.widgets.pane import Pane
from tui.widgets.verdict import VerdictBar

QUESTION = "My parcel says delivered but I have nothing."
Play = Callable[["Pilot[None]", CompareScreen], Awaitable[None]]


@pytest.fixture
def picks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MACFT_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "picks" / "support.jsonl"


def on_compare(play: Play) -> Act:
    async def act(pilot: "Pilot[None]") -> None:
        await pilot.press("6")
        await until(pilot, lambda: isinstance(pilot.app.screen, CompareScreen))
        await pilot.pause()
        screen = pilot.app.screen
        assert isinstance(screen, CompareScreen)
        await play(pilot, screen)

    return act


def run(tmp_path: Path, play: Play, size: tuple[int, int] = LARGE, pause: str = "0") -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    stage_result(runs)
    perform(runs, on_compare(play), size, worker=(*FAKE_WORKER, pause))


async def ask(pilot: "Pilot[None]", screen: CompareScreen, question: str = QUESTION) -> None:
    line = screen.query_one("#say", Input)
    line.focus()
    line.value = question
    await pilot.press("enter")
    await until(pilot, lambda: screen.comparison.current is not None and screen.comparison.current.question == question)


async def ask_and_wait(pilot: "Pilot[None]", screen: CompareScreen, question: str = QUESTION) -> None:
    await ask(pilot, screen, question)
    await until(pilot, lambda: bool(screen.comparison.current and screen.comparison.current.end))
    await until(pilot, lambda: not screen._is_stale)
    await pilot.pause()


async def judge(pilot: "Pilot[None]", screen: CompareScreen, key: str) -> None:
    before = len(screen.judged)
    await until(pilot, lambda: isinstance(screen.focused, VerdictBar))
    await pilot.press(key)
    await until(pilot, lambda: len(screen.judged) == before + 1)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_pick_is_a_row_and_names_are_hidden_until_then(tmp_path: Path, picks: Path) -> None:
    async def play(pilot: "Pilot[None]", screen: CompareScreen) -> None:
        await ask_and_wait(pilot, screen)
        assert screen.comparison.talk is not None
        assert screen.comparison.talk.order == (1, 0)
        await until(pilot, lambda: "Which is better?" in screen_text(pilot))
        text = screen_text(pilot)
        assert "support" not in text
        assert "tok/s" not in text
        await judge(pilot, screen, "1")
        await until(pilot, lambda: "A was support · B was Base" in screen_text(pilot))
        await until(pilot, lambda: "1 of ≥ 50 pairs" in screen_text(pilot))

    run(tmp_path, play)
    (row,) = rows(picks)
    assert row["prompt"] == [{"role": "user", "content": QUESTION}]
    assert row["chosen"].startswith("Sorry about that")
    assert row["rejected"].startswith("I'm sorry")
    assert row["voices"] == {"chosen": "support", "rejected": "Base"}
    assert row["seed"] == 0
    assert picks.stat().st_mode & 0o777 == 0o600


def test_each_pane_goes_on_with_its_own_history(tmp_path: Path, picks: Path) -> None:
    async def play(pilot: "Pilot[None]", screen: CompareScreen) -> None:
        await ask_and_wait(pilot, screen)
        await ask_and_wait(pilot, screen, "And now?")
        talk = screen.comparison.talk
        assert talk is not None
        assert [[content for _, content in turns][1][:5] for turns in talk.rounds[1].asked] == ["I'm s", "Sorry"]
        assert "its own way" in screen_text(pilot)

    run(tmp_path, play)


def test_after_a_verdict_the_talk_can_go_on_from_the_winner(tmp_path: Path, picks: Path) -> None:
    async def play(pilot: "Pilot[None]", screen: CompareScreen) -> None:
        await ask_and_wait(pilot, screen)
        await judge(pilot, screen, "2")
        await pilot.press("escape", "w")
        await ask_and_wait(pilot, screen, "And now?")
        await judge(pilot, screen, "1")

    run(tmp_path, play)
    first, second = rows(picks)
    assert second["prompt"] == [
        *first["prompt"],
        {"role": "assistant", "content": first["chosen"]},
        {"role": "user", "content": "And now?"},
    ]


def test_escape_stops_and_keeps_what_came(tmp_path: Path, picks: Path) -> None:
    async def play(pilot: "Pilot[None]", screen: CompareScreen) -> None:
        await ask(pilot, screen, "slow, please")
        await until(pilot, lambda: all(reply.text for reply in screen.comparison.current.replies))  # type: ignore[union-attr]
        await pilot.press("escape")
        current = screen.comparison.current
        assert current is not None
        assert current.end == "stopped"
        said = [reply.text for reply in current.replies]
        await pilot.pause(0.3)
        assert [reply.text for reply in current.replies] == said
        await judge(pilot, screen, "1")
        await ask_and_wait(pilot, screen)

    run(tmp_path, play, pause="0.002")
    assert len(rows(picks)[0]["chosen"].split()) < 20


@pytest.mark.parametrize("moment", ["loading", "answering", "idle"])
def test_the_child_may_be_killed_at_any_moment(tmp_path: Path, picks: Path, moment: str) -> None:
    async def play(pilot: "Pilot[None]", screen: CompareScreen) -> None:
        comparison = screen.comparison
        if moment == "answering":
            await ask_and_wait(pilot, screen, "first")
            await ask(pilot, screen, "slow, please")
            await until(pilot, lambda: bool(comparison.current and comparison.current.replies[0].text))
        elif moment == "idle":
            await ask_and_wait(pilot, screen, "first")
        else:
            screen.query_one("#say", Input).value = "first"
            await pilot.press("enter")
            await until(pilot, lambda: comparison.child.process_id is not None)
        process = comparison.child.process_id
        assert process is not None
        os.kill(process, signal.SIGKILL)
        await until(pilot, lambda: "✘ The models' process died (it was killed" in screen_text(pilot))
        assert "^r starts it again" in screen_text(pilot)
        if moment != "loading":
            assert comparison.talks[0].rounds[0].replies[0].text.startswith("I'm sorry")
        await pilot.press("ctrl+r")
        await until(pilot, lambda: bool(comparison.current and comparison.current.end in {"", "done"}))
        await until(pilot, lambda: comparison.status == "ready")
        assert comparison.child.process_id not in {None, process}
        if moment == "answering":
            await pilot.press("escape")

    run(tmp_path, play, pause="0.002")


def test_a_child_that_dies_amid_an_answer_by_itself_says_how(tmp_path: Path, picks: Path) -> None:
    async def play(pilot: "Pilot[None]", screen: CompareScreen) -> None:
        await ask(pilot, screen, "die")
        await until(pilot, lambda: "process died (code 9)" in screen_text(pilot))
        assert "cut off" in screen_text(pilot)
        await pilot.press("ctrl+n")
        await ask_and_wait(pilot, screen, "Hello")
        await until(pilot, lambda: "Which is better?" in screen_text(pilot))

    run(tmp_path, play)


def test_a_worker_that_cannot_start_is_a_sentence(tmp_path: Path, picks: Path) -> None:
    async def play(pilot: "Pilot[None]", screen: CompareScreen) -> None:
        screen.query_one("#say", Input).value = "Hello"
        await pilot.press("enter")
        await until(pilot, lambda: "✘ The models' process died" in screen_text(pilot))

    runs = tmp_path / "runs"
    runs.mkdir()
    stage_result(runs)
    perform(runs, on_compare(play), worker=(str(tmp_path / "nothing"),))


def test_what_the_worker_refuses_is_said_and_the_talk_goes_on(tmp_path: Path, picks: Path) -> None:
    async def play(pilot: "Pilot[None]", screen: CompareScreen) -> None:
        await ask_and_wait(pilot, screen, "refuse")
        assert "✘ the talk is 9,000 tokens long" in screen_text(pilot)
        await ask_and_wait(pilot, screen)
        assert "✘" not in screen_text(pilot)
        screen.open(["missing"], base=False)
        await until(pilot, lambda: "'missing' is no run" in screen_text(pilot))
        screen.open(["a", "b"], base=False)
        await ask_and_wait(pilot, screen)

    run(tmp_path, play)


def test_prompts_are_answered_ahead_and_judged_one_by_one(tmp_path: Path, picks: Path) -> None:
    (tmp_path / "prompts.txt").write_text("One?\nsame\nThree?\n")

    async def play(pilot: "Pilot[None]", screen: CompareScreen) -> None:
        await pilot.press("ctrl+l")
        await until(pilot, lambda: isinstance(pilot.app.screen, AskScreen))
        pilot.app.screen.query_one(Input).value = str(tmp_path / "prompts.txt")
        await pilot.press("enter")
        comparison = screen.comparison
        await until(pilot, lambda: len(comparison.talks) == 2 and bool(comparison.talks[1].last.end))  # type: ignore[union-attr]
        assert comparison.place == 0
        await judge(pilot, screen, "1")
        await until(pilot, lambda: "prompt 2/3" in screen_text(pilot))
        assert "Both say the same" in screen_text(pilot)
        await pilot.press("escape", "n")
        await until(pilot, lambda: "prompt 3/3" in screen_text(pilot))
        await judge(pilot, screen, "0")
        await until(pilot, lambda: "tie 1" in screen_text(pilot))

    run(tmp_path, play)
    assert [row["prompt"][-1]["content"] for row in rows(picks)] == ["One?"]


def test_prompts_that_cannot_be_read_are_a_sentence(tmp_path: Path, picks: Path) -> None:
    async def play(pilot: "Pilot[None]", screen: CompareScreen) -> None:
        await pilot.press("ctrl+l")
        await until(pilot, lambda: isinstance(pilot.app.screen, AskScreen))
        pilot.app.screen.query_one(Input).value = str(tmp_path / "nothing.txt")
        await pilot.press("enter")
        await until(pilot, lambda: "These prompts cannot be asked" in notices(pilot))

    run(tmp_path, play)


def test_the_winner_can_be_edited_and_a_verdict_undone(tmp_path: Path, picks: Path) -> None:
    async def play(pilot: "Pilot[None]", screen: CompareScreen) -> None:
        await ask_and_wait(pilot, screen)
        await until(pilot, lambda: isinstance(screen.focused, VerdictBar))
        await pilot.press("e")
        assert "Edit which answer?" in screen_text(pilot)
        await pilot.press("2")
        await until(pilot, lambda: isinstance(pilot.app.screen, EditScreen))
        pilot.app.screen.query_one(TextArea).text = "Better."
        await pilot.press("ctrl+s")
        await until(pilot, lambda: "✔ B is better (edited)" in screen_text(pilot))
        assert rows(picks)[0]["chosen"] == "Better."
        await pilot.press("escape", "u")
        await until(pilot, lambda: "Which is better?" in screen_text(pilot))
        assert rows(picks) == []
        await judge(pilot, screen, "x")
        await until(pilot, lambda: "both bad 1" in screen_text(pilot))

    run(tmp_path, play)
    assert rows(picks) == []


def test_a_lock_on_the_picks_holds_no_key_up(tmp_path: Path, picks: Path) -> None:
    picks.parent.mkdir(parents=True)

    async def play(pilot: "Pilot[None]", screen: CompareScreen) -> None:
        await ask_and_wait(pilot, screen)
        await until(pilot, lambda: isinstance(screen.focused, VerdictBar))
        with picks.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            await pilot.press("1", "ctrl+o")
            await until(pilot, lambda: isinstance(pilot.app.screen, SettingsScreen))
            assert screen.judged == []
            await pilot.press("escape")
        await until(pilot, lambda: len(screen.judged) == 1)

    run(tmp_path, play)
    assert len(rows(picks)) == 1


def test_a_pick_that_cannot_be_written_is_no_verdict(tmp_path: Path, picks: Path) -> None:
    picks.mkdir(parents=True)

    async def play(pilot: "Pilot[None]", screen: CompareScreen) -> None:
        await ask_and_wait(pilot, screen)
        await until(pilot, lambda: isinstance(screen.focused, VerdictBar))
        await pilot.press("1")
        await until(pilot, lambda: "The pick is not written" in notices(pilot))
        assert screen.comparison.current is not None
        assert screen.comparison.current.verdict is None

    run(tmp_path, play)


def test_enough_pairs_become_a_dpo_run(tmp_path: Path, picks: Path) -> None:
    picks.parent.mkdir(parents=True)
    pair = {"prompt": [{"role": "user", "content": "Hi"}], "chosen": "Hello", "rejected": "What?"}
    picks.write_text((json.dumps(pair) + "\n") * 49)

    async def play(pilot: "Pilot[None]", screen: CompareScreen) -> None:
        await ask_and_wait(pilot, screen)
        await until(pilot, lambda: "49 of ≥ 50 pairs" in screen_text(pilot))
        await judge(pilot, screen, "1")
        await until(pilot, lambda: "50 of ≥ 50 pairs: t trains DPO on them" in screen_text(pilot))
        await pilot.press("escape", "t")
        await until(pilot, lambda: isinstance(pilot.app.screen, TrainScreen))
        train = pilot.app.screen
        assert isinstance(train, TrainScreen)
        recipe = train.draft.recipe()
        assert recipe.method == "dpo"
        assert recipe.data.train == [str(picks)]
        assert recipe.data.valid == []
        await until(pilot, lambda: "dpo-lora" in screen_text(pilot))

    run(tmp_path, play)


def test_settings_hold_for_the_next_question(tmp_path: Path, picks: Path) -> None:
    async def play(pilot: "Pilot[None]", screen: CompareScreen) -> None:
        await pilot.press("ctrl+o")
        await until(pilot, lambda: isinstance(pilot.app.screen, SettingsScreen))
        settings = pilot.app.screen
        settings.query_one("#set-temperature", Input).value = "-1"
        settings.query_one("#set-seed", Input).value = "x"
        await until(pilot, lambda: "temperature is -1.0 (expected at least 0)" in screen_text(pilot))
        assert "seed is x (expected a whole number)" in screen_text(pilot)
        await pilot.press("enter")
        assert pilot.app.screen is settings
        settings.query_one("#set-temperature", Input).value = "0.7"
        settings.query_one("#set-seed", Input).value = "5"
        settings.query_one("#set-system", Input).value = "Be brief."
        await pilot.press("enter")
        await until(pilot, lambda: pilot.app.screen is screen)
        await ask_and_wait(pilot, screen)
        await judge(pilot, screen, "1")

    run(tmp_path, play)
    (row,) = rows(picks)
    assert (row["seed"], row["sampling"]["temperature"]) == (5, 0.7)
    assert row["prompt"][0] == {"role": "system", "content": "Be brief."}


def test_linked_panes_scroll_together(tmp_path: Path, picks: Path) -> None:
    async def play(pilot: "Pilot[None]", screen: CompareScreen) -> None:
        for question in ("One?", "Two?", "Three?"):
            await ask_and_wait(pilot, screen, question)
        first, second = screen.query_one("#pane-A", Pane), screen.query_one("#pane-B", Pane)

        def is_whole() -> bool:
            return not screen._is_stale and all(3 < pane.max_scroll_y == pane.scroll_y for pane in (first, second))

        await until(pilot, is_whole)
        for y in (2, 3):  # at once: no pane may chase the other's last place
            first.scroll_to(y=y, animate=False, immediate=True)
        await until(pilot, lambda: (first.scroll_y, second.scroll_y) == (3, 3))
        await pilot.press("escape", "l")
        await until(pilot, lambda: not screen.is_linked)
        first.scroll_to(y=0, animate=False, immediate=True)
        await pilot.pause()
        assert (first.scroll_y, second.scroll_y) == (0, 3)

    run(tmp_path, play, SMALL)


def test_up_to_four_voices_are_chosen_from_a_list(tmp_path: Path, picks: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    result = stage_result(runs)
    for step in (10, 20, 30, 40):
        (result / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)

    async def play(pilot: "Pilot[None]", screen: CompareScreen) -> None:
        await pilot.press("escape", "v")
        await until(pilot, lambda: isinstance(pilot.app.screen, VoicesScreen))
        await until(pilot, lambda: "support@40" in screen_text(pilot))
        await pilot.press("down", "space", "down", "space", "down", "space", "enter")
        await until(pilot, lambda: pilot.app.screen is screen)
        await until(pilot, lambda: "5 voices, Base included" in screen_text(pilot))
        await pilot.press("v")
        await until(pilot, lambda: "support@40" in screen_text(pilot))
        await pilot.press("b", "enter")
        await ask_and_wait(pilot, screen)
        assert [pane.border_title for pane in screen.query(Pane) if pane.display] == [
            "A  support · tiny",
            "B  support@10 · tiny",
            "C  support@20 · tiny",
            "D  support@30 · tiny",
        ]
        still(screen)
        await check_snapshot(pilot, "compare-four")

    perform(runs, on_compare(play), worker=FAKE_WORKER)


def still(screen: CompareScreen) -> None:
    """Make the figures of answers the same in every run of a test."""
    for talk in screen.comparison.talks:
        for one in talk.rounds:
            one.replies = [reply._replace(seconds=len(reply.token_ids) / 40) for reply in one.replies]
    screen.draw()


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_the_main_states_look_as_they_should(tmp_path: Path, picks: Path, size: tuple[int, int]) -> None:
    async def play(pilot: "Pilot[None]", screen: CompareScreen) -> None:
        await check_snapshot(pilot, "compare-begin")
        await ask_and_wait(pilot, screen)
        await until(pilot, lambda: isinstance(screen.focused, VerdictBar))
        await check_snapshot(pilot, "compare-blind")
        await judge(pilot, screen, "1")
        still(screen)
        await check_snapshot(pilot, "compare-judged")
        await ask(pilot, screen, "slow, and then die")
        await until(pilot, lambda: screen.comparison.status == "dead")
        await check_snapshot(pilot, "compare-dead")

    run(tmp_path, play, size)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_an_empty_compare_says_how_to_begin(tmp_path: Path, picks: Path, size: tuple[int, int]) -> None:
    async def play(pilot: "Pilot[None]", screen: CompareScreen) -> None:
        await check_snapshot(pilot, "compare-empty")
        await pilot.press("v")
        await until(pilot, lambda: isinstance(pilot.app.screen, VoicesScreen))
        assert pilot.app.screen.query_one(OptionList).option_count == 0
        await pilot.press("enter", "escape")
        assert pilot.app.screen is screen

    (tmp_path / "runs").mkdir()
    perform(tmp_path / "runs", on_compare(play), size)


def test_the_real_child_answers_in_one_batch(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MACFT_HOME", str(shelf.home))
    shelf.add_run("tuned", seed=1)

    async def play(pilot: "Pilot[None]", screen: CompareScreen) -> None:
        screen.comparison.sampling = Sampling(max_tokens=12)
        await ask_and_wait(pilot, screen, "hello")
        assert screen.comparison.current is not None
        assert screen.comparison.current.end == "done"
        assert [voice.name for voice in screen.comparison.voices] == ["Base", "tuned"]
        first, second = screen.comparison.current.replies
        assert len(first.token_ids) == len(second.token_ids) == 12
        assert first.token_ids != second.token_ids
        await ask_and_wait(pilot, screen, "and again")
        assert screen.comparison.current.end == "done"

    perform(shelf.runs, on_compare(play), worker=api.worker_command())
    assert not (home() / "picks").exists()

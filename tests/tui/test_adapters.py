"""Adapters as a person uses it: the tree, a plan before anything starts, and what came of it."""

import json
import os
import shutil
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from macft.events import (
    CheckpointSaved,
    Evaluated,
    Event,
    JobPlanned,
    PhaseProgress,
    ResultWritten,
    RunEnded,
    RunStarted,
)
from macft.run import Run
from tests.cli.recorded import STARTED
from tests.shelf import Shelf
from tests.tui.stage import LARGE, SMALL, Act, check_snapshot, perform, screen_text, until
from tui.app import Studio
from tui.screens.adapters import AdaptersScreen
from tui.screens.plan_job import PlanJobScreen
from tui.screens.train import TrainScreen
from tui.tree import BASE, CHECKPOINT, JOB, RUN, Leaf, walk

TUNED: list[Event] = [
    RunStarted(time=STARTED, method="sft", adapter="lora", model="tiny"),
    Evaluated(time=STARTED + 5, step=2, metrics={"eval_loss": 1.25}, is_best=True),
    CheckpointSaved(time=STARTED + 5, step=2, name="step-000002"),
    Evaluated(time=STARTED + 9, step=4, metrics={"eval_loss": 1.5}),
    CheckpointSaved(time=STARTED + 9, step=4, name="step-000004"),
    RunEnded(time=STARTED + 10, status="done", step=4),
]


@pytest.fixture
def tuned(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """Two runs on a tiny model, one fused already, and an adapter that another tool made."""
    monkeypatch.setenv("MACFT_HOME", str(shelf.home))
    monkeypatch.setenv("MACFT_RUNS", str(shelf.runs))
    for seed, name in enumerate(("one", "two"), start=1):
        run = shelf.add_run(name, seed=seed)
        for event in TUNED:
            run.append(event)
        os.utime(run.path / "recipe.toml", (STARTED + seed, STARTED + seed))
    foreign = shelf.home / "adapters" / "theirs"
    shutil.copytree(shelf.runs / "one" / "adapter", foreign)
    told = json.loads((foreign / "adapter_config.json").read_text())
    told.pop("macft")
    (foreign / "adapter_config.json").write_text(json.dumps(told))
    write_job(shelf.runs / "fused", shelf.runs / "one")
    return shelf


def write_job(folder: Path, source: Path, *, ended: bool = True) -> Run:
    run = Run.create(folder, (source / "recipe.toml").read_text())
    (folder / "job.json").write_text(json.dumps({"schema": 1, "run": str(source), "source": str(source / "adapter")}))
    run.append(RunStarted(time=STARTED + 20, kind="fuse", method="fuse", adapter="lora", model="tiny"))
    planned = JobPlanned(time=STARTED + 21, to="mlx", source="x", dtype="float32", size_bytes=2**20, free_bytes=2**40)
    run.append(planned)
    run.append(PhaseProgress(time=STARTED + 22, name="compare", done=1, total=3))
    if ended:
        metrics = {"kept": 0.998, "agreement": 0.95}
        place = str(folder.parent / "out")
        notes = ["mlx-lm loads it"]
        run.append(
            ResultWritten(time=STARTED + 30, to="mlx", path=place, size_bytes=2**20, metrics=metrics, notes=notes)
        )
        run.append(RunEnded(time=STARTED + 30, status="done", step=0))
    os.utime(folder / "recipe.toml", (STARTED, STARTED))
    return run


def use(shelf: Shelf, act: Act, size: tuple[int, int] = LARGE) -> None:
    async def go(pilot: "Pilot[None]") -> None:
        await pilot.press("7")
        await until(pilot, lambda: isinstance(pilot.app.screen, AdaptersScreen) and bool(pilot.app.screen.leaves))
        await until(pilot, lambda: adapters(pilot).current is not None)
        await pilot.pause()
        await act(pilot)

    perform(shelf.runs, go, size)


def adapters(pilot: "Pilot[None]") -> AdaptersScreen:
    screen = pilot.app.screen
    assert isinstance(screen, AdaptersScreen)
    return screen


def names(pilot: "Pilot[None]", kind: str) -> list[str]:
    return [leaf.shown for leaf in walk(adapters(pilot).leaves) if leaf.kind == kind]


async def go_to(pilot: "Pilot[None]", shown: str) -> Leaf:
    for _ in range(20):
        leaf = adapters(pilot).current
        if leaf and shown in leaf.shown:
            return leaf
        await pilot.press("j")
        await pilot.pause()
    raise AssertionError(f"{shown} is not there:\n{screen_text(pilot)}")


def without(text: str) -> str:
    return " ".join(text.replace("│", " ").split())


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_the_tree_says_what_became_of_each_base(tuned: Shelf, size: tuple[int, int]) -> None:
    async def act(pilot: "Pilot[None]") -> None:
        assert names(pilot, BASE) == ["tiny"]
        assert names(pilot, RUN) == ["✔ two", "✔ one"]
        best = [leaf for leaf in walk(adapters(pilot).leaves) if leaf.is_best]
        assert [(leaf.shown, leaf.metric) for leaf in best] == [("step 2", "loss 1.250")] * 2
        assert [leaf.metric for leaf in walk(adapters(pilot).leaves) if leaf.kind == JOB] == ["kept 99.8%"]
        await go_to(pilot, "theirs")
        detail = without(screen_text(pilot))
        assert size == SMALL or "made by mlx-lm" in detail
        for _ in range(12):
            await pilot.press("k")
        await until(pilot, lambda: adapters(pilot).current == adapters(pilot).leaves[0])
        await check_snapshot(pilot, "adapters-tree")

    use(tuned, act, size)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_an_empty_tree_says_how_to_begin(
    tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MACFT_HOME", str(tmp_path / "home"))

    async def act(pilot: "Pilot[None]") -> None:
        await pilot.press("7")
        await until(pilot, lambda: "No adapters yet" in screen_text(pilot))
        await check_snapshot(pilot, "adapters-empty")

    perform(tmp_path / "runs", act, size)


def test_a_plan_comes_first_and_a_job_after(tuned: Shelf) -> None:
    rows = tuned.home / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"p {n}", "completion": f"c {n}"}) + "\n" for n in range(8)))

    async def act(pilot: "Pilot[None]") -> None:
        await go_to(pilot, "one")
        await pilot.press("f")
        await until(pilot, lambda: isinstance(pilot.app.screen, PlanJobScreen))
        await pilot.pause()
        assert "a whole model in" in screen_text(pilot)
        await pilot.press("q")
        assert "8 bits" in screen_text(pilot)
        await pilot.press("q", "q", "enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, AdaptersScreen) and adapters(pilot).job is not None)
        await until(pilot, lambda: "kept 100.0% of what training changed" in without(screen_text(pilot)))
        await until(pilot, lambda: [leaf.metric for leaf in walk(adapters(pilot).leaves)].count("kept 100.0%") == 1)

    use(tuned, act)


def test_a_plan_that_does_not_fit_starts_nothing(tuned: Shelf) -> None:
    before = sorted(tuned.runs.iterdir())

    async def act(pilot: "Pilot[None]") -> None:
        await go_to(pilot, "one")
        await pilot.press("f", "w")
        await until(pilot, lambda: bool(pilot.app.screen.query(Input)))
        pilot.app.screen.query_one(Input).value = str(tuned.tiny)
        await pilot.press("enter")
        await until(pilot, lambda: "is there already" in without(screen_text(pilot)))
        await pilot.press("enter")
        assert isinstance(pilot.app.screen, PlanJobScreen)
        await pilot.press("escape")

    use(tuned, act)
    assert sorted(tuned.runs.iterdir()) == before


def test_marked_adapters_are_merged(tuned: Shelf) -> None:
    async def act(pilot: "Pilot[None]") -> None:
        await pilot.press("m")
        assert isinstance(pilot.app.screen, AdaptersScreen), "nothing is marked"
        for name in ("two", "one"):
            await go_to(pilot, name)
            await pilot.press("space")
            await pilot.pause()
        await until(pilot, lambda: screen_text(pilot).count("◆") == 2)
        await pilot.press("m")
        await until(pilot, lambda: bool(pilot.app.screen.query(Input)))
        pilot.app.screen.query_one(Input).value = "0.7 0.3"
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, PlanJobScreen))
        await pilot.pause()
        assert "concat is exact" in screen_text(pilot)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, AdaptersScreen))
        await until(pilot, lambda: (tuned.home / "adapters" / "two+one" / "adapters.safetensors").is_file())
        await until(pilot, lambda: "two+one" in [leaf.shown for leaf in walk(adapters(pilot).leaves)])

    use(tuned, act)


def test_tools_are_chosen_from_a_list(tuned: Shelf) -> None:
    async def act(pilot: "Pilot[None]") -> None:
        await go_to(pilot, "one")
        await pilot.press("e")
        await pilot.pause()
        assert all(word in screen_text(pilot) for word in ("gguf-adapter", "ollama", "lmstudio", "peft"))
        await pilot.press("down", "enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, PlanJobScreen))
        await pilot.pause()
        assert "a GGUF file of type f16" in screen_text(pilot)
        await pilot.press("t")
        assert "a GGUF file of type q8_0" in screen_text(pilot)

    use(tuned, act)


def test_what_cannot_be_fused_says_why(tuned: Shelf) -> None:
    async def act(pilot: "Pilot[None]") -> None:
        leaf = await go_to(pilot, "step 2")
        assert leaf.kind == CHECKPOINT
        await pilot.press("f")
        await until(pilot, lambda: any("the run above it" in one.message for one in pilot.app._notifications))
        assert isinstance(pilot.app.screen, AdaptersScreen)

    use(tuned, act)


def test_training_goes_on_from_an_adapter(tuned: Shelf) -> None:
    async def act(pilot: "Pilot[None]") -> None:
        await go_to(pilot, "one")
        await pilot.press("a")
        await until(pilot, lambda: isinstance(pilot.app.screen, TrainScreen))
        assert isinstance(pilot.app, Studio)
        assert pilot.app.draft.recipe().start_from == str(tuned.runs / "one")
        assert pilot.app.draft.recipe().model == str(tuned.tiny)

    use(tuned, act)


def test_what_is_removed_comes_back(tuned: Shelf) -> None:
    async def act(pilot: "Pilot[None]") -> None:
        await go_to(pilot, "theirs")
        await pilot.press("x")
        await until(pilot, lambda: "theirs" not in [leaf.shown for leaf in walk(adapters(pilot).leaves)])
        assert not (tuned.home / "adapters" / "theirs").exists()
        await pilot.press("u")
        await until(pilot, lambda: "theirs" in [leaf.shown for leaf in walk(adapters(pilot).leaves)])
        await pilot.press("home")
        await go_to(pilot, "two")
        await pilot.press("x")
        await until(pilot, lambda: names(pilot, RUN) == ["✔ one"])
        await pilot.press("u")
        await until(pilot, lambda: names(pilot, RUN) == ["✔ two", "✔ one"])

    use(tuned, act)


def test_a_folder_of_another_tool_is_added(tuned: Shelf, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    shutil.copytree(tuned.home / "adapters" / "theirs", folder)

    async def act(pilot: "Pilot[None]") -> None:
        await pilot.press("i")
        await until(pilot, lambda: bool(pilot.app.screen.query(Input)))
        pilot.app.screen.query_one(Input).value = str(folder)
        await pilot.press("enter")
        await until(pilot, lambda: "elsewhere" in [leaf.shown for leaf in walk(adapters(pilot).leaves)])
        assert (tuned.home / "adapters" / "elsewhere").is_symlink()

    use(tuned, act)


def test_a_filter_keeps_what_is_above(tuned: Shelf) -> None:
    async def act(pilot: "Pilot[None]") -> None:
        await pilot.press("slash", *"theirs", "enter")
        await until(pilot, lambda: "✔ one" not in screen_text(pilot))
        assert "tiny" in screen_text(pilot)
        assert "theirs" in screen_text(pilot)
        await pilot.press("escape")
        await until(pilot, lambda: "✔ one" in screen_text(pilot))

    use(tuned, act)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_job_that_goes_on_is_followed_and_cancelled(tuned: Shelf, size: tuple[int, int]) -> None:
    run = write_job(tuned.runs / "going", tuned.runs / "one", ended=False)

    async def act(pilot: "Pilot[None]") -> None:
        with run.lock():
            await until(pilot, lambda: any(row.is_live for row in adapters(pilot).studio.rows))
            adapters(pilot).follow_job(run.path)
            await until(pilot, lambda: "33% compare" in screen_text(pilot))
            await pilot.press(*"kkkkk")
            await check_snapshot(pilot, "adapters-job")
            await pilot.press("c")
            assert run.read_requests(0)[0] == ["stop"]
            run.append(RunEnded(status="stopped", step=0, reason="stopped while", fix="Start it again.", exit_code=143))
        await until(pilot, lambda: "stopped: stopped while" in without(screen_text(pilot)))
        await pilot.press("c")
        assert run.read_requests(0)[0] == ["stop"]

    use(tuned, act, size)


def test_serving_says_where_and_ends(tuned: Shelf) -> None:
    async def act(pilot: "Pilot[None]") -> None:
        await go_to(pilot, "one")
        await pilot.press("s")
        await until(pilot, lambda: "loading" in screen_text(pilot))
        await until(pilot, lambda: "at http://127.0.0.1:" in screen_text(pilot))
        await pilot.press("s")
        await until(pilot, lambda: adapters(pilot).server is None)

    use(tuned, act)

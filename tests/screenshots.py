"""Draw the README's pictures of the studio: `python -m tests.screenshots`, or `make screenshots`.

The rule: what is drawn are the runs and answers of the tests, so that a picture is the same until a screen changes.
"""

import os
import re
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import resvg_py
from textual.pilot import Pilot
from textual.widgets import Input

from tests.tui.stage import LARGE, perform, stage_result, stage_runs, until
from tui.app import Studio
from tui.screens.compare import CompareScreen
from tui.screens.live import LiveScreen
from tui.widgets.verdict import VerdictBar

FOLDER = Path(__file__).with_name("tui") / "screenshots"
FONTS = "DejaVu Sans Mono, Menlo"
PIXELS_WIDE = 1400
QUESTION = "My parcel says delivered but I have nothing."


async def home(pilot: "Pilot[None]") -> None:
    """Show the runs."""
    await pilot.press("j")


async def live(pilot: "Pilot[None]") -> None:
    """Show a run."""
    studio = pilot.app
    assert isinstance(studio, Studio)
    studio.open_run(next(row.path for row in studio.rows if row.name == "addresses"))
    await until(pilot, lambda: isinstance(studio.screen, LiveScreen))


async def compare(pilot: "Pilot[None]") -> None:
    """Show two answers that wait for a verdict."""
    await pilot.press("6")
    await until(pilot, lambda: isinstance(pilot.app.screen, CompareScreen))
    screen = pilot.app.screen
    screen.query_one("#say", Input).value = QUESTION
    screen.query_one("#say").focus()
    await pilot.press("enter")
    await until(pilot, lambda: isinstance(pilot.app.focused, VerdictBar))


SHOTS: dict[str, Callable[["Pilot[None]"], Awaitable[None]]] = {"home": home, "live": live, "compare": compare}


def draw(name: str, runs: Path) -> None:
    """Draw one screen."""

    async def act(pilot: "Pilot[None]") -> None:
        await SHOTS[name](pilot)
        await pilot.pause(1.0)
        (FOLDER / f"{name}.png").write_bytes(to_png(pilot.app.export_screenshot(title="macft")))

    perform(runs, act, LARGE)


def to_png(svg: str) -> bytes:
    """Return a picture of a screen, in a font of this machine: nothing is fetched."""
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;]+;", f"font-family: {FONTS};", svg)
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, width=PIXELS_WIDE))


def main() -> None:
    """Draw all pictures."""
    FOLDER.mkdir(exist_ok=True)
    for name in SHOTS:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["MACFT_HOME"] = f"{folder}/home"
            runs = stage_runs(Path(folder) / "runs")
            stage_result(runs)
            draw(name, runs)
            print(FOLDER / f"{name}.png")


if __name__ == "__main__":
    main()

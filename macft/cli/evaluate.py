"""`macft eval`: Base and tuned on the same held-out rows, in figures.

The rule: as in `main`, the command is one call of `macft.api`, and its answer shown; the figures go to stdout.
"""

from typing import TYPE_CHECKING, Any

from macft import api
from macft.cli.arguments import STDIN, AsJson, Files, Positive, absolute
from macft.cli.prepare import show_progress
from macft.cli.render import narrate
from macft.cli.tables import print_examples, print_json, print_lines
from macft.errors import Problem, RecipeError
from macft.format import MISSING, columns, number

if TYPE_CHECKING:
    from collections.abc import Mapping

SHOWN = 3
_NUMBERS = ("loss", "perplexity")


def evaluate(
    name: str = "latest",
    /,
    *,
    data: Files | None = None,
    limit: Positive | None = None,
    max_tokens: Positive | None = None,
    model: str | None = None,
    json: AsJson = False,
    plain: bool = False,
) -> None:
    """Let Base and tuned read and answer the same held-out rows, and say what differs and how sure that is.

    Each figure has an interval in which it would lie for 19 of 20 such sets of rows (bootstrap), and p says how likely
    a difference as large is by chance (paired randomization). Then come the rows that tuned answered worst.

    Args:
        name: A run, a checkpoint (RUN@600), or an adapter's folder; latest when left out.
        data: Rows; the run's own test rows, or else its validation rows, when left out.
        limit: Most rows.
        max_tokens: Longest answer; the recipe's when left out.
        model: The base, when the adapter does not name one that is here.
        json: Print JSON.
        plain: No progress bar.
    """
    if data and STDIN in data:
        problem = Problem("--data -", "rows are read twice, and a pipe can be read once")
        raise RecipeError([problem], fix="Save the rows to a file and name that.")
    with show_progress(plain=plain) as tell:
        found = api.evaluate(
            name, files=absolute(data or []), limit=limit, max_tokens=max_tokens, model=model, tell=tell
        )
    values = found.values()
    if json:
        print_json(values)
        return
    print_lines(figure_lines(values))
    for side, count in values["cut"].items():
        if count:
            narrate(f"▲ {side}: {count:,} answers were as long as allowed; --max-tokens allows more")
    print_examples([{**found.example(place), "change": ""} for place in found.worst(SHOWN)])


def figure_lines(values: "Mapping[str, Any]") -> list[str]:
    """Return the table of an evaluation's values, and the four-way table below it."""
    rows = [
        [
            metric.replace("_", " "),
            *(cell for side in ("base", "tuned") for cell in _cells(metric, values, side)),
            _chance(values["p"].get(metric)),
        ]
        for metric in values["tuned"]
    ]
    head = [f"{values['rows']:,} rows", "Base", "95%", "tuned", "95%", "p"]
    lines = columns([head, *rows], right=range(1, len(head)))
    if values["questions"]:
        said = (f"{name.replace('_', ' ')} {count:,}" for name, count in values["outcomes"].items())
        lines += ["", f"{values['questions']:,} answers: {' · '.join(said)}"]
    return lines


def _cells(metric: str, values: "Mapping[str, Any]", side: str) -> tuple[str, str]:
    low, high = values["intervals"][side][metric]
    return _shown(metric, values[side][metric]), f"{_shown(metric, low)} to {_shown(metric, high)}"


def _shown(metric: str, value: float | None) -> str:
    if value is None:
        return MISSING
    return number(value) if metric in _NUMBERS else f"{value:.1%}"


def _chance(p: float | None) -> str:
    return "" if p is None else f"{p:.1g}" if p < 0.0995 else f"{p:.2f}"

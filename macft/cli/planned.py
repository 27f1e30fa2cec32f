"""`macft plan`: what a run will need, as a bar, lines or JSON.

The rule: as in `main`, the command is calls of `macft.api`, and their answer shown.
"""

from dataclasses import asdict
from typing import Annotated, Any

from cyclopts import Parameter

from macft import api
from macft.cli import tables
from macft.cli.arguments import AsJson, Files, read_recipe
from macft.cli.render import narrate
from macft.errors import DoesNotFit
from macft.format import duration, gigabytes, one_line
from macft.machine import GIB
from macft.plan import Plan, Verdict
from macft.recipe import Recipe
from macft.remedies import AGAIN

BAR_CELLS = 48
PARTS = {"weights": "█", "adapter": "▓", "activations": "▒", "head": "░", "cache": "·"}
"""Parts in the order of the bar, each with its own glyph."""
TITLES = {"adapter": "adapter and optimizer", "head": "logits", "cache": "allocator's cache"}
MARKS = {Verdict.FITS: "✔", Verdict.TIGHT: "▲", Verdict.DOES_NOT_FIT: "✘"}


def plan(
    recipe: str,
    /,
    *,
    model: str | None = None,
    data: Files | None = None,
    for_: Annotated[str, Parameter(name="--for")] = "",
    set_: Annotated[list[str] | None, Parameter(name="--set")] = None,
    fit: bool = False,
    json: AsJson = False,
) -> int:
    """Say what a run will need, before any weight loads; fails with 4 when it does not fit.

    Args:
        recipe: A file, a name from `macft recipes`, or - to read it from stdin.
        model: Instead of the recipe's model; its config is enough (`macft pull --config-only`).
        data: Files or folders of rows to learn from, instead of the recipe's.
        for_: Another machine, like "M2 Air 16GB".
        set_: Set a key of the recipe, like lora.rank=16; may be repeated.
        fit: Make the cheapest changes until it fits.
        json: Print JSON.
    """
    asked = read_recipe(recipe, model=model, data=data or [], settings=set_ or [])
    wanted = api.fit(asked, mac=for_) if fit else asked
    made, changes = api.plan(wanted, mac=for_), changed_keys(asked, wanted)
    if json:
        tables.print_json({"plan": asdict(made), "machine": for_ or None, "changes": changes})
    else:
        tables.print_lines(plan_lines(made, for_))
    if changes and not json:
        settings = " ".join(f"--set {key}={value}" for key, value in changes.items())
        narrate(f"changed to fit: {settings}")
    return DoesNotFit.exit_code if made.verdict == Verdict.DOES_NOT_FIT else 0


def changed_keys(before: Recipe, after: Recipe) -> dict[str, Any]:
    """Return the dotted keys that differ, with the values they have now."""
    old, new = _flat(before.model_dump(mode="json")), _flat(after.model_dump(mode="json"))
    return {key: value for key, value in new.items() if old[key] != value}


def plan_lines(made: Plan, machine: str = "") -> list[str]:
    """Return a plan for people: a bar, its parts, the verdict, time, disk, and what would need less."""
    where = f" on {one_line(machine)}" if machine else ""
    lines = [_bar(made)]
    for part, glyph in PARTS.items():
        if size := made.parts.get(part, 0):
            lines.append(f"{glyph}{glyph} {TITLES.get(part, part):<22} {_size(size):>9}")
    verdict = f"{MARKS[made.verdict]} {made.verdict}"
    lines.append(f"   {'peak':<22} {_size(made.peak_bytes):>9} of {gigabytes(made.available_bytes)}{where}  {verdict}")
    guess = " (estimate)" if made.is_estimate else ""
    time = "unknown" if made.seconds is None else f"~ {duration(made.seconds)}{guess}"
    lines += [
        f"time  {time}",
        f"disk  {_size(made.disk_bytes)} for the result and checkpoints",
        f"pass  {made.micro_batch_tokens:,} tokens at once, {_again(made)}",
    ]
    if made.remedies:
        lines.append("ways to need less, the cheapest first; ✔ is enough by itself:")
    for way in made.remedies:
        mark = MARKS[Verdict.FITS] if way.fits else " "
        change = f"--set {way.key}={way.value}"
        lines.append(f"{mark} {change:<32} −{_size(way.saves_bytes)}  {way.text}: {way.price}")
    return lines


def _again(made: Plan) -> str:
    """Return what the backward pass computes again, and at which price."""
    if made.recompute == "none":
        return "nothing computed again"
    return f"{AGAIN[made.recompute]} computed again (about {made.recompute_time - 1:.0%} more time)"


def _bar(made: Plan) -> str:
    scale = BAR_CELLS / max(made.available_bytes, made.peak_bytes, 1)
    bar, done = "", 0
    for part, glyph in PARTS.items():
        done += made.parts.get(part, 0)
        bar += glyph * (round(done * scale) - len(bar))
    limit = round(made.available_bytes * scale)
    return bar + "─" * (limit - len(bar)) if len(bar) < limit else f"{bar[:limit]}▲{bar[limit:]}"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.2f} GB"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat

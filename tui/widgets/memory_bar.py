"""The memory plan as one bar: each part with a glyph of its own, and where the limit lies."""

from textual.content import Content
from textual.widgets import Static

from macft.format import duration, gigabytes
from macft.plan import Plan, Verdict

GLYPHS = {"weights": "█", "adapter": "▓", "activations": "▒", "head": "░", "cache": "·"}
NAMES = {
    "weights": "Weights",
    "adapter": "Adapter + optimizer",
    "activations": "Activations",
    "head": "Logits",
    "cache": "Cache",
}
SIGNS = {Verdict.FITS: "✔ fits", Verdict.TIGHT: "▲ tight", Verdict.DOES_NOT_FIT: "✘ does not fit"}


class MemoryBar(Static):
    """What a run will need, and whether it is there."""

    def show(self, plan: Plan | None, why_not: str = "") -> None:
        """Draw a plan, or say why there is none yet."""
        width = max(20, self.content_size.width)
        self.update(describe(plan, width) if plan else Content(why_not or "Planning …"))


def describe(plan: Plan, width: int) -> Content:
    """Return the bar, the parts, the verdict and the estimates."""
    most = max(plan.available_bytes, plan.peak_bytes, 1)
    bar = "".join(GLYPHS[name] * round(size / most * width) for name, size in plan.parts.items())[:width]
    limit = min(width - 1, round(plan.available_bytes / most * width) - 1)
    lines = [bar.ljust(width, "─"), f"{'▲ limit ' + gigabytes(plan.available_bytes):>{max(limit, 16)}}"]
    lines += [f"{GLYPHS[name] * 2} {NAMES[name]:<20}{gigabytes(size):>9}" for name, size in plan.parts.items() if size]
    lines.append(f"   {'Peak':<20}{gigabytes(plan.peak_bytes):>9}  {SIGNS[plan.verdict]}")
    lines.append(f"\nA pass holds {plan.micro_batch_tokens:,} tokens · recompute {plan.recompute}")
    lines += [f"Disk {gigabytes(plan.disk_bytes)}" + (f" · about {duration(plan.seconds)}" if plan.seconds else "")]
    for remedy in plan.remedies[:3]:
        saves = gigabytes(remedy.saves_bytes)
        lines.append(f"{'✔' if remedy.fits else '·'} {remedy.key} = {remedy.value}: saves {saves}, {remedy.price}")
    return Content("\n".join(lines))


def describe_short(plan: Plan) -> str:
    """Return the plan for a narrow screen."""
    time = f" · about {duration(plan.seconds)}" if plan.seconds else ""
    return f"{gigabytes(plan.peak_bytes)} of {gigabytes(plan.available_bytes)} {SIGNS[plan.verdict]}{time}"

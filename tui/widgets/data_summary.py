"""What is said of all rows together: how many, how long, and what is the matter with them."""

from textual.content import Content
from textual.widgets import Static

from tui.rows import RowTable
from tui.widgets.sparkline import BLOCKS

BARS, NARROW = 16, 48
WORDS = {
    "unusable": "✘ {} cannot be used",
    "nothing": "✘ {} teach nothing",
    "too_long": "▲ {} too long",
    "odd_roles": "▲ {} odd roles",
    "duplicate": "≈ {} duplicates",
}


class DataSummary(Static):
    """A few lines below the list."""

    def show(self, rows: RowTable, *, is_done: bool, total: int) -> None:
        """Draw the counts."""
        self.update(describe(rows, is_done=is_done, total=total, is_narrow=self.size.width < NARROW))


def describe(rows: RowTable, *, is_done: bool, total: int, is_narrow: bool) -> Content:
    """Return the lengths, the share that is trained on, and the flags."""
    if is_done and not rows.lengths:
        return Content(describe_flags(rows, is_done=is_done))
    counts = {"p50": rows.percentile(0.5), "p99": rows.percentile(0.99), "max": max(rows.lengths, default=0)}
    lengths = " ".join(f"{name} {count:,}" for name, count in counts.items())
    share = rows.supervised / max(1, rows.tokens)
    reading = "" if is_done else f"reading {len(rows):,} of about {max(total, len(rows)):,} · "
    return Content.assemble(
        ("" if is_narrow else "tokens ", "$foreground 60%"),
        (bars(rows.histogram(BARS // 2 if is_narrow else BARS)), "$primary"),
        f" {lengths}\n",
        f"{reading}{rows.tokens:,} tokens, {share:.0%} trained on\n",
        describe_flags(rows, is_done=is_done),
    )


def describe_flags(rows: RowTable, *, is_done: bool) -> str:
    """Count what is the matter, and what the person changed."""
    found = [words.format(f"{rows.counts[name]:,}") for name, words in WORDS.items() if rows.counts[name] > 0]
    changed = [(len(rows.dropped), "– {} dropped"), (len(rows.edited), "✎ {} edited")]
    changes = [words.format(f"{count:,}") for count, words in changed if count]
    return "  ".join([*changes, *found]) or ("✔ nothing is the matter with them" if is_done and len(rows) else "")


def bars(values: list[float]) -> str:
    """Return counts as bars; a bar that stands for anything is never empty."""
    highest = max(values, default=0)
    return "".join(BLOCKS[max(1, round(8 * value / highest))] if value else BLOCKS[0] for value in values)

"""One row: as the model sees it, token by token, as it stands in its file, or as a pair.

The rule: colour is never the only sign. What is trained on is underlined; in a pair, the words that one answer has.
"""

import difflib
import re
from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Static

from macft.format import clean, one_line

MASK, TOKENS, FILE, PAIR = "mask", "tokens", "file", "pair"
WINDOW = 1000
"""Tokens in view; thousands of spans would take long to draw."""
TRAINED, CONTEXT, DIFFERENT = "underline $success", "$foreground 60%", "bold underline"
SIGNS = {"prompt": "▸", "chosen": "✔", "rejected": "✘", "desirable": "✔", "undesirable": "✘"}
_MOST_WORDS = 4000
Part = dict[str, Any]
Span = tuple[str, str]


class RowView(Vertical):
    """Draws what the child said of a row."""

    def compose(self) -> ComposeResult:
        """Put one text above a pair of columns, of which one is shown."""
        with VerticalScroll(id="row-text"):
            yield Static(id="row-said", markup=False)
        with Horizontal(id="row-pair"):
            for side in ("left", "right"):
                with VerticalScroll(id=f"row-{side}-box"):
                    yield Static(id=f"row-{side}", markup=False)

    def say(self, content: Content) -> None:
        """Show a text instead of a row."""
        self.query_one("#row-pair").display = False
        self.query_one("#row-text").set_class(False, "above-pair")
        self.query_one("#row-said", Static).update(content)

    def show(self, told: dict[str, Any], mode: str) -> None:
        """Draw a row.

        Args:
            told: The child's answer to `show`.
            mode: MASK, TOKENS, FILE or PAIR; a row that is no pair is shown with its mask instead.
        """
        parts, note = told["parts"], _note(told)
        pair = pair_of(parts) if mode == PAIR else None
        if pair is None:
            width = max(20, self.query_one("#row-text").scrollable_content_region.width)
            self.say(Content.assemble(*note, *_draw(told, MASK if mode == PAIR else mode, width)))
            return
        prompt, chosen, rejected = pair
        self.say(Content.assemble(*note, ("▸ prompt\n", "bold"), visible(_text(prompt), "")))
        self.query_one("#row-text").set_class(True, "above-pair")
        self.query_one("#row-pair").display = True
        texts = mark_differences(_text(chosen), _text(rejected))
        for side, part, spans in zip(("left", "right"), (chosen, rejected), texts, strict=True):
            box = self.query_one(f"#row-{side}-box")
            box.border_title = f"{SIGNS[part['kind']]} {part['kind']}"
            box.border_subtitle = f"{part['count']:,} tokens"
            self.query_one(f"#row-{side}", Static).update(Content.assemble(*spans))


def pair_of(parts: Sequence[Part]) -> tuple[Part, Part, Part] | None:
    """Return prompt, chosen and rejected when these are what a row consists of; of several pairs the first."""
    kinds = [part["kind"] for part in parts[:3]]
    return (parts[0], parts[1], parts[2]) if kinds == ["prompt", "chosen", "rejected"] else None


def mark_differences(left: str, right: str) -> tuple[list[Content | Span], list[Content | Span]]:
    """Return two texts in spans, in which the words that the other does not have at that place are marked."""
    before, after = (re.findall(r"\s+|[^\s]+", clean(text))[:_MOST_WORDS] for text in (left, right))
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    sides: tuple[list[Content | Span], list[Content | Span]] = ([], [])
    for kind, a, b, c, d in matcher.get_opcodes():
        for side, part in zip(sides, (before[a:b], after[c:d]), strict=True):
            if part:
                side.append(("".join(part), "" if kind == "equal" else DIFFERENT))
    return sides


def visible(text: str, style: str) -> Span:
    """Return a text whose ends of lines can be seen."""
    return clean(text).replace("\n", "⏎\n"), style


def _text(part: Part) -> str:
    return "".join(text for text, _, _ in part["tokens"])


def _note(told: dict[str, Any]) -> list[Span]:
    """Return what is the matter with a row, to stand above it."""
    notes = list[Span]()
    if told.get("said"):
        notes.append((f"✘ {told['where']}: {one_line(told['said'])}\n\n", "bold $error"))
    if told.get("oddness"):
        notes.append((f"▲ {one_line(told['oddness'])}\n\n", "$warning"))
    return notes


def _draw(told: dict[str, Any], mode: str, width: int) -> list[Span]:
    parts = told["parts"]
    if mode == FILE or not parts:
        return [(clean(told["raw"]), "")]
    spans = list[Span]()
    for part in parts:
        if part["kind"]:
            spans.append((f"{SIGNS[part['kind']]} {part['kind']}\n", "bold"))
        spans += lay_out(part["tokens"], width) if mode == TOKENS else runs(part["tokens"])
        spans.append(("\n\n", "") if part["kind"] else ("\n", ""))
    start, longest = told["start"], max(part["count"] for part in parts)
    if longest > WINDOW:
        last = min(longest, start + WINDOW)
        spans.append((f"tokens {start + 1:,}–{last:,} of {longest:,} · [ and ] show others\n", "bold"))
    return spans


def runs(tokens: Sequence[Sequence[Any]]) -> list[Span]:
    """Join tokens that are trained on alike."""
    joined = list[tuple[str, bool]]()
    for text, _, is_trained in tokens:
        if joined and joined[-1][1] == is_trained:
            joined[-1] = (joined[-1][0] + text, is_trained)
        else:
            joined.append((text, is_trained))
    return [visible(text, TRAINED if is_trained else CONTEXT) for text, is_trained in joined]


def lay_out(tokens: Sequence[Sequence[Any]], width: int) -> list[Span]:
    """Return each token's text above its id, as many beside each other as there is room for."""
    lines, used = list[list[tuple[str, str, bool]]]([[]]), 0
    for text, ids, is_trained in tokens:
        shown = clean(text.replace("\n", "⏎").replace("\t", "→").replace(" ", "·")) or "∅"
        number = "+".join(map(str, ids))
        cells = max(cell_len(shown), len(number)) + 1
        if used + cells > width and lines[-1]:
            lines.append([])
            used = 0
        lines[-1].append((shown, number, is_trained))
        used += cells
        if "\n" in text:
            lines.append([])
            used = 0
    return [span for line in lines if line for span in _two_lines(line)]


def _two_lines(line: Sequence[tuple[str, str, bool]]) -> list[Span]:
    above, below = list[Span](), list[Span]()
    for shown, number, is_trained in line:
        cells = max(cell_len(shown), len(number)) + 1
        above += [(shown, TRAINED if is_trained else ""), (" " * (cells - cell_len(shown)), "")]
        below.append((number.ljust(cells), CONTEXT))
    return [*above, ("\n", ""), *below, ("\n", "")]

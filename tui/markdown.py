"""A model's Markdown as text that a screen can wrap, while it is still being written.

The rule: blocks that are finished are laid out once; each new token costs only the block it is in. What a model wrote
can neither steer the terminal nor open anything: control characters are made visible, links are text.
"""

import io
import re
from functools import lru_cache

from rich.console import Console
from rich.markdown import Markdown
from rich.segment import Segment
from rich.text import Text
from rich.theme import Theme
from textual.content import Content

from macft.format import clean

_THEME = Theme(
    {"markdown.code": "bold", "markdown.code_block": "", "markdown.h1.border": "dim", "markdown.link": "underline"}
)
_BLOCK = re.compile(r"\n[ \t]*\n(?=\S)")
_FENCE = re.compile(r"^ {0,3}(```|~~~)", re.MULTILINE)
KEPT = 400
"""Blocks whose layout is kept: those of what is on the screen, several times over."""


def lay_out(text: str, width: int) -> Content:
    """Return a whole answer's Markdown for a width in cells."""
    return _lay_out(clean(text), max(8, width))


def lay_out_growing(text: str, width: int) -> Content:
    """Return an answer's Markdown while more of it comes."""
    text, width = clean(text), max(8, width)
    cut = end_of_finished(text)
    if not cut:
        return _render(text, width)
    return Content("\n\n").join([_lay_out(text[:cut].rstrip("\n"), width), _render(text[cut:], width)])


def end_of_finished(text: str) -> int:
    """Return where the last block begins that more text can still change; 0 when that is the first."""
    for match in reversed(list(_BLOCK.finditer(text))):
        if len(_FENCE.findall(text, 0, match.start() + 1)) % 2 == 0:
            return match.end()
    return 0


@lru_cache(maxsize=KEPT)
def _lay_out(text: str, width: int) -> Content:
    return _render(text, width)


def _render(text: str, width: int) -> Content:
    console = Console(
        file=io.StringIO(),
        width=width,
        color_system="truecolor",
        force_terminal=True,
        theme=_THEME,
        legacy_windows=False,
    )
    markdown = Markdown(text, hyperlinks=False, code_theme="ansi_dark")
    lines = [_line(segments) for segments in console.render_lines(markdown, pad=False)]
    while lines and not lines[-1].plain:
        lines.pop()
    while lines and not lines[0].plain:
        lines.pop(0)
    return Content.from_rich_text(Text("\n").join(lines), console=console)


def _line(segments: list[Segment]) -> Text:
    line = Text.assemble(*((segment.text, segment.style or "") for segment in segments))
    line.rstrip()
    return line

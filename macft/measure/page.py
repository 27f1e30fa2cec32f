"""An HTML page that stands alone.

The rule: no script, nothing fetched, and text is text: whatever macft did not write itself is escaped on its way in.
"""

from collections.abc import Iterable, Sequence
from html import escape

POLICY = "default-src 'none'; style-src 'unsafe-inline'"
"""A browser then fetches nothing and runs nothing, whatever stands in the page."""
_STYLE = """
:root { color-scheme: light dark; --line: #8886; --one: #2f6fde; --two: #d9822b; --three: #1f9d61; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 90rem; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { border: 1px solid var(--line); padding: .3rem .6rem; text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
section { border-top: 1px solid var(--line); padding: .5rem 0; }
pre { overflow-x: auto; padding: .6rem; border: 1px solid var(--line); }
.voices { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); }
.charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)); }
.text { white-space: pre-wrap; overflow-wrap: anywhere; }
.small { opacity: .7; font-size: .85em; }
figure { margin: 0; }
figcaption { font-size: .85em; }
svg { width: 100%; height: auto; font: 11px system-ui, sans-serif; }
svg text { fill: currentColor; }
svg .axis { stroke: var(--line); }
svg .line { fill: none; stroke-width: 2; }
svg .faint { opacity: .3; stroke-width: 1; }
"""


def write_page(title: str, parts: Iterable[str]) -> str:
    """Return a whole page.

    Args:
        title: As text.
        parts: The body, as HTML.
    """
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title><style>{_STYLE}</style>'
    )
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return rows of text as a table; the first row is its head."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows[1:])
    return f"<table><tr>{head}</tr>{body}</table>"


def section(title: str, *parts: str) -> str:
    """Return HTML below a heading."""
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def columns(texts: Sequence[tuple[str, str]]) -> str:
    """Return (heading, text) pairs side by side."""
    cells = "".join(f'<div><h3>{escape(head)}</h3><div class="text">{escape(text)}</div></div>' for head, text in texts)
    return f'<div class="voices">{cells}</div>'

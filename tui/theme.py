"""Colours: two themes of macft's own, and the terminal's.

The rule: colour is never the only sign. A glyph or a word says the same.
"""

from textual.theme import Theme

DARK = Theme(
    name="macft-dark",
    primary="#7aa2f7",
    secondary="#9ece6a",
    accent="#e0af68",
    foreground="#d5d9e5",
    background="#16181f",
    surface="#1b1e27",
    panel="#242836",
    success="#9ece6a",
    warning="#e0af68",
    error="#f7768e",
    dark=True,
)
LIGHT = Theme(
    name="macft-light",
    primary="#2f5fd0",
    secondary="#3d7a1f",
    accent="#9a6200",
    foreground="#1c2030",
    background="#fbfbf8",
    surface="#f3f3ee",
    panel="#e6e6de",
    success="#2f6b14",
    warning="#8a5a00",
    error="#b3203a",
    dark=False,
)
NAMES = (DARK.name, LIGHT.name, "ansi-dark", "ansi-light")
"""What the theme key goes round through."""

GLYPHS = {
    "waiting": "·",
    "preparing": "●",
    "running": "●",
    "paused": "‖",
    "done": "✔",
    "stopped": "■",
    "failed": "✘",
    "crashed": "✘",
    "unreadable": "✘",
}
"""A run's status as one cell."""
STYLES = {"done": "green", "failed": "red", "crashed": "red", "unreadable": "red", "paused": "yellow"}
"""The colour that goes with a status; the others have none."""

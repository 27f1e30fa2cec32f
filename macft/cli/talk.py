"""Talking to a model: one reply for a script, or a conversation at a terminal.

The rule: replies go to stdout as they come, everything else to stderr.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Protocol

from macft.format import clean

if TYPE_CHECKING:
    from macft.data.examples import Role

HELP = "/reset forgets the conversation · Ctrl-C stops a reply · Ctrl-D ends"


class Part(Protocol):
    """A piece of a reply; the last one says why it ended."""

    @property
    def text(self) -> str:
        """Text to append."""

    @property
    def finish_reason(self) -> str | None:
        """`stop`, `length`, or None before the end."""


Turn = tuple["Role", str]
Reply = Callable[[list[Turn]], Iterator[Part]]


def answer_once(reply: Reply, prompt: str, *, system: str = "") -> None:
    """Print one reply."""
    _print_reply(reply([*_opening(system), ("user", prompt)]))


def converse(reply: Reply, prompts: Iterable[str], *, system: str = "") -> None:
    """Print replies to one prompt after the other; each knows what was said before.

    Args:
        reply: Streams the answer to the turns so far.
        prompts: What the person says; `/reset` starts anew.
        system: Said before everything else, when not empty.
    """
    turns = _opening(system)
    for prompt in prompts:
        command = prompt.strip()
        if command == "/reset":
            turns = _opening(system)
            _note("forgotten")
        elif command.startswith("/"):
            _note(HELP)
        elif command:
            turns.append(("user", prompt))
            turns.append(("assistant", _print_reply(reply(turns))))


def ask_person() -> Iterator[str]:
    """Yield what a person types, line by line, until Ctrl-D."""
    import readline  # noqa: F401  # gives input() editing and history

    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()


def _print_reply(parts: Iterator[Part]) -> str:
    said = ""
    try:
        for part in parts:
            said += part.text
            print(clean(part.text), end="", flush=True)
            if part.finish_reason == "length":
                _note("\n(cut: --max-tokens allows more)")
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
    print(flush=True)
    return said


def _opening(system: str) -> list[Turn]:
    return [("system", system)] if system else []


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

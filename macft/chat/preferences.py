"""The picks people make between two answers, and what they add up to.

The rule: while somebody picks, sides are shuffled and names hidden; a pick is one line of a preference file, appended
whole or not at all, and the last one can be taken back. Nothing here generates, draws or loads anything heavy.
"""

import fcntl
import json
import math
import os
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from macft.chat.panes import Turn
from macft.disk import PRIVATE_FILE

Verdict = Literal["1", "2", "tie", "both bad"]
VERDICTS: tuple[Verdict, ...] = ("1", "2", "tie", "both bad")


class Answered(NamedTuple):
    """One voice's answer to a question."""

    voice: str
    text: str


@dataclass(frozen=True, slots=True)
class Duel:
    """Two answers to one question, as they are shown.

    Attributes:
        turns: The conversation that both answer.
        sides: Side 1 and side 2.
        sampling: How they were made, for the record.
        seed: Of both.
    """

    turns: tuple[Turn, ...]
    sides: tuple[Answered, Answered]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None

    @property
    def is_same(self) -> bool:
        """Whether both sides say the same, so that there is nothing to pick."""
        return self.sides[0].text == self.sides[1].text


@dataclass(frozen=True, slots=True)
class Tally:
    """Verdicts on two voices.

    Attributes:
        voices: Their names.
        wins: Of each.
        ties: Neither was better.
        both_bad: Neither was good.
    """

    voices: tuple[str, str]
    wins: tuple[int, int] = (0, 0)
    ties: int = 0
    both_bad: int = 0

    @property
    def p_value(self) -> float:
        """How likely a difference as large is when both are equally good."""
        return sign_test(*self.wins)

    def __str__(self) -> str:
        said = [
            f"{name} {wins}" for name, wins in sorted(zip(self.voices, self.wins, strict=True), key=lambda v: -v[1])
        ]
        said += [f"tie {self.ties}"] if self.ties else []
        said += [f"both bad {self.both_bad}"] if self.both_bad else []
        return ", ".join([*said, f"p = {_p(self.p_value)}"])


def sign_test(first: int, second: int) -> float:
    """Return the two-sided p-value of so many wins against so many; ties do not count.

    Under the null hypothesis each win is a fair coin's, so p = 2 · Σ_{k ≤ min} C(n, k) / 2ⁿ, at most 1. By hand: 17
    against 4 is 2 · (1 + 21 + 210 + 1330 + 5985) / 2²¹ = 0.0072; 5 against 0 is 2 / 32.

    Source: Dixon & Mood 1946, The statistical sign test.
    """
    n = first + second
    tail = sum(math.comb(n, k) for k in range(min(first, second) + 1))
    return min(1.0, float(2 * tail / 2**n))


def shuffled(duel: Duel, *, seed: int, number: int) -> Duel:
    """Lay a duel out so that nobody can tell whose side is whose; the same seed and number give the same sides."""
    swapped = random.Random(f"{seed}/{number}").random() < 0.5
    return replace(duel, sides=(duel.sides[1], duel.sides[0])) if swapped else duel


class Picks:
    """A session of picking between two voices.

    Args:
        voices: Their names.
        path: The preference file, appended to; it is made when the first pick is.
        labels: Where thumbs go, as labeled completions; left out, beside `path` with `-labels` in its name.
    """

    def __init__(self, voices: tuple[str, str], path: Path, labels: Path | None = None) -> None:
        self.path, self.labels = path, labels or path.with_name(f"{path.stem}-labels{path.suffix}")
        self._voices = voices
        self._undo: list[tuple[Tally, Path | None, bytes]] = []
        self.tally = Tally(voices)

    def judge(self, duel: Duel, verdict: Verdict, *, edited: str | None = None) -> None:
        """Record a verdict; a winner is written to the preference file, unless nothing can be learned from the pair.

        Args:
            duel: What was shown.
            verdict: Which side is better, or neither.
            edited: What the winner should have said; it is then the chosen answer.

        Raises:
            OSError: The file cannot be written; nothing was recorded.
        """
        before, line = self.tally, b""
        if verdict in {"1", "2"}:
            better, worse = duel.sides if verdict == "1" else duel.sides[::-1]
            chosen = better._replace(text=edited) if edited is not None else better
            if chosen.text.strip() and worse.text.strip() and chosen.text != worse.text:
                line = _pair(duel, chosen, worse)
                append_line(self.path, line)
        self.tally = self._count(verdict, duel)
        self._undo.append((before, self.path if line else None, line))

    def thumb(self, duel: Duel, side: Literal["1", "2"], *, up: bool) -> None:
        """Record that one answer is good or bad by itself: a labeled completion.

        Raises:
            OSError: The file cannot be written; nothing was recorded.
        """
        answer = duel.sides[int(side) - 1]
        row = {"prompt": _messages(duel.turns), "completion": answer.text, "label": up}
        line = _line({**row, "voice": answer.voice, **_made(duel)})
        append_line(self.labels, line)
        self._undo.append((self.tally, self.labels, line))

    def undo(self) -> bool:
        """Take the last verdict or thumb back; False when there is none, or when its file has gone on since."""
        if not self._undo:
            return False
        tally, path, line = self._undo[-1]
        if path is not None and not remove_last_line(path, line):
            return False
        self._undo.pop()
        self.tally = tally
        return True

    def _count(self, verdict: Verdict, duel: Duel) -> Tally:
        tally = self.tally
        if verdict == "tie":
            return Tally(tally.voices, tally.wins, tally.ties + 1, tally.both_bad)
        if verdict == "both bad":
            return Tally(tally.voices, tally.wins, tally.ties, tally.both_bad + 1)
        winner = tally.voices.index(duel.sides[int(verdict) - 1].voice)
        wins = (tally.wins[0] + (winner == 0), tally.wins[1] + (winner == 1))
        return Tally(tally.voices, wins, tally.ties, tally.both_bad)


def append_line(path: Path, line: bytes) -> None:
    """Add a line to a file as a whole, for its owner only; a half-written one before it is ended first.

    Raises:
        OSError: It cannot be written; the file is as it was.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, PRIVATE_FILE)
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = file.seek(0, os.SEEK_END)
        torn = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
        content = b"\n" * torn + line
        try:
            if file.write(content) != len(content):
                raise OSError(28, os.strerror(28), str(path))
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise


def remove_last_line(path: Path, line: bytes) -> bool:
    """Take a line off a file's end, if that is what it ends with."""
    try:
        file = path.open("r+b", buffering=0)
    except FileNotFoundError:
        return False
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = file.seek(0, os.SEEK_END)
        start = size - len(line)
        if start < 0 or os.pread(file.fileno(), len(line), start) != line:
            return False
        file.truncate(start)
        os.fsync(file.fileno())
    return True


def _messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def _pair(duel: Duel, chosen: Answered, rejected: Answered) -> bytes:
    row = {"prompt": _messages(duel.turns), "chosen": chosen.text, "rejected": rejected.text}
    return _line({**row, "voices": {"chosen": chosen.voice, "rejected": rejected.voice}, **_made(duel)})


def _made(duel: Duel) -> dict[str, Any]:
    return {"sampling": dict(duel.sampling), "seed": duel.seed, "time": time.time()}


def _line(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False).encode() + b"\n"


def _p(value: float) -> str:
    return f"{value:.1g}" if value < 0.0995 else f"{value:.2f}"

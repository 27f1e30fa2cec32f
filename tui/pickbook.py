"""The preference file, for a screen: what people picked, how many pairs there are, and whether they are enough.

The rule: the file is written in a thread, one write after the other, so that a slow disk or a lock holds no key up; and
the file is the truth, so pairs are counted in it.
"""

import asyncio
from pathlib import Path

from macft.chat.preferences import Duel, Picks, Tally, Verdict

ENOUGH = 50
"""Pairs from which DPO has something to learn; fewer mostly teach it these very pairs."""


class PickBook:
    """A session of picking between two voices.

    Args:
        voices: Their names.
        path: The preference file.
    """

    def __init__(self, voices: tuple[str, str], path: Path) -> None:
        self.path, self.pairs = path, 0
        self._picks = Picks(voices, path)
        self._turn = asyncio.Lock()

    @property
    def tally(self) -> Tally:
        """Wins of this session."""
        return self._picks.tally

    async def count(self) -> None:
        """Count the pairs in the file."""
        async with self._turn:
            self.pairs = await asyncio.to_thread(_count, self.path)

    async def judge(self, duel: Duel, verdict: Verdict, edited: str | None) -> None:
        """Record a verdict.

        Raises:
            OSError: The file cannot be written; nothing was recorded.
        """
        async with self._turn:
            self.pairs = await asyncio.to_thread(self._judge, duel, verdict, edited)

    async def undo(self) -> bool:
        """Take the last verdict back; False when that cannot be."""
        async with self._turn:
            is_undone = await asyncio.to_thread(self._picks.undo)
            self.pairs = await asyncio.to_thread(_count, self.path)
        return is_undone

    def _judge(self, duel: Duel, verdict: Verdict, edited: str | None) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._picks.judge(duel, verdict, edited=edited)
        return _count(self.path)


def _count(path: Path) -> int:
    try:
        return sum(bool(line.strip()) for line in path.read_bytes().splitlines())
    except FileNotFoundError:
        return 0

"""Removing things with a way back.

The rule: what is removed is first moved aside, and is gone for good after a while.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tui.screens.frame import StudioScreen

UNDO_SECONDS = 30.0


class _Removed(NamedTuple):
    path: Path
    kept: Path
    restore: Callable[[Path, Path], Any]


class Removal(StudioScreen):
    """A screen that things can be removed from."""

    def __init__(self) -> None:
        super().__init__()
        self.removed: list[_Removed] = []

    def remove_it(
        self,
        path: Path,
        discard: Callable[[], Path],
        restore: Callable[[Path, Path], Any],
        forget: Callable[[Path], Any],
    ) -> None:
        """Take something away.

        Args:
            path: Where it is.
            discard: Moves it aside, and says where to.
            restore: Moves it back, from there to `path`.
            forget: Deletes it for good.
        """
        kept = list[Path]()
        if self.attempt(lambda: kept.append(discard())):
            self.removed.append(_Removed(path, kept[0], restore))
            self.notify(f"{path.name} is removed; u brings it back within {UNDO_SECONDS:.0f} s", markup=False)
            self.set_timer(UNDO_SECONDS, lambda: self._forget(kept[0], forget))

    def _forget(self, kept: Path, forget: Callable[[Path], Any]) -> None:
        if any(kept == one.kept for one in self.removed):
            self.removed = [one for one in self.removed if one.kept != kept]
            self.attempt(forget, kept)

    def action_undo(self) -> None:
        """Bring back what was removed last."""
        if not self.removed:
            self.notify("Nothing to bring back.")
            return
        path, kept, restore = self.removed.pop()
        self.attempt(restore, kept, path, done=f"{path.name} is back")
        self.after_undo()

    def after_undo(self) -> None:
        """Show what came back."""

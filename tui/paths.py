"""Paths as a person types them."""

from pathlib import Path

from textual.suggester import Suggester


class PathSuggester(Suggester):
    """Completes the last part of a path; right or end takes it."""

    def __init__(self) -> None:
        super().__init__(use_cache=False, case_sensitive=True)

    async def get_suggestion(self, value: str) -> str | None:
        """Return the first file or folder that begins so."""
        folder, _, start = value.rpartition("/")
        try:
            where = Path(folder or ("/" if value.startswith("/") else ".")).expanduser()
            found = sorted(path for path in where.iterdir() if path.name.startswith(start))
        except (OSError, RuntimeError):
            return None
        shown = [path for path in found if start or not path.name.startswith(".")]
        if not value or not shown:
            return None
        return value[: len(value) - len(start)] + shown[0].name + ("/" if shown[0].is_dir() else "")

"""A fused model in LM Studio's folder of models.

The rule: LM Studio is given links, not copies, and what it holds under a name is never written over.
"""

import os
from pathlib import Path

from macft.errors import RunError
from macft.models.shards import refuse_full

PUBLISHER = "macft"


def find_lmstudio(home: Path) -> Path:
    """Return LM Studio's folder of models below a person's home.

    Raises:
        RunError: LM Studio has none there.
    """
    places = [home / ".lmstudio", home / ".cache" / "lm-studio"]
    for place in places:
        if place.is_dir():
            return place / "models"
    raise RunError("LM Studio has no folder here (~/.lmstudio)", fix="Start LM Studio once, or name its folder: --out.")


def link_into(models: Path, folder: Path, name: str) -> Path:
    """Make a model folder appear in LM Studio.

    Args:
        models: LM Studio's folder of models.
        folder: The model; it must stay where it is.
        name: What LM Studio calls it.

    Returns:
        The folder there, `<publisher>/<name>`.

    Raises:
        RunError: It has a model of that name, or the folder cannot be written.
    """
    place = models / PUBLISHER / name
    refuse_full(place)
    try:
        place.mkdir(parents=True, exist_ok=True)
        for file in sorted(folder.iterdir()):
            _link(file, place / file.name)
    except OSError as error:
        raise RunError(f"{place} cannot be written ({error.strerror})", fix="Name another folder with --out.") from None
    return place


def _link(file: Path, place: Path) -> None:
    """Link a file, so that it outlives the folder it came from; across disks by its path."""
    try:
        os.link(file, place)
    except OSError:
        place.symlink_to(file)

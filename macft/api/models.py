"""The models and adapters on this machine, and fetching more."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from macft.machine import home

if TYPE_CHECKING:
    from macft.models.adapter_facts import AdapterFacts
    from macft.models.describe import ModelFacts


def list_models() -> "list[ModelFacts]":
    """Return the models on this machine."""
    from macft.models.catalog import local_models

    return local_models(home())


def pull(name: str, *, config_only: bool = False, progress: Callable[[str, int, int], None] | None = None) -> Path:
    """Fetch a model by catalog name or Hugging Face id; the only function that goes online."""
    from macft.models.fetch import pull as fetch

    return fetch(name, home(), progress=progress, config_only=config_only)


def start_pull(name: str) -> "subprocess.Popen[str]":
    """Fetch a model in a process of its own, for a program that is offline itself.

    Its stdout has event lines while it goes on, and at the end an object with the `path`; its stderr says what is
    wrong. Killing it loses nothing: the next pull goes on where it was.
    """
    environ = {key: value for key, value in os.environ.items() if key not in {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"}}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "macft", "pull", "--json", "--", name],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
        start_new_session=True,
    )


def list_adapters() -> "list[AdapterFacts]":
    """Return the adapters on this machine that no run holds."""
    from macft.models.adapter_facts import list_adapters as look

    return look(home(), here=Path.cwd())


def describe_adapter(folder: Path, name: str = "") -> "AdapterFacts":
    """Return what an adapter folder is; no weight is read."""
    from macft.models.adapter_facts import describe_adapter as describe

    return describe(folder, name)


def add_adapter(folder: Path) -> "AdapterFacts":
    """Make an adapter folder known to macft; it stays where it is."""
    from macft.models.adapter_facts import add_adapter as add

    return add(folder, home())


def discard_adapter(folder: Path) -> Path:
    """Take an adapter that no run holds out of the list without deleting it yet, and return where it waits."""
    from macft.models.adapter_facts import discard_adapter as discard

    return discard(folder, home())


def restore_adapter(discarded: Path, folder: Path) -> None:
    """Put a discarded adapter back to where it was."""
    discarded.rename(folder)


def forget_adapter(discarded: Path) -> None:
    """Delete a discarded adapter for good; of a link, only the link."""
    if discarded.is_symlink():
        discarded.unlink(missing_ok=True)
    else:
        shutil.rmtree(discarded, ignore_errors=True)

"""What an adapter is, before MLX or any of its weights are loaded, and where adapters are kept on this machine.

The rule: nothing is registered anywhere. An adapter is a folder with an `adapter_config.json`, whoever wrote it;
folders elsewhere are known by a link in macft's own.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macft.errors import ModelError

ADAPTERS = "adapters"
"""In macft's folder: merged adapters, and links to what others made."""
CONFIG = "adapter_config.json"
_WEIGHTS = ("adapters.safetensors", "adapter_model.safetensors")


@dataclass(frozen=True, slots=True)
class AdapterFacts:
    """An adapter folder.

    Attributes:
        base: What it was trained on, as its config calls it; empty when it does not say.
        kind: lora, dora or full.
        writer: macft, mlx-lm or PEFT.
        rank: Of the update; 0 when nothing says.
        scale: What the product of its matrices counts with, `alpha / rank`.
        method: What trained it, like sft; empty when nothing says.
        step: Of the training it comes from.
        merged: The adapters it is the sum of, each with its strength.
        problem: Why it cannot be used; empty most of the time.
    """

    name: str
    path: Path
    base: str = ""
    kind: str = "lora"
    writer: str = "mlx-lm"
    rank: int = 0
    scale: float = 0.0
    layers: int = 0
    size_bytes: int = 0
    method: str = ""
    step: int = 0
    quantize: int | None = None
    recipe_hash: str = ""
    data_hash: str = ""
    merged: tuple[str, ...] = ()
    problem: str = ""


def describe_adapter(folder: Path, name: str = "") -> AdapterFacts:
    """Describe an adapter folder, mlx-lm's or PEFT's; a damaged one with what is wrong."""
    name = name or folder.name
    try:
        told = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        weights = next(path for path in (folder / file for file in _WEIGHTS) if path.is_file())
        return _facts(told, folder, name, weights.stat().st_size)
    except StopIteration:
        return AdapterFacts(name, folder, problem=f"it has no {_WEIGHTS[0]}")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return AdapterFacts(name, folder, problem=f"its {CONFIG} cannot be read ({error})")


def _facts(told: dict[str, Any], folder: Path, name: str, size_bytes: int) -> AdapterFacts:
    ours, layers = told.get("macft") or {}, told.get("lora_parameters") or {}
    rank = int(layers.get("rank") or told.get("r") or 0)
    alpha = float(told.get("lora_alpha") or 0.0)
    merged = [f"{part['adapter']} × {part['strength']:g}" for part in ours.get("merged") or ()]
    return AdapterFacts(
        name,
        folder,
        base=str(ours.get("base_model") or told.get("base_model_name_or_path") or ""),
        kind="dora" if told.get("use_dora") else str(told.get("fine_tune_type") or "lora"),
        writer="macft" if ours else "mlx-lm" if "lora_parameters" in told else "PEFT",
        rank=rank,
        scale=float(layers.get("scale") or (alpha / rank if rank else 0.0)),
        layers=int(told.get("num_layers") or 0),
        size_bytes=size_bytes,
        method=str(ours.get("method") or ""),
        step=int(ours.get("step") or 0),
        quantize=ours.get("quantize"),
        recipe_hash=str(ours.get("recipe_hash") or ""),
        data_hash=str(ours.get("data_hash") or ""),
        merged=tuple(merged),
    )


def list_adapters(home: Path, *, hub_cache: Path | None = None, here: Path | None = None) -> list[AdapterFacts]:
    """Describe the adapters of this machine that no run of macft holds.

    They are macft's own folder, what stock mlx-lm writes into the current one, and adapters in the hub's cache.
    """
    own = sorted(path for path in (home / ADAPTERS).glob("[!.]*") if path.is_dir())
    places = [(path.name, path) for path in own]
    if here and (here / ADAPTERS / CONFIG).is_file():
        places.append((f"./{ADAPTERS}", here / ADAPTERS))
    return [describe_adapter(path, name) for name, path in (*places, *_cached(hub_cache))]


def _cached(hub_cache: Path | None) -> Iterator[tuple[str, Path]]:
    from huggingface_hub.constants import HF_HUB_CACHE

    for repository in sorted(Path(hub_cache or HF_HUB_CACHE).glob("models--*--*")):
        found = sorted(repository.glob(f"snapshots/*/{CONFIG}"), key=lambda path: path.stat().st_mtime)
        if found:
            yield repository.name.removeprefix("models--").replace("--", "/", 1), found[-1].parent


def add_adapter(folder: Path, home: Path) -> AdapterFacts:
    """Make an adapter folder known, by a link; the folder stays where it is.

    Raises:
        ModelError: It is no adapter folder, or another of its name is known.
    """
    folder = folder.expanduser().resolve()
    facts = describe_adapter(folder)
    if facts.problem:
        raise ModelError(f"{folder}: {facts.problem}", fix="Name the folder that holds adapter_config.json.")
    name = folder.parent.name if folder.name in {"adapter", ADAPTERS} else folder.name
    place = home / ADAPTERS / name
    if place.exists() or place.is_symlink():
        raise ModelError(f"{place} is there already", fix="Remove that one first, or rename the folder.")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(folder, target_is_directory=True)
    return describe_adapter(place)


def discard_adapter(folder: Path, home: Path) -> Path:
    """Take an adapter out of macft's folder without deleting it yet, and return where it waits.

    Raises:
        ModelError: It is not in macft's folder: what others made is theirs to delete.
    """
    own = home / ADAPTERS
    if folder.parent != own:
        raise ModelError(f"{folder} is not macft's", fix="Delete it where it is, if you want.")
    waiting, number = own / ".discarded" / folder.name, 2
    waiting.parent.mkdir(parents=True, exist_ok=True)
    while waiting.exists() or waiting.is_symlink():
        waiting, number = waiting.with_name(f"{folder.name}-{number}"), number + 1
    return folder.rename(waiting)

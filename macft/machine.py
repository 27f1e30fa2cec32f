"""Facts about this machine, where macft keeps its files, and the fast BLAS that Linux needs.

The rule: nothing here loads MLX, and every fact that the system knows comes from one command runner, so that any
machine's recorded answers can stand in for it.
"""

import mmap
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

import psutil

MIB, GIB = 2**20, 2**30
LARGE_MAC_BYTES = 36 * GIB
BLAS_VARIABLE = "MACFT_BLAS"
"""Set once OpenBLAS was dealt with, and inherited by children; a user who sets it to `off` keeps their own BLAS."""

SLOW_BLAS = "OpenBLAS was not found, so this computes about 25 times slower. Debian: apt install libopenblas0-pthread"

CommandRunner = Callable[[list[str]], str]


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """What macft knows about the machine it runs on."""

    system: str
    """`Darwin` or `Linux`."""
    chip: str
    """The maker's name of it, like `Apple M4 Max`."""
    cores: int
    """CPU cores that this process may use."""
    memory_bytes: int
    """All memory; on Apple silicon CPU and GPU share it."""
    working_set_bytes: int
    """What the GPU may hold before macOS objects; on a CPU backend all memory."""
    on_battery: bool
    battery_percent: int | None
    """None on a machine without a battery."""
    macos_version: str
    """Like `15.5`; empty elsewhere."""
    rosetta: bool
    """This Python is an Intel one, translated: MLX cannot work in it."""
    python: str

    @property
    def is_apple_silicon(self) -> bool:
        """Whether there is a GPU that MLX can use."""
        return self.system == "Darwin" and (self.rosetta or self.chip.startswith("Apple"))


def run_command(command: list[str]) -> str:
    """Return what a command prints, in English; empty when it is missing or takes longer than five seconds."""
    try:
        environ = {**os.environ, "LC_ALL": "C"}
        done = subprocess.run(command, capture_output=True, timeout=5, env=environ, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace")


def read_machine(run: CommandRunner = run_command, *, system: str = "") -> MachineFacts:
    """Read the facts about this machine.

    Args:
        run: Runs a command and returns its output, whatever its exit code.
        system: The system that `run` answers for; left out: this one.
    """
    return _read_mac(run) if (system or platform.system()) == "Darwin" else _read_linux(run)


def estimate_working_set(memory_bytes: int) -> int:
    """Return the most that Metal recommends a GPU should hold: 2/3 of all memory, from 36 GB on 3/4.

    Newer macOS grants large Macs more (84% of 128 GB on macOS 26); only MLX can ask Metal itself.
    """
    return memory_bytes * 2 // 3 if memory_bytes < LARGE_MAC_BYTES else memory_bytes * 3 // 4


def free_disk_bytes(path: Path) -> int:
    """Return the free bytes of the disk that `path` is on, or would be on once it is made."""
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free


def home() -> Path:
    """Return the folder of models and caches: `MACFT_HOME`, else `~/macft`."""
    return _folder("MACFT_HOME", "~/macft")


def runs_folder() -> Path:
    """Return the folder of runs: `MACFT_RUNS`, else `~/macft/runs`."""
    return _folder("MACFT_RUNS", "~/macft/runs")


def find_openblas(environ: Mapping[str, str] = os.environ, *, places: Iterable[Path] | None = None) -> Path | None:
    """Return an OpenBLAS that MLX's Linux build can be preloaded with, or None; always None on a Mac.

    Args:
        environ: A library that is already in its `LD_PRELOAD` wins.
        places: Where to look next; left out: beside the environment, then where distributions keep it.
    """
    if platform.system() != "Linux":
        return None
    preloaded = [Path(entry) for entry in _preloads(environ) if "openblas" in entry]
    candidates = [*preloaded, *(openblas_places() if places is None else places)]
    return next((path for path in candidates if _can_be_preloaded(path) and _exports_cblas(path)), None)


def openblas_places() -> list[Path]:
    """List where OpenBLAS may be: unpacked by the Makefile, conda, Debian, Fedora, Arch."""
    environment, machine = Path(sys.prefix), platform.machine()
    libraries = Path("/usr/lib")
    debian = libraries / f"{machine}-linux-gnu"
    return [
        environment.parent / ".openblas" / "libopenblas.so.0",
        environment / "lib" / "libopenblas.so.0",
        *(debian / f"openblas-{threads}" / "libopenblas.so.0" for threads in ("pthread", "openmp", "serial")),
        debian / "libopenblas.so.0",
        *(Path("/usr/lib64") / f"libopenblas{threads}.so.0" for threads in ("p", "o", "")),
        libraries / "libopenblas.so.0",
        libraries / "libopenblas.so",
    ]


def openblas_preload(environ: Mapping[str, str] = os.environ, *, places: Iterable[Path] | None = None) -> str:
    """Return the `LD_PRELOAD` that puts OpenBLAS before the libraries already there; as it is when there is none."""
    entries = _preloads(environ)
    if not any("openblas" in entry for entry in entries) and (found := find_openblas(environ, places=places)):
        # An OpenBLAS that was unpacked without being installed finds its Fortran runtime only if that is preloaded too.
        beside = sorted(found.parent.glob("lib*.so.*")) if found.parent.name == ".openblas" else []
        entries = [str(found), *(str(path) for path in beside if path != found), *entries]
    return ":".join(entries)


def reexec_with_openblas(
    command: list[str],
    environ: MutableMapping[str, str],
    execve: Callable[[str, list[str], dict[str, str]], object] = os.execve,
    *,
    places: Iterable[Path] | None = None,
) -> str:
    """Start this process again with OpenBLAS preloaded: on Linux, once, and before MLX is loaded.

    Args:
        command: The interpreter's full path and all its arguments.
        environ: This process's environment; marked so that children do not repeat the notice.
        execve: Replaces the process; returns only in tests.
        places: As for `find_openblas`.

    Returns:
        A notice when there is no OpenBLAS; empty when there is nothing to say.
    """
    if platform.system() != "Linux" or BLAS_VARIABLE in environ or "openblas" in environ.get("LD_PRELOAD", ""):
        return ""
    found = find_openblas(environ, places=places)
    environ[BLAS_VARIABLE] = str(found or "none")
    if found is None:
        return SLOW_BLAS
    execve(command[0], command, {**environ, "LD_PRELOAD": openblas_preload(environ, places=[found])})
    return ""


def _read_mac(run: CommandRunner) -> MachineFacts:
    # Names are asked for, since `sysctl -n` leaves out an unknown one without a gap.
    names = ["hw.memsize", "hw.ncpu", "machdep.cpu.brand_string", "sysctl.proc_translated", "iogpu.wired_limit_mb"]
    facts = _fields(run(["/usr/sbin/sysctl", *names]))
    memory_bytes = int(facts.get("hw.memsize") or psutil.virtual_memory().total)
    limit_bytes = int(facts.get("iogpu.wired_limit_mb") or 0) * MIB
    power = run(["/usr/bin/pmset", "-g", "batt"])
    percent = re.search(r"\t(\d+)%", power)
    return MachineFacts(
        system="Darwin",
        chip=facts.get("machdep.cpu.brand_string", platform.processor()),
        cores=int(facts.get("hw.ncpu") or os.cpu_count() or 1),
        memory_bytes=memory_bytes,
        working_set_bytes=limit_bytes or estimate_working_set(memory_bytes),
        on_battery="'Battery Power'" in power,
        battery_percent=int(percent[1]) if percent else None,
        macos_version=run(["/usr/bin/sw_vers", "-productVersion"]).strip(),
        rosetta=facts.get("sysctl.proc_translated") == "1",
        python=platform.python_version(),
    )


def _read_linux(run: CommandRunner) -> MachineFacts:
    chip = _fields(run(["lscpu"])).get("Model name", "-")
    memory_bytes = psutil.virtual_memory().total
    battery = psutil.sensors_battery()
    return MachineFacts(
        system="Linux",
        chip=platform.machine() if chip == "-" else chip,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=memory_bytes,
        working_set_bytes=memory_bytes,
        on_battery=battery is not None and battery.power_plugged is False,
        battery_percent=None if battery is None else round(battery.percent),
        macos_version="",
        rosetta=False,
        python=platform.python_version(),
    )


def _fields(lines: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in lines.splitlines())
    return {name.strip(): value.strip() for name, colon, value in pairs if colon}


def _folder(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or default).expanduser().absolute()


def _preloads(environ: Mapping[str, str]) -> list[str]:
    return [entry for entry in re.split("[ :]", environ.get("LD_PRELOAD", "")) if entry]


def _can_be_preloaded(path: Path) -> bool:
    # LD_PRELOAD has no way to quote its separators.
    return path.is_file() and not re.search("[ :]", str(path))


def _exports_cblas(path: Path) -> bool:
    # NumPy's and SciPy's own copies export prefixed names, which MLX would not find.
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(b"\0cblas_sgemm\0") >= 0
    except (OSError, ValueError):  # unreadable, or empty
        return False

"""The process between a run and its training: it says why training died, and tries once more when memory ran out.

The rule: it loads nothing heavy and holds the run's lock from first to last, so that a run lives until its last word is
written. The training process shares the lock: it outlives a keeper that is killed. Signals go to the training process.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from macft.errors import MacftError, RunCrashed
from macft.events import MemoryRanOut, RunEnded, Warned
from macft.run import Journal, Run

LOG_TAIL_BYTES = 16_384
AT_ONCE = {128 + number for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)}
"""Exit codes of a process that was told not to save."""
_SMALLER = "Resume with a smaller micro_batch_size or max_seq_length."


class Death(NamedTuple):
    """Why a training process died, in plain words, and what to change.

    Attributes:
        reason: What happened.
        fix: What to do; empty when there is nothing to change.
        is_memory: Half the micro-batch may be enough.
    """

    reason: str
    fix: str = ""
    is_memory: bool = False


_GPU_MEMORY = Death("the GPU ran out of memory", _SMALLER, is_memory=True)
_MEMORY = Death("memory ran out", _SMALLER, is_memory=True)
_WATCHDOG = Death(
    "macOS ended the GPU's work to keep the screen alive",
    f"{_SMALLER} AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1 helps, and so does a display that is off.",
)
_SIGNS: Mapping[str, Death] = {
    "Insufficient Memory": _GPU_MEMORY,
    "kIOGPUCommandBufferCallbackErrorOutOfMemory": _GPU_MEMORY,
    "greater than the maximum allowed buffer size": _GPU_MEMORY,
    "Impacting Interactivity": _WATCHDOG,
    "kIOGPUCommandBufferCallbackErrorTimeout": _WATCHDOG,
    "kIOGPUCommandBufferCallbackErrorHang": _WATCHDOG,
    "Resource limit": Death("the GPU had too many buffers", _SMALLER),
    "MemoryError": _MEMORY,
    "Unable to allocate": _MEMORY,
    "std::bad_alloc": _MEMORY,
    "Timeout (0:": Death("the other ranks of mlx.launch did not come", "Look at what they said."),
    "No space left on device": Death("the disk is full", "Free disk space."),
    "Disk quota exceeded": Death("the disk quota is used up", "Free disk space."),
    "Read-only file system": Death("its disk can only be read", "Make it writable."),
    "Too many open files": Death("too many files are open", "`ulimit -n 4096` allows more."),
}
"""What a dying process leaves in its log, and what it means; the first that is found counts."""
_SIGNALS: Mapping[int, Death] = {
    signal.SIGKILL: Death("it was killed, by somebody or by the system when memory ran short", _SMALLER),
    signal.SIGXCPU: Death("it reached the limit on processor time", "`ulimit -t unlimited` lifts it."),
    signal.SIGXFSZ: Death("it reached the limit on the size of files", "`ulimit -f unlimited` lifts it."),
    signal.SIGABRT: Death("MLX gave up", "Its log may say why."),
    signal.SIGSEGV: Death("MLX crashed", "`macft doctor` tries MLX out."),
    signal.SIGBUS: Death("a file that it was reading became shorter", "Fetch the model again with `macft pull`."),
    signal.SIGILL: Death("MLX was built for another processor", "`macft doctor` tries MLX out."),
    signal.SIGTERM: Death("it was terminated before it could save"),
    signal.SIGHUP: Death("its terminal was closed before it could start"),
}
UNKNOWN = Death("its process died", "Its log may say why.")


def explain(log: str, exit_code: int | None = None, folder: Path | None = None) -> Death:
    """Say why a process died.

    Args:
        log: The end of what it printed.
        exit_code: As `Popen.returncode` gives it, None when nobody knows.
        folder: The run's, which may be the reason itself.
    """
    if found := next((death for sign, death in _SIGNS.items() if sign in log), None):
        return found
    if folder is not None and not folder.is_dir():
        return Death("its folder is gone", "Put the disk back.")
    if exit_code is not None and exit_code < 0:
        return _SIGNALS.get(-exit_code, Death(f"it was ended by signal {-exit_code}", "Its log may say why."))
    return UNKNOWN


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out."""
    return explain(f"{type(error).__name__}: {error}").is_memory


def crashed(run: Run, exit_code: int | None = None) -> MacftError:
    """Return the error of a run whose process is gone without a last word."""
    death = explain(read_log(run), exit_code, run.path)
    fix = f"{death.fix} `macft resume {run.name}` goes on.".lstrip()
    return RunCrashed(f"{run.name}: {death.reason} (log: {run.log})", fix=fix)


def read_log(run: Run, start: int = 0) -> str:
    """Return the end of what a run's process printed, from a byte offset on."""
    with suppress(OSError), run.log.open("rb") as file:
        file.seek(max(start, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
        return file.read().decode("utf-8", "replace")
    return ""


def keep(run: Run, command: Sequence[str], *, may_retry: bool = True) -> int:
    """Let a run be trained by another process, to its end.

    Args:
        run: Its folder.
        command: Trains the run; given the lock's descriptor as `--lock`, and where requests to it begin as `--asked`.
        may_retry: Whether to try again when memory runs out.

    Returns:
        The exit code of the training process, 5 when it died.

    Raises:
        RunLocked: Another process has the run.
    """
    _, asked = run.read_requests(0)  # of an earlier life; what comes once the run is held is for this one
    with run.lock() as descriptor:
        signals_pass_by()
        run.forget_process()
        while True:
            started_at = run.log.stat().st_size if run.log.exists() else 0
            _, offset = run.read()
            child = subprocess.Popen(
                [*command, "--lock", str(descriptor), "--asked", str(asked)], pass_fds=[descriptor]
            )
            code = child.wait()
            events, _ = run.read(offset)
            if events and isinstance(events[-1], RunEnded):
                return code
            run.forget_process()
            journal, step = Journal(run), run.state().step
            goes_on = f"`macft resume {run.name}` goes on from the last checkpoint."
            if code in AT_ONCE:
                reason = "it was told to stop at once"
                journal.end(RunEnded(status="stopped", step=step, reason=reason, fix=goes_on, exit_code=code))
                return code
            death = explain(read_log(run, started_at), code, run.path)
            if death.is_memory and may_retry and run.state().micro_batch_divisor == 1:
                may_retry = False
                told = f"{death.reason}: trying once more, from the last checkpoint and with half the micro-batch"
                saved = run.state().checkpoint_step  # what is said of later steps is dropped when the run goes on
                journal(Warned(message=told, step=saved))
                journal(MemoryRanOut(step=saved, micro_batch_divisor=2))
                continue
            fix, code = f"{death.fix} {goes_on}".lstrip(), RunCrashed.exit_code
            journal.end(RunEnded(status="failed", step=step, reason=death.reason, fix=fix, exit_code=code))
            return code


def signals_pass_by() -> None:
    """Let no signal but KILL end this process: its child decides, and this one says how it went."""
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
        signal.signal(number, lambda *_: None)


def main(arguments: Sequence[str], environ: Mapping[str, str] = os.environ) -> int:
    """Keep the run whose folder is the first argument; the others go to its training process."""
    run, python = Run.open(Path(arguments[0])), [sys.executable, "-P", "-m", "macft"]
    try:
        # Ranks of mlx.launch go down together, and a job has no micro-batch.
        alone = "MLX_RANK" not in environ and not run.is_job
        return keep(run, [*python, "_run", *arguments], may_retry=alone)
    except MacftError as error:
        print(f"macft: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

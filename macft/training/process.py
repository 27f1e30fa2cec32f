"""The training process: one run, locked, with signals turned into requests.

The rule: whatever happens, the last line of `events.jsonl` says how the run ended, unless the process was killed.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import TYPE_CHECKING

from macft.errors import MacftError, RunCrashed, Stopped
from macft.events import PhaseProgress, RunEnded
from macft.keeper import is_out_of_memory
from macft.launcher import Launched, read_launch
from macft.recipe import Recipe, dump_recipe, load_recipe
from macft.run import Journal, Run
from macft.training.vitals import keep_awake

if TYPE_CHECKING:
    from macft.training.distributed import Ranks
    from macft.training.link import Loss


class Requests:
    """What the user asks of this process: actions written to the run's control file, and signals.

    INT and TERM ask for a stop after the step; the same signal again, or QUIT, ends the process at once and the last
    checkpoint stands. HUP is ignored: closing the terminal is no reason to stop.
    """

    def __init__(self, run: Run, asked: int | None = None) -> None:
        self.run = run
        self.signal_number = 0
        self._waiting: list[str] = []
        # What an earlier life was asked for is no longer wanted.
        self._offset = run.read_requests(0)[1] if asked is None else asked
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT):
            signal.signal(number, self._on_signal)

    def __call__(self) -> list[str]:
        """Return the actions asked for since the last call."""
        stopping = self.wants_stop()
        actions, self._waiting = self._waiting, []
        return [*actions, "stop"] if stopping else actions

    def wants_stop(self) -> bool:
        """Return whether a stop was asked for; other actions stay for the next call."""
        actions, self._offset = self.run.read_requests(self._offset)
        self._waiting += actions
        if "stop" in actions and not self.signal_number:
            self.signal_number = signal.SIGTERM
        return bool(self.signal_number)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self.signal_number or number == signal.SIGQUIT:
            os._exit(128 + number)
        self.signal_number = number


def run_to_end(run: Run, *, accept_new_data: bool = False, lock: int | None = None, asked: int | None = None) -> int:
    """Train the run in this process, from its last checkpoint if it has one.

    Args:
        run: Its folder.
        accept_new_data: Whether to go on although the rows are others.
        lock: The descriptor of the run's lock, when the keeper has taken it.
        asked: Where requests to this life begin in the control file; what is there already, when left out.

    Returns:
        The exit code: 0 done, 130 and 143 stopped and saved, else the error's.

    Raises:
        RunLocked: Another process trains it.
    """
    os.umask(0o077)  # whatever training leaves behind may hold text of rows
    with run.lock(lock):
        requests, journal = Requests(run, asked), Journal(run)
        keep_awake(os.getpid())
        if run.last_event() is not None:  # or a life that dies at once would seem to have ended like the one before
            journal(PhaseProgress(name="start"))
        try:
            # Imported here: the lock is held, and followers see a live run, while MLX loads.
            import macft.models.load  # noqa: F401 — first: it guards the import of mlx-lm
            from macft.training.session import Session

            recipe = load_recipe(run.path / "recipe.toml")
            with ExitStack() as stack:
                session = Session(
                    recipe,
                    run,
                    emit=journal,
                    requests=requests,
                    meet=partial(_lead, run, recipe, stack),
                    accept_new_data=accept_new_data,
                )
                ending = session.run()
        except Stopped as stop:
            return _end(journal, _ended(run, "stopped", stop, 128 + (requests.signal_number or signal.SIGTERM)))
        except MacftError as error:
            return _end(journal, _ended(run, "failed", error, error.exit_code))
        except Exception as error:
            with suppress(OSError):  # the log may lie on a full disk
                traceback.print_exc()
            if is_out_of_memory(error):  # no last word: the keeper has it, and may try again
                return RunCrashed.exit_code
            known = MacftError(
                f"{type(error).__name__}: {error}", fix=f"The details are in {run.log.name}; please report it."
            )
            if isinstance(error, OSError):
                known = MacftError(f"{error.filename or run.path}: {error.strerror}", fix=_DISK)
            return _end(journal, _ended(run, "failed", known, 1))
        exit_code = {"done": 0, "failed": 1}.get(ending.status, 128 + (requests.signal_number or signal.SIGTERM))
        ended = RunEnded(
            status=ending.status,
            step=ending.progress.step,
            reason=ending.reason,
            fix=_naming(run, ending.fix),
            exit_code=exit_code,
        )
        return _end(journal, ended)


def _end(journal: Journal, ended: RunEnded) -> int:
    """Tell how the run ended, in the log as well when its folder takes nothing any more; returns the exit code."""
    journal.end(ended)
    if journal.is_behind:
        with suppress(OSError):
            print(f"macft: {ended.reason}. {ended.fix}", file=sys.stderr, flush=True)
    return ended.exit_code


def take_part(launched: Launched, recipe: Recipe | None, check: Callable[[Recipe], None]) -> None:
    """Compute as a rank other than 0: nothing is kept here, and rank 0 says how the run ended.

    Args:
        launched: What `mlx.launch` said.
        recipe: What to do; None to do what rank 0 does, when it resumes a run.
        check: Refuses a recipe that this machine cannot train.

    Raises:
        MacftError: Rank 0 is gone, or was never met: nobody else can say why this one ends.
    """
    import macft.models.load  # noqa: F401 — first: it guards the import of mlx-lm
    from macft.training.distributed import joined

    met = False
    try:
        with TemporaryDirectory() as folder:
            requests = Requests(run := Run.create(Path(folder) / "run", ""))
            with joined(launched, partial(_leave, launched.rank)) as ranks:
                met = True
                _compute(run, ranks, requests, recipe, check)
    except MacftError as error:
        if not met or error.exit_code == RunCrashed.exit_code:
            error.message = f"rank {launched.rank} ends: {error.message}"
            raise


def _compute(
    run: Run, ranks: "Ranks", requests: Requests, recipe: Recipe | None, check: Callable[[Recipe], None]
) -> None:
    from macft.training.session import Session

    of_leader = run.path / "recipe.toml"
    of_leader.write_text(ranks.from_leader(""), encoding="utf-8")
    recipe = recipe or load_recipe(of_leader)
    check(recipe)
    Session(recipe, run, emit=lambda _: None, requests=requests, meet=lambda: ranks).run()


def _lead(run: Run, recipe: Recipe, stack: ExitStack) -> "Ranks":
    """Meet the other ranks of an `mlx.launch`, if there are any, and tell them the recipe."""
    from macft.training.distributed import joined

    def end(loss: "Loss") -> None:
        error = loss.to_error()
        run.append(_ended(run, "failed", error, error.exit_code))
        os._exit(error.exit_code)

    ranks = stack.enter_context(joined(read_launch(), end))
    ranks.from_leader(dump_recipe(recipe))
    return ranks


def _leave(rank: int, loss: "Loss") -> None:
    print(f"macft: rank {rank} ends: {loss.to_error()}", file=sys.stderr, flush=True)
    os._exit(loss.exit_code)


def _ended(run: Run, status: str, error: MacftError, exit_code: int) -> RunEnded:
    fix = _naming(run, error.fix)
    return RunEnded(status=status, step=run.state().step, reason=error.message, fix=fix, exit_code=exit_code)


def _naming(run: Run, fix: str) -> str:
    """Return the fix as a command that can be typed: with the run's name, which only this process knows."""
    return fix.replace("`macft resume", f"`macft resume {run.name}")


_DISK = "Free disk space or put the disk back, then `macft resume` goes on from the last checkpoint."

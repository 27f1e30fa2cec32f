"""The training process: one run, locked, with signals turned into requests.

The rule: whatever happens, the last line of `events.jsonl` says how the run ended, unless the process was killed.
"""

import os
import signal
import traceback
from types import FrameType

from macft.errors import MacftError, Stopped
from macft.events import PhaseProgress, RunEnded
from macft.recipe import load_recipe
from macft.run import Run


class Requests:
    """What the user asks of this process: actions written to the run's control file, and signals.

    INT and TERM ask for a stop after the step; the same signal again, or QUIT, ends the process at once and the last
    checkpoint stands. HUP is ignored: closing the terminal is no reason to stop.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.signal_number = 0
        self._waiting: list[str] = []
        _, self._offset = run.read_requests(0)  # what an earlier life was asked for is no longer wanted
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


def run_to_end(run: Run) -> int:
    """Train the run in this process, from its last checkpoint if it has one.

    Returns:
        The exit code: 0 done, 130 and 143 stopped and saved, else the error's.

    Raises:
        RunLocked: Another process trains it.
    """
    with run.lock():
        requests = Requests(run)
        if run.last_event() is not None:  # or a life that dies at once would seem to have ended like the one before
            run.append(PhaseProgress(name="start"))
        try:
            # Imported here: the lock is held, and followers see a live run, while MLX loads.
            import macft.models.load  # noqa: F401 — first: it guards the import of mlx-lm
            from macft.training.session import Session

            ending = Session(load_recipe(run.path / "recipe.toml"), run, emit=run.append, requests=requests).run()
        except Stopped as stop:
            run.append(_ended(run, "stopped", stop, 128 + (requests.signal_number or signal.SIGTERM)))
            return 128 + (requests.signal_number or signal.SIGTERM)
        except MacftError as error:
            run.append(_ended(run, "failed", error, error.exit_code))
            return error.exit_code
        except Exception as error:
            traceback.print_exc()
            known = MacftError(
                f"{type(error).__name__}: {error}", fix=f"The details are in {run.log.name}; please report it."
            )
            run.append(_ended(run, "failed", known, 1))
            return 1
        exit_code = {"done": 0, "failed": 1}.get(ending.status, 128 + (requests.signal_number or signal.SIGTERM))
        run.append(
            RunEnded(
                status=ending.status,
                step=ending.progress.step,
                reason=ending.reason,
                fix=_naming(run, ending.fix),
                exit_code=exit_code,
            )
        )
        return exit_code


def _ended(run: Run, status: str, error: MacftError, exit_code: int) -> RunEnded:
    fix = _naming(run, error.fix)
    return RunEnded(status=status, step=run.state().step, reason=error.message, fix=fix, exit_code=exit_code)


def _naming(run: Run, fix: str) -> str:
    """Return the fix as a command that can be typed: with the run's name, which only this process knows."""
    return fix.replace("`macft resume`", f"`macft resume {run.name}`")

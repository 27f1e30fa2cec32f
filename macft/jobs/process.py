"""The process of a job: locked like a training, and ended in one line of `events.jsonl`, whatever happens."""

import traceback

from macft.errors import MacftError, Stopped
from macft.events import RunEnded
from macft.jobs.job import load_job
from macft.run import Journal, Run
from macft.training.process import Requests


def run_job(run: Run, *, lock: int | None = None, asked: int | None = None) -> int:
    """Do the job of a run folder in this process.

    Args:
        run: Its folder.
        lock: The descriptor of the run's lock, when the keeper has taken it.
        asked: Where requests to this life begin in the control file.

    Returns:
        The exit code: 0 done, 130 and 143 stopped, else the error's.

    Raises:
        RunLocked: Another process is at it.
    """
    with run.lock(lock):
        requests = Requests(run, asked)
        try:
            # Imported here: the lock is held, and followers see a live run, while MLX loads.
            import macft.models.load  # noqa: F401 — first: it guards the import of mlx-lm

            job = load_job(run)
            if job.kind == "merge":
                from macft.jobs.merging import merge_parts

                merge_parts(job, run, requests)
            else:
                from macft.jobs.work import Work

                Work(job, run, requests).run()
            ended = RunEnded(status="done", step=0)
        except Stopped as stop:
            ended = _ended("stopped", stop, 128 + (requests.signal_number or 15))
        except MacftError as error:
            ended = _ended("failed", error, error.exit_code)
        except Exception as error:
            traceback.print_exc()
            fix = f"The details are in {run.log.name}; please report it."
            ended = _ended("failed", MacftError(f"{type(error).__name__}: {error}", fix=fix), 1)
        Journal(run).end(ended)
        return ended.exit_code


def _ended(status: str, error: MacftError, exit_code: int) -> RunEnded:
    return RunEnded(status=status, step=0, reason=error.message, fix=error.fix, exit_code=exit_code)

"""Stands in for `macft train`: follows a run that a small worker writes, without a model.

python -m tests.cli.follower follow FOLDER [SECONDS] | work FOLDER SECONDS
"""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from macft.cli.diagnostics import guard
from macft.cli.render import open_view
from macft.cli.watch import train_and_watch
from macft.events import RunEnded, RunStarted, StepDone
from macft.run import Run


def start(path, seconds):
    run = Run.create(path, 'model = "m"\n')
    command = [sys.executable, "-m", "tests.cli.follower", "work", str(path), seconds]
    subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not run.is_live:
        time.sleep(0.01)
    return run


def work(path, seconds):
    """Ends after so many seconds, at the first signal once its step is done, at once at the second."""
    run, heard = Run.open(path), []

    def hear(number, _):
        if heard:
            os._exit(128 + number)
        heard.append(number)

    with run.lock():
        signal.signal(signal.SIGINT, hear)
        signal.signal(signal.SIGTERM, hear)
        run.append(RunStarted(method="sft", adapter="lora", model="m"))
        run.append(StepDone(step=1, epoch=1, metrics={"loss": 1.0, "step_seconds": 0.1}))
        end = time.monotonic() + seconds
        while time.monotonic() < end and not heard:
            time.sleep(0.02)
        if heard:
            time.sleep(1.0)  # its step goes on; a second signal comes here
        code = 128 + heard[0] if heard else 0
        run.append(RunEnded(status="stopped" if heard else "done", step=1, exit_code=code))


def follow(path, seconds):
    _, state = train_and_watch(partial(start, path, seconds), open_view(json=True))
    return state.ended.exit_code


if __name__ == "__main__":
    what, folder, seconds = sys.argv[1:]
    if what == "work":
        work(Path(folder), float(seconds))
    else:
        sys.exit(guard(lambda: follow(Path(folder), seconds), debug=False))

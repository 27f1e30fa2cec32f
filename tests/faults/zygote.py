"""A process that has loaded everything and forks the training processes, so that a life costs no imports.

Each life is `macft _run` from its lock to its exit code, in a process of its own that can be killed.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

from tests.conftest import REPOSITORY


class Zygote:
    """Starts lives one after the other."""

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "tests.faults.zygote"]
        self.process = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._answer()
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()

    def live(self, run: Path, *, kill_after: float | None = None) -> tuple[int, float]:
        """Let a run live until its end, or until it is killed with -9.

        Returns:
            The exit code, -9 when it was killed, and how long it lived in seconds.
        """
        assert self.process.stdin
        print(json.dumps({"run": str(run), "kill_after": kill_after}), file=self.process.stdin, flush=True)
        answer = self._answer()
        return int(answer["code"]), float(answer["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


def _fork(run: Path) -> int:
    if pid := os.fork():
        return pid
    try:
        log = os.open(run / "train.log", os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
        for descriptor in (1, 2):
            os.dup2(log, descriptor)
        from macft import api

        os._exit(api.start(run))
    finally:
        os._exit(99)


def _live(run: Path, kill_after: float | None) -> tuple[int, float]:
    started = time.monotonic()
    pid = _fork(run)
    if kill_after is not None:
        time.sleep(max(0.0, started + kill_after - time.monotonic()))
        os.kill(pid, 9)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code, time.monotonic() - started


def main() -> None:
    import macft.models.load  # first: it guards the import of mlx-lm
    import macft.training.session  # noqa: F401
    from macft.training import process  # noqa: F401

    print("{}", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        code, seconds = _live(Path(asked["run"]), asked["kill_after"])
        print(json.dumps({"code": code, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()

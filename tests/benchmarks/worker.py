"""One side of the comparison, as a process that answers JSON lines."""

import json
import subprocess
from pathlib import Path
from typing import Any


class WorkerDied(Exception):
    """A side ended before it answered."""


class Worker:
    """A process that is told what to do, one command at a time.

    Args:
        command: Starts it; the options are added as JSON.
        options: What it is to train, the same for both sides.
        environ: Its environment.
        log: Where its own output goes.
    """

    def __init__(self, command: list[str], options: dict[str, Any], environ: dict[str, str], log: Path) -> None:
        self._log = log
        with log.open("w") as stderr:
            self._process = subprocess.Popen(
                [*command, json.dumps(options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environ,
                text=True,
            )
        self.facts = self._answer()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def plan(self, name: str, **what: Any) -> dict[str, Any]:
        """Have an epoch's batches made, to be asked for by this name."""
        return self._ask(do="plan", **{"with": {"name": name, **what}})

    def step(self, plan: str, batch: int, *, peak: bool = False) -> dict[str, Any]:
        """Have one update made; returns what it took."""
        return self._ask(do="step", plan=plan, batch=batch, peak=peak)

    def peak(self) -> dict[str, Any]:
        """Have the fastest product measured."""
        return self._ask(do="peak")

    def _ask(self, **command: Any) -> dict[str, Any]:
        print(json.dumps(command), file=self._process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise WorkerDied(f"{self._process.args[0]} ended:\n{self._log.read_text()[-2000:]}")
        return json.loads(line)

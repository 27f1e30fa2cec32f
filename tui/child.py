"""The child that loads models: `macft _worker`, asked and heard line by line.

The rule: nothing here waits. What is asked goes into a pipe, what comes back is told as it comes. A child that dies, at
any moment, is told too, and the next question starts another.
"""

import asyncio
import json
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Sequence
from contextlib import suppress
from tempfile import TemporaryFile
from typing import IO, Any

from macft import keeper

LONGEST_LINE = 2**26
LAST_WORDS = 4000
"""Bytes of what a child said on stderr that are read when it died."""

GRACE_SECONDS = 2.0
"""For a child that says nothing more to end by itself, with an exit code of its own."""

Answer = dict[str, Any]
Tell = Callable[[Answer], None]


class Child:
    """A worker process, started by the first question.

    Args:
        command: How it is started.
        tell: Told every line of its answers.
        lost: Told why it died, unless `end` or `close` ended it.
    """

    def __init__(self, command: Sequence[str], tell: Tell, lost: Callable[[str], None]) -> None:
        self._command, self._tell, self._lost = command, tell, lost
        self._life: _Life | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._number = 0

    @property
    def process_id(self) -> int | None:
        """Of the process, None while there is none."""
        return self._life.process.pid if self._life and self._life.process else None

    def ask(self, kind: str, **values: Any) -> int:
        """Send a request, and return the id that its answers carry."""
        self._number += 1
        if self._life is None:
            self._life = _Life(self._command, self._tell)
            self._life.task = asyncio.create_task(self._live(self._life))
        self._life.send(json.dumps({"id": self._number, "type": kind, **values}).encode() + b"\n")
        return self._number

    def cancel(self, request: int) -> None:
        """End a request, at work or waiting, if the child lives."""
        if self._life:
            self.ask("cancel", request=request)

    def end(self) -> None:
        """End the process at once, whatever it does."""
        life, self._life = self._life, None
        if life and life.task:
            self._ending.add(life.task)
            life.task.add_done_callback(self._ending.discard)
            life.task.cancel()

    async def close(self) -> None:
        """End the process, and wait until it is gone."""
        self.end()
        await asyncio.gather(*self._ending, return_exceptions=True)

    async def _live(self, life: "_Life") -> None:
        try:
            why = await life.run()
        except (OSError, ValueError) as error:  # it cannot be started, or a line has no end
            why = str(error)
        if self._life is life:
            self._life = None
            self._lost(why)


class _Life:
    """One process, from its start to its end."""

    def __init__(self, command: Sequence[str], tell: Tell) -> None:
        self._command, self._tell = command, tell
        self._unsent: list[bytes] = []
        self.process: Process | None = None
        self.task: asyncio.Task[None] | None = None

    def send(self, line: bytes) -> None:
        """Put a line into the pipe, as soon as there is one."""
        if self.process and self.process.stdin:
            self.process.stdin.write(line)
        else:
            self._unsent.append(line)

    async def run(self) -> str:
        """Start the process and tell what it says until it ends; returns why it did."""
        with TemporaryFile() as log:
            process = await asyncio.create_subprocess_exec(
                *self._command, stdin=PIPE, stdout=PIPE, stderr=log, start_new_session=True, limit=LONGEST_LINE
            )
            try:
                await self._hear(process)
            finally:
                with suppress(ProcessLookupError):
                    process.kill()
                code = await process.wait()
            return explain(code, _last_words(log))

    async def _hear(self, process: Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self.process = process
        for line in self._unsent:
            process.stdin.write(line)
        async for line in process.stdout:
            with suppress(ValueError):  # what a dying child did not finish
                self._tell(json.loads(line))
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), GRACE_SECONDS)


def explain(code: int, log: str) -> str:
    """Say why a process died, from its exit code and its last words."""
    death = keeper.explain(log, code)
    if death is not keeper.UNKNOWN:
        return death.reason
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return lines[-1] if lines else f"code {code}"


def _last_words(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read()[-LAST_WORDS:].decode(errors="replace")

"""The child that reads rows, in the process of the test."""

import io
import json
from collections import deque

from macft.cli.row_worker import RowsWorker


class RowsInProcess:
    """Answers like `macft _rows`; `kill` is the death of the process."""

    def __init__(self) -> None:
        self.worker = RowsWorker(seconds=0.02)
        self.is_dead = False
        self.answers = deque[str]()
        self.stdin, self.stdout = _Questions(self), _Answers(self)

    def poll(self) -> int | None:
        """Return how it ended."""
        return -9 if self.is_dead else None

    def kill(self) -> None:
        """Die."""
        self.is_dead = True

    def wait(self) -> int:
        """Be dead already."""
        return -9


class _Questions(io.StringIO):
    def __init__(self, child: RowsInProcess) -> None:
        super().__init__()
        self.child = child

    def write(self, line: str, /) -> int:
        if self.child.is_dead:
            raise BrokenPipeError
        self.child.answers.append(json.dumps(self.child.worker.answer(line)))
        return len(line)


class _Answers(io.StringIO):
    def __init__(self, child: RowsInProcess) -> None:
        super().__init__()
        self.child = child

    def readline(self, size: int | None = -1, /) -> str:
        return "" if self.child.is_dead else self.child.answers.popleft()

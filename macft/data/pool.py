"""Rows read by several processes, in the order of the files.

The rule: what comes out is what one process would have made, since a row depends on nothing but itself. Processes start
afresh (MLX's threads survive no fork), leave Ctrl-C to the one that asked, and end with it.
"""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import connection, get_context, parent_process
from typing import NamedTuple, Self

from macft.data.outcomes import Outcome, make_reader, read_row
from macft.data.rows import Reader, Settings
from macft.data.sources import LocatedRow, Row, list_files
from macft.data.turns import Tokenizer
from macft.errors import DataError, Problem
from macft.recipe import DataTable

LEAST_BYTES = 2**21
"""Files of rows below this are read sooner than processes start."""
MOST_WORKERS = 8
ROWS_A_TASK = 256
AHEAD_TASKS = 3
"""Tasks a process that wait for it or for their turn, so that memory stays what it is."""
BY_LINE = {".jsonl", ".ndjson", ".csv", ".tsv"}
"""Files whose rows are lines, so that their size tells how many there are."""


class Workers(NamedTuple):
    """The processes that may help.

    Attributes:
        load: Makes the tokenizer there; a function that another process can find by name.
        processes: How many.
        least_bytes: Smaller files are read without them.
    """

    load: Callable[[], Tokenizer]
    processes: int = min(MOST_WORKERS, os.cpu_count() or 1)
    least_bytes: int = LEAST_BYTES

    def pay_for(self, paths: Sequence[str]) -> bool:
        """Return whether files are large enough for them."""
        sizes = (file.stat().st_size for file in list_files(paths) if file.suffix.lower() in BY_LINE)
        return self.processes > 1 and sum(sizes) >= self.least_bytes


class RowPool:
    """Reads rows with worker processes, or without.

    Args:
        reader: Of this process.
        workers: None to read here.
    """

    def __init__(self, reader: Reader, workers: Workers | None) -> None:
        self.reader, self.workers = reader, workers
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        """Start the processes."""
        if self.workers:
            settings, context = self.reader.settings, get_context("spawn")
            how = (settings.data, settings.method, settings.max_seq_length, settings.vocab_size)
            self._executor = ProcessPoolExecutor(
                self.workers.processes, mp_context=context, initializer=_start, initargs=(self.workers.load, *how)
            )
        return self

    def __exit__(self, *_: object) -> None:
        """End them; what they have not begun is not done."""
        if self._executor:
            self._executor.shutdown(cancel_futures=True)

    def read(self, rows: Iterable[LocatedRow], *, encode: bool = True) -> Iterator[tuple[LocatedRow, list[Outcome]]]:
        """Yield each row with what came of it, in order.

        Raises:
            DataError: A process died.
        """
        if self._executor is None or self.workers is None or not encode:
            for located in rows:
                yield located, [] if located.row is None else read_row(located.row, self.reader, encode=encode)
            return
        waiting: deque[tuple[list[LocatedRow], Future[list[list[Outcome]]]]] = deque()
        left = iter(rows)
        try:
            while True:
                while len(waiting) < AHEAD_TASKS * self.workers.processes and (task := list(islice(left, ROWS_A_TASK))):
                    waiting.append((task, self._executor.submit(_read, [located.row for located in task])))
                if not waiting:
                    return
                task, future = waiting.popleft()
                yield from zip(task, future.result(), strict=True)
        except BrokenProcessPool:
            problem = Problem("", "a process that read rows died; there may not be enough memory for all of them")
            raise DataError([problem], fix="Close other programs and start again.") from None


_READERS: list[Reader] = []
"""The reader of a worker process."""


def _start(load: Callable[[], Tokenizer], data: DataTable, method: str, max_seq_length: int, vocab_size: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _READERS.append(make_reader(Settings(data, load(), method, max_seq_length, vocab_size)))


def _end_with_parent() -> None:
    if (parent := parent_process()) is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _read(rows: list[Row | None]) -> list[list[Outcome]]:
    return [[] if row is None else read_row(row, _READERS[0]) for row in rows]

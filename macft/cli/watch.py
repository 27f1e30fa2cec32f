"""Following a run from a terminal, and what its signals mean.

The rule: leaving never harms the run. It is another process; this one only reads what it writes and passes INT and
TERM on to it.
"""

import signal
from collections.abc import Callable, Iterable, Iterator
from threading import Thread
from types import FrameType
from typing import Any, Self

from macft import api
from macft.cli.render import View, render
from macft.errors import MacftError
from macft.events import Event
from macft.format import one_line
from macft.run import Run
from macft.state import RunState, fold

SAVING = "finishing this step and saving… (Ctrl-C again stops now)"


class Signals:
    """Passes INT and TERM on to a run: the first asks it to save and end, the second ends both at once, as QUIT does.

    A signal that comes before the run can take it is kept until its first event. HUP ends the watching alone.
    """

    def __init__(self) -> None:
        self.run: Run | None = None
        self.say: Callable[[str], None] = lambda _: None
        self._number = 0
        self._is_ready = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (api.INTERRUPT, api.TERMINATE, api.QUIT, api.HANG_UP):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def watch(self, events: Iterable[Event]) -> Iterator[Event]:
        """Pass the run's events through; the first one means that it hears signals, and gets those that came before."""
        for event in events:
            if not self._is_ready and self._number and self.run:
                api.send_signal(self.run, self._number)
            self._is_ready = True
            yield event

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if number == api.HANG_UP:
            raise SystemExit(128 + number)
        again, self._number = self._number != 0 or number == api.QUIT, number
        if self.run is None:
            return
        if self._is_ready or again:
            api.send_signal(self.run, number)
        if again:
            raise SystemExit(128 + number)
        # A handler must not write to a stream that it may have interrupted; a thread waits its turn.
        Thread(target=self.say, args=(SAVING,)).start()


def train_and_watch(start: Callable[[], Run], view: View, *, resumed: Run | None = None) -> tuple[Run, RunState]:
    """Start a run and follow it to its end; INT and TERM are passed on to it.

    Args:
        start: Starts the run's process.
        view: Closed when this returns.
        resumed: The run before it is started again; what it did so far is known and not shown.

    Raises:
        MacftError: It failed or crashed.
    """
    past, offset = resumed.read() if resumed else ([], 0)
    try:
        with Signals() as signals:
            signals.say = view.say
            signals.run = run = start()
            view.say(f"run {one_line(str(run.path))}")
            state = _checked(render(signals.watch(api.follow(run, offset)), view, fold(past)))
        if state.status == "done":
            view.say(f"`macft chat {one_line(run.name)}` talks to the result")
        return run, state
    finally:
        view.close()


def do_and_watch(start: Callable[[], Run], view: View, keep: Callable[[Event], None]) -> tuple[Run, RunState]:
    """Start a job and follow it to its end; INT and TERM are passed on to it.

    Args:
        start: Starts the job's process.
        view: Closed when this returns.
        keep: Given every event.

    Raises:
        MacftError: It failed or crashed.
    """

    def kept(events: Iterable[Event]) -> Iterator[Event]:
        for event in events:
            keep(event)
            yield event

    try:
        with Signals() as signals:
            signals.run = run = start()
            return run, _checked(render(kept(signals.watch(api.follow(run))), view))
    finally:
        view.close()


def watch(run: Run, view: View) -> RunState:
    """Show a run from its start and follow it to its end; leaving lets it go on.

    Raises:
        MacftError: It failed or crashed.
    """
    try:
        return _checked(render(api.follow(run), view))
    except KeyboardInterrupt:
        view.say(f"{one_line(run.name)} goes on; `macft stop {one_line(run.name)}` stops it")
        raise
    finally:
        view.close()


def _checked(state: RunState) -> RunState:
    if (ended := state.ended) and ended.status == "failed":
        error = MacftError(ended.reason, fix=ended.fix)
        error.exit_code = ended.exit_code
        raise error
    return state

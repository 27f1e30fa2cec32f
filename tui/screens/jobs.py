"""Jobs from a screen: a plan first, then a process with a folder of its own, and a line that follows it.

The rule: the job is its run folder's; the screen may close, and another studio sees it on Home.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from textual import work
from textual.app import ComposeResult

from macft import api
from macft.errors import MacftError
from tui.screens.frame import StudioScreen
from tui.screens.plan_job import PlanJobScreen, Wish
from tui.widgets.job_line import JobLine


class Jobs(StudioScreen):
    """A screen that jobs are started from."""

    def __init__(self) -> None:
        super().__init__()
        self.job: Path | None = None

    def compose_job(self) -> ComposeResult:
        """Yield the line of the job that was started last."""
        line = JobLine(id="job", markup=False)
        line.display = False
        yield line

    def show_job(self) -> None:
        """Say how far the job is."""
        self.query_one(JobLine).show(self.studio.row_of(self.job), "c")

    def plan_job(self, wish: Wish) -> None:
        """Show a plan, and start the job when the person says so."""

        def go(wanted: Wish | None) -> None:
            if wanted:
                self.start_job(lambda: wanted.start(**wanted.options))

        self.app.push_screen(PlanJobScreen(wish), go)

    @work(thread=True, exit_on_error=False, group="job")
    def start_job(self, start: Callable[[], Any]) -> None:
        """Start a job; its process takes a moment to take its lock."""
        try:
            run = start()
        except MacftError as error:
            self.app.call_from_thread(self._refuse, str(error))
        else:
            self.app.call_from_thread(self.follow_job, run.path)

    def _refuse(self, said: str) -> None:
        self.notify(said, title="It cannot start", severity="error", timeout=12, markup=False)

    def follow_job(self, path: Path) -> None:
        """Say from now on how far a job is."""
        self.job = path
        self.show_job()
        self.after_start()

    def after_start(self) -> None:
        """Do what a screen does when its job goes on."""

    def action_cancel(self) -> None:
        """Cancel the job; nothing of it is left."""
        row = self.studio.row_of(self.job)
        if row is None or not row.is_live:
            self.notify("No job goes on here.")
        else:
            self.attempt(api.stop, str(row.path), done="It is being cancelled")

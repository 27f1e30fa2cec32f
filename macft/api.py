"""Everything macft can do, as functions: what the command line and the studio both call.

The rule: this module loads neither MLX nor transformers; heavy rooms are imported inside the functions that need them.
Training happens in a process of its own, and everybody who watches it reads the run folder.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from macft.errors import DataError, DoesNotFit, MacftError, ModelError, NeedsNetwork, Problem, RunCrashed, RunError
from macft.events import Event, RunEnded
from macft.gallery import find_recipe
from macft.launcher import Launched, read_launch
from macft.machine import GIB, MachineFacts, free_disk_bytes, home, read_machine, runs_folder
from macft.plan import Calibration, DataFacts, Plan, Verdict, refusal
from macft.plan import fit as fit_recipe
from macft.plan import plan as make_plan
from macft.recipe import DataTable, Recipe, dump_recipe, load_recipe
from macft.run import Run, find_adapter, find_run, list_runs, make_run_path
from macft.state import RunState

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from macft.bench.report import BenchReport
    from macft.chat.generate import ReplyPart
    from macft.data.examples import Role
    from macft.data.inspect import RowView
    from macft.data.report import DataReport
    from macft.models.describe import ModelFacts

POLL_SECONDS, START_SECONDS = 0.1, 30.0
_CHILDREN: dict[Path, subprocess.Popen[bytes]] = {}
"""Processes started here, kept so that they can be reaped when they end."""
_SMALLER = "Resume with a smaller micro_batch_size or max_seq_length."
_CRASHES = {
    "Insufficient Memory": ("the GPU ran out of memory", _SMALLER),
    "Impacting Interactivity": ("macOS ended the GPU's work to keep the screen alive", f"{_SMALLER} Or switch it off."),
    "MemoryError": ("memory ran out", _SMALLER),
    "std::bad_alloc": ("memory ran out", _SMALLER),
    "Timeout (0:": ("the other ranks of mlx.launch did not come", "Look at what they said."),
}
"""What a dead process leaves in its log, and what it means."""


class RunSummary(NamedTuple):
    """One line of `macft runs`."""

    run: Run
    state: RunState
    status: str


# Recipes and runs


def read_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by path or gallery name, with `key=value` overrides."""
    return load_recipe(find_recipe(name), overrides)


def plan(recipe: Recipe, *, mac: str = "", calibrated: bool = True) -> Plan:
    """Say what a run will need and whether it fits; no weights are read, so the model's config is enough.

    Args:
        recipe: What to do. Its rows are guessed from the files' sizes.
        mac: Plan for this Mac instead, like `M2 Air 16GB`; its times are estimates.
        calibrated: Measure this machine's speed, once, for the time.

    Raises:
        MacftError: The model's config is not here, data files are missing, or no such Mac is known.
    """
    facts, data, machine = _plan_facts(recipe, mac)
    return make_plan(recipe, facts, data, machine, _calibration(mac, machine) if calibrated else None)


def fit(recipe: Recipe, *, mac: str = "") -> Recipe:
    """Return the recipe with the cheapest changes that make it fit.

    Raises:
        DoesNotFit: No change is enough.
        MacftError: As for `plan`.
    """
    return fit_recipe(recipe, *_plan_facts(recipe, mac))


def launch(recipe: Recipe, *, out: Path | None = None, force: bool = False) -> Run:
    """Make a run folder and start training in a process of its own.

    Args:
        recipe: What to do.
        out: The run's folder; left out, a new one below `runs_folder()`.
        force: Train even if the plan does not fit.

    Raises:
        DoesNotFit: The plan needs more memory or disk than there is.
        MacftError: The model is not here, data files are missing, or the folder is not empty.
    """
    _check_inputs(recipe)
    if not force:
        _check_fit(recipe, out or runs_folder())
    if recipe.start_from:  # found now: later the name could mean the new run as well
        recipe = recipe.model_copy(update={"start_from": str(find_adapter(recipe.start_from, runs_folder()))})
    path = out or make_run_path(runs_folder(), method=recipe.method, model=recipe.model)
    run = Run.create(path.expanduser().resolve(), dump_recipe(recipe))
    _start_process(run)
    return run


def resume(name: str) -> Run:
    """Start a stopped, crashed or failed run again from its last checkpoint."""
    run = find_run(name, runs_folder())
    if run.is_live:
        raise RunError(f"{run.name} is running", fix=f"`macft attach {run.name}` follows it.")
    if run.state().status == "done":
        raise RunError(f"{run.name} is done", fix="To train longer, start a new run with start_from set to it.")
    _start_process(run)
    return run


def start(path: Path) -> int:
    """Train a run in this process (`macft _run`); returns the exit code."""
    from macft.training.process import run_to_end

    return run_to_end(Run.open(path))


def other_rank() -> Launched | None:
    """Return what `mlx.launch` said when this process shall compute for a run that rank 0 leads, else None."""
    launched = read_launch()
    return None if launched is None or launched.leads else launched


def take_part(launched: Launched, recipe: Recipe | None = None, *, force: bool = False) -> None:
    """Train in this process as a rank other than 0, which tells what happens.

    Args:
        launched: From `other_rank`.
        recipe: What to do; None to go on with the run that rank 0 resumes.
        force: Train even if the plan does not fit here.

    Raises:
        MacftError: Rank 0 is gone or was never met.
    """
    from macft.training.process import take_part as compute

    def check(wanted: Recipe) -> None:
        _check_inputs(wanted)
        if not force and recipe:
            _check_fit(wanted, home())

    compute(launched, recipe, check)


def follow(run: Run, offset: int = 0) -> Iterator[Event]:
    """Yield a run's events from a byte offset until it ends.

    Raises:
        RunCrashed: Its process died without an end.
    """
    last = run.last_event() if offset else None
    while True:
        is_live = run.is_live
        events, offset = run.read(offset)
        yield from events
        last = events[-1] if events else last
        if events:
            continue
        if not is_live:
            break
        time.sleep(POLL_SECONDS)
    if child := _CHILDREN.pop(run.path, None):
        child.wait()
    if not isinstance(last, RunEnded):
        raise _crash(run)


def stop(name: str) -> Run:
    """Ask a run to finish its step, save and end; `latest` is the last started of those that are running."""
    running = [run for run in list_runs(runs_folder()) if run.is_live] if name == "latest" else []
    run = running[0] if running else find_run(name, runs_folder())
    if not run.is_live:
        raise RunError(f"{run.name} is not running")
    run.request("stop")
    return run


def send_signal(run: Run, number: int) -> None:
    """Send a signal to a run's process, if it lives."""
    if run.is_live and (process := run.process_id()):
        os.kill(process, number)


def summarize_runs() -> list[RunSummary]:
    """Return all runs, live ones first, then the newest."""
    rows = [RunSummary(run, state := run.state(), run.status(state)) for run in list_runs(runs_folder())]
    return sorted(rows, key=lambda row: row.status not in {"preparing", "running", "paused"})


def remove_run(name: str) -> Run:
    """Delete a run's folder; a live run is refused."""
    run = find_run(name, runs_folder())
    run.remove()
    return run


# Models


def list_models() -> "list[ModelFacts]":
    """Return the models on this machine."""
    from macft.models.catalog import local_models

    return local_models(home())


def pull(name: str, *, config_only: bool = False, progress: Callable[[str, int, int], None] | None = None) -> Path:
    """Fetch a model by catalog name or Hugging Face id; the only function that goes online."""
    from macft.models.fetch import pull as fetch

    return fetch(name, home(), progress=progress, config_only=config_only)


# Data


def check_data(
    data: DataTable,
    *,
    model: str,
    method: str = "sft",
    max_seq_length: int = 2048,
    progress: Callable[[int, int], None] | None = None,
) -> "DataReport":
    """Read, render and tokenize rows for a model and report on them.

    Raises:
        DataError: With every bad row.
    """
    from macft.data.prepare import prepare

    tokenizer, facts = _tokenizer(model)
    longest = min(max_seq_length, facts.context or max_seq_length)
    return prepare(
        data, tokenizer, method=method, max_seq_length=longest, vocab_size=facts.vocab_size, progress=progress
    ).report


def show_row(data: DataTable, number: int, *, model: str) -> "RowView":
    """Return one row as the model sees it; rows count from 1 in the order of the files.

    Raises:
        DataError: The row is bad, or there is none with this number.
    """
    from macft.data.inspect import view_row

    return view_row(data, number, _tokenizer(model)[0])


# Speed


def bench(recipe: Recipe, *, batches: int, progress: Callable[[int, int], None] | None = None) -> "BenchReport":
    """Count and time what a recipe's training costs on this machine; nothing is saved.

    Raises:
        MacftError: The model is not here, or its data cannot be read.
    """
    from macft.bench.report import bench as measure
    from macft.models.catalog import resolve

    _check_inputs(recipe)
    return measure(recipe, resolve(recipe.model, home()), batches=batches, progress=progress)


# Chat


class Chat:
    """A conversation with a model, its adapter on; `reply` streams.

    Args:
        name: A run, an adapter folder, or a model.
        base: Leave the run's adapter off.
        model: The base of an adapter that does not name one.
    """

    def __init__(self, name: str, *, base: bool = False, model: str | None = None) -> None:
        import macft.models.load  # noqa: F401 — first: it guards the import of mlx-lm
        from macft.chat.session import open_chat

        self._session = open_chat(name, home=home(), runs=runs_folder(), base=base, model=model)
        self.title, self.note = self._session.title, self._session.note

    def reply(
        self, messages: "Sequence[tuple[Role, str]]", *, max_tokens: int = 512, temperature: float = 0.0, seed: int = 0
    ) -> "Iterator[ReplyPart]":
        """Stream the answer to (role, content) turns."""
        return self._session.reply(messages, max_tokens=max_tokens, temperature=temperature, seed=seed)


def _tokenizer(model: str) -> "tuple[TokenizerWrapper, ModelFacts]":
    from macft.models.catalog import resolve
    from macft.models.describe import describe
    from macft.models.load import load_tokenizer

    folder = resolve(model, home())
    return load_tokenizer(folder), describe(folder)


def _plan_facts(recipe: Recipe, mac: str) -> "tuple[ModelFacts, DataFacts, MachineFacts]":
    from macft.data.estimate import estimate_data
    from macft.macs import find_mac
    from macft.models.catalog import resolve
    from macft.models.describe import describe_as_loaded

    machine = find_mac(mac)[0] if mac else read_machine()
    try:
        folder = resolve(recipe.model, home())
    except NeedsNetwork as error:
        command = f"macft pull {recipe.model} --config-only"
        raise NeedsNetwork(error.message, fix=f"`{command}` fetches the config, which is enough to plan.") from None
    facts = describe_as_loaded(folder, quantize=recipe.quantize)
    if not facts.trainable:
        raise ModelError(f"{facts.name} cannot be trained: {facts.why_not}", fix="`macft models` lists those that can.")
    _check_files(recipe)
    longest = min(recipe.max_seq_length, facts.context or recipe.max_seq_length)
    data = estimate_data(recipe.data, method=recipe.method, max_seq_length=longest, batch_size=recipe.batch_size)
    return facts, data, machine


def _calibration(mac: str, machine: MachineFacts) -> Calibration:
    from macft.macs import find_mac
    from macft.training.calibrate import calibrate

    return find_mac(mac)[1] if mac else calibrate(home(), machine.chip)


def _check_fit(recipe: Recipe, folder: Path) -> None:
    made = plan(recipe, calibrated=False)
    if made.verdict == Verdict.DOES_NOT_FIT:
        raise refusal(made)
    if (free := free_disk_bytes(folder)) < made.disk_bytes:
        needed = f"{made.disk_bytes / GIB:.1f} GB of disk, and {free / GIB:.1f} GB are free at {folder}"
        raise DoesNotFit(f"this run needs {needed}", fix="--set checkpoint.keep=1, --out on another disk, or --force.")


def _check_files(recipe: Recipe) -> None:
    named = [path for path in (*recipe.data.train, *recipe.data.valid, *recipe.data.test) if path != "-"]
    if missing := [Problem(path, "no such file or folder") for path in named if not Path(path).exists()]:
        raise DataError(missing, fix="Paths in a recipe are relative to the recipe.")


def _check_inputs(recipe: Recipe) -> None:
    from macft.models.catalog import resolve
    from macft.models.describe import describe

    _check_files(recipe)
    facts = describe(resolve(recipe.model, home()))
    if not facts.trainable:
        raise ModelError(f"{facts.name} cannot be trained: {facts.why_not}", fix="`macft models` lists those that can.")


def _start_process(run: Run) -> None:
    before = run.last_event()
    with run.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "macft", "_run", str(run.path)],  # -P: no code from the current folder
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_SECONDS
    while not run.is_live and process.poll() is None and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS / 4)
    if process.poll() is not None and run.last_event() == before:
        raise _crash(run)
    _CHILDREN[run.path] = process


def _crash(run: Run) -> MacftError:
    log = run.log.read_text(encoding="utf-8", errors="replace")[-4000:] if run.log.is_file() else ""
    reason, fix = next(
        (said for sign, said in _CRASHES.items() if sign in log), ("its process died", "Its log may say why.")
    )
    return RunCrashed(f"{run.name}: {reason} (log: {run.log})", fix=f"{fix} `macft resume {run.name}` goes on.")


INTERRUPT, TERMINATE = int(signal.SIGINT), int(signal.SIGTERM)

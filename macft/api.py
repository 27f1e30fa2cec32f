"""Everything macft can do, as functions: what the command line and the studio both call.

The rule: this module loads neither MLX nor transformers; heavy rooms are imported inside the functions that need them.
Training happens in a process of its own, and everybody who watches it reads the run folder.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from macft.disk import PRIVATE_FILE, write_atomic
from macft.errors import DataError, DoesNotFit, ModelError, NeedsNetwork, Problem, RunError
from macft.events import Event, RunEnded
from macft.gallery import find_recipe
from macft.keeper import crashed
from macft.launcher import Launched, read_launch
from macft.machine import GIB, MachineFacts, free_disk_bytes, home, read_machine, runs_folder
from macft.plan import Calibration, DataFacts, Plan, Scales, Verdict, refusal
from macft.plan import fit as fit_recipe
from macft.plan import plan as make_plan
from macft.recipe import DataTable, EvaluateTable, Recipe, dump_recipe, load_recipe
from macft.run import Run, find_adapter, find_run, list_runs, make_run_path
from macft.state import RunState

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from macft.bench.report import BenchReport
    from macft.chat.compare import Voices
    from macft.chat.panes import Sampling, Turn
    from macft.chat.replay import Replayed
    from macft.chat.session import ChatSession
    from macft.data.hygiene.clean import Cleaned
    from macft.data.hygiene.findings import HygieneReport
    from macft.data.inspect import RowView
    from macft.data.mixture import Mixed
    from macft.data.report import DataReport
    from macft.data.split import Split
    from macft.jobs.estimate import JobEstimate
    from macft.jobs.job import Job
    from macft.measure.evaluation import Evaluation
    from macft.models.adapter_facts import AdapterFacts
    from macft.models.describe import ModelFacts
    from macft.serve import Served

POLL_SECONDS, START_SECONDS = 0.1, 30.0
_CHILDREN: dict[Path, subprocess.Popen[bytes]] = {}
"""Processes started here, kept so that they can be reaped when they end."""


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
        calibrated: Measure this machine's speed, once, for the time, and trace what the recipe's pass takes; this
            takes MLX and a second. Without, bytes are counted, and there is no time.

    Raises:
        MacftError: The model's config is not here, data files are missing, or no such Mac is known.
    """
    facts, data, machine = _plan_facts(recipe, mac)
    if not calibrated:
        return make_plan(recipe, facts, data, machine)
    scales = _trace(recipe, facts, data, machine)
    return make_plan(recipe, facts, data, machine, _calibration(mac, machine), scales=scales)


def fit(recipe: Recipe, *, mac: str = "") -> Recipe:
    """Return the recipe with the cheapest changes that make it fit.

    Raises:
        DoesNotFit: No change is enough.
        MacftError: As for `plan`.
    """
    while True:  # a changed recipe has traces of its own, which may want more
        facts, data, machine = _plan_facts(recipe, mac)
        fitted = fit_recipe(recipe, facts, data, machine, scales=_trace(recipe, facts, data, machine))
        if fitted == recipe:
            return recipe
        recipe = fitted


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


def resume(name: str, *, accept_new_data: bool = False) -> Run:
    """Start a stopped, crashed or failed run again from its last checkpoint.

    Args:
        name: The run.
        accept_new_data: Go on although the rows have changed; what was best on the old ones no longer counts.

    Raises:
        RunError: It is running, done, or trains nothing.
    """
    run = find_run(name, runs_folder())
    if run.is_live:
        raise RunError(f"{run.name} is running", fix=f"`macft attach {run.name}` follows it.")
    if run.is_job:
        raise RunError(f"{run.name} trains nothing: it left nothing to go on from", fix="Start the command again.")
    if run.state().status == "done":
        raise RunError(f"{run.name} is done", fix="To train longer, start a new run with start_from set to it.")
    _start_process(run, *(["--accept-new-data"] if accept_new_data else []))
    return run


def start(path: Path, *, accept_new_data: bool = False, lock: int | None = None) -> int:
    """Train a run, or do a job, in this process (`macft _run`); returns the exit code.

    Args:
        path: The run's folder.
        accept_new_data: Go on although the rows have changed.
        lock: The descriptor of the run's lock, when the keeper has taken it.
    """
    run = Run.open(path)
    if run.is_job:
        from macft.jobs.process import run_job

        return run_job(run, lock=lock)
    from macft.training.process import run_to_end

    return run_to_end(run, accept_new_data=accept_new_data, lock=lock)


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
    code = child.wait() if (child := _CHILDREN.pop(run.path, None)) else None
    if not isinstance(last, RunEnded):
        raise crashed(run, code)


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


def report(names: Sequence[str], out: Path | None = None) -> Path:
    """Write a page of one run, or of two over each other, and return where it is: into the first run's folder.

    Raises:
        RunError: There is no such run, or it only fuses or exports; or the page cannot be written.
    """
    from macft.measure.run_report import Reported, write_report

    runs = [find_run(name, runs_folder()) for name in names]
    for run in runs:
        if run.is_job:
            raise RunError(f"{run.name} trained nothing", fix="`macft runs` lists the runs.")
    page = out or runs[0].path / "report.html"
    try:
        write_atomic(page, write_report([Reported.read(run) for run in runs]).encode())
    except OSError as error:
        raise RunError(f"{page} cannot be written ({error.strerror})", fix="Name another file with --out.") from None
    return page


def remove_run(name: str) -> Run:
    """Delete a run's folder; a live run is refused."""
    run = find_run(name, runs_folder())
    run.remove()
    return run


def write_note(name: str, text: str) -> None:
    """Keep a person's note with a run; an empty text takes it away."""
    find_run(name, runs_folder()).write_note(text)


def discard_run(name: str) -> Path:
    """Take a run out of the list without deleting it yet, and return where it waits; a live run is refused."""
    return find_run(name, runs_folder()).discard()


def restore_run(discarded: Path, path: Path) -> Run:
    """Put a discarded run back to where it was."""
    return Run(discarded).move_to(path)


def forget_run(discarded: Path) -> None:
    """Delete a discarded run for good."""
    Run(discarded).remove()


# Models


def list_models() -> "list[ModelFacts]":
    """Return the models on this machine."""
    from macft.models.catalog import local_models

    return local_models(home())


def pull(name: str, *, config_only: bool = False, progress: Callable[[str, int, int], None] | None = None) -> Path:
    """Fetch a model by catalog name or Hugging Face id; the only function that goes online."""
    from macft.models.fetch import pull as fetch

    return fetch(name, home(), progress=progress, config_only=config_only)


def start_pull(name: str) -> "subprocess.Popen[str]":
    """Fetch a model in a process of its own, for a program that is offline itself.

    Its stdout has event lines while it goes on, and at the end an object with the `path`; its stderr says what is
    wrong. Killing it loses nothing: the next pull goes on where it was.
    """
    environ = {key: value for key, value in os.environ.items() if key not in {"HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"}}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "macft", "pull", "--json", "--", name],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
        start_new_session=True,
    )


# Data


def check_data(
    data: DataTable,
    *,
    model: str,
    method: str | None = None,
    max_seq_length: int = 2048,
    progress: Callable[[int, int], None] | None = None,
) -> "DataReport":
    """Read, render and tokenize rows for a model and report on them.

    Args:
        data: The rows, and how they are read.
        model: Whose tokenizer and template.
        method: What the rows are for; told by the first of them when left out.
        max_seq_length: Longest row, in tokens.
        progress: Called with rows done and rows in all.

    Raises:
        DataError: With every bad row.
    """
    from macft.data.inspect import detect
    from macft.data.prepare import prepare

    tokenizer, facts = _tokenizer(model)
    return prepare(
        data,
        tokenizer,
        method=method or detect(data),
        max_seq_length=min(max_seq_length, facts.context or max_seq_length),
        vocab_size=facts.vocab_size,
        progress=progress,
    ).report


def check_rows(
    files: Sequence[str],
    held_out: Sequence[str] = (),
    *,
    columns: Mapping[str, str] | None = None,
    near: bool = True,
    progress: Callable[[str, int, int], None] | None = None,
) -> "HygieneReport":
    """Look for what is wrong with rows as text; nothing is tokenized.

    Args:
        files: Files or folders that are trained on; `-` is JSONL on standard input.
        held_out: Files or folders that are not.
        columns: Maps macft's column names to the user's.
        near: Compare rows for being nearly the same.
        progress: Called with a phase, rows done and rows in all.

    Raises:
        DataError: There is nothing to read. Rows that cannot be understood are findings.
    """
    from macft.data.hygiene.check import check_rows as check

    return check(files, held_out, columns=columns, near=near, progress=progress)


def clean_rows(
    files: Sequence[str],
    held_out: Sequence[str] = (),
    *,
    out: Path,
    log: Path | None = None,
    keep: Sequence[str] = (),
    only: Sequence[str] = (),
    near: bool = True,
    progress: Callable[[str, int, int], None] | None = None,
) -> "Cleaned":
    """Write a new file of the rows that have nothing wrong with them, and a log of those that have.

    Args:
        files: Files or folders; they stay as they are.
        held_out: Rows that must not be trained on; what asks the same is left out.
        out: The new file, JSONL.
        log: Where each row left out gets a line; beside `out` when left out.
        keep: Kinds of finding whose rows are kept.
        only: Kinds of finding whose rows are left out, and no others.
        near: Leave out rows that are nearly the same as others.
        progress: Called with a phase, rows done and rows in all.

    Raises:
        DataError: There is nothing to read, nothing would be left, or `out` is among the files.
        RecipeError: A kind is none.
    """
    from macft.data.hygiene.clean import choose_kinds
    from macft.data.hygiene.clean import clean_rows as clean
    from macft.data.writing import check_target

    log = log or out.with_name(f"{out.stem}.removed.jsonl")
    kinds = choose_kinds(keep, only)
    for target in (out, log):
        check_target([*files, *held_out], target)
    report = check_rows(files, held_out, near=near, progress=progress)
    return clean(files, report, kinds, out=out, log=log)


def split_rows(
    files: Sequence[str], *, out: Path, valid: float = 0.05, test: float = 0.0, group: str = "", seed: int = 0
) -> "Split":
    """Write train, valid and test rows into a folder, by a hash of the prompt or by group.

    Raises:
        RecipeError: The shares leave nothing to train on.
        DataError: A row cannot be understood or has no group, or `out` is among the files.
    """
    from macft.data.split import split_rows as split

    return split(files, out=out, valid=valid, test=test, group=group, seed=seed)


def mix_rows(
    parts: Sequence[str], *, out: Path, rows: int | None = None, repeat: bool = False, seed: int = 0
) -> "Mixed":
    """Write one file of several, `FILE:WEIGHT:CAP` each, in which each has the share of its weight.

    Raises:
        RecipeError: A part or its weight makes no sense.
        DataError: A row cannot be read, a part has too few rows, or `out` is among the parts.
    """
    from macft.data.mixture import mix_rows as mix
    from macft.data.mixture import parse_part

    return mix([parse_part(part) for part in parts], out=out, rows=rows, repeat=repeat, seed=seed)


def advise(report: "HygieneReport", goal: str = "") -> list[str]:
    """Say in plain words what rows and a goal speak for: prompting or tuning, which model and which method."""
    from macft.data.hygiene.advice import advise as say

    return say(report, goal)


def show_row(data: DataTable, number: int, *, model: str, method: str | None = None) -> "RowView":
    """Return one row as the model sees it; rows count from 1 in the order of the files.

    Raises:
        DataError: The row is bad, or there is none with this number.
    """
    from macft.data.inspect import view_row

    return view_row(data, number, _tokenizer(model)[0], method)


def start_rows() -> "subprocess.Popen[str]":
    """Start a child that reads and tokenizes rows, for a program that must not load transformers.

    A JSON line in is a request and a line out its answer, as `macft.cli.row_worker` says. It ends when its stdin does.
    """
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "macft", "_rows"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


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


# Fusing, merging, exporting


def fuse(
    name: str,
    *,
    out: Path | None = None,
    model: str | None = None,
    quantize: int | None = None,
    dequantize: bool = False,
    dtype: str = "",
    data: Sequence[str] = (),
    force: bool = False,
) -> Run:
    """Start a job that makes an adapter part of its base, and compares the two.

    Args:
        name: A run or an adapter folder.
        out: Where the model goes; left out, `model/` in the job's folder.
        model: The base of an adapter that does not name one.
        quantize: Bits of the result, 4 or 8.
        dequantize: Add to the base as training saw it, when it was quantized while loading.
        dtype: Of floating-point weights; empty keeps the base's.
        data: Rows to compare on, instead of the run's held-out ones.
        force: Keep the result whatever was lost.

    Raises:
        MacftError: There is no such adapter or base, or something is at `out` already.
    """
    wishes = {"quantize": quantize, "dequantize": dequantize, "dtype": dtype, "data": list(data), "force": force}
    return _start_job(name, {"kind": "fuse", "to": "mlx", **wishes}, out=out, model=model)


def export(
    name: str,
    *,
    to: str,
    out: Path | None = None,
    model: str | None = None,
    gguf_type: str = "f16",
    quantize: int | None = None,
    ollama_base: str = "",
    system: str = "",
    data: Sequence[str] = (),
    force: bool = False,
) -> Run:
    """Start a job that writes a result for another tool.

    Args:
        name: A run, an adapter folder (mlx-lm's or PEFT's) or a model's folder.
        to: mlx, peft, gguf-adapter, gguf, ollama or lmstudio.
        out: Where it goes; for lmstudio, its folder of models.
        model: The base of an adapter that does not name one.
        gguf_type: Of a GGUF file's matrices: f16, bf16, f32 or q8_0.
        quantize: Bits of an MLX model, 4 or 8.
        ollama_base: Ollama's name of the base, to write the adapter alone.
        system: A system message for Ollama, instead of the template's own.
        data: Rows to compare on, instead of the run's held-out ones.
        force: Keep the result whatever was lost.

    Raises:
        MacftError: There is no such result or base, or something is at `out` already.
    """
    wishes: dict[str, object] = {"gguf_type": gguf_type, "quantize": quantize, "ollama_base": ollama_base}
    wishes |= {"system": system, "data": list(data), "force": force}
    if to == "lmstudio":
        from macft.models.export.lmstudio import find_lmstudio

        wishes["lmstudio"] = str(out.expanduser().resolve() if out else find_lmstudio(Path.home()))
        out = None
    return _start_job(name, {"kind": "export", "to": to, **wishes}, out=out, model=model)


def merge(parts: Sequence[tuple[str, float]], *, out: Path, way: str = "concat") -> Path:
    """Write the weighted sum of adapters as one adapter folder.

    Args:
        parts: Runs or adapter folders of the same base, each with its strength.
        out: The new folder.
        way: `concat`, exact, or `linear`, which keeps the rank.

    Raises:
        MacftError: They do not fit together, or something is at `out` already.
    """
    import macft.models.load  # noqa: F401 — first: it guards the import of mlx-lm
    from macft.models.merge import Part, merge_adapters
    from macft.models.shards import new_folder

    found = [Part(find_adapter(name, runs_folder()), strength) for name, strength in parts]
    folder = out.expanduser().resolve()
    with new_folder(folder) as aside:
        merge_adapters(found, aside, way="linear" if way == "linear" else "concat")
    return folder


def start_merge(parts: Sequence[tuple[str, float]], *, out: Path, way: str = "concat") -> Run:
    """Start a job that does what `merge` does, and says how near it came.

    Raises:
        MacftError: There is no such adapter or base, or something is at `out` already.
    """
    return _run_job(plan_merge(parts, out=out, way=way).job)


def plan_merge(parts: Sequence[tuple[str, float]], *, out: Path, way: str = "concat") -> "JobEstimate":
    """Say what merging will write, where and how long it may take."""
    found = [(str(find_adapter(name, runs_folder())), strength) for name, strength in parts]
    where, wishes = out.expanduser().resolve(), {"kind": "merge", "to": "adapter", "parts": found, "way": way}
    return _estimate(_find_job(found[0][0], wishes, out=where, model=None), where)


def plan_fuse(name: str, **wishes: Any) -> "JobEstimate":
    """Say what `fuse` with the same arguments will write, where and how long it may take; nothing is started."""
    return _plan_leaving(name, {"kind": "fuse", "to": "mlx", **wishes})


def plan_export(name: str, *, to: str, **wishes: Any) -> "JobEstimate":
    """Say what `export` with the same arguments will write, where and how long it may take; nothing is started."""
    return _plan_leaving(name, {"kind": "export", "to": to, **wishes})


# Adapters


def list_adapters() -> "list[AdapterFacts]":
    """Return the adapters on this machine that no run holds."""
    from macft.models.adapter_facts import list_adapters as look

    return look(home(), here=Path.cwd())


def describe_adapter(folder: Path, name: str = "") -> "AdapterFacts":
    """Return what an adapter folder is; no weight is read."""
    from macft.models.adapter_facts import describe_adapter as describe

    return describe(folder, name)


def add_adapter(folder: Path) -> "AdapterFacts":
    """Make an adapter folder known to macft; it stays where it is."""
    from macft.models.adapter_facts import add_adapter as add

    return add(folder, home())


def discard_adapter(folder: Path) -> Path:
    """Take an adapter that no run holds out of the list without deleting it yet, and return where it waits."""
    from macft.models.adapter_facts import discard_adapter as discard

    return discard(folder, home())


def restore_adapter(discarded: Path, folder: Path) -> None:
    """Put a discarded adapter back to where it was."""
    discarded.rename(folder)


def forget_adapter(discarded: Path) -> None:
    """Delete a discarded adapter for good; of a link, only the link."""
    if discarded.is_symlink():
        discarded.unlink(missing_ok=True)
    else:
        shutil.rmtree(discarded, ignore_errors=True)


# Chat


def open_chat(name: str, *, base: bool = False, model: str | None = None) -> "ChatSession":
    """Load what a name means, to talk to it.

    Args:
        name: A run, a checkpoint of it (`RUN@600`), an adapter folder, or a model.
        base: Leave the adapter off.
        model: The base of an adapter that does not name one.

    Raises:
        MacftError: The name means nothing, or what it means cannot be loaded.
    """
    import macft.models.load  # noqa: F401 — first: it guards the import of mlx-lm
    from macft.chat.session import open_chat as load

    return load(name, home=home(), runs=runs_folder(), base=base, model=model)


def compare(names: Sequence[str], *, base: bool = True, model: str | None = None, template: bool = True) -> "Voices":
    """Load voices to be asked side by side: one batch where they share their weights.

    Args:
        names: Runs, checkpoints (`RUN@600`, `RUN@best`), adapter folders, models; at most eight with their Bases.
        base: Put what tuned voices were before they were tuned in front of them.
        model: The base of an adapter that does not name one.
        template: Ask through each model's chat template; without, all continue the text.

    Raises:
        MacftError: A name means nothing, or what it means cannot be loaded.
    """
    import macft.models.load  # noqa: F401 — first: it guards the import of mlx-lm
    from macft.chat.compare import open_voices
    from macft.chat.sources import find_sources

    sources = find_sources(names, home=home(), runs=runs_folder(), base=base, model=model)
    return open_voices(sources, read_machine(), template=template)


def read_prompts(path: Path) -> "list[tuple[Turn, ...]]":
    """Return what a file asks, a conversation a line or a row.

    Raises:
        DataError: With everything that cannot be understood, or because there is nothing.
    """
    from macft.data.prompts import read_prompts as read

    return [prompt.turns for prompt in read(str(path.expanduser()))]


def worker_command() -> list[str]:
    """Return how to start the child that answers what needs MLX, for a program that loads none of it."""
    return [sys.executable, "-P", "-m", "macft", "_worker"]


def replay(
    model: str,
    prompts: str,
    *,
    out: Path,
    sampling: "Sampling",
    progress: Callable[[int, int], None] | None = None,
) -> "Replayed":
    """Write a base model's own answers to prompts as rows, to rehearse on.

    Args:
        model: A model; of a run or an adapter, the base that it was tuned from.
        prompts: A file with a prompt a line, or rows.
        out: The new file, JSONL.
        sampling: How tokens are chosen.
        progress: Called with answers done and prompts in all.

    Raises:
        DataError: The prompts cannot be read, or no answer is whole.
        MacftError: The model is not here, or cannot be loaded.
    """
    from macft.chat.replay import replay as answer
    from macft.data.prompts import read_prompts
    from macft.data.writing import check_target

    check_target([] if prompts == "-" else [prompts], out)
    asked = [prompt.turns for prompt in read_prompts(prompts)]
    voices = compare([model])
    try:
        return answer(voices, asked, sampling, out=out, progress=progress)
    finally:
        voices.close()


def evaluate(
    name: str,
    *,
    files: Sequence[str] = (),
    limit: int | None = None,
    max_tokens: int | None = None,
    model: str | None = None,
    tell: Callable[[str, int, int], None] = lambda _name, _done, _total: None,
) -> "Evaluation":
    """Let what a name means, and its Base, read and answer the same held-out rows.

    Args:
        name: A run, a checkpoint of it, or an adapter folder.
        files: Rows; the run's own test rows, or else its held-out ones, when there are none.
        limit: Most rows; None for all.
        max_tokens: Longest answer; the recipe's when left out.
        model: The base of an adapter that does not name one.
        tell: Told (what is done, how many are done, of how many).

    Raises:
        MacftError: The name means nothing, its rows cannot be used, or there is no Base beside it.
    """
    import macft.models.load  # noqa: F401 — first: it guards the import of mlx-lm
    from macft.chat.compare import open_voices
    from macft.chat.sources import find_sources
    from macft.measure.evaluation import evaluate_voices, read_held_out

    sources = find_sources([name], home=home(), runs=runs_folder(), model=model)
    recipe = sources[-1].read_recipe()
    held_out = read_held_out(
        sources[-1].folder, recipe, files, limit=limit, progress=lambda done, total: tell("tokenize", done, total)
    )
    longest = max_tokens or (recipe.evaluate.max_tokens if recipe else EvaluateTable().max_tokens)
    return evaluate_voices(open_voices(sources, read_machine()), held_out, max_tokens=longest, tell=tell)


def open_server(name: str, *, port: int, model: str | None = None, max_tokens: int = 512) -> "Served":
    """Load what a name means and listen on this machine for OpenAI-style clients that have the token.

    Raises:
        MacftError: The name means nothing, what it means cannot be loaded, or the port is taken.
    """
    import macft.models.load  # noqa: F401 — first: it guards the import of mlx-lm
    from macft import serve
    from macft.chat.sources import find_source

    source = find_source(name, home=home(), runs=runs_folder(), model=model)
    return serve.open_server(source, port=port, max_tokens=max_tokens)


def start_server(name: str) -> "subprocess.Popen[str]":
    """Serve what a name means in a process of its own, on a free port, for a program that loads no model itself.

    Its stdout is one JSON object with `url`, `token` and `model`; its stderr says what is wrong. Killing it ends it.
    """
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "macft", "serve", "--json", "--port", "0", "--", name],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _start_job(name: str, wishes: dict[str, Any], *, out: Path | None, model: str | None) -> Run:
    return _run_job(_find_job(name, wishes, out=out, model=model))


def _find_job(name: str, wishes: dict[str, Any], *, out: Path | None, model: str | None) -> "Job":
    from macft.jobs.job import plan_job

    folder = str(out.expanduser().resolve()) if out else ""
    if out:
        _refuse_full(Path(folder))
    return plan_job(name, model=model, home=home(), runs=runs_folder(), out=folder, **wishes)


def _refuse_full(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} is there already", fix="Name another folder with --out, or remove it.")


def _run_job(job: "Job") -> Run:
    from macft.recipe import make_recipe

    trained = Path(job.run) / "recipe.toml"
    recipe = (
        trained.read_text(encoding="utf-8")
        if job.run
        else dump_recipe(make_recipe({"model": job.base_name or job.name}))
    )
    run = Run.create(make_run_path(runs_folder(), method=job.kind, model=job.base_name or job.name), recipe)
    job.save(run)
    _start_process(run)
    return run


def _plan_leaving(name: str, wishes: dict[str, Any]) -> "JobEstimate":
    out, model = wishes.pop("out", None), wishes.pop("model", None)
    if wishes["to"] == "lmstudio":
        from macft.models.export.lmstudio import find_lmstudio

        wishes["lmstudio"] = str(find_lmstudio(Path.home()))
        where: Path | None = Path(wishes["lmstudio"])
    else:
        where = out
    job = _find_job(name, wishes, out=out, model=model)
    return _estimate(job, where or runs_folder() / "…" / ("model" if job.to == "mlx" else "export"))


def _estimate(job: "Job", where: Path) -> "JobEstimate":
    from macft.jobs.estimate import Done, estimate_job

    done = []
    for run in list_runs(runs_folder()):
        if run.is_job and (state := run.state()).result and state.started:
            done.append(Done(state.result.to, state.result.size_bytes, state.result.time - state.started.time))
    return estimate_job(job, where=where, free_bytes=free_disk_bytes(Path(job.out or runs_folder())), done=done)


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


def _trace(recipe: Recipe, facts: "ModelFacts", data: DataFacts, machine: MachineFacts) -> Scales:
    import macft.models.load  # noqa: F401 — first: it guards the import of mlx-lm
    from macft.training.trace import trace_scales

    return trace_scales(recipe, facts, data, machine)


def _calibration(mac: str, machine: MachineFacts) -> Calibration:
    from macft.macs import find_mac
    from macft.training.calibrate import calibrate

    return find_mac(mac)[1] if mac else calibrate(home(), machine.chip)


def _check_fit(recipe: Recipe, folder: Path) -> None:
    made = plan(recipe, calibrated=False)
    if made.verdict == Verdict.DOES_NOT_FIT and (made := plan(recipe)).verdict == Verdict.DOES_NOT_FIT:
        raise refusal(made)
    if (free := free_disk_bytes(folder)) < made.disk_bytes:
        needed = f"{made.disk_bytes / GIB:.1f} GB of disk, and {free / GIB:.1f} GB are free at {folder}"
        raise DoesNotFit(f"this run needs {needed}", fix="--set checkpoint.keep=1, --out on another disk, or --force.")


def _check_files(recipe: Recipe) -> None:
    data = recipe.data
    named = [path for path in (*data.train, *data.valid, *data.test, *data.general) if path != "-"]
    if missing := [Problem(path, "no such file or folder") for path in named if not Path(path).exists()]:
        raise DataError(missing, fix="Paths in a recipe are relative to the recipe.")


def _check_inputs(recipe: Recipe) -> None:
    from macft.models.catalog import resolve
    from macft.models.describe import describe

    _check_files(recipe)
    facts = describe(resolve(recipe.model, home()))
    if not facts.trainable:
        raise ModelError(f"{facts.name} cannot be trained: {facts.why_not}", fix="`macft models` lists those that can.")


def _start_process(run: Run, *options: str) -> None:
    before = run.last_event()
    with os.fdopen(os.open(run.log, os.O_CREAT | os.O_APPEND | os.O_WRONLY, PRIVATE_FILE), "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "macft.keeper", str(run.path), *options],  # -P: no code of this folder
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + START_SECONDS
    while not run.is_live and process.poll() is None and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS / 4)
    if process.poll() is not None and run.last_event() == before:
        raise crashed(run, process.returncode)
    _CHILDREN[run.path] = process


INTERRUPT, TERMINATE = int(signal.SIGINT), int(signal.SIGTERM)
QUIT, HANG_UP = int(signal.SIGQUIT), int(signal.SIGHUP)

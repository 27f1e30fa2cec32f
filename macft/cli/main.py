"""The arguments of every command.

The rule: a command turns arguments into one call of `macft.api` or a light room and hands the answer on to be shown. It
decides nothing else.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import App, Group, Parameter

from macft import __version__, api
from macft.chat.panes import Sampling
from macft.cli import leave, planned, prepare, rows, tables, talk
from macft.cli.arguments import STDIN, AsJson, Files, Positive, read_recipe
from macft.cli.bench import bench
from macft.cli.compare import Sampled, compare
from macft.cli.diagnostics import guard
from macft.cli.evaluate import evaluate
from macft.cli.render import narrate, open_view, tell
from macft.cli.serve import serve
from macft.cli.watch import train_and_watch, watch
from macft.errors import Problem, RecipeError
from macft.events import encode_event
from macft.format import one_line
from macft.machine import read_machine, runs_folder
from macft.run import Run, find_run
from macft.state import RunState, fold

HELP = """Fine-tune language models on this Mac: private, offline, exact.

`macft` alone opens the studio. Three commands to begin with:
$ macft pull smollm2-135m     fetch a small model; nothing else goes online
$ macft train quickstart      train it, and see Base beside tuned
$ macft chat latest           talk to the result"""
EPILOGUE = """Every command that reads takes --json. --debug, anywhere, shows tracebacks.
MACFT_HOME is where models are kept, MACFT_RUNS where runs are.

Exit codes: 0 ok, 1 failed, 2 usage or recipe, 3 data or model, 4 would not fit,
5 the run crashed, 6 needs the network, 130 interrupted, 131 stopped at once,
143 terminated."""
TRAIN, PREPARE, RUNS, USE, MORE = (
    Group(title, sort_key=place)
    for place, title in enumerate(("Train", "Prepare", "Look at runs", "Use the result", "More"))
)

app = App(
    name="macft",
    version=f"macft {__version__}",
    version_flags=["--version"],
    help=HELP,
    help_epilogue=EPILOGUE,
    help_format="plaintext",
    default_parameter=Parameter(negative=(), show_default=False),
    suppress_keyboard_interrupt=False,
)
runs = App(name="runs", group=RUNS, help="List runs, or remove one.", help_epilogue="")
for flag in ("--help", "--version"):
    app[flag].group = (MORE,)
app.command(runs)
for room in (rows.data, prepare.recipes):
    room.group = (PREPARE,)
    app.command(room)
app.command(planned.plan, group=PREPARE)
app.command(prepare.pull, group=PREPARE)
app.command(prepare.list_models, name="models", group=PREPARE)
app.command(evaluate, name="eval", group=USE)
for command in (compare, serve, leave.fuse, leave.merge, leave.export):
    app.command(command, group=USE)
app.command(bench, group=MORE)
app.register_install_completion_command(group=MORE, help="Install completion for this shell.")


def run(argv: Sequence[str]) -> int:
    """Run the command that the arguments name and return its exit code."""
    debug = "--debug" in argv or os.environ.get("MACFT_DEBUG", "") not in {"", "0"}
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    return guard(partial(_dispatch, [argument for argument in argv if argument != "--debug"]), debug=debug)


def _dispatch(arguments: list[str]) -> int:
    # A lone dash is an option to cyclopts; its other name is not.
    named = [STDIN if argument == "-" else argument for argument in arguments]
    code = app(named or ["--help"], exit_on_error=False, print_error=False, result_action="return_value")
    sys.stdout.flush()
    return code if isinstance(code, int) else 0


@app.command(group=TRAIN)
def train(
    recipe: str,
    /,
    *,
    model: str | None = None,
    data: Files | None = None,
    out: Path | None = None,
    set_: Annotated[list[str] | None, Parameter(name="--set")] = None,
    json: AsJson = False,
    plain: bool = False,
    quiet: bool = False,
    detach: bool = False,
    force: bool = False,
) -> int:
    """Train as a recipe says; Ctrl-C saves and stops.

    Args:
        recipe: A file, a name from `macft recipes`, or - to read it from stdin.
        model: Instead of the recipe's model.
        data: Files or folders of rows to learn from; the recipe's own are left out, held-out ones too.
        out: The run's folder; a new one below MACFT_RUNS when left out.
        set_: Set a key of the recipe, like lora.rank=16; may be repeated.
        json: Print the run's events as they are written.
        plain: Lines instead of bars.
        quiet: Only the result and errors.
        detach: Return at once; the run goes on.
        force: Train even when the plan says that it does not fit.
    """
    wanted = read_recipe(recipe, model=model, data=data or [], settings=set_ or [])
    if launched := api.other_rank():
        api.take_part(launched, wanted, force=force)
        return 0
    start = partial(api.launch, wanted, out=out, force=force)
    if detach:
        return _detached(start(), json=json)
    return _finished(*train_and_watch(start, open_view(json=json, plain=plain, quiet=quiet)), json=json)


@app.command(group=TRAIN)
def resume(
    name: str,
    /,
    *,
    accept_new_data: bool = False,
    json: AsJson = False,
    plain: bool = False,
    quiet: bool = False,
    detach: bool = False,
) -> int:
    """Go on with a stopped, crashed or failed run from its last checkpoint.

    Args:
        name: A run's name, a part of it, a path, or latest.
        accept_new_data: Go on although the rows have changed since it was started.
        json: Print the run's events as they are written.
        plain: Lines instead of bars.
        quiet: Only the result and errors.
        detach: Return at once; the run goes on.
    """
    if launched := api.other_rank():
        api.take_part(launched)
        return 0
    before = find_run(name, runs_folder())
    start = partial(api.resume, str(before.path), accept_new_data=accept_new_data)
    if detach:
        return _detached(start(), json=json)
    view = open_view(json=json, plain=plain, quiet=quiet)
    return _finished(*train_and_watch(start, view, resumed=before), json=json)


@app.command(group=TRAIN)
def stop(name: str, /) -> None:
    """Ask a run to finish its step, save and end.

    Args:
        name: A run's name, a part of it, a path, or latest.
    """
    stopped = api.stop(name)
    narrate(f"{stopped.name} finishes its step and saves; `macft resume {stopped.name}` goes on")


@app.command(group=RUNS)
def attach(name: str, /, *, json: AsJson = False, plain: bool = False) -> int:
    """Show a run from its start and follow it; Ctrl-C leaves it going.

    Args:
        name: A run's name, a part of it, a path, or latest.
        json: Print the run's events as they are written.
        plain: Lines instead of bars.
    """
    found = find_run(name, runs_folder())
    return _finished(found, watch(found, open_view(json=json, plain=plain)), json=json)


@app.command(group=RUNS)
def logs(name: str, /, *, tail: Positive | None = None, json: AsJson = False) -> None:
    """Print what happened in a run, a line an event.

    Args:
        name: A run's name, a part of it, a path, or latest.
        tail: Only this many of the last lines.
        json: Print the event lines.
    """
    lines, state = [], RunState()
    for event in find_run(name, runs_folder()).read()[0]:
        state = fold([event], state)
        stamp = time.strftime("%H:%M:%S", time.localtime(event.time))
        lines += [encode_event(event)] if json else [f"{stamp}  {line}" for line in tell(event, state)]
    tables.print_lines(lines[-tail:] if tail else lines)


@runs.default
def list_runs(*, json: AsJson = False) -> None:
    """List runs, live ones first.

    Args:
        json: Print JSON.
    """
    rows = api.summarize_runs()
    if json:
        tables.print_json({"runs": [tables.run_values(row) for row in rows]})
    elif rows:
        tables.print_lines(tables.run_lines(rows))
    else:
        narrate("Nothing yet: `macft train quickstart` trains a small model in minutes.")


runs.command(list_runs, name="list")


@runs.command(name="rm")
def remove_run(name: str, /, *, yes: bool = False) -> None:
    """Delete a run's folder with all that is in it.

    Args:
        name: A run's name, a part of it, a path, or latest.
        yes: Delete it; without it, nothing happens.
    """
    found = find_run(name, runs_folder())
    if not yes:
        raise RecipeError([Problem("", f"this deletes {found.path}")], fix="Add --yes when you are sure.")
    narrate(f"{api.remove_run(str(found.path)).name} is deleted")


@app.command(group=RUNS)
def report(name: str, other: str | None = None, /, *, out: Path | None = None, json: AsJson = False) -> None:
    """Write a page of a run: curves, scores, samples, plan, and how to do it again; two runs over each other.

    One HTML file that stands alone and fetches nothing. It shows the run's samples and paths, and is as private.

    Args:
        name: A run's name, a part of it, a path, or latest.
        other: A second run, to be laid over the first.
        out: The file; report.html in the first run's folder when left out.
        json: Print JSON.
    """
    page = api.report([name, other] if other else [name], out.expanduser() if out else None)
    if json:
        tables.print_json({"report": str(page)})
    else:
        print(page)


@app.command(group=USE)
def chat(
    name: str,
    /,
    *,
    base: bool = False,
    model: str | None = None,
    prompt: str | None = None,
    system: str = "",
    sampling: Sampled = Sampling(),  # noqa: B008 — frozen
) -> None:
    """Talk to a run's result, an adapter or a model.

    Args:
        name: A run, an adapter's folder, or a model.
        base: Without the adapter.
        model: The base, when the adapter does not name one that is here.
        prompt: Answer this once and end; - reads it from stdin, as a pipe does.
        system: A system message before everything else.
    """
    sampling.check()
    piped = prompt == STDIN or (prompt is None and not sys.stdin.isatty())
    once = sys.stdin.read() if piped else prompt
    session = api.open_chat(name, base=base, model=model)
    reply = partial(session.reply, sampling=sampling)
    if session.note:
        narrate(f"▲ {session.note}")
    if once is not None:
        talk.answer_once(reply, once, system=system)
        return
    narrate(f"{one_line(session.title)} · {talk.HELP}")
    talk.converse(reply, talk.ask_person(), system=system)


@app.command(group=MORE)
def doctor(*, bundle: Path | None = None, json: AsJson = False) -> int:
    """Look for what is wrong with this machine; fails when something is.

    Args:
        bundle: Write a zip for a bug report; it holds no text of your rows.
        json: Print JSON.
    """
    from macft import doctor as surgery

    machine = read_machine()
    findings = surgery.diagnose(machine)
    if json:
        tables.print_json({"findings": [asdict(finding) for finding in findings]})
    else:
        tables.print_lines(tables.finding_lines(findings))
    if bundle:
        narrate(f"wrote {surgery.bundle(bundle, runs_folder(), machine=machine, findings=findings)}")
    return 1 if any(finding.level == "bad" for finding in findings) else 0


@app.command(name="_run", show=False)
def run_training(
    path: Path, /, *, accept_new_data: bool = False, lock: int | None = None, asked: int | None = None
) -> int:
    """Train a run in this process.

    Args:
        path: The run's folder.
        accept_new_data: Go on although the rows have changed.
        lock: The descriptor of the run's lock, when another process has taken it.
        asked: Where requests to this life begin in the control file.
    """
    return api.start(path, accept_new_data=accept_new_data, lock=lock, asked=asked)


@app.command(name="_worker", show=False)
def work() -> int:
    """Answer a program's requests on stdin, a JSON line each."""
    from macft.cli.worker import run_worker  # its protocol takes a moment to set up

    return run_worker()


@app.command(name="_rows", show=False)
def read_for_program() -> int:
    """Answer a program's questions about rows on stdin, a JSON line each."""
    from macft.cli.row_worker import run_rows

    return run_rows()


def _finished(finished: Run, state: RunState, *, json: bool) -> int:
    if not json:
        tables.print_result(finished, state)
    return state.ended.exit_code if state.ended else 0


def _detached(started: Run, *, json: bool) -> int:
    if json:
        tables.print_json({"run": {"name": started.name, "path": str(started.path)}})
    else:
        print(started.path)
    narrate(f"`macft attach {started.name}` follows it, `macft stop {started.name}` stops it")
    return 0

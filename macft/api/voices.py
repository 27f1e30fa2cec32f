"""What answers: chat, voices side by side, scores, a server."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from macft.machine import home, read_machine, runs_folder
from macft.recipe import EvaluateTable

if TYPE_CHECKING:
    from macft.chat.compare import Voices
    from macft.chat.panes import Sampling, Turn
    from macft.chat.replay import Replayed
    from macft.chat.session import ChatSession
    from macft.measure.evaluation import Evaluation
    from macft.serve import Served


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

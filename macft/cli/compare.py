"""`macft compare`: several voices asked the same, at a terminal or from a file.

The rule: replies, reports' names and tallies go to stdout, everything else to stderr.
"""

import json as codec
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from macft import api
from macft.chat.panes import NOTHING_YET, Ask, Reply, Sampling, Turn, Voice
from macft.chat.preferences import Tally
from macft.cli.arguments import STDIN, AsJson
from macft.cli.picking import pick_from, pick_later
from macft.cli.prepare import show_progress
from macft.cli.render import narrate
from macft.cli.tables import SCHEMA, print_json, print_lines
from macft.cli.talk import ask_person
from macft.data.prompts import read_prompts
from macft.disk import write_atomic
from macft.errors import MacftError, Problem, RecipeError
from macft.format import clean, columns, one_line
from macft.machine import runs_folder
from macft.run import find_run

if TYPE_CHECKING:
    from macft.chat.compare import Voices

HELP = "/scores: whose answer is likely to whom · /reset forgets · Ctrl-C stops the replies · Ctrl-D ends"

Sampled = Annotated[Sampling, Parameter(name="*")]
"""How tokens are chosen, as options of a command."""


def compare(
    *names: str,
    prompts: str | None = None,
    out: Path | None = None,
    pick: bool = False,
    judge: str | None = None,
    picks: Path = Path("picks.jsonl"),
    unblind: bool = False,
    system: str = "",
    sampling: Sampled = Sampling(),  # noqa: B008 — frozen
    no_base: bool = False,
    no_template: bool = False,
    model: str | None = None,
    kl: bool = False,
    json: AsJson = False,
    plain: bool = False,
) -> None:
    """Ask Base and tuned, or several runs and models, the same, side by side.

    Args:
        names: Runs, checkpoints (RUN@600, RUN@best), adapters or models; latest when left out. Base is added.
        prompts: A file of prompts, a line or a row each, answered in batches; - reads stdin, as a pipe does.
        out: Where the report goes, as NAME.md and NAME.html; left out, into the first run's folder, or here.
        pick: Say of each pair of answers which is better; picks become rows to train on.
        judge: Pick between answers that --json printed to this file; nothing is loaded.
        picks: The preference file that picks are appended to; picks.jsonl when left out.
        unblind: Show whose answer is whose while picking.
        system: A system message before everything else.
        no_base: Only what is named.
        no_template: No chat template: all voices continue the text.
        model: The base of an adapter that does not name one that is here.
        kl: Also measure KL(voice ‖ Base) a token, over each voice's own answers.
        json: Print a JSON line a prompt, and write a report only with --out.
        plain: No progress bar.
    """
    sampling.check()
    if judge:
        _print_tally(pick_later(judge, picks.expanduser(), blind=not unblind), json=json)
        return
    if pick and prompts == STDIN:
        raise RecipeError([Problem("--pick", "reads verdicts from stdin, so the prompts cannot come from there")])
    piped = prompts == STDIN or (prompts is None and not pick and not sys.stdin.isatty())
    source = "-" if piped else prompts
    asked = read_prompts(source) if source else None
    opening: tuple[Turn, ...] = (("system", system),) if system else ()
    given = None if asked is None else [_opened(prompt.turns, opening) for prompt in asked]
    named = names or ("latest",)
    voices = api.compare(named, base=not no_base, model=model, template=not no_template)
    for voice in voices.voices:
        if voice.note:
            narrate(f"▲ {one_line(voice.name)}: {one_line(voice.note)}")
    if pick:
        _pick(voices, given, opening, picks, sampling, blind=not unblind, json=json)
    elif given is None:
        narrate(f"{' · '.join(one_line(voice.name) for voice in voices.voices)} · {HELP}")
        converse(voices, ask_person(), opening, sampling)
    else:
        _run_file(voices, given, sampling, out or (None if json else _place(named[0])), kl=kl, json=json, plain=plain)


def converse(voices: "Voices", prompts: Iterable[str], opening: tuple[Turn, ...], sampling: Sampling) -> None:
    """Print all voices' replies to one prompt after the other; each voice has a history of its own.

    Args:
        voices: Who answers.
        prompts: What the person says; `/reset` starts anew, `/scores` tells how likely the last answers are.
        opening: Turns before everything else.
        sampling: How tokens are chosen.
    """
    histories = [opening for _ in voices.voices]
    replies: list[Reply] = []
    for prompt in prompts:
        command = prompt.strip()
        if command == "/reset":
            histories, replies = [opening for _ in voices.voices], []
            narrate("forgotten")
        elif command == "/scores" and replies:
            print_lines(_score_lines(voices, [history[:-1] for history in histories], replies))
        elif command.startswith("/"):
            narrate(HELP)
        elif command:
            histories = [(*history, ("user", prompt)) for history in histories]
            replies = print_replies(voices, histories, sampling)
            histories = [
                (*history, ("assistant", reply.text)) for history, reply in zip(histories, replies, strict=True)
            ]


def print_replies(voices: "Voices", histories: Sequence[tuple[Turn, ...]], sampling: Sampling) -> list[Reply]:
    """Print every voice's reply under its name: the first as it comes, each other from where it is by then."""
    asks = [Ask(place, turns, sampling, pane=str(place)) for place, turns in enumerate(histories)]
    replies, shown = [NOTHING_YET] * len(asks), 0
    _print_name(voices.voices[0])
    stream = voices.stream(asks)
    try:
        for part in stream:
            replies[part.ask] = replies[part.ask].plus(part)
            if part.ask == shown:
                print(clean(part.text), end="", flush=True)
            while shown < len(asks) and replies[shown].finish_reason:
                shown = _print_next(voices.voices, replies, shown)
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
    finally:
        stream.close()
    while shown < len(asks):
        shown = _print_next(voices.voices, replies, shown)
    narrate(" · ".join(_figures(voice, reply) for voice, reply in zip(voices.voices, replies, strict=True)))
    return replies


def _print_next(voices: Sequence[Voice], replies: Sequence[Reply], shown: int) -> int:
    """End the reply that is shown, and begin the next with what has come of it."""
    print("\n", flush=True)
    if shown + 1 < len(voices):
        _print_name(voices[shown + 1])
        print(clean(replies[shown + 1].text), end="", flush=True)
    return shown + 1


def _print_name(voice: Voice) -> None:
    print(f"── {one_line(voice.name)}", flush=True)


def _figures(voice: Voice, reply: Reply) -> str:
    cut = ", cut" if reply.finish_reason == "length" else ""
    speed = f"{reply.tokens_per_second:.1f} tokens/s"
    return f"{one_line(voice.name)} {len(reply.token_ids)} tokens, {reply.seconds:.1f} s, {speed}{cut}"


def _score_lines(voices: "Voices", histories: Sequence[tuple[Turn, ...]], replies: Sequence[Reply]) -> list[str]:
    """Return a table: the mean log-probability a token of each answer, where it was given, under each voice."""
    from macft.chat.compare import Question
    from macft.chat.score import Said

    questions = [
        Question(turns, (Said(reply.text, reply.token_ids, place),))
        for place, (turns, reply) in enumerate(zip(histories, replies, strict=True))
    ]
    head = ["nats a token", *(f"under {one_line(voice.name)}" for voice in voices.voices)]
    rows = [
        [f"answer of {one_line(voice.name)}", *(f"{likelihood.mean:.3f}" for likelihood in answers[0])]
        for voice, answers in zip(voices.voices, voices.score(questions), strict=True)
    ]
    return columns([head, *rows], right=range(1, len(head)))


def _run_file(
    voices: "Voices",
    prompts: Sequence[tuple[Turn, ...]],
    sampling: Sampling,
    out: Path | None,
    *,
    kl: bool,
    json: bool,
    plain: bool,
) -> None:
    from macft.measure.comparison import Comparison, answer_prompts, score_exchanges
    from macft.measure.comparison_pages import write_html, write_markdown

    replies = []
    with show_progress(plain=plain) as tell:
        for turns, answers in zip(
            prompts, answer_prompts(voices, prompts, sampling, progress=partial(tell, "answering prompts")), strict=True
        ):
            replies.append(answers)
            if json:
                print(codec.dumps(answer_values(turns, voices.voices, answers), ensure_ascii=False), flush=True)
    if out is None:
        return
    comparison = Comparison(voices.voices, sampling, score_exchanges(voices, prompts, replies, kl=kl))
    out.parent.mkdir(parents=True, exist_ok=True)
    for ending, page in ((".md", write_markdown(comparison)), (".html", write_html(comparison))):
        path = out.with_name(out.name + ending)
        write_atomic(path, page.encode())
        print(path, file=sys.stderr if json else sys.stdout)


def answer_values(turns: Sequence[Turn], voices: Sequence[Voice], replies: Sequence[Reply]) -> dict[str, Any]:
    """Return one prompt and its answers as JSON values; a prompt of several turns is a list of messages."""
    said = [
        {
            "name": voice.name,
            "model_path": voice.model_path,
            "adapter": voice.adapter,
            "text": reply.text,
            "token_ids": reply.token_ids,
            "seconds": round(reply.seconds, 6),
        }
        for voice, reply in zip(voices, replies, strict=True)
    ]
    messages = [{"role": role, "content": content} for role, content in turns]
    return {"schema": SCHEMA, "prompt": messages if len(turns) > 1 else turns[0][1], "voices": said}


def _pick(
    voices: "Voices",
    given: Sequence[tuple[Turn, ...]] | None,
    opening: tuple[Turn, ...],
    path: Path,
    sampling: Sampling,
    *,
    blind: bool,
    json: bool,
) -> None:
    named = [voice.name for voice in voices.voices]
    if len(named) != 2:
        raise RecipeError(
            [Problem("--pick", f"is between two voices (got {len(named)}: {', '.join(named)})")],
            fix="Name two and add --no-base.",
        )
    questions: Iterator[tuple[Turn, ...]] = (
        iter(given) if given is not None else ((*opening, ("user", said)) for said in ask_person() if said.strip())
    )
    tally = pick_from(voices, questions, path.expanduser(), sampling, ahead=1 if given is None else 8, blind=blind)
    _print_tally(tally, json=json)


def _print_tally(tally: Tally, *, json: bool) -> None:
    if json:
        print_json({**asdict(tally), "p": tally.p_value})
    else:
        print(one_line(str(tally)))


def _opened(turns: tuple[Turn, ...], opening: tuple[Turn, ...]) -> tuple[Turn, ...]:
    return turns if turns[0][0] == "system" else (*opening, *turns)


def _place(name: str) -> Path:
    """Return where a report goes when nobody says: into the folder of the first run, else here."""
    stamp = time.strftime("compare-%Y-%m-%d-%H%M%S")
    try:
        return find_run(name.partition("@")[0], runs_folder()).path / "compare" / stamp
    except MacftError:
        return Path(stamp)

"""Picking at a terminal: two answers, one key, the next.

The rule: whose answer is whose is said after the verdict only, unless somebody asked to see; everything here is
narration but the tally, which is the result.
"""

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from macft.chat.panes import Sampling, Turn
from macft.chat.preferences import Answered, Duel, Picks, Tally, Verdict, shuffled
from macft.cli.render import narrate
from macft.data.sources import Row, read_rows
from macft.errors import DataError, Problem
from macft.format import clean, one_line

if TYPE_CHECKING:
    from macft.chat.compare import Voices

HELP = "1 or 2 is better · t tie · b both bad · e1 e2 edit the winner · 1+ 1- 2+ 2- thumbs · u undo · s skip · q ends"
VERDICTS: dict[str, Verdict] = {"1": "1", "2": "2", "t": "tie", "b": "both bad"}


def pick_from(
    voices: "Voices", questions: Iterator[tuple[Turn, ...]], path: Path, sampling: Sampling, *, ahead: int, blind: bool
) -> Tally:
    """Let two voices answer, and a person say which answer is better; returns the tally.

    Args:
        voices: Two.
        questions: What is asked; taken `ahead` at a time, which are answered in one batch.
        path: The preference file.
        sampling: How tokens are chosen.
        ahead: 1 when a person types the questions.
        blind: Hide whose answer is whose until the verdict.
    """
    from macft.measure.comparison import answer_prompts

    first, second = (voice.name for voice in voices.voices)
    how = asdict(sampling)
    seed = how.pop("seed")

    def duels() -> Iterator[Duel]:
        while chunk := list(islice(questions, ahead)):
            for turns, replies in zip(chunk, answer_prompts(voices, chunk, sampling), strict=True):
                yield Duel(turns, (Answered(first, replies[0].text), Answered(second, replies[1].text)), how, seed)

    picks = Picks((first, second), path)
    judge(picks, duels(), ask=_ask, edit=edit_text, blind=blind)
    return picks.tally


def pick_later(answers: str, path: Path, *, blind: bool) -> Tally:
    """Let a person say which answers are better that `macft compare --json` printed; nothing is loaded.

    Raises:
        DataError: The file holds something else, with every line that does.
    """
    problems: list[Problem] = []
    duels = [duel for row in read_rows([answers], problems) if (duel := _read_duel(row, problems))]
    voices = [tuple(sorted(side.voice for side in duel.sides)) for duel in duels]
    if len(set(voices)) > 1:
        problems.append(Problem(answers, "holds answers of different voices (expected the same two in every line)"))
    if problems:
        raise DataError(problems, fix="`macft compare RUN --prompts FILE --json` prints such lines.")
    first, second = duels[0].sides
    picks = Picks((first.voice, second.voice), path)
    judge(picks, iter(duels), ask=_ask, edit=edit_text, blind=blind)
    return picks.tally


def _read_duel(row: Row, problems: list[Problem]) -> Duel | None:
    try:
        prompt, (first, second) = row.value["prompt"], row.value["voices"]
        turns = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
        sides = (Answered(first["name"], first["text"]), Answered(second["name"], second["text"]))
        return Duel(tuple((turn["role"], turn["content"]) for turn in turns), sides)
    except (KeyError, TypeError, ValueError):
        problems.append(Problem(row.where, "is no prompt with the answers of two voices"))
        return None


def judge(
    picks: Picks,
    duels: Iterator[Duel],
    *,
    ask: Callable[[], str | None],
    edit: Callable[[str], str],
    blind: bool,
    seed: int | None = None,
) -> None:
    """Show duels one by one and record verdicts until there are no more.

    Args:
        picks: Where verdicts go.
        duels: Not shuffled yet.
        ask: Returns what the person types, None at the end.
        edit: Lets the person change a text.
        blind: Shuffle the sides and hide the names.
        seed: Fixes the sides; left out, nobody can know them.
    """
    seed = int.from_bytes(os.urandom(8)) if seed is None else seed
    seen: list[Duel] = []
    done: list[int] = []
    place = 0
    narrate(HELP)
    while True:
        if place == len(seen) and (duel := next(duels, None)) is not None:
            seen.append(shuffled(duel, seed=seed, number=place) if blind else duel)
        if place < len(seen) and seen[place].is_same:
            narrate("both say the same: skipped")
            place += 1
            continue
        if place < len(seen):
            _show(seen[place], blind=blind)
        elif done:
            narrate("that was the last: u takes the last verdict back, q ends")
        else:
            return
        did = ""
        while did in {"", "thumbed"}:
            typed = ask()
            shown = seen[place] if place < len(seen) else None
            did = "end" if typed is None else _obey(typed.strip(), picks, shown, edit)
            done += [place] if did in {"judged", "thumbed"} else []
        if did == "end":
            return
        place = done.pop() if did == "undone" else place + 1


def _obey(typed: str, picks: Picks, duel: Duel | None, edit: Callable[[str], str]) -> str:
    """Do what was typed; returns `judged`, `thumbed`, `skipped`, `undone`, `end`, or nothing when nothing happened."""
    if typed == "u":
        undone = picks.undo()
        narrate("taken back" if undone else "nothing to take back")
        return "undone" if undone else ""
    if typed == "q" or duel is None:
        return "end"
    if typed == "s":
        return "skipped"
    if typed in {"1+", "1-", "2+", "2-"}:
        picks.thumb(duel, "1" if typed[0] == "1" else "2", up=typed[1] == "+")
        narrate(f"thumb {'up' if typed[1] == '+' else 'down'} for {typed[0]}: {picks.labels.name}")
        return "thumbed"
    if typed in {"e1", "e2"}:
        side: Verdict = "1" if typed == "e1" else "2"
        picks.judge(duel, side, edited=edit(duel.sides[int(side) - 1].text))
    elif typed in VERDICTS:
        picks.judge(duel, VERDICTS[typed])
    else:
        narrate(HELP)
        return ""
    one, two = duel.sides
    narrate(f"1 was {one_line(one.voice)}, 2 was {one_line(two.voice)} · {one_line(str(picks.tally))}")
    return "judged"


def _show(duel: Duel, *, blind: bool) -> None:
    for role, content in duel.turns:
        narrate(f"{role}: {clean(content)}")
    for number, side in enumerate(duel.sides, start=1):
        narrate(f"\n── {number}{'' if blind else f' {one_line(side.voice)}'}\n{clean(side.text)}")


def _ask() -> str | None:
    print("\n1, 2, t, b, e1, e2, u, s, q: ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline() or None


def edit_text(text: str) -> str:
    """Let the person change a text in their editor (`VISUAL`, `EDITOR`, else vi)."""
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "answer.txt"
        path.touch(mode=0o600)
        path.write_text(text, encoding="utf-8")
        subprocess.run([*shlex.split(command), str(path)], check=True)
        edited = path.read_text(encoding="utf-8")
    return edited if text.endswith("\n") else edited.removesuffix("\n")  # editors end the last line

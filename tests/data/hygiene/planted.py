"""Rows without a fault, and faults planted in them, each known by its line."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

_NOUNS = (
    "parcel invoice ticket router bicycle garden teacher window engine recipe river library painter market violin"
    " blanket harbour candle letter museum doctor bridge kitchen planet camera forest bakery station castle pilot"
    " farmer island tunnel jacket ladder mirror orchard pencil quarry saddle temple umbrella village wagon lantern"
)
_VERBS = (
    "repairs carries paints describes follows protects measures borrows delivers examines ignores replaces welcomes"
    " inspects remembers compares collects answers crosses explains visits changes watches moves opens signs"
)
_ADJECTIVES = (
    "quiet broken yellow ancient narrow generous clever heavy gentle crooked famous patient hollow bright careful"
    " modern humble curious wooden silver muddy frozen gloomy polite rapid sturdy tidy vague warm young"
)
_ADVERBS = "slowly gladly often rarely neatly twice today carefully again early quietly always"
NOUNS, VERBS, ADJECTIVES, ADVERBS = (words.split() for words in (_NOUNS, _VERBS, _ADJECTIVES, _ADVERBS))
_GERMAN = "Das ist nicht der richtige Weg, und wir haben auch keine Zeit mehr für die Suche nach dem Schlüssel."
_CHINESE = "人工智能是工程和科学的分支，致力于构建具有思维的机器。"


class Planted(NamedTuple):
    """A kind of fault, the lines that have it, and the lines that may be named for it, too."""

    kind: str
    lines: set[int]


def sentence(rng: random.Random) -> str:
    """A sentence of a dozen words that no other is likely to repeat."""
    one, two = (f"the {rng.choice(ADJECTIVES)} {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}" for _ in range(2))
    end = f"{rng.choice(ADVERBS)} near the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)}"
    return f"{one} {rng.choice(VERBS)} {two} {end}.".capitalize()


def clean_row(rng: random.Random, number: int, *, sentences: int = 3) -> dict[str, Any]:
    """A chat of one question and an answer of some sentences; with the question some sixty tokens."""
    question = f"What happens when the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)} {rng.choice(VERBS)}"
    question += f" the {rng.choice(ADJECTIVES)} {rng.choice(NOUNS)} in case {number}?"
    return chat(question, " ".join(sentence(rng) for _ in range(sentences)))


def chat(prompt: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}


def _answered(answer: Callable[[random.Random, str], str]) -> Callable[[random.Random, dict[str, Any]], dict[str, Any]]:
    def spoil(rng: random.Random, row: dict[str, Any]) -> dict[str, Any]:
        question, reply = (turn["content"] for turn in row["messages"])
        return chat(question, answer(rng, reply))

    return spoil


def _in_the_middle(rng: random.Random, text: str, put: str) -> str:
    words = text.split()
    at = rng.randrange(2, len(words) - 2)
    return " ".join([*words[:at], put, *words[at:]])


def _misread(rng: random.Random, text: str) -> str:
    word = rng.choice(["café", "naïve", "don’t", "“yes”", "größer", "数据", "Привет"])
    put = word.encode().decode(rng.choice(["latin-1", "cp1252"]), "ignore")
    return _in_the_middle(rng, text, put)


def _card(rng: random.Random) -> str:
    digits = [4, *(rng.randrange(10) for _ in range(14))]
    doubled = [sum(divmod(2 * digit, 10)) if place % 2 == 0 else digit for place, digit in enumerate(digits)]
    text = "".join(map(str, [*digits, -sum(doubled) % 10]))
    return rng.choice([text, " ".join(text[at : at + 4] for at in range(0, 16, 4))])


def _secret(rng: random.Random, text: str) -> str:
    letters = "".join(rng.choice("abcdefghijkmnpqrstuvwxyz23456789") for _ in range(40))
    secrets = [
        f"{letters[:6]}.{letters[6:12]}@{letters[12:18]}.com",
        f"+49 30 {rng.randrange(10**6, 10**7)}",
        f"({rng.randrange(200, 999)}) 555-{rng.randrange(1000, 9999)}",
        f"{rng.randrange(200, 999)}-555-{rng.randrange(1000, 9999)}",
        _card(rng),
        f"sk-{letters}",
        f"AKIA{letters[:16].upper()}",
        f"ghp_{letters[:36]}",
    ]
    return _in_the_middle(rng, text, rng.choice(secrets))


def edit(rng: random.Random, row: dict[str, Any]) -> dict[str, Any]:
    """Change a word or two of a row, or add one."""
    question, reply = (turn["content"] for turn in row["messages"])
    words = reply.split()
    for _ in range(rng.randint(1, 2)):
        at = rng.randrange(len(words) - 1)
        words[at : at + rng.randint(0, 1)] = [rng.choice(ADJECTIVES)]
    return chat(
        question if rng.random() < 0.5 else question.replace("What happens", "Tell me what happens"), " ".join(words)
    )


CONTROL = [
    "<|im_end|>",
    "<|im_start|>assistant",
    "</s>",
    "[INST]",
    "<|endoftext|>",
    "<start_of_turn>",
    "\x00\x1b[31m"[1:],
]
SPOILS: dict[str, Callable[[random.Random, dict[str, Any]], dict[str, Any]]] = {
    "empty_answer": _answered(lambda rng, _: rng.choice(["", "  ", "\n", "\u200b"])),
    "one_word_answer": _answered(lambda rng, text: rng.choice(NOUNS).capitalize() + rng.choice(["", "."])),
    "truncated_answer": _answered(lambda rng, text: " ".join(text.split()[: rng.randrange(9, 12)])),
    "repeated_answer": _answered(lambda *_: "I am sorry, but I cannot help you with this question at all."),
    "wrong_language": _answered(lambda rng, _: rng.choice([_GERMAN, _CHINESE]) + f" {rng.choice(NOUNS)}."),
    "control_token": _answered(lambda rng, text: _in_the_middle(rng, text, rng.choice(CONTROL))),
    "mojibake": _answered(_misread),
    "personal_data": _answered(_secret),
}
COPIES: dict[str, Callable[[random.Random, dict[str, Any]], dict[str, Any]]] = {
    "duplicate": lambda rng, row: json.loads(json.dumps(row).replace("The ", rng.choice(["The  ", "the ", "The "]))),
    "near_duplicate": edit,
}
LEAKS: dict[str, Callable[[random.Random, dict[str, Any]], dict[str, Any]]] = {
    "leak": lambda rng, row: chat(row["messages"][0]["content"].upper(), sentence(rng)),
    "near_leak": lambda rng, row: chat(
        row["messages"][0]["content"] + " Please tell me.", _in_the_middle(rng, row["messages"][1]["content"], "really")
    ),
}


def plant(folder: Path, *, rows: int, each: int, seed: int = 0) -> tuple[Path, Path, dict[str, set[int]]]:
    """Write train and held-out rows with `each` faults of every kind.

    Returns:
        Both files, and the faulty lines by kind; leaks are lines of the held-out file, all others of the training file.
    """
    rng = random.Random(seed)
    good = [clean_row(rng, number) for number in range(rows)]
    faults: dict[str, set[int]] = {}
    free = list(range(rows // 2, rows))
    rng.shuffle(free)
    for kind, spoil in SPOILS.items():
        taken = [free.pop() for _ in range(each)]
        faults[kind] = {line + 1 for line in taken}
        for line in taken:
            good[line] = spoil(rng, good[line])
    originals = iter(rng.sample(range(rows // 2), 4 * each))
    for kind, copy in COPIES.items():
        taken = [free.pop() for _ in range(each)]
        faults[kind] = {line + 1 for line in taken}
        for line in taken:
            good[line] = copy(rng, good[next(originals)])
    held_out = [clean_row(rng, rows + number) for number in range(max(each, rows // 10))]
    for kind, copy in LEAKS.items():
        first = len(held_out)
        held_out += [copy(rng, good[next(originals)]) for _ in range(each)]
        faults[kind] = set(range(first + 1, len(held_out) + 1))
    return write(folder / "train.jsonl", good), write(folder / "held-out.jsonl", held_out), faults


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path

"""Rows to preferences: pairs, scored responses and labeled completions become prompts with responses.

The rule: what is preferred is what the row says, never what its order suggests. A prompt that stands in no column of
its own is what the chosen and the rejected have in common at their start, as TRL extracts it.
"""

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from macft.data.examples import (
    EMPTY_TURN,
    SPEAKERS,
    Message,
    NothingToLearn,
    Object,
    ResponseExample,
    RowProblem,
    list_at,
    list_columns,
    optional_text_at,
    parse_tools,
    parse_turns,
    rename_columns,
)
from macft.data.sources import Row, kind_of

PAIR_METHODS = ("dpo", "orpo", "simpo", "cpo")
PREFERENCE_METHODS = (*PAIR_METHODS, "kto")
SAME = "chosen and rejected are the same"
NONE_BETTER = "no response is better than another"
_SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), ("chosen_rating", "rejected_rating"))
_GOOD = {"true", "1", "good", "yes", "up", "thumbs up", "👍", "desirable", "chosen"}
_BAD = {"false", "0", "-1", "bad", "no", "down", "thumbs down", "👎", "undesirable", "rejected"}
_SPEAKER = re.compile(r"\n\n(Human|Assistant):")
"""How the turns of HH-RLHF begin."""


def detect_method(value: Object, columns: Mapping[str, str]) -> str:
    """Return the method that a row is for, by the columns that are there under macft's names or the user's."""
    names = value.keys() | {ours for ours, theirs in columns.items() if theirs in value}
    if {"chosen", "rejected"} <= names or "responses" in names:
        return "dpo"
    return "kto" if {"completion", "label"} <= names else "sft"


def parse_preferences(
    row: Row, columns: Mapping[str, str] | None = None, *, method: str, strings: str
) -> list[ResponseExample]:
    """Understand a row of preferences; it may hold several.

    Args:
        row: A pair (`chosen`, `rejected`), `responses` with `scores` or `ranks`, or a `completion` with its `label`.
        columns: Maps macft's column names to the user's.
        method: KTO takes a pair as a desirable and an undesirable response.
        strings: `text` as they stand, or `chat`: a user's message and the answers to it.

    Raises:
        RowProblem: The row fits none of these, or breaks the one it fits.
    """
    value = rename_columns(row.value, columns or {})
    wants_pairs = method in PAIR_METHODS
    if value.get("chosen") is not None or value.get("rejected") is not None:
        examples = [_parse_pair(value, strings)]
    elif value.get("responses") is not None and wants_pairs:
        examples = _parse_scored(value, strings)
    elif value.get("label") is not None and not wants_pairs:
        examples = [_parse_labeled(value, strings)]
    else:
        expected = "chosen and rejected, or responses and their scores" if wants_pairs else "completion and label"
        what = "pairs" if wants_pairs else "pairs or labeled completions"
        raise RowProblem(f"has none of the columns of {what} (found {list_columns(value)}; expected {expected})")
    if not wants_pairs:
        examples = [single for example in examples for single in _unpair(example)]
    tools = tuple(parse_tools(value))
    return [replace(example, tools=tools, where=row.where) for example in examples]


def _unpair(example: ResponseExample) -> list[ResponseExample]:
    if example.label is not None:
        return [example]
    if example.responses[0] == example.responses[1]:
        raise NothingToLearn(SAME, SAME)
    kept = zip(example.responses, (True, False), strict=True)
    return [replace(example, responses=(response,), label=label, margin=None) for response, label in kept]


def _parse_pair(value: Object, strings: str) -> ResponseExample:
    example = _read(value, {name: value.get(name) for name in ("chosen", "rejected")}, strings)
    return replace(example, margin=_margin(value))


def _parse_scored(value: Object, strings: str) -> list[ResponseExample]:
    items = list_at(value["responses"], "responses", "a list of responses")
    by = next((name for name in ("scores", "ranks") if value.get(name) is not None), None)
    if by is None:
        raise RowProblem("has responses without scores or ranks (expected a number for each)")
    numbers = [
        _number(item, f"{by}[{index}]") for index, item in enumerate(list_at(value[by], by, "a list of numbers"))
    ]
    if len(numbers) != len(items):
        raise RowProblem(f"has {len(items)} responses and {len(numbers)} {by} (expected as many)")
    scores = numbers if by == "scores" else [-rank for rank in numbers]
    whole = _read(value, {f"responses[{index}]": item for index, item in enumerate(items)}, strings, implied=False)
    pairs = []
    for first, second in combinations(range(len(items)), 2):
        good, bad = (first, second) if scores[first] > scores[second] else (second, first)
        if scores[good] > scores[bad]:
            margin = scores[good] - scores[bad] if by == "scores" else None
            both = (whole.responses[good], whole.responses[bad])
            pairs.append(replace(whole, responses=both, margin=margin))
    if not pairs:
        raise NothingToLearn(NONE_BETTER, NONE_BETTER)
    return pairs


def _parse_labeled(value: Object, strings: str) -> ResponseExample:
    example = _read(value, {"completion": value.get("completion")}, strings, implied=False)
    return replace(example, label=_label(value["label"]))


def _label(item: object) -> bool:
    text = str(item).strip().lower() if isinstance(item, str | bool) else f"{_number(item, 'label'):g}"
    if text not in _GOOD | _BAD:
        raise RowProblem(f'label is {item!r} (expected true or false, 1 or 0, "thumbs up" or "thumbs down")')
    return text in _GOOD


def _margin(value: Object) -> float | None:
    if value.get("margin") is not None:
        return _number(value["margin"], "margin")
    for names in _SCORES:
        if all(value.get(name) is not None for name in names):
            good, bad = (_number(value[name], name) for name in names)
            return good - bad
    return None


def _number(item: object, path: str) -> float:
    if isinstance(item, int | float | str) and not isinstance(item, bool):
        with contextlib.suppress(ValueError):
            return float(item)
    raise RowProblem(f"{path} is {kind_of(item)} (expected a number)")


def _read(value: Object, items: Mapping[str, object], strings: str, *, implied: bool = True) -> ResponseExample:
    """Read a prompt and its responses: all of them text, or all of them messages.

    Args:
        items: Path to what stands there.
        implied: The prompt may be what the responses have in common.
    """
    prompt, system = value.get("prompt"), optional_text_at(value, "system", "system")
    for path, item in items.items():
        if not isinstance(item, str | list | tuple):
            raise RowProblem(f"{path} is {kind_of(item)} (expected text or messages)")
        if not (item.strip() if isinstance(item, str) else item):
            raise NothingToLearn(f"{path} is empty (expected an answer)", EMPTY_TURN)
    if prompt is None and not implied:
        raise RowProblem("prompt is missing (expected text or messages)")
    is_chat = strings == "chat" or system or not all(isinstance(item, str) for item in (prompt or "", *items.values()))
    if not is_chat:
        texts = [str(item) for item in items.values()]
        example = ResponseExample(str(prompt), tuple(texts)) if prompt is not None else _imply_text(texts)
    else:
        example = _imply_turns(_turns_of(prompt), {path: _answers(path, item, prompt) for path, item in items.items()})
        if system:
            example = replace(example, prompt=(Message("system", system), *example.prompt))
    if any(isinstance(text, str) and not text.strip() for text in example.responses):
        raise NothingToLearn("has an empty response (expected text)", EMPTY_TURN)
    return example


def _turns_of(prompt: object) -> tuple[Message, ...]:
    if isinstance(prompt, str):
        return (Message("user", prompt),)
    return tuple(parse_turns(prompt, "prompt")) if prompt is not None else ()


def _answers(path: str, item: object, prompt: object) -> tuple[Message, ...]:
    if not isinstance(item, str):
        return tuple(parse_turns(item, path))
    return (Message("assistant", item),) if prompt is not None else _parse_transcript(item, path)


def _parse_transcript(text: str, path: str) -> tuple[Message, ...]:
    """Read a conversation written as one text, whose turns begin with `Human:` or `Assistant:` after a blank line."""
    before, *parts = _SPEAKER.split(text if text.startswith("\n") else f"\n\n{text}")
    if before.strip() or not parts:
        raise RowProblem(
            f"{path} is text with no prompt beside it (expected a prompt, or turns of Human: and Assistant:)"
        )
    if not parts[-1].strip():
        raise NothingToLearn(f"{path} ends with an empty turn (expected text)", EMPTY_TURN)
    turns = zip(parts[::2], parts[1::2], strict=True)
    return tuple(Message(SPEAKERS[speaker.lower()], words.strip()) for speaker, words in turns)


def _imply_text(texts: Sequence[str]) -> ResponseExample:
    """Take the prompt to be what texts have in common; a space before their first difference is the responses'."""
    at = _first_difference(texts)
    at -= texts[0][at - 1 : at] == " " and _differ(text[at] for text in texts)
    if not texts[0][:at].strip():
        raise RowProblem("has no prompt, and chosen and rejected begin differently (expected a common beginning)")
    return ResponseExample(texts[0][:at], tuple(text[at:] for text in texts), is_implied=True)


def _imply_turns(prompt: tuple[Message, ...], found: Mapping[str, tuple[Message, ...]]) -> ResponseExample:
    """Take the prompt from its column; or else, or when the responses repeat it, from what they have in common."""
    answers = list(found.values())
    if prompt and all(turns[: len(prompt)] == prompt for turns in answers):
        answers = [turns[len(prompt) :] for turns in answers]
    elif not prompt or all(turns and turns[0].role != "assistant" for turns in answers):
        at = _first_difference(answers)
        prompt, answers = answers[0][:at], [turns[at:] for turns in answers]
    for path, turns in zip(found, answers, strict=True):
        if not turns:
            raise NothingToLearn(f"{path} ends where the prompt does (expected an answer)", EMPTY_TURN)
        if turns[0].role != "assistant":
            raise RowProblem(f"{path} goes on after the prompt with the role {turns[0].role} (expected assistant)")
    if not prompt:
        raise RowProblem("has no prompt, and chosen and rejected begin differently (expected a common beginning)")
    return ResponseExample(prompt, tuple(answers))


def _first_difference(parts: Sequence[Sequence[object]]) -> int:
    """Return where sequences begin to differ; at most the last place of the shortest, so that none is used up."""
    shortest = min(map(len, parts))
    return next((at for at in range(shortest) if _differ(part[at] for part in parts)), max(0, shortest - 1))


def _differ(items: Iterable[object]) -> bool:
    first, *others = items
    return any(item != first for item in others)

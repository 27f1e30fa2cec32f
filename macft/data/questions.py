"""Questions to a model: prompts from held-out rows or from a person, with the answer that a row gives.

The rule: a question is rendered by the same code as a training row, so a tuned model is asked as it was taught.
"""

from dataclasses import replace
from typing import NamedTuple

from macft.data.chat_template import decode, encode, encode_prompt, encode_responses
from macft.data.examples import ChatExample, Example, ResponseExample, TextExample, question_of
from macft.data.turns import Tokenizer

OPENING_TOKENS, ENDING_TOKENS = 24, 48
"""Tokens of a raw text that are given, and tokens after them that are shown as its own continuation."""


class Question(NamedTuple):
    """A prompt as a person reads it and as the model does, and the expected answer (empty when there is none)."""

    text: str
    ids: list[int]
    reference: str


def make_question(example: Example, tokenizer: Tokenizer, *, enable_thinking: bool) -> Question | None:
    """Make a question of a row: everything before its last answer, or the opening of a text.

    Returns:
        None when there is nothing to ask with: no message before the answer, no prompt, or too short a text.

    Raises:
        RowProblem: The chat template refuses the row.
    """
    if isinstance(example, TextExample):
        return _make_opening(example.text, tokenizer)
    if isinstance(example, ResponseExample):
        return _ask_prompt(example, tokenizer, enable_thinking)
    messages, answer = question_of(example)
    ids = encode_prompt(example, tokenizer, enable_thinking=enable_thinking) if messages else []
    if not ids:
        return None
    if isinstance(example, ChatExample) and example.messages[len(messages)].tool_calls:
        answer = _write_answer(example, len(messages), tokenizer, enable_thinking)
    return Question(messages[-1].content or "", ids, answer)


def _ask_prompt(example: ResponseExample, tokenizer: Tokenizer, enable_thinking: bool) -> Question:
    ids = [int(id) for id in encode_responses(example, tokenizer, enable_thinking=enable_thinking)[0].prompt]
    prompt, best = example.prompt, "" if example.label is False else example.responses[0]
    asked = prompt if isinstance(prompt, str) else prompt[-1].content or ""
    return Question(asked, ids, best.strip() if isinstance(best, str) else best[0].content or "")


def _make_opening(text: str, tokenizer: Tokenizer) -> Question | None:
    ids = tokenizer.encode(text, add_special_tokens=True)
    opening, rest = ids[:OPENING_TOKENS], ids[OPENING_TOKENS : OPENING_TOKENS + ENDING_TOKENS]
    return Question(decode(tokenizer, opening), opening, decode(tokenizer, rest)) if rest else None


def _write_answer(example: ChatExample, index: int, tokenizer: Tokenizer, enable_thinking: bool) -> str:
    """Return an answer as the template writes it, tool calls and all: what the model is taught, without its stop."""
    until = replace(example, messages=example.messages[: index + 1])
    ids, mask = encode(until, tokenizer, train_on="last", enable_thinking=enable_thinking)
    return decode(tokenizer, ids[mask][:-1]).strip()

"""Questions to a model: prompts from held-out rows or from a person, with the answer that a row gives.

The rule: a question is rendered by the same code as a training row, so a tuned model is asked as it was taught.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from macft.data.chat_template import decode, encode_prompt
from macft.data.examples import CompletionExample, Example, TextExample, question_of
from macft.data.turns import Tokenizer

OPENING_TOKENS, ENDING_TOKENS = 24, 48
"""Tokens of a raw text that are given, and tokens after them that are shown as its own continuation."""


class Question(NamedTuple):
    """A prompt as a person reads it and as the model does, and the expected answer (empty when there is none)."""

    text: str
    ids: list[int]
    reference: str


def ask(prompt: str, tokenizer: Tokenizer, *, enable_thinking: bool) -> Question:
    """Make a question of a person's prompt: a user turn, or plain text for a model without a chat template."""
    example = CompletionExample(prompt, "")
    return Question(prompt, encode_prompt(example, tokenizer, enable_thinking=enable_thinking), "")


def questions_from(examples: Iterable[Example], tokenizer: Tokenizer, *, enable_thinking: bool) -> Iterator[Question]:
    """Make a question of each row: everything before its last answer, or the opening of a text."""
    for example in examples:
        if isinstance(example, TextExample):
            ids = tokenizer.encode(example.text, add_special_tokens=True)
            rest = ids[OPENING_TOKENS : OPENING_TOKENS + ENDING_TOKENS]
            if rest:
                yield Question(decode(tokenizer, ids[:OPENING_TOKENS]), ids[:OPENING_TOKENS], decode(tokenizer, rest))
            continue
        messages, answer = question_of(example)
        ids = encode_prompt(example, tokenizer, enable_thinking=enable_thinking)
        yield Question(messages[-1].content or "", ids, answer)

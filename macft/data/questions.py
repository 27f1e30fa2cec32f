"""Questions to a model: prompts from held-out rows or from a person, with the answer that a row gives.

The rule: a question is rendered by the same code as a training row, so a tuned model is asked as it was taught.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from macft.data.chat_template import Tokenizer, render_prompt
from macft.data.examples import ChatExample, CompletionExample, Example, Message

OPENING_TOKENS = 24
"""Tokens of a raw text that are given, to be continued."""


class Question(NamedTuple):
    """A prompt as a person reads it and as the model does, and the expected answer (empty when there is none)."""

    text: str
    ids: list[int]
    reference: str


def ask(prompt: str, tokenizer: Tokenizer, *, enable_thinking: bool) -> Question:
    """Make a question of a person's prompt: a user turn, or plain text for a model without a chat template."""
    if not tokenizer.has_chat_template:
        return Question(prompt, list(tokenizer.encode(prompt)), "")
    messages = (Message(role="user", content=prompt),)
    return Question(prompt, render_prompt(messages, tokenizer, enable_thinking=enable_thinking), "")


def questions_from(examples: Iterable[Example], tokenizer: Tokenizer, *, enable_thinking: bool) -> Iterator[Question]:
    """Make a question of each row that has one: everything before its last assistant turn, or a text's opening."""
    for example in examples:
        match example:
            case ChatExample(messages=messages, tools=tools):
                turns = [place for place, message in enumerate(messages) if message.role == "assistant"]
                if turns and turns[-1] > 0:
                    before, answer = messages[: turns[-1]], messages[turns[-1]].content or ""
                    ids = render_prompt(before, tokenizer, tools=tools, enable_thinking=enable_thinking)
                    yield Question(before[-1].content or "", ids, answer)
            case CompletionExample(prompt=prompt, completion=completion):
                yield ask(prompt, tokenizer, enable_thinking=enable_thinking)._replace(reference=completion)
            case _:
                ids = list(tokenizer.encode(example.text))
                opening, rest = ids[:OPENING_TOKENS], ids[OPENING_TOKENS : 3 * OPENING_TOKENS]
                if rest:
                    yield Question(tokenizer.decode(opening), opening, tokenizer.decode(rest))

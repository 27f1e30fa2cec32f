"""Questions: what a row asks, what it expects, and which rows ask nothing."""

import numpy as np
import pytest

from macft.data.chat_template import decode, encode
from macft.data.examples import ChatExample, CompletionExample, Message, ResponseExample, TextExample, ToolCall
from macft.data.questions import ENDING_TOKENS, OPENING_TOKENS, make_question
from macft.measure.answers import score_answers
from tests.data.formats import FORMATS, Format, load

ASK = Message("user", "Weather in Paris?")
CALL = Message("assistant", None, (ToolCall("get_weather", {"city": "Paris"}, "abcdefghi"),))
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}


def test_a_chat_asks_for_its_last_taught_answer() -> None:
    tokenizer = load("chatml")
    messages = (ASK, Message("assistant", "Clear."), Message("user", "Rome?"), Message("assistant", "?", train=False))
    question = make_question(ChatExample(messages), tokenizer, enable_thinking=False)
    assert question is not None
    assert (question.text, question.reference) == ("Weather in Paris?", "Clear.")
    assert decode(tokenizer, question.ids).endswith("Weather in Paris?<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize("format", [format for format in FORMATS if format.has_tools], ids=str)
@pytest.mark.parametrize("rest", [(), (Message("user", "And?"),)])
def test_a_right_tool_call_scores(format: Format, rest: tuple[Message, ...]) -> None:
    tokenizer = load(format)
    example = ChatExample((ASK, CALL, *rest), (TOOL,))
    question = make_question(example, tokenizer, enable_thinking=False)
    assert question is not None
    assert '"get_weather"' in question.reference
    assert format.stop not in question.reference
    ids, mask = encode(ChatExample((ASK, CALL), (TOOL,)), tokenizer, train_on="assistant")
    start, end = np.flatnonzero(mask)[[0, -1]]
    assert ids[:start].tolist() == question.ids
    answered = tokenizer.decode(ids[start:end].tolist())  # as a model that has learned the row answers
    assert score_answers([answered], [question.reference]).metrics["exact_match"] == 1.0


@pytest.mark.parametrize(
    ("example", "has_template"),
    [
        (ChatExample((Message("assistant", "hello"),)), True),
        (ChatExample((Message("assistant", "hello"), ASK)), True),
        (CompletionExample("", "hello"), False),
        (TextExample("too short"), True),
    ],
)
def test_rows_with_nothing_to_ask_with(example: ChatExample, has_template: bool) -> None:
    assert make_question(example, load("chatml", template=has_template), enable_thinking=False) is None


def test_a_text_is_continued() -> None:
    tokenizer = load("chatml")
    text = "The quick brown fox jumps over the lazy dog. " * 20
    question = make_question(TextExample(text), tokenizer, enable_thinking=False)
    assert question is not None
    assert text.startswith(question.text + question.reference)
    assert len(question.ids) == OPENING_TOKENS
    assert len(tokenizer.encode(question.reference, add_special_tokens=False)) == ENDING_TOKENS


@pytest.mark.parametrize(("label", "reference"), [(True, "Clear."), (False, ""), (None, "Clear.")])
def test_a_preference_asks_its_prompt_and_expects_no_bad_answer(label: bool | None, reference: str) -> None:
    responses = ((Message("assistant", "Clear."),), (Message("assistant", "Who knows?"),))
    example = ResponseExample((ASK,), responses if label is None else responses[:1], label=label)
    question = make_question(example, load("chatml"), enable_thinking=False)
    assert question is not None
    assert (question.text, question.reference) == ("Weather in Paris?", reference)

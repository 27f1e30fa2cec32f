"""Five formats are read, and what breaks them is named by its path."""

import pytest

from macft.data.examples import (
    ChatExample,
    CompletionExample,
    Message,
    RowProblem,
    TextExample,
    ToolCall,
    parse_example,
    question_of,
)
from macft.data.sources import Row

WHERE = "rows.jsonl:7"
USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
CALL = {"function": {"name": "f", "arguments": '{"a": 1}'}, "id": "1", "type": "function"}


def parse(value, columns=None):
    return parse_example(Row(value, WHERE, "rows.jsonl", 7), columns)


def chat(*messages: Message, tools=()) -> ChatExample:
    return ChatExample(messages, tools, WHERE)


HI, HELLO = Message("user", "hi"), Message("assistant", "hello")


@pytest.mark.parametrize(
    ("value", "example"),
    [
        ({"messages": [USER, ANSWER]}, chat(HI, HELLO)),
        (
            {"messages": '[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]'},
            chat(HI, HELLO),
        ),
        ({"messages": [{"role": "developer", "content": "s"}, USER, ANSWER]}, chat(Message("system", "s"), HI, HELLO)),
        ({"messages": [USER, ANSWER], "text": "ignored", "prompt": "ignored"}, chat(HI, HELLO)),
        (
            {"messages": [USER, ANSWER | {"train": False}, USER, ANSWER | {"weight": 1}]},
            chat(HI, Message("assistant", "hello", train=False), HI, HELLO),
        ),
        (
            {"messages": [USER, ANSWER | {"weight": 0}, ANSWER]},
            chat(HI, Message("assistant", "hello", train=False), HELLO),
        ),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]},
                    ANSWER,
                ]
            },
            chat(HI, HELLO),
        ),
        (
            {
                "messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}],
                "tools": '[{"name": "f"}]',
            },
            chat(HI, Message("assistant", None, (ToolCall("f", {"a": 1}, "1"),)), tools=({"name": "f"},)),
        ),
        (
            {"messages": [USER, {"role": "assistant", "function_call": {"name": "f", "arguments": {"a": 1}}}]},
            chat(HI, Message("assistant", None, (ToolCall("f", {"a": 1}),))),
        ),
        (
            {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}], "system": "s"},
            chat(Message("system", "s"), HI, HELLO),
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "hi"},
                    {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'},
                    {"from": "observation", "value": "r"},
                    {"from": "gpt", "value": "hello"},
                ]
            },
            chat(HI, Message("assistant", None, (ToolCall("f", {"a": 1}),)), Message("tool", "r"), HELLO),
        ),
        ({"instruction": "hi", "output": "hello"}, CompletionExample("hi", "hello", WHERE)),
        ({"instruction": "hi", "input": "there", "output": "hello"}, CompletionExample("hi\n\nthere", "hello", WHERE)),
        (
            {"instruction": "hi", "input": "", "output": "hello", "system": "s", "history": [["a", "b"]]},
            chat(Message("system", "s"), Message("user", "a"), Message("assistant", "b"), HI, HELLO),
        ),
        ({"prompt": "hi", "completion": "hello", "text": None}, CompletionExample("hi", "hello", WHERE)),
        (
            {"prompt": [USER, ANSWER, USER], "completion": [ANSWER]},
            chat(HI, Message("assistant", "hello", train=False), HI, HELLO),
        ),
        ({"text": "a document", "id": 4}, TextExample("a document", WHERE)),
    ],
)
def test_formats(value, example):
    assert parse(value) == example


KNOWN = "expected messages, conversations, instruction and output, prompt and completion, or text"


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"messages": None}, "messages is null (expected a list of objects)"),
        ({"messages": []}, "messages is empty (expected at least one turn)"),
        ({"messages": "[1"}, "messages is not valid JSON (expected an object, or one written as JSON)"),
        ({"messages": ["hi"]}, "messages[0] is text (expected an object)"),
        ({"messages": [USER]}, "messages has no assistant turn to learn from"),
        ({"messages": [USER, ANSWER | {"train": False}]}, "messages has no assistant turn to learn from"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "messages[1].content is null (expected text)"),
        ({"messages": [USER, {"role": "assistant"}]}, "messages[1].content is missing (expected text)"),
        ({"messages": [{"role": "user", "content": 3}, ANSWER]}, "messages[0].content is a number (expected text)"),
        (
            {"messages": [USER, {"role": "assistant", "content": " "}]},
            "messages[1].content is empty (expected text in a turn that is trained on)",
        ),
        ({"messages": [{"content": "hi"}, ANSWER]}, "messages[0].role is missing (expected text)"),
        (
            {"messages": [{"role": "bot", "content": "hi"}, ANSWER]},
            'messages[0].role is "bot" (expected one of system, user, assistant, tool, developer, function)',
        ),
        ({"messages": [USER, ANSWER | {"train": "no"}]}, "messages[1].train is text (expected true or false)"),
        ({"messages": [USER, ANSWER | {"weight": 0.5}]}, "messages[1].weight is 0.5 (expected 0 or 1)"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, ANSWER]},
            'messages[0].content[0] has the type "image_url" (macft trains on text only)',
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text"}]}, ANSWER]},
            "messages[0].content[0].text is missing (expected text)",
        ),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"function": "f"}]}]},
            "messages[1].tool_calls[0].function is text (expected an object)",
        ),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]},
            "messages[1].tool_calls[0].arguments is not valid JSON (expected an object, or one written as JSON)",
        ),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": [1]}}]}]},
            "messages[1].tool_calls[0].arguments is a list (expected an object)",
        ),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {"arguments": {}}}]}]},
            "messages[1].tool_calls[0].name is missing (expected text)",
        ),
        (
            {"messages": [USER, ANSWER], "tools": "f"},
            "tools is not valid JSON (expected an object, or one written as JSON)",
        ),
        ({"messages": [USER, ANSWER], "tools": {"name": "f"}}, "tools is an object (expected a list of objects)"),
        ({"messages": [USER, ANSWER], "tools": [{"function": "f"}]}, "tools[0].function is text (expected an object)"),
        ({"conversations": [{"from": "alien", "value": "hi"}]}, 'conversations[0].from is "alien" (expected one of '),
        ({"conversations": [{"from": "human", "value": None}]}, "conversations[0].value is null (expected text)"),
        ({"instruction": "hi"}, "output is missing (expected text)"),
        ({"instruction": "", "output": "x"}, "instruction is empty (expected text)"),
        ({"instruction": "a", "output": "x", "history": [["one"]]}, "history[0] is not a pair of texts"),
        ({"prompt": "hi"}, "completion is missing (expected text)"),
        ({"prompt": "hi", "completion": None}, "completion is null (expected text)"),
        ({"prompt": 1, "completion": "x"}, "prompt is a number (expected text)"),
        (
            {"prompt": "hi", "completion": [ANSWER]},
            "prompt is text and completion is a list (expected both texts or both lists of messages)",
        ),
        (
            {"prompt": "hi", "chosen": "a", "rejected": "b"},
            'is a preference pair (chosen, rejected), which sft cannot use (use method = "dpo")',
        ),
        ({"text": ""}, "text is empty (expected text)"),
        ({"text": ["a"]}, "text is a list (expected text)"),
        ({}, f"has no column that macft knows (found nothing; {KNOWN})"),
        (
            {"Question": "a", "Answer": "b"},
            f"has no column that macft knows (found Question, Answer; {KNOWN}). "
            'Map yours in the recipe: columns = { prompt = "Question", completion = "Answer" }',
        ),
    ],
)
def test_refusals_name_the_path(value, problem):
    with pytest.raises(RowProblem) as caught:
        parse(value)
    assert caught.value.what == problem or (problem.endswith(" of ") and caught.value.what.startswith(problem))


def test_columns_are_renamed():
    columns = {"prompt": "q", "completion": "a"}
    assert parse({"q": "hi", "a": "hello", "extra": 1}, columns) == CompletionExample("hi", "hello", WHERE)
    with pytest.raises(RowProblem, match=r'has no column "a" \(data.columns asks for it; found q, text\)'):
        parse({"q": "hi", "text": "x"}, columns)


def test_the_question_of_an_example_is_all_before_its_last_answer():
    assert question_of(CompletionExample("hi", "hello")) == ((HI,), "hello")
    assert question_of(chat(HI, HELLO, HI, HELLO, HI)) == ((HI, HELLO, HI), "hello")

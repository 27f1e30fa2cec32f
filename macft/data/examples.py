"""Rows to typed examples: five formats come in, three kinds of example go out; `preferences` reads the fourth.

The rule: the format is detected row by row, by the columns that are there. A row is either understood completely or
refused with the path of what is wrong (`messages[1].content is null (expected text)`); nothing in it is guessed.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, get_args

from macft.data.sources import Row, kind_of

Role = Literal["system", "user", "assistant", "tool"]
Object = dict[str, Any]

ROLES: dict[str, Role] = {**{role: role for role in get_args(Role)}, "developer": "system", "function": "tool"}
"""OpenAI's roles, as chat templates know them."""
SPEAKERS: dict[str, Role] = {
    **ROLES,
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
"""ShareGPT's `from`, as roles."""
COLUMNS = (
    *("messages", "conversations", "instruction", "input", "output", "history", "prompt", "completion", "text"),
    *("chosen", "rejected", "responses", "scores", "ranks", "margin", "label"),
    *("system", "tools"),
)
"""Every column that macft reads; what `data.columns` may map to."""
_LOOKALIKES = {
    "messages": ("dialogue", "dialog", "chat", "conversation", "turns"),
    "prompt": ("question", "query", "request", "source", "input"),
    "completion": ("answer", "response", "reply", "target", "output", "label"),
    "text": ("content", "body", "document", "passage"),
}

EMPTY_TURN = "an answer is empty"


class RowProblem(Exception):
    """A row cannot be trained on; the message says why, without the place."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


class NothingToLearn(RowProblem):
    """A row that teaches nothing; a method may leave it out. `reason` is the same for all rows of its kind."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(what)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that an assistant makes."""

    name: str
    arguments: Object
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat.

    Attributes:
        content: None only beside tool calls.
        train: False for an assistant's turn that is context only.
        reasoning: The thinking before an assistant's answer, when it is kept apart from the content.
        name: The tool's, on a turn of the role `tool`.
    """

    role: Role
    content: str | None
    tool_calls: tuple[ToolCall, ...] = ()
    train: bool = True
    reasoning: str | None = None
    name: str | None = None
    tool_call_id: str | None = None


Turns = str | tuple[Message, ...]
"""Messages for a chat template, or text as it stands."""


@dataclass(frozen=True, slots=True)
class ChatExample:
    """A conversation, with the tools that the assistant may call."""

    messages: tuple[Message, ...]
    tools: tuple[Object, ...] = ()
    where: str = ""


@dataclass(frozen=True, slots=True)
class CompletionExample:
    """A prompt and what should follow it."""

    prompt: str
    completion: str
    where: str = ""


@dataclass(frozen=True, slots=True)
class TextExample:
    """A document."""

    text: str
    where: str = ""


@dataclass(frozen=True, slots=True)
class ResponseExample:
    """A prompt with a chosen and a rejected response, or with one that is labeled.

    Attributes:
        prompt: Messages for the chat template, or text as it stands; the responses are of the same kind.
        responses: Chosen and rejected, or the one that is labeled.
        label: Whether the one response is desirable; None for a pair.
        margin: By how much the chosen response was scored better, when the row says so.
        is_implied: The prompt is text that the responses had in common, and may end amid a word.
    """

    prompt: Turns
    responses: tuple[Turns, ...]
    tools: tuple[Object, ...] = ()
    label: bool | None = None
    margin: float | None = None
    is_implied: bool = False
    where: str = ""


Example = ChatExample | CompletionExample | TextExample | ResponseExample


def parse_example(row: Row, columns: Mapping[str, str] | None = None) -> Example:
    """Understand a row; `columns` maps macft's column names to the user's.

    Raises:
        RowProblem: The row fits no format, or breaks the one it has.
    """
    value = rename_columns(row.value, columns or {})
    parse = _detect(value)
    return replace(parse(value), where=row.where)


def question_of(example: ChatExample | CompletionExample) -> tuple[tuple[Message, ...], str]:
    """Return the messages before the last answer that an example teaches, and that answer without its tool calls."""
    if isinstance(example, CompletionExample):
        return (Message("user", example.prompt),), example.completion
    last = max(index for index, message in enumerate(example.messages) if message.role == "assistant" and message.train)
    return example.messages[:last], example.messages[last].content or ""


def rename_columns(value: Object, columns: Mapping[str, str]) -> Object:
    """Give a row's columns macft's names; `columns` maps those to the user's."""
    missing = next((theirs for theirs in columns.values() if theirs not in value), None)
    if missing is not None:
        raise RowProblem(f'has no column "{missing}" (data.columns asks for it; found {list_columns(value)})')
    rest = {key: item for key, item in value.items() if key not in columns.values()}
    return rest | {ours: value[theirs] for ours, theirs in columns.items()}


def _detect(value: Object) -> Callable[[Object], Example]:
    there = [key for key in _FORMATS if value.get(key) is not None] or [key for key in _FORMATS if key in value]
    if {"chosen", "rejected"} <= value.keys() and set(there) <= {"prompt"}:
        raise RowProblem('is a preference pair (chosen, rejected), which sft cannot use (use method = "dpo")')
    if not there:
        raise RowProblem(_unknown(value))
    return _FORMATS[there[0]]


def _unknown(value: Object) -> str:
    hints = {ours: key for ours, names in _LOOKALIKES.items() for key in value if key.lower() in names}
    if "completion" not in hints or "prompt" not in hints:
        hints = {ours: key for ours, key in hints.items() if ours not in {"prompt", "completion"}}
    expected = "expected messages, conversations, instruction and output, prompt and completion, or text"
    what = f"has no column that macft knows (found {list_columns(value)}; {expected})"
    if not hints:
        return what
    mapping = ", ".join(f'{ours} = "{key}"' for ours, key in hints.items())
    return f"{what}. Map yours in the recipe: columns = {{ {mapping} }}"


def list_columns(value: Object) -> str:
    """Name the first columns of a row."""
    return ", ".join(list(value)[:8]) or "nothing"


def text_at(value: Object, key: str, path: str, *, empty: bool = False) -> str:
    """Return the text at a key, which must be there; `empty` allows one without characters."""
    if key not in value:
        raise RowProblem(f"{path} is missing (expected text)")
    item = value[key]
    if not isinstance(item, str):
        raise RowProblem(f"{path} is {kind_of(item)} (expected text)")
    if not empty and not item.strip():
        raise RowProblem(f"{path} is empty (expected text)")
    return item


def optional_text_at(value: Object, key: str, path: str) -> str | None:
    """Return the text at a key that may be missing or null."""
    return None if value.get(key) is None else text_at(value, key, path, empty=True)


def list_at(item: object, path: str, expected: str) -> Sequence[Any]:
    """Return a value that must be a list."""
    if not isinstance(item, list | tuple):
        raise RowProblem(f"{path} is {kind_of(item)} (expected {expected})")
    return item


def objects_at(item: object, path: str) -> list[Object]:
    """Return a value that must be a list of objects."""
    items = list(list_at(item, path, "a list of objects"))
    for index, part in enumerate(items):
        if not isinstance(part, dict):
            raise RowProblem(f"{path}[{index}] is {kind_of(part)} (expected an object)")
    return items


def _parse_json(text: object, path: str) -> object:
    """Return the value of a JSON string; anything that is not a string passes through."""
    if not isinstance(text, str):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise RowProblem(f"{path} is not valid JSON (expected an object, or one written as JSON)") from None


def _chat(messages: list[Message], value: Object, path: str) -> ChatExample:
    if not messages:
        raise RowProblem(f"{path} is empty (expected at least one turn)")
    if system := optional_text_at(value, "system", "system"):
        messages = [Message("system", system), *messages]
    if not any(message.role == "assistant" and message.train for message in messages):
        raise RowProblem(f"{path} has no assistant turn to learn from")
    return ChatExample(tuple(messages), tuple(parse_tools(value)))


def parse_tools(value: Object) -> list[Object]:
    """Read a row's tools, written as JSON or not."""
    if value.get("tools") in (None, "", []):
        return []
    tools = objects_at(_parse_json(value["tools"], "tools"), "tools")
    for index, tool in enumerate(tools):
        if not isinstance(tool.get("function", {}), dict):
            raise RowProblem(f"tools[{index}].function is {kind_of(tool['function'])} (expected an object)")
    return tools


def _conversation(key: str, value: Object) -> ChatExample:
    return _chat(parse_turns(value[key], key), value, key)


def parse_turns(item: object, path: str) -> list[Message]:
    """Read a list of turns, each with OpenAI's keys or ShareGPT's."""
    return [_turn(part, f"{path}[{index}]") for index, part in enumerate(objects_at(_parse_json(item, path), path))]


def _turn(part: Object, path: str) -> Message:
    if "from" not in part:
        return _message(part, path)
    role = _role(part, "from", path, SPEAKERS)
    text = text_at(part, "value", f"{path}.value", empty=role != "assistant")
    if part["from"] != "function_call":
        return Message(role, text, train=_is_trained(part, path))
    called = _parse_json(text, f"{path}.value")
    several = objects_at(called if isinstance(called, list) else [called], f"{path}.value")
    calls = tuple(_tool_call(call, f"{path}.value") for call in several)
    return Message(role, None, calls, _is_trained(part, path))


def _message(value: Object, path: str) -> Message:
    role = _role(value, "role", path, ROLES)
    calls = _tool_calls(value, path) if role == "assistant" else ()
    reasoning = optional_text_at(value, "reasoning_content", f"{path}.reasoning_content")
    train = _is_trained(value, path)
    content = _content(value, path, optional=bool(calls))
    if role == "assistant" and train and not calls and not (content or "").strip():
        raise NothingToLearn(f"{path}.content is empty (expected text in a turn that is trained on)", EMPTY_TURN)
    names = {key: optional_text_at(value, key, f"{path}.{key}") for key in ("name", "tool_call_id")}
    return Message(role, content, calls, train, reasoning if role == "assistant" else None, **names)


def _role(value: Object, key: str, path: str, roles: Mapping[str, Role]) -> Role:
    name = text_at(value, key, f"{path}.{key}")
    if name not in roles:
        raise RowProblem(f'{path}.{key} is "{name}" (expected one of {", ".join(roles)})')
    return roles[name]


def _is_trained(value: Object, path: str) -> bool:
    train, weight = value.get("train"), value.get("weight")
    if not (train is None or isinstance(train, bool)):
        raise RowProblem(f"{path}.train is {kind_of(train)} (expected true or false)")
    if weight not in (None, 0, 1):
        raise RowProblem(f"{path}.weight is {weight!r} (expected 0 or 1)")
    return train is not False and weight != 0


def _content(value: Object, path: str, *, optional: bool) -> str | None:
    item = value.get("content")
    if item is None and optional:
        return None
    if not isinstance(item, list):
        return text_at(value, "content", f"{path}.content", empty=True)
    texts = []
    for index, part in enumerate(item):
        where = f"{path}.content[{index}]"
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, dict):
            raise RowProblem(f"{where} is {kind_of(part)} (expected a part with text)")
        if part.get("type") != "text":
            raise RowProblem(f'{where} has the type "{part.get("type")}" (macft trains on text only)')
        texts.append(text_at(part, "text", f"{where}.text", empty=True))
    return "".join(texts)


def _tool_calls(value: Object, path: str) -> tuple[ToolCall, ...]:
    if value.get("function_call") is not None:
        return (_tool_call({"function": value["function_call"]}, f"{path}.function_call"),)
    calls = value.get("tool_calls")
    if calls is None:
        return ()
    parts = objects_at(calls, f"{path}.tool_calls")
    return tuple(_tool_call(part, f"{path}.tool_calls[{index}]") for index, part in enumerate(parts))


def _tool_call(value: Object, path: str) -> ToolCall:
    function = value.get("function", value)
    if not isinstance(function, dict):
        raise RowProblem(f"{path}.function is {kind_of(function)} (expected an object)")
    arguments = _parse_json(function.get("arguments", {}), f"{path}.arguments")
    if not isinstance(arguments, dict):
        raise RowProblem(f"{path}.arguments is {kind_of(arguments)} (expected an object)")
    return ToolCall(text_at(function, "name", f"{path}.name"), arguments, optional_text_at(value, "id", f"{path}.id"))


def _alpaca(value: Object) -> Example:
    prompt, answer = text_at(value, "instruction", "instruction"), text_at(value, "output", "output")
    if extra := optional_text_at(value, "input", "input"):
        prompt = f"{prompt}\n\n{extra}"
    history = value.get("history") or []
    if not history and not value.get("system"):
        return CompletionExample(prompt, answer)
    messages = []
    for index, pair in enumerate(list_at(history, "history", "a list of pairs")):
        path = f"history[{index}]"
        if len(list_at(pair, path, "a pair of texts")) != 2 or not all(isinstance(text, str) for text in pair):
            raise RowProblem(f"{path} is not a pair of texts")
        messages += [Message("user", pair[0]), Message("assistant", pair[1])]
    return _chat([*messages, Message("user", prompt), Message("assistant", answer)], value, "history")


def _completion(value: Object) -> Example:
    prompt, completion = value.get("prompt"), value.get("completion")
    if isinstance(prompt, list) != isinstance(completion, list) and None not in (prompt, completion):
        kinds = f"prompt is {kind_of(prompt)} and completion is {kind_of(completion)}"
        raise RowProblem(f"{kinds} (expected both texts or both lists of messages)")
    if isinstance(prompt, list):
        context = [replace(turn, train=turn.role != "assistant") for turn in parse_turns(prompt, "prompt")]
        return _chat([*context, *parse_turns(completion, "completion")], value, "completion")
    prompt = text_at(value, "prompt", "prompt", empty=True)
    example = CompletionExample(prompt, text_at(value, "completion", "completion"))
    if not value.get("system"):
        return example
    return _chat([Message("user", prompt), Message("assistant", example.completion)], value, "completion")


def _document(value: Object) -> TextExample:
    return TextExample(text_at(value, "text", "text"))


_FORMATS: Mapping[str, Callable[[Object], Example]] = {
    "messages": partial(_conversation, "messages"),
    "conversations": partial(_conversation, "conversations"),
    "instruction": _alpaca,
    "prompt": _completion,
    "completion": _completion,
    "text": _document,
}
"""What reads a row, by the first of these columns that it has."""

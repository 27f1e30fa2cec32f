"""What a chat template makes of a chat: the text, whose words stand where, and where each assistant's turn lies.

The rule: nothing is known about any template but what it writes. Whose words are whose is found by rendering twice,
plain and marked (`marks`); where a turn starts, by asking the template for the prompt before it. What cannot be told
apart is refused, never guessed.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from macft.data.examples import Message, RowProblem
from macft.data.marks import Span, is_markable, mark, unmark
from macft.errors import MacftError

SYSTEM_MERGED = "the template refuses or drops the system text: it is merged into the first user turn"
PROMPT_DIFFERS = "the template writes past turns otherwise than it prompts for new ones: trained on as it writes them"
THINKING_HIDDEN = "the template hides the thinking of earlier turns: it is not trained on"
TOOLS_IGNORED = "the template ignores the tools"

Object = dict[str, Any]


class Tokenizer(Protocol):
    """What is used of an `mlx_lm` TokenizerWrapper."""

    def __hash__(self) -> int:
        """Tokenizers are told apart by identity."""

    @property
    def has_chat_template(self) -> bool:
        """Whether chats can be rendered."""

    @property
    def eos_token_ids(self) -> set[int]:
        """Ids that end generation."""

    @property
    def eos_token_id(self) -> int | None:
        """The id that ends a document."""

    @property
    def bos_token_id(self) -> int | None:
        """The id that starts a document."""

    @property
    def added_tokens_decoder(self) -> dict[int, Any]:
        """Id to AddedToken."""

    def encode(
        self, text: str, *, add_special_tokens: bool, split_special_tokens: bool = ..., verbose: bool = ...
    ) -> list[int]:
        """Turn text into ids."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        """Turn ids into text."""

    def apply_chat_template(self, messages: list[Object], *, tokenize: bool, **options: Any) -> Any:
        """Render a chat."""


class Chat(NamedTuple):
    """What a template is given."""

    messages: tuple[Message, ...]
    tools: tuple[Object, ...] = ()
    enable_thinking: bool = False


class Rendered(NamedTuple):
    """A chat as the template writes it, and whose words stand where; gaps between spans are the template's own."""

    text: str
    spans: list[Span]


class Turn(NamedTuple):
    """Where an assistant's turn stands in the text, stop token included; `is_open` when the template writes none."""

    start: int
    end: int
    is_open: bool


class ControlTokens:
    """The tokenizer's special tokens, as text.

    Attributes:
        ids: Text to id.
        pattern: Finds any of them, the longest first.
        stops: Those that end generation.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        special = {str(token): int(id) for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.ids = {text: id for text, id in special.items() if text}
        self.pattern = re.compile("|".join(map(re.escape, sorted(self.ids, key=len, reverse=True))) or r"(?!)")
        self.stops = {text for text, id in self.ids.items() if id in tokenizer.eos_token_ids}


def render(
    chat: Chat, tokenizer: Tokenizer, control: ControlTokens, *, prompt: bool
) -> tuple[Chat, Rendered, set[str]]:
    """Render a chat, with the system text in the first user turn if the template will not have it otherwise.

    Args:
        prompt: Whether to end with what asks the model for the next turn.

    Returns:
        The chat as it was given to the template, the text, and notes.

    Raises:
        RowProblem: The template refuses the chat, loses a message, or writes what cannot be told apart.
    """
    _refuse_unmarkable(chat, control)
    if prompt and chat.messages[0].role == "system":  # as it will be once the answer is there, and was in training
        with contextlib.suppress(RowProblem):
            answered = chat._replace(messages=(*chat.messages, Message("assistant", "ok")))
            chat = chat._replace(messages=render(answered, tokenizer, control, prompt=False)[0].messages[:-1])
    try:
        rendered, notes = _render_marked(chat, tokenizer, prompt), set[str]()
    except RowProblem:
        if [message.role for message in chat.messages[:2]] != ["system", "user"]:
            raise
        system, user, *rest = chat.messages
        merged = replace(user, content=f"{system.content}\n\n{user.content}")
        chat = chat._replace(messages=(merged, *rest))
        rendered, notes = _render_marked(chat, tokenizer, prompt), {SYSTEM_MERGED}
    if any(str(tool.get("function", tool).get("name")) not in rendered.text for tool in chat.tools):
        notes.add(TOOLS_IGNORED)
    return chat, rendered, notes


def _refuse_unmarkable(chat: Chat, control: ControlTokens) -> None:
    plain = [_as_object(message) for message in chat.messages]
    if not is_markable([*plain, *chat.tools]):
        raise RowProblem("holds a Unicode noncharacter (U+FDD0 to U+FDEF), which stands for nothing in text")
    names = [[message.name, message.tool_call_id] for message in chat.messages]
    calls = [[call.id, list(call.arguments)] for message in chat.messages for call in message.tool_calls]
    if found := control.pattern.search(json.dumps([names, calls, *chat.tools], ensure_ascii=False)):
        raise RowProblem(f"has the control token {found.group()} in a name or in its tools (expected it in text only)")


def _render_marked(chat: Chat, tokenizer: Tokenizer, prompt: bool) -> Rendered:
    text = _write(chat, tokenizer, prompt)
    marked = _write(chat, tokenizer, prompt, marked=True)
    try:
        same, spans = unmark(marked)
    except ValueError:
        same, spans = "", []
    if same != text:
        raise RowProblem("the chat template changes the text of a message, so that macft cannot tell it from its own")
    seen = {span.owner for span in spans}
    for index, message in enumerate(chat.messages):
        if index not in seen and _marked(message, index) != _as_object(message):
            raise RowProblem(f"the chat template leaves out messages[{index}] ({message.role})")
    return Rendered(text, spans)


def _write(chat: Chat, tokenizer: Tokenizer, prompt: bool, *, marked: bool = False) -> str:
    messages = [
        _marked(message, index) if marked else _as_object(message) for index, message in enumerate(chat.messages)
    ]
    try:
        text = tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            tools=list(chat.tools) or None,
            add_generation_prompt=prompt,
            enable_thinking=chat.enable_thinking,
        )
    except MacftError:  # it was ended, and would be with every row
        raise
    except Exception as error:  # a template is a program of somebody else's: it may raise anything
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise RowProblem(f"the chat template refuses the row: {reason[0]}") from None
    return str(text)


def _as_object(message: Message) -> Object:
    """Return a message as templates read it, without the keys that it doesn't have."""
    calls = [
        {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        | ({"id": call.id} if call.id else {})
        for call in message.tool_calls
    ]
    optional = {
        "reasoning_content": message.reasoning,
        "tool_calls": calls or None,
        "name": message.name,
        "tool_call_id": message.tool_call_id,
    }
    present = {key: value for key, value in optional.items() if value is not None}
    return {"role": message.role, "content": message.content, **present}


def _marked(message: Message, owner: int) -> Object:
    calls = tuple(
        replace(call, name=mark(call.name, owner), arguments=mark(call.arguments, owner)) for call in message.tool_calls
    )
    words = {"content": mark(message.content, owner), "reasoning": mark(message.reasoning, owner)}
    return _as_object(replace(message, tool_calls=calls, **words))


class Prompts:
    """What a template writes to ask for a turn; a prompt that comes again, as for a pair's two answers, is kept."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._last: dict[tuple[int, bool], tuple[Chat, Rendered | None]] = {}

    def render(self, chat: Chat) -> Rendered | None:
        """Render a chat up to where the model is asked; None when the template cannot stop here."""
        place = len(chat.messages), chat.enable_thinking
        known, rendered = self._last.get(place, (None, None))
        if known != chat:
            rendered = None
            with contextlib.suppress(RowProblem):
                rendered = _render_marked(chat, self._tokenizer, True)
            self._last[place] = chat, rendered
        return rendered


def find_turn(
    chat: Chat, rendered: Rendered, index: int, prompts: Prompts, control: ControlTokens
) -> tuple[Turn, set[str]]:
    """Find the turn of the assistant's message `index`, and notes on it.

    Raises:
        RowProblem: The template hides where the turn starts, or ends it without a stop token amid the chat.
    """
    words = [span for span in rendered.spans if span.owner == index]
    if not words:
        raise RowProblem(f"messages[{index}] has no text to learn from")
    start, notes = _find_start(chat, rendered, index, prompts)
    if any(start < span.end and span.start < words[-1].end for span in rendered.spans if span.owner != index):
        raise RowProblem(f"the chat template mixes messages[{index}] with another message")
    limit = min((span.start for span in rendered.spans if span.start >= words[-1].end), default=len(rendered.text))
    found = list(control.pattern.finditer(rendered.text, words[-1].end, limit))
    stop = next((match for match in found if match.group() in control.stops), found[0] if found else None)
    if stop is None and limit < len(rendered.text):
        raise RowProblem(f'the chat template ends messages[{index}] without a stop token (train_on = "last" may do)')
    turn = Turn(start, stop.end() if stop else words[-1].end, stop is None)
    content = chat.messages[index].content or ""
    if "</think>" in content and "</think>" not in rendered.text[turn.start : turn.end]:
        notes.add(THINKING_HIDDEN)
    return turn, notes


def _find_start(chat: Chat, rendered: Rendered, index: int, prompts: Prompts) -> tuple[int, set[str]]:
    """Return where the assistant's message `index` starts: where the prompt for it ends.

    Templates may write an earlier turn otherwise than the prompt for it: without its thinking, or with the system text
    moved on. Then the prompt with thinking switched over is tried, then what the prompts end with, right behind the
    words before, and then the words themselves.
    """
    first = next(span.start for span in rendered.spans if span.owner == index)
    low = max((span.end for span in rendered.spans if span.end <= first), default=0)
    endings: list[str] = []
    for thinking in (chat.enable_thinking, not chat.enable_thinking):
        prompt = prompts.render(Chat(chat.messages[:index], chat.tools, thinking))
        if prompt is None:  # the words say enough
            continue
        if rendered.text.startswith(prompt.text) and len(prompt.text) <= first:
            return len(prompt.text), {PROMPT_DIFFERS} if endings else set()
        endings.append(prompt.text[prompt.spans[-1].end if prompt.spans else 0 :])
    gap = rendered.text[low:first]
    for ending in filter(None, endings):
        pairs = enumerate(zip(gap, ending, strict=False))
        common = next((at for at, (ours, theirs) in pairs if ours != theirs), min(len(gap), len(ending)))
        if common == len(ending) or not gap[common:].strip():
            return low + common, {PROMPT_DIFFERS}
    if chat.messages[index].content is None:
        raise RowProblem(f"the chat template hides where messages[{index}] starts")
    return first, {PROMPT_DIFFERS}


def split_control(rendered: Rendered, control: ControlTokens) -> Iterator[tuple[int, int]]:
    """Yield where the template's own control tokens stand; those in people's words are not among them."""
    gaps = zip(
        [0, *(span.end for span in rendered.spans)],
        [*(span.start for span in rendered.spans), len(rendered.text)],
        strict=True,
    )
    for start, end in gaps:
        for found in control.pattern.finditer(rendered.text, start, end):
            yield found.span()


def choose_turns(messages: Sequence[Message], train_on: str) -> list[int]:
    """Return which messages are trained on."""
    chosen = [index for index, message in enumerate(messages) if message.role == "assistant" and message.train]
    return chosen[-1:] if train_on == "last" else chosen

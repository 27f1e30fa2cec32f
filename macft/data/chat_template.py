"""Examples to token ids and loss mask, through the model's own chat template.

The rule: ids and mask grow together, in `_Codec.tokenize` and nowhere else, and no row leaves this module unless its
trained tokens decode to the assistant's text and its stop token.

How a chat becomes tokens: `turns` finds what the template writes, whose words stand where, and where each assistant's
turn starts and ends. The text is then cut at the template's control tokens and at the start of each turn. A control
token of the template's becomes its id; one in a person's text stays text. Each piece is tokenized as it reads after the
text before it, which together is what tokenizing the whole gives. Only a token that straddles the start of a turn is
cut there, trained on or not, as the prompt cuts it when the model is asked.
"""

import contextlib
import functools
import unicodedata
from array import array
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from macft.data.examples import (
    ChatExample,
    CompletionExample,
    Example,
    Message,
    ResponseExample,
    RowProblem,
    TextExample,
    question_of,
)
from macft.data.turns import (
    Chat,
    ControlTokens,
    Prompts,
    Rendered,
    Tokenizer,
    Turn,
    choose_turns,
    find_turn,
    render,
    split_control,
)

BORDER_CUT = "a token is cut where the assistant's turn starts, as it is when the model is asked"
CONTROL_TEXT = "what looks like a control token in a person's text is kept as text"
STOP_ADDED = "the template leaves the last turn open: the end-of-text token is added"
_CACHED_CHARACTERS, _CACHED_TEXTS = 64, 4096


class Encoded(NamedTuple):
    """A row as the model sees it.

    Attributes:
        ids: Token ids, int32 [T].
        mask: True where a token is trained on, bool [T]; never the first, which nothing predicts.
    """

    ids: npt.NDArray[np.int32]
    mask: npt.NDArray[np.bool_]


class EncodedResponses(NamedTuple):
    """A prompt and responses to it as the model sees them, int32; none is empty."""

    prompt: npt.NDArray[np.int32]
    responses: tuple[npt.NDArray[np.int32], ...]


class _Piece(NamedTuple):
    """Text that is tokenized in one go.

    Attributes:
        is_trained: It belongs to a turn that is trained on.
        starts_turn: The model is asked just before it.
        control_id: The id of a control token; None for text.
    """

    text: str
    is_trained: bool
    starts_turn: bool = False
    control_id: int | None = None


def encode(example: Example, tokenizer: Tokenizer, *, train_on: str, enable_thinking: bool = False) -> Encoded:
    """Turn an example into token ids and loss mask.

    Args:
        example: A chat goes through the chat template; so does a completion, if there is one.
        tokenizer: The model's.
        train_on: `assistant` (every assistant turn that is not excluded), `last` (only the last of them) or `all`.
        enable_thinking: Passed to the template; use the same value in chat.

    Raises:
        RowProblem: The template refuses the row, or it cannot be tokenized without loss.
    """
    return encode_with_notes(example, tokenizer, train_on=train_on, enable_thinking=enable_thinking)[0]


def encode_with_notes(
    example: Example, tokenizer: Tokenizer, *, train_on: str, enable_thinking: bool = False
) -> tuple[Encoded, set[str]]:
    """Do what `encode` does, and return what was done to the row that its author should know."""
    codec = _codec(tokenizer)
    if isinstance(example, ResponseExample):
        raise TypeError("a row of responses is encoded by encode_responses")
    if isinstance(example, TextExample):
        return codec.encode_bare("", example.text, "all")
    if tokenizer.has_chat_template:
        return codec.encode_chat(_chat_of(example, enable_thinking), train_on)
    if isinstance(example, ChatExample):
        raise RowProblem("is a chat, but the model has no chat template (expected prompt and completion)")
    return codec.encode_bare(example.prompt, example.completion, train_on)


def encode_responses(
    example: ResponseExample, tokenizer: Tokenizer, *, enable_thinking: bool = False
) -> tuple[EncodedResponses, set[str]]:
    """Turn a prompt and its responses into token ids, and return what their author should know.

    Messages go through the chat template. Text is taken as it stands, and the end-of-text token follows a response. A
    response holds everything after the prompt, what the template writes behind the last turn included.

    Raises:
        RowProblem: The template refuses the row, or it cannot be tokenized without loss.

    Source: `DPOTrainer` and `KTOTrainer` of TRL 1.10, `_prepare_dataset`.
    """
    codec = _codec(tokenizer)
    notes = set[str]()
    wholes, starts = [], []
    for response in example.responses:
        if isinstance(example.prompt, str) or isinstance(response, str):
            ids, start, more = codec.encode_text(str(example.prompt), str(response), is_implied=example.is_implied)
        elif not tokenizer.has_chat_template:
            raise RowProblem("is a chat, but the model has no chat template (expected strings)")
        else:
            chat = Chat(example.prompt + response, example.tools, enable_thinking)
            ids, start, more = codec.encode_answers(chat, len(response))
        wholes.append(ids)
        starts.append(start)
        notes |= more
    start = min(starts)  # templates may write a prompt otherwise before one answer than before another
    while any(not np.array_equal(ids[:start], wholes[0][:start]) for ids in wholes):
        start -= 1
    if start == 0:
        raise RowProblem("has nothing before its responses (expected a prompt)")
    return EncodedResponses(wholes[0][:start], tuple(ids[start:] for ids in wholes)), notes


def render_prompt(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    *,
    tools: Sequence[dict[str, Any]] = (),
    enable_thinking: bool = False,
) -> list[int]:
    """Return the ids that ask the model for the next turn, made by the code that makes the training rows.

    Raises:
        RowProblem: The template refuses the messages.
    """
    codec = _codec(tokenizer)
    chat = Chat(tuple(messages), tuple(tools), enable_thinking)
    chat, rendered, notes = render(chat, tokenizer, codec.control, prompt=True)
    pieces = codec.cut(rendered, [], codec.find_starts(chat, rendered))
    return [int(id) for id in codec.tokenize(pieces, notes).ids]


def encode_prompt(
    example: ChatExample | CompletionExample, tokenizer: Tokenizer, *, enable_thinking: bool = False
) -> list[int]:
    """Return the ids that ask for an example's last answer; without a chat template, those of the bare prompt."""
    if isinstance(example, CompletionExample) and not tokenizer.has_chat_template:
        codec = _codec(tokenizer)
        pieces = [_Piece(example.prompt, False)] if example.prompt else []
        return [int(id) for id in codec.tokenize(pieces, set(), start_ids=codec.start_ids).ids]
    messages, _ = question_of(example)
    tools = example.tools if isinstance(example, ChatExample) else ()
    return render_prompt(messages, tokenizer, tools=tools, enable_thinking=enable_thinking)


def find_stop_ids(tokenizer: Tokenizer) -> set[int]:
    """Return the ids that end an answer: the tokenizer's, and the one that the chat template ends a turn with."""
    stops = set(tokenizer.eos_token_ids)
    if tokenizer.has_chat_template:
        with contextlib.suppress(RowProblem):  # a template that refuses even this says so when it is used
            ids, mask = encode(CompletionExample("a", "b"), tokenizer, train_on="last")
            stops.add(int(ids[mask][-1]))
    return stops


def decode(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """Return the text of ids, with nothing skipped and nothing tidied."""
    return tokenizer.decode(list(map(int, ids)), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _chat_of(example: ChatExample | CompletionExample, enable_thinking: bool) -> Chat:
    if isinstance(example, ChatExample):
        return Chat(example.messages, example.tools, enable_thinking)
    messages = (Message("user", example.prompt), Message("assistant", example.completion))
    return Chat(messages, (), enable_thinking)


class _Codec:
    """Cuts and tokenizes texts for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.control, self.prompts = ControlTokens(tokenizer), Prompts(tokenizer)
        ids = tokenizer.encode("", add_special_tokens=True)
        self.start_ids = [id for id in ids if id == tokenizer.bos_token_id][:1]
        self._cache: dict[tuple[str, bool], list[int]] = {}

    def encode_chat(self, chat: Chat, train_on: str) -> tuple[Encoded, set[str]]:
        chat, rendered, notes = render(chat, self.tokenizer, self.control, prompt=False)
        encoded, more = self._encode_turns(chat, rendered, choose_turns(chat.messages, train_on), train_on == "all")
        return encoded, notes | more

    def _encode_turns(
        self, chat: Chat, rendered: Rendered, chosen: Sequence[int], train_all: bool = False
    ) -> tuple[Encoded, set[str]]:
        turns, notes = [], set[str]()
        for index in chosen:
            turn, more = find_turn(chat, rendered, index, self.prompts, self.control)
            turns.append(turn)
            notes |= more | ({STOP_ADDED} if turn.is_open else set())
        pieces = self.cut(rendered, turns, self.find_starts(chat, rendered, besides=chosen))
        return self.tokenize(pieces, notes, train_all=train_all), notes

    def find_starts(self, chat: Chat, rendered: Rendered, *, besides: Sequence[int] = ()) -> set[int]:
        """Return where the assistant's turns start that are context: text is cut there as in rows that teach them."""
        starts = set()
        for index, message in enumerate(chat.messages):
            if message.role == "assistant" and index not in besides:
                with contextlib.suppress(RowProblem):  # what cannot be found cannot be trained on either
                    starts.add(find_turn(chat, rendered, index, self.prompts, self.control)[0].start)
        return starts

    def encode_bare(self, prompt: str, text: str, train_on: str) -> tuple[Encoded, set[str]]:
        """Encode a prompt and what follows it, without a template."""
        pieces = [_Piece(prompt, False), _Piece(text, True, starts_turn=True), self._end_of_text()]
        notes = set[str]()
        start = 0 if prompt else 1
        return self.tokenize(pieces[start:], notes, start_ids=self.start_ids, train_all=train_on == "all"), notes

    def encode_answers(self, chat: Chat, count: int) -> tuple[npt.NDArray[np.int32], int, set[str]]:
        """Encode a chat; returns its ids, where the first of its last `count` messages starts, and notes."""
        chat, rendered, notes = render(chat, self.tokenizer, self.control, prompt=False)
        first = len(chat.messages) - count
        answers = [index for index in range(first, len(chat.messages)) if chat.messages[index].role == "assistant"]
        encoded, more = self._encode_turns(chat, rendered, answers)
        return encoded.ids, int(encoded.mask.argmax()), notes | more

    def encode_text(self, prompt: str, text: str, *, is_implied: bool) -> tuple[npt.NDArray[np.int32], int, set[str]]:
        """Encode a prompt and what follows it, without a template; returns ids, where that starts, and notes.

        A token that lies across the border is cut there, but belongs to what follows when the prompt is only implied.
        """
        end = self._end_of_text().text
        text = text.removesuffix(end)
        if not is_implied:
            encoded, notes = self.encode_bare(prompt, text, "assistant")
            return encoded.ids, int(encoded.mask.argmax()) if prompt or self.start_ids else 0, notes
        encoded, notes = self.encode_bare("", prompt + text, "assistant")
        literal = self.control.pattern.search(prompt + text) is not None
        opening = [*self.start_ids, *self.ids_of(prompt, literal=literal)]
        same = (at for at, (ours, theirs) in enumerate(zip(opening, encoded.ids, strict=False)) if ours != theirs)
        return encoded.ids, next(same, len(opening)), notes

    def cut(self, rendered: Rendered, turns: Sequence[Turn], past_starts: Iterable[int]) -> list[_Piece]:
        """Cut a text at its control tokens, at the borders of the turns trained on and at the starts of the others."""
        is_open = bool(turns) and turns[-1].is_open
        length = turns[-1].end if is_open else len(rendered.text)
        control = dict(split_control(rendered, self.control))
        starts, ends = {turn.start for turn in turns}, {turn.end for turn in turns}
        borders = {0, length, *starts, *ends, *past_starts, *control.keys(), *control.values()}
        pieces: list[_Piece] = []
        is_trained = False
        for at, end in pairwise(sorted(border for border in borders if border <= length)):
            text = rendered.text[at:end]
            is_trained = (is_trained and at not in ends) or at in starts
            pieces.append(_Piece(text, is_trained, at in starts, self.control.ids[text] if at in control else None))
        return [*pieces, self._end_of_text()] if is_open else pieces

    def tokenize(
        self, pieces: Iterable[_Piece], notes: set[str], *, start_ids: Sequence[int] = (), train_all: bool = False
    ) -> Encoded:
        """Tokenize pieces in their order, and check that what is trained on decodes to its text.

        Raises:
            RowProblem: It does not.
        """
        ids, mask = array("i", start_ids), bytearray(len(start_ids))
        control = before = ""  # the last control token, and the text since
        turns: list[list[Any]] = []  # start and end in ids, text
        for piece in pieces:
            new = [piece.control_id] if piece.control_id is not None else self._continue(control, before, piece, notes)
            control, before = (piece.text, "") if piece.control_id is not None else (control, before + piece.text)
            if piece.starts_turn:
                turns.append([len(ids), len(ids), ""])
            ids.extend(new)
            mask.extend([piece.is_trained] * len(new))
            if piece.is_trained:
                turns[-1][1:] = len(ids), turns[-1][2] + piece.text
        for start, end, text in turns:
            self._check(ids[start:end], text)
        encoded = Encoded(np.array(ids, np.int32), np.array(mask, np.bool_) | train_all)
        encoded.mask[:1] = False
        return encoded

    def ids_of(self, text: str, *, literal: bool = False) -> list[int]:
        """Tokenize text alone; `literal` keeps control tokens in it text."""
        if (known := self._cache.get((text, literal))) is not None:
            return known
        ids = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=literal, verbose=False)
        if len(text) <= _CACHED_CHARACTERS and len(self._cache) < _CACHED_TEXTS:
            self._cache[text, literal] = ids
        return ids

    def _continue(self, control: str, before: str, piece: _Piece, notes: set[str]) -> list[int]:
        """Return the ids of a piece as it reads after the text before it, which keeps the ids that it has alone."""
        text = piece.text
        literal = self.control.pattern.search(before + text) is not None
        if literal:
            notes.add(CONTROL_TEXT)
        natural = before if literal else control + before
        for context in (natural, "\n", "a"):  # the others keep tokenizers with a leading space from adding one
            head, joint = self.ids_of(context, literal=literal), self.ids_of(context + text, literal=literal)
            if joint[: len(head)] == head:
                return joint[len(head) :]
            notes.add(BORDER_CUT)
        return self.ids_of(text, literal=literal)

    def _check(self, ids: Iterable[int], text: str) -> None:
        got = decode(self.tokenizer, ids)
        if got == text or _squeeze(got) == _squeeze(text):
            return
        at = next((at for at, (a, b) in enumerate(zip(got, text, strict=False)) if a != b), min(len(got), len(text)))
        shown = [repr(part[max(0, at - 10) : at + 10]) for part in (text, got)]
        raise RowProblem(f"cannot be trained on without loss: the tokenizer turns {shown[0]} into {shown[1]}")

    def _end_of_text(self) -> _Piece:
        id = self.tokenizer.eos_token_id
        if id is None:
            raise RowProblem("needs an end-of-text token, and the tokenizer has none")
        return _Piece(decode(self.tokenizer, [id]), True, control_id=id)


@functools.lru_cache(maxsize=2)
def _codec(tokenizer: Tokenizer) -> _Codec:
    return _Codec(tokenizer)


def _squeeze(text: str) -> str:
    """Drop what tokenizers may change: the normal form, and white space where a text starts."""
    return unicodedata.normalize("NFKC", text).lstrip()

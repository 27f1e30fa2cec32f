"""Voices side by side: Base, adapters, checkpoints, other models, each asked the same or its own.

The rule: one interface, whatever the voices are made of. Voices of one model that differ by LoRA adapters share one
copy of the weights and one batch. Others of the same model share the weights and take turns. Other models stand beside
them when all fit, and are else loaded one at a time. Notes say which of these it is.
"""

import gc
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from typing import NamedTuple, Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from macft.chat.decode import CACHE_TOKENS, Decoder, Request
from macft.chat.generate import spell
from macft.chat.panes import Ask, Parts, Turn, Voice
from macft.chat.score import Likelihood, RowLikelihood, Said, score_answer, score_rows
from macft.chat.sources import VoiceSource
from macft.data.chat_template import Encoded, find_stop_ids, render_prompt
from macft.data.examples import Message, RowProblem
from macft.errors import MacftError
from macft.machine import MachineFacts
from macft.memory import cache_bytes, loaded_bytes
from macft.models.describe import describe, describe_as_loaded
from macft.models.load import load_model, load_tokenizer
from macft.models.voices import Rows, agrees, can_stack, share_weights, stack_adapters
from macft.plan import USABLE_SHARE

IN_TURNS = "not in the batch: it takes turns with the others, on the same weights"
ONE_AT_A_TIME = "its model is loaded for its turn only, since all together do not fit"


Progress = Callable[[int, int], None]


def _untold(_done: int, _total: int) -> None:
    """Tell nobody how far it is."""


class Question(NamedTuple):
    """A conversation that was answered, and the answers."""

    turns: tuple[Turn, ...]
    answers: tuple[Said, ...]


class Voices(Protocol):
    """Models that answer side by side."""

    @property
    def voices(self) -> Sequence[Voice]:
        """Who they are."""

    def stream(self, asks: Sequence[Ask]) -> Parts:
        """Answer, token by token; closing the iterator keeps what came for the panes' next turns.

        Raises:
            MacftError: A template refuses the turns, or they are longer than the model reads.
        """

    def score(self, questions: Sequence[Question], *, kl: bool = False) -> list[list[list[Likelihood]]]:
        """Say how likely each answer is to each voice: by question, answer and voice.

        Args:
            questions: With answers of these voices.
            kl: Also how far each voice is from the first of its batch.
        """

    def weigh(self, rows: Sequence[Encoded], *, progress: Progress = _untold) -> list[list[RowLikelihood]]:
        """Say how likely the supervised tokens of rows are to each voice: by row and voice.

        Args:
            rows: Tokens of these voices' own tokenizer.
            progress: Told (rows done, all rows), once for each group of voices that shares a batch.
        """

    def close(self) -> None:
        """Give the memory back; what was kept for panes is gone."""


class Batch:
    """Voices of one model in one batch; with one voice, a model by itself.

    Args:
        sources: What the voices are made of, in their order.
        model: Loaded; its rows choose among the voices.
        tokenizer: The model's; it stops where the template ends a turn.
        rows: Says which row is whose; None with one voice.
        template: Ask through the chat template, if there is one; else the text is continued.
    """

    def __init__(
        self,
        sources: Sequence[VoiceSource],
        model: nn.Module,
        tokenizer: TokenizerWrapper,
        rows: Rows | None,
        *,
        template: bool = True,
    ) -> None:
        self._sources, self._model, self._tokenizer, self._rows = sources, model, tokenizer, rows
        self._decoder = Decoder(model, tokenizer.eos_token_ids, rows=rows)
        self._has_template = template and tokenizer.has_chat_template
        self._context = describe(sources[0].folder, without_weights=True).context
        self.voices: Sequence[Voice] = [_voice(source) for source in sources]

    def stream(self, asks: Sequence[Ask]) -> Parts:
        """Answer in one batch, side by side."""
        return spell(self._decoder.run([self._request(ask) for ask in asks]), self._tokenizer)

    def score(self, questions: Sequence[Question], *, kl: bool = False) -> list[list[list[Likelihood]]]:
        """Score with one row a voice, so that the weights are read once for all of them."""
        return [[self._score(question.turns, said, kl=kl) for said in question.answers] for question in questions]

    def weigh(self, rows: Sequence[Encoded], *, progress: Progress = _untold) -> list[list[RowLikelihood]]:
        """Weigh several rows at once, each under all voices."""
        choose = self._rows.choose if self._rows is not None else lambda _: None
        found: dict[int, list[RowLikelihood]] = {}
        for place, likelihoods in score_rows(self._model, rows, voices=len(self.voices), choose=choose):
            found[place] = likelihoods
            progress(len(found), len(rows))
        return [found[place] for place in range(len(rows))]

    def close(self) -> None:
        """Drop what was kept for panes; the weights go with the last who holds this object."""
        self._decoder.forget()

    def _score(self, turns: Sequence[Turn], said: Said, *, kl: bool) -> list[Likelihood]:
        answer = list(said.token_ids) or self._tokenizer.encode(said.text, add_special_tokens=False)
        if self._rows is not None:
            self._rows.choose(range(len(self.voices)))
        # All voices of a batch have one template; whether it shows thinking is the first one's.
        return score_answer(self._model, self._encode(turns, 0), answer, voices=len(self.voices), kl=kl)

    def _request(self, ask: Ask) -> Request:
        ids = list(ask.ids) or self._encode(ask.turns, ask.voice)
        if self._context is None:
            return Request(ids, ask.sampling, ask.voice, ask.pane)
        if len(ids) >= self._context:
            raise MacftError(
                f"{self.voices[ask.voice].name}: the conversation is {len(ids):,} tokens long, and the model reads "
                f"{self._context:,}",
                fix="Start a new one.",
            )
        most = min(ask.sampling.max_tokens, self._context - len(ids))
        return Request(ids, replace(ask.sampling, max_tokens=most), ask.voice, ask.pane)

    def _encode(self, turns: Sequence[Turn], voice: int) -> list[int]:
        source = self._sources[voice]
        if not self._has_template:
            ids: list[int] = self._tokenizer.encode("".join(content for _, content in turns))
            return ids
        messages = tuple(Message(role=role, content=content) for role, content in turns)
        try:
            return render_prompt(messages, self._tokenizer, enable_thinking=source.enable_thinking)
        except RowProblem as problem:
            raise MacftError(f"{source.name}: {problem.what}") from None


class _Group(NamedTuple):
    """Some of the voices: their places among all, and what opens them."""

    places: tuple[int, ...]
    open: Callable[[], Voices]


class SideBySide:
    """Groups of voices that are all loaded; they take turns token by token."""

    def __init__(self, sources: Sequence[VoiceSource], groups: Sequence[_Group], *, note: str = "") -> None:
        self._folders = [source.folder for source in sources]
        self._groups = [(group.places, group.open()) for group in groups]
        first = max((places for places, _ in self._groups), key=len)
        known = {
            place: voice if place in first else _noted(voice, note)
            for places, voices in self._groups
            for place, voice in zip(places, voices.voices, strict=True)
        }
        self.voices: Sequence[Voice] = [known[place] for place in range(len(sources))]

    def stream(self, asks: Sequence[Ask]) -> Parts:
        """Answer a token of each group after the other."""
        with ExitStack() as open_streams:
            streams = []
            for places, voices in self._groups:
                chosen, own = _own(asks, places)
                if own:
                    streams.append((chosen, open_streams.enter_context(closing(voices.stream(own)))))
            while streams:
                for chosen, stream in list(streams):
                    if (part := next(stream, None)) is None:
                        streams.remove((chosen, stream))
                    else:
                        yield part._replace(ask=chosen[part.ask])

    def score(self, questions: Sequence[Question], *, kl: bool = False) -> list[list[list[Likelihood]]]:
        """Score with each group, and put the results into the voices' order."""
        scored = [
            (places, voices.score(_foreign(questions, places, self._folders), kl=kl)) for places, voices in self._groups
        ]
        return _woven(scored, questions, len(self.voices))

    def weigh(self, rows: Sequence[Encoded], *, progress: Progress = _untold) -> list[list[RowLikelihood]]:
        """Weigh with one group after the other."""
        weighed = [(places, voices.weigh(rows, progress=progress)) for places, voices in self._groups]
        return _in_order(weighed, len(rows))

    def close(self) -> None:
        """Close all groups."""
        for _, voices in self._groups:
            voices.close()


class InTurns:
    """Groups of voices of which one is loaded at a time."""

    def __init__(self, sources: Sequence[VoiceSource], groups: Sequence[_Group]) -> None:
        self._folders, self._groups = [source.folder for source in sources], groups
        self.voices: Sequence[Voice] = [_noted(_voice(source), ONE_AT_A_TIME) for source in sources]

    def stream(self, asks: Sequence[Ask]) -> Parts:
        """Answer one group after the other."""
        for group in self._groups:
            chosen, own = _own(asks, group.places)
            if own:
                with closing(group.open()) as voices, closing(voices.stream(own)) as parts:
                    for part in parts:
                        yield part._replace(ask=chosen[part.ask])
                _give_back()

    def score(self, questions: Sequence[Question], *, kl: bool = False) -> list[list[list[Likelihood]]]:
        """Score with one group after the other."""
        scored = []
        for group in self._groups:
            with closing(group.open()) as voices:
                scored.append((group.places, voices.score(_foreign(questions, group.places, self._folders), kl=kl)))
            _give_back()
        return _woven(scored, questions, len(self.voices))

    def weigh(self, rows: Sequence[Encoded], *, progress: Progress = _untold) -> list[list[RowLikelihood]]:
        """Weigh with one group after the other."""
        weighed = []
        for group in self._groups:
            with closing(group.open()) as voices:
                weighed.append((group.places, voices.weigh(rows, progress=progress)))
            _give_back()
        return _in_order(weighed, len(rows))

    def close(self) -> None:
        """Do nothing: nothing is held between turns."""


def open_voices(sources: Sequence[VoiceSource], machine: MachineFacts, *, template: bool = True) -> Voices:
    """Load voices; models that do not fit beside each other are loaded when it is their turn.

    Args:
        sources: What they are made of.
        machine: What they shall fit on.
        template: Ask through each model's chat template; without, all continue the text.

    Raises:
        ModelError: A model or adapter cannot be used.
    """
    by_weights: dict[object, list[int]] = {}
    for place, source in enumerate(sources):
        by_weights.setdefault(source.weights, []).append(place)
    groups = [
        _Group(tuple(places), partial(_open_weights, [sources[place] for place in places], template=template))
        for places in by_weights.values()
    ]
    if len(groups) == 1:
        return groups[0].open()
    if fits_together([sources[places[0]] for places, _ in groups], machine):
        return SideBySide(sources, groups)
    return InTurns(sources, groups)


def fits_together(sources: Sequence[VoiceSource], machine: MachineFacts) -> bool:
    """Tell whether models fit beside each other, each with a full cache."""
    needed = 0
    for source in sources:
        facts = describe_as_loaded(source.folder, quantize=source.quantize)
        is_gpu = machine.is_apple_silicon
        needed += loaded_bytes(facts, quantize=source.quantize, group_size=source.group_size, is_gpu=is_gpu)
        needed += cache_bytes(facts, tokens=CACHE_TOKENS, is_gpu=is_gpu)
    return needed <= machine.working_set_bytes * USABLE_SHARE


def _open_weights(sources: Sequence[VoiceSource], *, template: bool) -> Voices:
    """Load a model once, and put its voices into one batch as far as they can share it."""
    first = sources[0]
    base, _ = load_model(first.folder, quantize=first.quantize, group_size=first.group_size)
    tokenizer = load_tokenizer(first.folder)
    tokenizer.eos_token_ids = find_stop_ids(tokenizer)
    alone = [_load(base, source) for source in sources]
    together = [place for place, source in enumerate(sources) if source.is_stackable and can_stack(alone[place])]
    stacked, rows = None, None
    if len(together) > 1:
        adapted = {row: alone[place] for row, place in enumerate(together) if sources[place].adapter}
        stacked, rows = stack_adapters(base, adapted)
        if not agrees(stacked, rows, [alone[place] for place in together]):
            stacked, rows = None, None
    if stacked is None:
        together = []

    def batch(places: Sequence[int], model: nn.Module, own_rows: Rows | None) -> Batch:
        return Batch([sources[place] for place in places], model, tokenizer, own_rows, template=template)

    groups = [_Group(tuple(together), partial(batch, together, stacked, rows))] if stacked is not None else []
    for place, model in enumerate(alone):
        if place not in together:
            groups.append(_Group((place,), partial(batch, [place], model, None)))
    return groups[0].open() if len(groups) == 1 else SideBySide(sources, groups, note=IN_TURNS)


def _load(base: nn.Module, source: VoiceSource) -> nn.Module:
    if source.adapter is None:
        return base
    model = share_weights(base)
    source.put_on(model)
    mx.eval(model.parameters())
    return model.eval()


def _voice(source: VoiceSource) -> Voice:
    adapter = None if source.adapter is None else str(source.adapter)
    return Voice(source.name, str(source.folder), adapter, source.note)


def _noted(voice: Voice, note: str) -> Voice:
    return replace(voice, note="; ".join(part for part in (voice.note, note) if part))


def _own(asks: Sequence[Ask], places: Sequence[int]) -> tuple[list[int], list[Ask]]:
    """Return which asks are for a group, and the same with the voices' places in it."""
    chosen = [index for index, ask in enumerate(asks) if ask.voice in places]
    return chosen, [replace(asks[index], voice=places.index(asks[index].voice)) for index in chosen]


def _foreign(questions: Sequence[Question], places: Sequence[int], folders: Sequence[object]) -> list[Question]:
    """Take the token ids from answers of other models: each tokenizer cuts a text its own way."""
    own = folders[places[0]]
    return [
        question._replace(
            answers=tuple(
                said if folders[said.voice] == own else said._replace(token_ids=()) for said in question.answers
            )
        )
        for question in questions
    ]


def _woven(
    scored: Sequence[tuple[Sequence[int], list[list[list[Likelihood]]]]], questions: Sequence[Question], voices: int
) -> list[list[list[Likelihood]]]:
    """Put the results of groups into the order of the voices."""
    places = {place: (group, local) for group, (own, _) in enumerate(scored) for local, place in enumerate(own)}
    ordered = [places[voice] for voice in range(voices)]
    return [
        [
            [scored[group][1][index][answer][local] for group, local in ordered]
            for answer in range(len(question.answers))
        ]
        for index, question in enumerate(questions)
    ]


def _in_order(
    weighed: Sequence[tuple[Sequence[int], list[list[RowLikelihood]]]], rows: int
) -> list[list[RowLikelihood]]:
    """Put what groups found for each row into the order of the voices."""
    by_voice = {place: [row[local] for row in found] for own, found in weighed for local, place in enumerate(own)}
    return [[by_voice[voice][row] for voice in sorted(by_voice)] for row in range(rows)]


def _give_back() -> None:
    gc.collect()
    mx.clear_cache()

"""Greedy tokens of voices against stock mlx-lm, one model and one stream at a time."""

from collections.abc import Collection, Sequence
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.utils
from mlx.utils import tree_map
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache

from macft.chat.compare import Voices
from macft.chat.panes import NOTHING_YET, Ask, Sampling, Turn
from macft.data.chat_template import find_stop_ids, render_prompt
from macft.data.examples import Message
from macft.models.load import load_tokenizer
from macft.models.voices import share_weights

TIE = 1e-3
"""Logits closer than this may change places when the order of a sum does."""


class Difference(NamedTuple):
    """Where a voice left stock mlx-lm's way, and how close the two tokens were to it (logits)."""

    voice: int
    turn: int
    place: int
    gap: float


def load_stock(folder: Path, adapter: Path | None) -> nn.Module:
    """The model as stock mlx-lm loads it, in float32."""
    model, _ = mlx_lm.utils.load_model(folder)
    half = {mx.bfloat16, mx.float16}
    model.update(tree_map(lambda a: a.astype(mx.float32) if a.dtype in half else a, model.parameters()))
    return mlx_lm.utils.load_adapters(model, str(adapter)).eval() if adapter else model


def compare_with_stock(
    voices: Voices, stock: Sequence[nn.Module], folder: Path, questions: Sequence[Sequence[str]], *, tokens: int
) -> tuple[int, list[Difference]]:
    """Ask conversations of several turns, each voice with its own history; returns tokens compared and differences."""
    tokenizer = load_tokenizer(folder)
    tokenizer.eos_token_ids = find_stop_ids(tokenizer)
    readers = [_reader(model) for model in stock]
    compared, differences = 0, []
    for conversation, asked in enumerate(questions):
        histories: list[tuple[Turn, ...]] = [() for _ in stock]
        for turn, text in enumerate(asked):
            histories = [(*history, ("user", text)) for history in histories]
            replies = [NOTHING_YET] * len(stock)
            asks = [
                Ask(voice, turns, Sampling(max_tokens=tokens), pane=f"{conversation}/{voice}")
                for voice, turns in enumerate(histories)
            ]
            for part in voices.stream(asks):
                replies[part.ask] = replies[part.ask].plus(part)
            for voice, (model, read, turns) in enumerate(zip(stock, readers, histories, strict=True)):
                ids = render_prompt([Message(role, content) for role, content in turns], tokenizer)
                theirs = _answer(model, read, ids, tokens, tokenizer.eos_token_ids)
                compared += len(theirs)
                if (place := _first_difference(replies[voice].token_ids, theirs)) is not None:
                    best = mx.sort(model(mx.array([[*ids, *theirs[:place]]]))[0, -1])[-2:]
                    differences.append(Difference(voice, turn, place, (best[1] - best[0]).item()))
            histories = [(*turns, ("assistant", reply.text)) for turns, reply in zip(histories, replies, strict=True)]
    return compared, differences


def _reader(model: nn.Module) -> nn.Module:
    """The model that reads prompts: of a quantized one its dequantized twin, since a CPU takes ages for many rows."""
    if not any(isinstance(module, nn.QuantizedLinear) for module in model.modules()):
        return model
    return mlx_lm.utils.dequantize_model(share_weights(model)).eval()


def _answer(model: nn.Module, reader: nn.Module, ids: list[int], tokens: int, stops: Collection[int]) -> list[int]:
    cache = make_prompt_cache(model)
    reader(mx.array([ids[:-1]]), cache=cache)
    steps = generate_step(mx.array(ids[-1:]), model, max_tokens=tokens, prompt_cache=cache)
    return list(takewhile(lambda token: token not in stops, (token for token, _ in steps)))


def _first_difference(ours: list[int], theirs: list[int]) -> int | None:
    if ours == theirs:
        return None
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next((place for place, (one, other) in pairs if one != other), min(len(ours), len(theirs)))

"""How much of what training changed survives a change of form: fusing, quantizing, another file format.

The rule: three models read the same held-out rows in turn, one layer at a time: the base, the tuned model
as it was trained, and what was made of it. What was kept is 1 − KL(tuned ‖ made) / KL(tuned ‖ base), a mean over the
tokens that training would supervise, summed over the whole vocabulary in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import numpy.typing as npt

from macft.data.prepare import AnyRows
from macft.data.response_rows import ResponseRows
from macft.errors import DataError, Problem
from macft.models.layerwise import run_once

LOGIT_BYTES, KEPT_BYTES = 2**30, 2**28
"""Most memory for the logits of one model at all positions, and at those that are compared."""
MOST_POSITIONS, LONGEST = 256, 512
NOTHING = 1e-9
"""A divergence below this is rounding: nothing was lost, or nothing was learned."""
_CHUNK = 64

Floats = npt.NDArray[np.float32]
MakeModel = Callable[[], nn.Module]


class Probe(NamedTuple):
    """What the models are asked: rows of tokens, and where their predictions are compared.

    Attributes:
        tokens: Padded on the right with 0, int32 [B, T].
        positions: Places in the flat tokens whose next token is supervised [R].
    """

    tokens: npt.NDArray[np.int32]
    positions: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Kept:
    """What survived.

    Attributes:
        share: Of what training changed; 1 is all.
        kl_made: KL(tuned ‖ made), nats a token.
        kl_base: KL(tuned ‖ base), nats a token: how much training changed.
        agreement: Share of tokens where the likeliest next token is the same.
        tokens: How many were compared.
    """

    share: float
    kl_made: float
    kl_base: float
    agreement: float
    tokens: int


def make_probe(rows: AnyRows, vocabulary: int) -> Probe:
    """Choose held-out rows, in their order, as many as a bounded memory allows.

    Rows are cut to 512 tokens; those without a supervised token in them are passed over.

    Raises:
        DataError: No row has anything to compare.
    """
    most_tokens = max(LONGEST // 8, LOGIT_BYTES // (4 * vocabulary))
    most_positions = min(MOST_POSITIONS, KEPT_BYTES // (4 * vocabulary))
    longest = min(LONGEST, most_tokens)
    chosen: list[tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]] = []
    width = count = 0
    for index in range(len(rows)):
        ids, mask = first_answer(rows, index)
        places = np.flatnonzero(mask[1:longest])
        wider = max(width, min(len(ids), longest))
        if not len(places) or (chosen and wider * (len(chosen) + 1) > most_tokens):
            continue
        chosen.append((np.asarray(ids[:longest]), places[: most_positions - count]))
        width, count = wider, count + len(chosen[-1][1])
        if count >= most_positions:
            break
    if not chosen:
        raise DataError([Problem("held-out rows", "none has a token to compare")], fix="Name rows with --data.")
    tokens = np.zeros((len(chosen), width), np.int32)
    for row, (ids, _) in enumerate(chosen):
        tokens[row, : len(ids)] = ids
    flat = [row * width + places for row, (_, places) in enumerate(chosen)]
    return Probe(tokens, np.concatenate(flat))


def first_answer(rows: AnyRows, index: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """Return a row's ids and loss mask; of several responses the first, which is the chosen one."""
    if not isinstance(rows, ResponseRows):
        return rows.row(index)
    prompt, response, *_ = rows.parts(index)
    return np.concatenate([prompt, response]), np.arange(len(prompt) + len(response)) >= len(prompt)


def measure_kept(
    probe: Probe,
    *,
    tuned: MakeModel,
    base: MakeModel | None,
    made: MakeModel,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Kept:
    """Compare three models; each is made when it is its turn, and used up.

    Args:
        probe: What they read.
        tuned: Makes the tuned model as it was trained, unevaluated.
        base: The same for the base, quantized as in training; None when nothing was trained: `share` is 1 then, and
            `kl_base` 0.
        made: The same for what was made of the tuned model.
        progress: Told (models done, all models).
    """
    progress(0, 3)
    wanted = _logits(tuned(), probe)
    progress(1, 3)
    kl_base = divergence(wanted, _logits(base(), probe)).mean() if base else 0.0
    progress(2, 3)
    found = _logits(made(), probe)
    kl_made = divergence(wanted, found).mean()
    progress(3, 3)
    agreement = (wanted.argmax(axis=-1) == found.argmax(axis=-1)).mean()
    share = 1.0 if base is None or kl_made < NOTHING else 1.0 - float(kl_made) / max(float(kl_base), NOTHING)
    return Kept(share, float(kl_made), float(kl_base), float(agreement), len(probe.positions))


def divergence(wanted: Floats, found: Floats) -> npt.NDArray[np.float64]:
    """Return KL(wanted ‖ found) at each position, nats.

    Args:
        wanted: Logits [R, V].
        found: Logits [R, V].

    Returns:
        KL [R], summed in float64: it is never below zero, and 1e-12 can be told from 0.
    """
    parts = []
    for start in range(0, len(wanted), _CHUNK):
        p, q = (_log_softmax(logits[start : start + _CHUNK]) for logits in (wanted, found))
        parts.append((np.exp(p) * (p - q)).sum(axis=-1))
    return cast(npt.NDArray[np.float64], np.concatenate(parts))


def _log_softmax(logits: Floats) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    normalized: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalized


def _logits(model: nn.Module, probe: Probe) -> Floats:
    logits = run_once(model, mx.array(probe.tokens))
    chosen = logits.reshape(-1, logits.shape[-1])[mx.array(probe.positions)].astype(mx.float32)
    return np.array(chosen)

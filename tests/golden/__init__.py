"""Reference numbers of torch, transformers and peft, frozen so that the suite needs none of them.

The rule: everything here is NumPy, in mlx-lm's conventions, made by the script beside this file and never by hand.

    case = load_case("llama")
    model = load_model(case.folder)                        # an ordinary model folder
    case.ids, case.loss_mask, case.logits, case.loss       # the base model on one batch
    lora = case.adapters["lora"]                           # its rank, scale, weights, loss, gradients
    model.load_weights([(name, mx.array(value)) for name, value in lora.weights.items()], strict=False)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent

NAMES = ("llama", "llama3_rope", "qwen2", "qwen3", "smollm3", "gemma3_text")
ADAPTED_NAMES = tuple(name for name in NAMES if name != "llama3_rope")
"""The cases that have a LoRA adapter and the AdamW losses; `llama` also has rslora, dora and the stepped weights."""

RANK = 4
ALPHA = 8.0
SCALES = {"lora": ALPHA / RANK, "rslora": ALPHA / RANK**0.5, "dora": ALPHA / RANK}
TARGETS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
"""Names within a layer, as mlx-lm's `lora_parameters["keys"]` wants them; every layer is adapted."""

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class GoldenAdapter:
    """One adapter on every linear layer, no dropout, evaluated on the case's batch.

    Attributes:
        scale: What mlx-lm's layers multiply the update by: alpha / rank, or alpha / sqrt(rank) for rslora.
        weights: `model.layers.N.<target>.lora_a` (in, r) = peft's A.T, `.lora_b` (r, out) = B.T; dora also `.m` (out,).
        loss: Mean over all supervised tokens of the batch, nats a token.
        gradients: d loss / d weights under the same names and shapes.
    """

    rank: int
    scale: float
    weights: Arrays
    loss: float
    gradients: Arrays


@dataclass(frozen=True, slots=True)
class GoldenSteps:
    """Ten AdamW updates of the lora adapter on the case's one batch: lr 1e-3, betas .9/.999, eps 1e-8, decay 0.01.

    Attributes:
        losses: The loss before each update [10], nats a token.
        weights: The adapter after the tenth; empty except for `llama`.
    """

    losses: np.ndarray
    weights: Arrays


@dataclass(frozen=True, slots=True)
class GoldenCase:
    """A tiny random model of one family, and what torch says about it in fp32.

    Attributes:
        folder: A model folder; `config.json` is written by transformers 5, `config_v4.json` says the same in the keys
            of transformers 4. Only `llama` has a tokenizer: one id a byte, and a ChatML template.
        ids: Token ids [B, T], padded on the right with 0.
        lengths: Real tokens a row [B].
        loss_mask: 1 where the token at that position is trained on, that is, predicted from the one before it [B, T].
        logits: Of the base model [B, T, V]; 0 where padded.
        loss: Of the base model, mean over all supervised tokens of the batch, nats a token.
        adapters: By kind: `lora`, `rslora`, `dora`.
        adamw: What ten steps make of the `lora` adapter; None where there is none.
    """

    name: str
    folder: Path
    ids: np.ndarray
    lengths: np.ndarray
    loss_mask: np.ndarray
    logits: np.ndarray
    loss: float
    adapters: Mapping[str, GoldenAdapter]
    adamw: GoldenSteps | None


def load_case(name: str) -> GoldenCase:
    """Read one case, by one of `NAMES`."""
    folder = HERE / name
    with np.load(folder / "numbers.npz") as archive:
        numbers = dict(archive)
    kinds = [kind for kind in SCALES if f"{kind}/loss" in numbers]
    return GoldenCase(
        name=name,
        folder=folder,
        ids=numbers["ids"],
        lengths=numbers["lengths"],
        loss_mask=numbers["loss_mask"],
        logits=numbers["logits"],
        loss=float(numbers["loss"]),
        adapters={kind: _adapter(numbers, kind) for kind in kinds},
        adamw=GoldenSteps(numbers["adamw/losses"], _below(numbers, "adamw/weights/")) if kinds else None,
    )


def _adapter(numbers: Arrays, kind: str) -> GoldenAdapter:
    """Put an adapter together: A and B are the same for every kind and stored once."""
    return GoldenAdapter(
        rank=RANK,
        scale=SCALES[kind],
        weights=_below(numbers, "lora/weights/") | _below(numbers, f"{kind}/weights/"),
        loss=float(numbers[f"{kind}/loss"]),
        gradients=_below(numbers, f"{kind}/gradients/"),
    )


def _below(numbers: Arrays, prefix: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(prefix): value for key, value in numbers.items() if key.startswith(prefix)}

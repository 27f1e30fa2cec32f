"""Rows and models that are small enough to be trained in a test."""

import hashlib
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from macft.data.batches import Batch, make_batch
from macft.models.adapters import attach
from macft.models.head import find_head
from macft.models.load import load_model
from macft.models.stream import prepare_stream
from macft.recipe import LoraTable
from macft.training.objectives import Supervised
from tests.golden import SCALES, TARGETS, GoldenCase, load_case


@dataclass(frozen=True)
class ArrayRows:
    """Tokenized rows held as plain arrays: what `data.batches.Rows` asks for."""

    ids: list[np.ndarray]
    masks: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(row) for row in self.ids])

    @property
    def supervised(self) -> np.ndarray:
        return np.array([int(mask.sum()) for mask in self.masks])

    @property
    def where(self) -> list[str]:
        return [f"rows.jsonl:{number}" for number in range(1, len(self.ids) + 1)]

    @property
    def longest(self) -> np.ndarray:
        return self.lengths

    @property
    def fingerprint(self) -> str:
        return "rows"

    def batch(self, indices: np.ndarray) -> Batch:
        return make_batch(self, indices)

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.ids[index], self.masks[index]


@dataclass(frozen=True)
class ResponseArrays:
    """Prompts with K responses each, held as plain arrays: what `data.batches.Responses` asks for."""

    tokens: list[list[np.ndarray]]
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def responses(self) -> int:
        return len(self.tokens[0]) - 1

    @property
    def lengths(self) -> np.ndarray:
        return np.array([sum(map(len, parts)) for parts in self.tokens])

    @property
    def longest(self) -> np.ndarray:
        return np.array([len(parts[0]) + max(map(len, parts[1:])) for parts in self.tokens])

    @property
    def supervised(self) -> np.ndarray:
        return np.array([sum(map(len, parts[1:])) for parts in self.tokens])

    @property
    def where(self) -> list[str]:
        return [f"pairs.jsonl:{number}" for number in range(1, len(self) + 1)]

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(repr([[part.tolist() for part in parts] for parts in self.tokens]).encode()).hexdigest()

    def parts(self, index: int) -> list[np.ndarray]:
        return self.tokens[index]


def random_responses(vocabulary: int, *, rows: int = 5, responses: int = 2, seed: int = 0) -> ResponseArrays:
    """Prompts of 1 to 9 tokens with responses of 1 to 8, every other response of another length than its twin."""
    draw = np.random.default_rng(seed)

    def text(most: int) -> np.ndarray:
        return draw.integers(0, vocabulary, draw.integers(1, most + 1)).astype(np.int32)

    tokens = [[text(9), *(text(8) for _ in range(responses))] for _ in range(rows)]
    return ResponseArrays(tokens, None if responses > 1 else np.arange(rows) % 2 == 0)


def rows_of(case: GoldenCase) -> ArrayRows:
    """The batch of a golden case as rows of their own lengths."""
    return ArrayRows(
        [case.ids[place, :length].astype(np.int32) for place, length in enumerate(case.lengths)],
        [case.loss_mask[place, :length].astype(bool) for place, length in enumerate(case.lengths)],
    )


def adapted(case: GoldenCase, kind: str) -> nn.Module:
    """The case's model with the adapter of a kind, weights and all."""
    model, _ = load_model(case.folder, compute_dtype="float32")
    golden = case.adapters[kind]
    rank = golden.rank
    alpha = SCALES[kind] * rank**0.5 if kind == "rslora" else SCALES[kind] * rank
    table = LoraTable(rank=rank, alpha=alpha, targets=list(TARGETS), rslora=kind == "rslora")
    attach(model, table, kind="dora" if kind == "dora" else "lora", seed=0)
    model.load_weights([(name, mx.array(value)) for name, value in golden.weights.items()], strict=False)
    return model


def objective_of(model: nn.Module) -> Supervised:
    return Supervised(find_head(model), prepare_stream(model, longest=64))


@pytest.fixture
def llama() -> GoldenCase:
    return load_case("llama")

"""What a plan is made of: facts about a model, the rows of a recipe and a machine's speed.

The rule: numbers alone, whoever found them; nothing is read or measured here.
"""

from dataclasses import dataclass, replace
from typing import Protocol


class Shape(Protocol):
    """The sizes of a model, as its config says them."""

    @property
    def family(self) -> str:
        """The `model_type` of its config."""

    @property
    def layers(self) -> int:
        """Number of layers."""

    @property
    def hidden_size(self) -> int:
        """Width D of the hidden states."""

    @property
    def intermediate_size(self) -> int:
        """Width of the MLP."""

    @property
    def heads(self) -> int:
        """Query heads."""

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""

    @property
    def head_dim(self) -> int:
        """Width of a head."""

    @property
    def vocab_size(self) -> int:
        """Rows V of the embedding."""

    @property
    def tied(self) -> bool:
        """Whether embedding and head are one matrix."""


class Loaded(Protocol):
    """The sizes of a model's weights, as `models.describe.ModelFacts` has them."""

    @property
    def parameters(self) -> int:
        """Weights before any quantization."""

    @property
    def weight_bytes(self) -> int:
        """Bytes as stored."""

    @property
    def float_values(self) -> int:
        """Floating-point numbers as stored, scales included."""

    @property
    def code_bytes(self) -> int:
        """Bytes of quantized codes."""

    @property
    def is_quantized(self) -> bool:
        """Whether it is stored quantized."""


class Model(Shape, Loaded, Protocol):
    """What a plan needs to know of a model; `models.describe.ModelFacts` is one."""

    @property
    def name(self) -> str:
        """What to call it."""


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What a plan needs to know of the rows; lengths in tokens.

    Attributes:
        tokens: Of all training rows; a prompt with several answers counts once.
        longest: Of the longest attention row.
        p99: Length that 99% of the rows do not exceed.
        valid_tokens: Of the rows that every evaluation scores.
        widest: Of a row with all its answers; 0 where rows have one.
        is_estimate: Guessed from the files' sizes; nothing was tokenized.
    """

    rows: int
    tokens: int
    supervised_tokens: int
    longest: int
    p99: int
    valid_tokens: int = 0
    widest: int = 0
    is_estimate: bool = False

    @property
    def largest(self) -> int:
        """Most tokens that a row lays into the stream, and so the least that a forward pass must take."""
        return max(self.widest, self.longest)

    @property
    def supervised_share(self) -> float:
        """Share of the tokens that is trained on."""
        return min(1.0, self.supervised_tokens / max(1, self.tokens))

    def cut(self, longest: int) -> "DataFacts":
        """Return the facts after rows were cut to a length."""
        if longest >= self.longest:
            return self
        share = min(1.0, longest * self.rows / max(1, self.tokens))
        tokens, supervised = int(self.tokens * share), int(self.supervised_tokens * share)
        return replace(
            self,
            tokens=tokens,
            supervised_tokens=supervised,
            longest=longest,
            p99=min(self.p99, longest),
            widest=self.widest * longest // self.longest,
        )


@dataclass(frozen=True, slots=True)
class Calibration:
    """How fast a machine is.

    Attributes:
        matmul_flops: Peak of a matrix product in the type that is computed in, FLOP/s.
        step_flops: Useful FLOP/s of a training step.
        is_estimate: From published figures, not measured here.
    """

    chip: str
    mlx: str
    matmul_flops: float
    step_flops: float
    is_estimate: bool = False

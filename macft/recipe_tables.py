"""The tables of a recipe: data, lora, optimizer, schedule, checkpoint, evaluate.

The rule: every field is documented where it is declared. What all methods share stands here and in `recipe`; a method's
own keys stand with the method.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Decay = Annotated[float, Field(ge=0.0, lt=1.0)]


class Table(BaseModel):
    """A table of the recipe: frozen, unknown keys and infinities refused, fields documented by the docstring below."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class DataTable(Table):
    """Which rows to learn from, and how they become tokens and masks."""

    train: list[str] = Field(default=[])
    """Files or folders of training rows (JSONL, JSON, CSV, text, Markdown, Parquet), relative to the recipe."""

    valid: list[str] = Field(default=[])
    """Held-out rows for evaluation. Left out: `valid_fraction` of the training rows, chosen by a hash of the row."""

    test: list[str] = Field(default=[])
    """Rows never seen in training; Base and tuned answer them when the run ends."""

    valid_fraction: float = Field(default=0.05, ge=0.0, lt=1.0)
    """Share of the training rows held out when `valid` is not given. A row's place never moves between runs."""

    leaks: Literal["refuse", "allow"] = Field(default="refuse")
    """What happens when rows of `valid` or `test` ask what is also trained on: the run does not start, or it does."""

    keep_general: float = Field(default=0.0, ge=0.0, le=0.9)
    """Against forgetting (sft): the share of the training rows that is general dialogue, never held out. 0.1 is usual;
    needs `general` in pretrain."""

    general: list[str] = Field(default=[])
    """Where general rows are from, relative to the recipe, such as what `macft data replay` wrote. Left out: 623 short
    dialogues that come with macft."""

    columns: dict[str, str] = Field(default={})
    """Renames columns before a row is read, as macft's name = your name: `{ prompt = "question" }`."""

    train_on: Literal["assistant", "last", "all"] = Field(default="assistant")
    """Which tokens are trained on: every assistant turn, only the last one, or all text. Preference methods train on
    responses whatever it says."""

    strings: Literal["text", "chat"] = Field(default="text")
    """Preference methods: what a prompt and responses given as strings are. text: as they stand, with the end-of-text
    token, as in TRL; chat: a user's message and the answers to it, through the chat template."""

    too_long: Literal["drop", "truncate", "split", "error"] = Field(default="truncate")
    """What happens to a row longer than `max_seq_length`; always counted and reported."""

    enable_thinking: bool = Field(default=False)
    """Passed to chat templates that can show a model's thinking; the same value is used in training and in chat."""

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {
            key: [value] if key in {"train", "valid", "test", "general"} and isinstance(value, str) else value
            for key, value in values.items()
        }


class LoraTable(Table):
    """The low-rank adapter; the update is scaled by `alpha / rank` (by `alpha / sqrt(rank)` with `rslora`)."""

    rank: int = Field(default=8, ge=1, le=1024)
    """Rank r of the update. More can learn more and forgets more; 8 to 64 is usual."""

    alpha: float = Field(default=16.0, gt=0.0)
    """Strength of the update: W + alpha / rank · (A·B)ᵀ."""

    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the adapter's inputs dropped in training."""

    targets: Literal["all", "attention", "mlp"] | list[str] = Field(default="all")
    """Linear layers that get an adapter: a preset, or names as in the model, like `["self_attn.q_proj"]`."""

    layers: Literal["all"] | Annotated[int, Field(ge=1)] = Field(default="all")
    """How many of the last layers get an adapter."""

    rslora: bool = Field(default=False)
    """Rank-stabilized scaling: `alpha / sqrt(rank)` instead of `alpha / rank`."""


class OptimizerTable(Table):
    """How gradients become updates."""

    name: Literal["adamw", "adafactor", "lion", "sgd", "muon"] = Field(default="adamw")
    """The optimizer. AdamW has bias correction on."""

    weight_decay: float = Field(default=0.0, ge=0.0)
    """Decoupled weight decay."""

    betas: tuple[Decay, Decay] = Field(default=(0.9, 0.999))
    """Decay of the moment averages (adamw, lion); the first is the momentum of sgd and muon."""

    eps: float = Field(default=1e-8, gt=0.0)
    """Added to the denominator of AdamW."""

    max_grad_norm: float = Field(default=1.0, ge=0.0)
    """Gradients are scaled down to this global norm; 0 switches clipping off."""


class ScheduleTable(Table):
    """How the learning rate moves from step to step."""

    name: Literal["cosine", "linear", "constant", "wsd"] = Field(default="cosine")
    """Decay after the warm-up; wsd holds the rate and decays in the last `decay_fraction`."""

    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps of linear warm-up from 0. Left out: `warmup_fraction` of all steps."""

    warmup_fraction: float = Field(default=0.03, ge=0.0, lt=1.0)
    """Share of all steps spent warming up when `warmup_steps` is not given."""

    final_fraction: float = Field(default=0.0, ge=0.0, le=1.0)
    """Where the decay ends, just after the last step, as a share of `learning_rate`."""

    decay_fraction: float = Field(default=0.2, gt=0.0, le=1.0)
    """Share of all steps that wsd decays over."""


class CheckpointTable(Table):
    """When everything that exact resume needs is saved."""

    every: int = Field(default=100, ge=1)
    """Steps between checkpoints. One is always written at the end and when a run is stopped."""

    minutes: float = Field(default=10.0, gt=0.0)
    """A checkpoint is also written when this many minutes have passed since the last."""

    keep: int = Field(default=3, ge=1)
    """How many of the newest are kept, besides the best."""


class EvaluateTable(Table):
    """When and how the held-out rows are scored."""

    every: int | None = Field(default=None, ge=1)
    """Steps between evaluations of the whole validation set. Left out: ten in a run."""

    metric: Literal["eval_loss", "eval_rewards/accuracies", "eval_rewards/margins"] = "eval_loss"
    """What decides which checkpoint is the best. Of preference methods also the share of held-out pairs in which the
    chosen answer's reward is higher, or how much higher it is."""

    patience: int | None = Field(default=None, ge=1)
    """Stop early after this many evaluations without a better `metric`. Left out: never."""

    prompts: list[str] = Field(default=[])
    """Prompts answered at every evaluation. Left out: the first `samples` prompts of the held-out rows."""

    samples: int = Field(default=3, ge=0)
    """How many held-out prompts are answered at every evaluation when `prompts` is empty."""

    max_tokens: int = Field(default=128, ge=1)
    """Longest answer to a sample or test prompt, in tokens."""

    test_rows: int = Field(default=0, ge=0)
    """How many rows of `data.test` Base and tuned answer when the run ends; 0 skips the table."""

"""The methods of a recipe: one class each, with the keys that all share and those of its own.

The rule: a key stands with the methods that it means something to, so DPO's `beta` cannot appear in an SFT recipe. A
default that suits one method better than another is declared anew where it differs.
"""

from typing import Annotated, Literal

from pydantic import Field

from macft.errors import Problem
from macft.recipe_tables import (
    CheckpointTable,
    DataTable,
    EvaluateTable,
    LoraTable,
    OptimizerTable,
    ScheduleTable,
    Table,
)

VERSION = 1
"""Version of the recipe format; a recipe with a newer one is refused with a message."""


class BaseRecipe(Table):
    """The keys that all methods share."""

    version: Annotated[int, Field(ge=1)] = VERSION
    """Version of the recipe format."""

    model: str = Field(min_length=1)
    """A catalog name (`smollm2-135m`), a folder (`./my-model`), or a Hugging Face id that `macft pull` has fetched."""

    quantize: Literal[4, 8] | None = None
    """Quantize the base while loading, to this many bits (QLoRA). Quantized models load as they are."""

    quantize_group_size: Literal[32, 64, 128] = 64
    """Weights that share one scale and bias when `quantize` is set."""

    adapter: Literal["lora", "dora", "full"] = "lora"
    """What is trained: LoRA or DoRA matrices, or the full model."""

    freeze: list[str] = Field(default=[])
    """With `adapter = "full"`: parameters left as they are, as glob patterns (`model.layers.[0-9].*`)."""

    start_from: str | None = None
    """An adapter folder, or a run, whose adapter is continued."""

    stack: bool = False
    """Freeze the adapter of `start_from` and train a second one over it. The result is one adapter with both."""

    steps: int | None = Field(default=None, ge=1)
    """Optimizer updates to make. Wins over `epochs`."""

    epochs: float = Field(default=1.0, gt=0.0)
    """Passes over the training rows, when `steps` is not given."""

    batch_size: int = Field(default=8, ge=1)
    """Examples an optimizer update."""

    micro_batch_size: int | None = Field(default=None, ge=1)
    """Most examples in one forward pass; the result is the same up to rounding. Left out: as memory allows."""

    learning_rate: float = Field(default=2e-4, gt=0.0)
    """Highest learning rate. LoRA: 1e-4 to 5e-4; full fine-tuning: about ten times less."""

    max_seq_length: int = Field(default=2048, ge=8)
    """Longest row, in tokens."""

    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the base and its activations. auto: float32 on a CPU, the model's own on Metal."""

    adapter_dtype: Literal["auto", "float32", "model"] = "auto"
    """Precision of LoRA's products: float32 is exact, model takes the base's own and needs less memory; auto: model.
    The adapter, its moments and what is saved are float32 either way, and DoRA always computes in it."""

    recompute: Literal["auto", "none", "pointwise", "mlp", "layer"] = "auto"
    """What the backward pass computes again, for less memory and more time: norms and activation functions
    (pointwise), the MLP too (mlp), whole layers (layer); auto: as much as memory makes necessary."""

    compile: bool = False
    """Compile the update with `mx.compile`. Every new batch shape is compiled anew: it pays where rows are alike."""

    seed: int = Field(default=0, ge=0, lt=2**31)
    """Fixes the order of rows, the adapter's start and all noise."""

    data: DataTable = DataTable()
    lora: LoraTable = LoraTable()
    optimizer: OptimizerTable = OptimizerTable()
    schedule: ScheduleTable = ScheduleTable()
    checkpoint: CheckpointTable = CheckpointTable()
    evaluate: EvaluateTable = EvaluateTable()

    def list_conflicts(self) -> list[Problem]:
        """Return what is wrong between keys that are right by themselves."""
        if not self.stack or (self.start_from is not None and self.adapter == "lora"):
            return []
        return [Problem("stack", 'needs start_from, the adapter to train over, and adapter = "lora"')]


def _refuse_metric(recipe: BaseRecipe, start: str, why: str) -> list[Problem]:
    name = recipe.evaluate.metric
    return [Problem("evaluate.metric", f'"{name}" {why}')] if name.startswith(start) else []


class SupervisedRecipe(BaseRecipe):
    """The keys of the methods that learn from text as it stands."""

    neftune_alpha: float = Field(default=0.0, ge=0.0)
    """Strength of NEFTune noise on the embeddings in training; 5 is usual, 0 is off."""

    def list_conflicts(self) -> list[Problem]:
        """Return what is wrong between keys that are right by themselves."""
        return super().list_conflicts() + _refuse_metric(self, "eval_rewards/", "is of preference methods")


class SftRecipe(SupervisedRecipe):
    """Supervised fine-tuning on chats and completions."""

    method: Literal["sft"] = "sft"
    """Supervised fine-tuning on chats and completions."""


class PretrainRecipe(SupervisedRecipe):
    """Continual pre-training on raw text."""

    method: Literal["pretrain"] = "pretrain"
    """Continual pre-training on raw text: whole documents, split to `max_seq_length`, none thrown away."""

    def list_conflicts(self) -> list[Problem]:
        """Return what is wrong between keys that are right by themselves."""
        if not self.data.keep_general or self.data.general:
            return super().list_conflicts()
        return [
            *super().list_conflicts(),
            Problem("data.general", "is missing: the rows that come with macft are chats"),
        ]


class PreferenceRecipe(BaseRecipe):
    """The keys of the methods that learn from what people prefer."""

    learning_rate: float = Field(default=2e-5, gt=0.0)
    """Highest learning rate: about ten times less than for supervised fine-tuning. LoRA: 5e-6 to 1e-4."""

    max_chosen_fall: float = Field(default=0.1, ge=0.0)
    """Warn when the log-probability of good answers has fallen by this share since the start; 0 for never."""

    def list_conflicts(self) -> list[Problem]:
        """Return what is wrong between keys that are right by themselves."""
        conflicts = super().list_conflicts()
        if self.data.keep_general:
            conflicts.append(Problem("data.keep_general", "must be 0 here: general rows hold no preferences"))
        if self.lora.dropout != 0.0:
            message = "must be 0 here: noise would keep the model from equalling its reference"
            conflicts.append(Problem("lora.dropout", f"{message} (got {self.lora.dropout})"))
        return conflicts


class DpoRecipe(PreferenceRecipe):
    """Direct preference optimization on pairs of answers."""

    method: Literal["dpo"] = "dpo"
    """Direct preference optimization: the chosen answer of a pair becomes likelier than the rejected one, measured
    against a reference."""

    beta: float = Field(default=0.1, gt=0.0)
    """Strength of the pull to the reference; less lets the model move further."""

    loss: Literal["sigmoid", "robust", "hinge", "ipo", "apo_zero", "apo_down", "sigmoid_norm"] = "sigmoid"
    """Which loss of DPO's family. robust: for labels that are sometimes wrong; sigmoid_norm: by the token; apo_zero:
    raises chosen answers; apo_down: lowers both."""

    label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5)
    """Share of the labels taken to be wrong (sigmoid, sigmoid_norm and robust)."""

    sft_weight: float = Field(default=0.0, ge=0.0)
    """Weight of cross-entropy on the chosen answers, added to the loss; it keeps them from becoming less likely."""

    ld_alpha: float | None = Field(default=None, ge=0.0, le=1.0)
    """LD-DPO: weight of the tokens beyond the shorter answer's length, against learning length. Left out: 1."""

    reference: Literal["start", "base"] = "start"
    """What the model is measured against: itself at the start (with `start_from`, that adapter), or the base."""

    def list_conflicts(self) -> list[Problem]:
        """Return what is wrong between keys that are right by themselves."""
        smooths = self.loss in {"sigmoid", "sigmoid_norm", "robust"}
        unused = bool(self.label_smoothing) and not smooths
        message = f'has no meaning with loss = "{self.loss}" (sigmoid, sigmoid_norm and robust have it)'
        return super().list_conflicts() + [Problem("label_smoothing", message)] * unused


class OrpoRecipe(PreferenceRecipe):
    """Odds-ratio preference optimization: supervised fine-tuning and preference in one, without a reference."""

    method: Literal["orpo"] = "orpo"
    """Odds-ratio preference optimization: supervised fine-tuning and preference in one, without a reference."""

    learning_rate: float = Field(default=5e-5, gt=0.0)
    """Highest learning rate: between that of DPO and of supervised fine-tuning. LoRA: 1e-5 to 2e-4."""

    beta: float = Field(default=0.1, gt=0.0)
    """Weight of the odds ratio beside the cross-entropy on the chosen answers."""

    nll_on_prompt: bool = True
    """Take the cross-entropy over the prompt too, as TRL and the authors' code do; the paper means the answer alone."""


class SimpoRecipe(PreferenceRecipe):
    """Simple preference optimization: mean log-probabilities and a target margin, without a reference."""

    method: Literal["simpo"] = "simpo"
    """Simple preference optimization: mean log-probabilities and a target margin, without a reference."""

    beta: float = Field(default=2.0, gt=0.0)
    """Scale of the rewards, which are mean log-probabilities a token."""

    gamma: float = Field(default=0.5, ge=0.0)
    """Margin that the chosen answer's reward shall keep above the rejected one's."""

    sft_weight: float = Field(default=0.0, ge=0.0)
    """Weight of cross-entropy on the chosen answers, added to the loss (CPO-SimPO); it holds the model back."""


class CpoRecipe(PreferenceRecipe):
    """Contrastive preference optimization, without a reference."""

    method: Literal["cpo"] = "cpo"
    """Contrastive preference optimization: DPO against no reference, with cross-entropy on the chosen answers."""

    beta: float = Field(default=0.1, gt=0.0)
    """Scale of the difference between the two log-probabilities."""

    alpha: float = Field(default=1.0, ge=0.0)
    """Weight of the cross-entropy on the chosen answers."""

    label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5)
    """Share of the labels taken to be wrong."""


class KtoRecipe(PreferenceRecipe):
    """Kahneman-Tversky optimization on single answers, each labeled good or bad."""

    method: Literal["kto"] = "kto"
    """Kahneman-Tversky optimization on single answers, each labeled good or bad: no pairs are needed."""

    beta: float = Field(default=0.1, gt=0.0)
    """Strength of the pull to the reference; less lets the model move further."""

    desirable_weight: float = Field(default=1.0, gt=0.0)
    """Weight of the good answers; raise it when they are fewer, to between 1 and 1.33 times bad ÷ good."""

    undesirable_weight: float = Field(default=1.0, gt=0.0)
    """Weight of the bad answers."""

    reference: Literal["start", "base"] = "start"
    """What the model is measured against: itself at the start (with `start_from`, that adapter), or the base."""

    def list_conflicts(self) -> list[Problem]:
        """Return what is wrong between keys that are right by themselves."""
        no_pairs = _refuse_metric(self, "eval_rewards/accuracies", "needs pairs; take eval_rewards/margins")
        return super().list_conflicts() + no_pairs

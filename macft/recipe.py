"""What the user asks for: one frozen, validated object, read from a TOML file.

The rule: every field is documented where it is declared, and that docstring feeds errors, `--help`, the studio's form
and the reference in the README. Nothing is copied out of a Recipe into another configuration object.
"""

import difflib
import re
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tomlkit
from pydantic import BaseModel, ConfigDict, Discriminator, Field, TypeAdapter, ValidationError, model_validator

from macft.errors import Problem, RecipeError

VERSION = 1
"""Version of the recipe format; a recipe with a newer one is refused with a message."""


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

    columns: dict[str, str] = Field(default={})
    """Renames columns before a row is read, as macft's name = your name: `{ prompt = "question" }`."""

    train_on: Literal["assistant", "last", "all"] = Field(default="assistant")
    """Which tokens are trained on: every assistant turn, only the last one, or all text."""

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
            key: [value] if key in {"train", "valid", "test"} and isinstance(value, str) else value
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

    patience: int | None = Field(default=None, ge=1)
    """Stop early after this many evaluations without a better `eval_loss`. Left out: never."""

    prompts: list[str] = Field(default=[])
    """Prompts answered at every evaluation. Left out: the first `samples` prompts of the held-out rows."""

    samples: int = Field(default=3, ge=0)
    """How many held-out prompts are answered at every evaluation when `prompts` is empty."""

    max_tokens: int = Field(default=128, ge=1)
    """Longest answer to a sample or test prompt, in tokens."""

    test_rows: int = Field(default=0, ge=0)
    """How many rows of `data.test` Base and tuned answer when the run ends; 0 skips the table."""


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

    neftune_alpha: float = Field(default=0.0, ge=0.0)
    """Strength of NEFTune noise on the embeddings in training; 5 is usual, 0 is off."""

    seed: int = Field(default=0, ge=0, lt=2**31)
    """Fixes the order of rows, the adapter's start and all noise."""

    data: DataTable = DataTable()
    lora: LoraTable = LoraTable()
    optimizer: OptimizerTable = OptimizerTable()
    schedule: ScheduleTable = ScheduleTable()
    checkpoint: CheckpointTable = CheckpointTable()
    evaluate: EvaluateTable = EvaluateTable()


class SftRecipe(BaseRecipe):
    """Supervised fine-tuning on chats and completions."""

    method: Literal["sft"] = "sft"
    """Supervised fine-tuning on chats and completions."""


class PretrainRecipe(BaseRecipe):
    """Continual pre-training on raw text."""

    method: Literal["pretrain"] = "pretrain"
    """Continual pre-training on raw text: whole documents, split to `max_seq_length`, none thrown away."""


Recipe = SftRecipe | PretrainRecipe
"""Any recipe; `method` says which. Keys of another method are refused."""

_ADAPTER: TypeAdapter[Recipe] = TypeAdapter(Annotated[Recipe, Discriminator("method")])
_BRANCH = re.compile(r"literal\[|list\[|constrained-|bool$|int$")
_SHOWN_CHARACTERS = 80
_METHODS: dict[str, type[BaseRecipe]] = {"sft": SftRecipe, "pretrain": PretrainRecipe}


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file, apply `key=value` overrides and validate the whole.

    Args:
        path: A TOML file; paths inside it are relative to it.
        overrides: `a.b=c` in order; the value is TOML, or a plain string when it is not.

    Raises:
        RecipeError: The file is missing or not TOML, or anything in it is wrong; all problems at once.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise RecipeError([Problem(str(path), "no such recipe")], fix="`macft recipes` lists the gallery.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError([Problem(str(path), f"cannot be read ({error})")]) from None
    except (ValueError, RecursionError) as error:  # not only TOMLDecodeError: Python limits digits and depth
        raise RecipeError([Problem(str(path), f"is not TOML: {error}")]) from None
    return make_recipe(apply_overrides(values, overrides), folder=path.parent)


def make_recipe(values: dict[str, Any], *, folder: Path | None = None) -> Recipe:
    """Validate a recipe given as nested dicts; relative paths are taken from `folder`.

    Raises:
        RecipeError: With every problem, its dotted key and the nearest valid name.
    """
    if isinstance(version := values.get("version", VERSION), int) and version > VERSION:
        raise RecipeError(
            [Problem("version", f"this recipe is written for format {version}; this macft reads up to {VERSION}")],
            fix="Update macft.",
        )
    values = {"method": "sft", **values}
    try:
        recipe = _ADAPTER.validate_python(values)
    except ValidationError as error:
        problems = [_problem(dict(detail), values) for detail in error.errors()]
        raise RecipeError(_merged(problems)) from None
    return _resolve_paths(recipe, folder.resolve()) if folder else recipe


def apply_overrides(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return `values` with each `a.b=c` set; tables are made where they are missing.

    Raises:
        RecipeError: An override without `=`, or a path through something that is not a table.
    """
    merged = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    problems = []
    for override in overrides:
        dotted, found, text = override.partition("=")
        *tables, key = dotted.strip().split(".")
        target: Any = merged
        for name in tables:
            target = target.setdefault(name, {}) if isinstance(target, dict) else None
        if not found or not key or not isinstance(target, dict):
            problems.append(Problem(f"--set {override}", "expected key=value, like lora.rank=16"))
        else:
            target[key] = _toml_value(text.strip())
    if problems:
        raise RecipeError(problems)
    return merged


def dump_recipe(recipe: Recipe) -> str:
    """Write a recipe as TOML, every key spelled out, None left out."""
    return tomlkit.dumps({"method": recipe.method, **recipe.model_dump(mode="json", exclude_none=True)})


def describe_fields(table: type[BaseModel], prefix: str = "") -> list[tuple[str, str, str]]:
    """List (dotted key, default as TOML, documentation) of every key of a recipe, tables last."""
    rows, tables = [], []
    for name, field in table.model_fields.items():
        default = field.get_default()
        if isinstance(default, BaseModel):
            tables += describe_fields(type(default), f"{prefix}{name}.")
        else:
            shown = "required" if field.is_required() else "" if default is None else tomlkit.item(default).as_string()
            rows.append((prefix + name, shown, field.description or ""))
    return rows + tables


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _problem(detail: dict[str, Any], values: dict[str, Any]) -> Problem:
    method = str(values.get("method"))
    # Pydantic names the branch of a union in the path; those parts are not keys.
    path = [str(part) for part in detail["loc"] if str(part) not in _METHODS and not _BRANCH.match(str(part))]
    key = ".".join(path)
    if detail["type"] == "union_tag_invalid":
        near = difflib.get_close_matches(method, _METHODS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return Problem("method", f"{method!r} is not a method (expected one of {', '.join(_METHODS)}).{hint}")
    if detail["type"] == "extra_forbidden":
        known = [row[0] for row in describe_fields(_METHODS.get(method, SftRecipe))]
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5) or [
            name for name in known if name.rsplit(".")[-1] == path[-1]
        ]
        return Problem(key, "unknown key." + (f" Did you mean `{near[0]}`?" if near else ""))
    if detail["type"] == "missing":
        return Problem(key, "is required")
    got = detail.get("input")
    shown = f" (got {_shorten(got)})" if isinstance(got, str | int | float | bool) else ""
    return Problem(key, detail["msg"][0].lower() + detail["msg"][1:] + shown)


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def _merged(problems: list[Problem]) -> list[Problem]:
    # A union reports each branch by itself: one key, one line.
    by_key: dict[str, list[str]] = {}
    for problem in problems:
        by_key.setdefault(problem.where, []).append(problem.what)
    return [Problem(key, ", or ".join(texts)) for key, texts in by_key.items()]


def _resolve_paths(recipe: Recipe, folder: Path) -> Recipe:
    def absolute(text: str) -> str:
        return text if text == "-" else str((folder / Path(text).expanduser()).resolve())

    data = recipe.data
    resolved = data.model_copy(
        update={name: [absolute(text) for text in getattr(data, name)] for name in ("train", "valid", "test")}
    )
    update: dict[str, Any] = {"data": resolved}
    for name in ("model", "start_from"):
        text = getattr(recipe, name) or ""
        if text.startswith((".", "/", "~")) or (text and (folder / text).is_dir()):
            update[name] = absolute(text)
    return recipe.model_copy(update=update)

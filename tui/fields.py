"""The recipe's keys as fields of a form: made from the Recipe itself, so that a new key needs no change here."""

from collections.abc import Iterator
from types import NoneType
from typing import Annotated, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from macft.recipe import BaseRecipe, Recipe, to_toml

ESSENTIAL = (
    "model",
    "data.train",
    "data.valid",
    "start_from",
    "adapter",
    "quantize",
    "epochs",
    "steps",
    "batch_size",
    "max_seq_length",
    "learning_rate",
    "beta",
    "loss",
    "lora.rank",
    "lora.alpha",
    "lora.targets",
    "recompute",
    "evaluate.every",
    "evaluate.patience",
    "checkpoint.every",
    "seed",
)
"""What is shown before anybody asks for every key."""
HIDDEN = ("version", "method")


class Field(NamedTuple):
    """A key of the recipe.

    Attributes:
        key: Dotted.
        choices: What it may be, as TOML; empty when it is written freely.
        default: As TOML, empty when there is none.
        help: Its documentation.
        bounds: What numbers it takes, in words.
    """

    key: str
    choices: tuple[str, ...]
    default: str
    help: str
    bounds: str

    @property
    def is_essential(self) -> bool:
        """Whether it is shown at first."""
        return self.key in ESSENTIAL


def methods() -> dict[str, type[BaseRecipe]]:
    """Return the recipe class of each method."""
    kinds: tuple[type[BaseRecipe], ...] = get_args(Recipe)
    return {kind.model_fields["method"].default: kind for kind in kinds}


def fields_of(method: str) -> list[Field]:
    """List the keys of a method's recipe, the essential ones first and in their own order."""
    found = [field for field in _fields(methods()[method], "") if field.key not in HIDDEN]
    return sorted(found, key=lambda field: ESSENTIAL.index(field.key) if field.is_essential else len(ESSENTIAL))


def _fields(table: type[BaseModel], prefix: str) -> Iterator[Field]:
    for name, info in table.model_fields.items():
        default = info.get_default()
        if isinstance(default, BaseModel):
            yield from _fields(type(default), f"{name}.")
        else:
            written = "" if default is None or info.is_required() else to_toml(default)
            yield Field(prefix + name, _choices(info), written, info.description or "", _bounds(info))


def _choices(info: FieldInfo) -> tuple[str, ...]:
    kind = info.annotation
    branches = (kind,) if get_origin(kind) == Literal else get_args(kind) or (kind,)
    parts = [part for part in branches if part is not NoneType]
    if kind is bool:
        return ("true", "false")
    if len(parts) != 1 or get_origin(parts[0]) != Literal:
        return ()
    values = tuple(to_toml(value) for value in get_args(parts[0]))
    return ("", *values) if info.get_default() is None else values


def _bounds(info: FieldInfo) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    metadata = list(info.metadata)
    for part in get_args(info.annotation):
        if get_origin(part) is Annotated:
            metadata += [item for extra in get_args(part)[1:] for item in getattr(extra, "metadata", [extra])]
    said = [
        f"{sign} {getattr(item, name):g}" for item in metadata for name, sign in signs.items() if hasattr(item, name)
    ]
    return " and ".join(said)

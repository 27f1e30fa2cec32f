"""A conversation: a base, perhaps an adapter on it, and the template it was trained with.

The rule: what names a run names its adapter; an adapter knows its base by name and fingerprint, and is refused on
another.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from macft.chat.generate import ReplyPart, stream_reply
from macft.data.chat_template import find_stop_ids, render_prompt
from macft.data.examples import Message, Role
from macft.errors import ModelError, RunError
from macft.models.adapters import load_adapter, read_adapter_config
from macft.models.catalog import resolve
from macft.models.describe import fingerprint, template_hash
from macft.models.load import load_model, load_tokenizer
from macft.recipe import load_recipe
from macft.run import find_adapter, find_run


@dataclass(frozen=True)
class ChatSession:
    """A model that answers.

    Attributes:
        title: What is talked to, for people.
        note: Something the person should know, empty most of the time.
    """

    title: str
    note: str
    model: nn.Module
    tokenizer: TokenizerWrapper
    enable_thinking: bool

    def reply(
        self, messages: Sequence[tuple[Role, str]], *, max_tokens: int, temperature: float, seed: int
    ) -> Iterator[ReplyPart]:
        """Stream the answer to (role, content) turns; a model without a chat template continues the last one's text."""
        if self.tokenizer.has_chat_template:
            turns = tuple(Message(role=role, content=content) for role, content in messages)
            ids = render_prompt(turns, self.tokenizer, enable_thinking=self.enable_thinking)
        else:
            ids = self.tokenizer.encode(messages[-1][1])
        return stream_reply(self.model, self.tokenizer, ids, max_tokens=max_tokens, temperature=temperature, seed=seed)


def open_chat(name: str, *, home: Path, runs: Path, base: bool = False, model: str | None = None) -> ChatSession:
    """Load what a name means: a run, an adapter folder, or a model.

    Args:
        name: As the person wrote it.
        home: macft's folder of models.
        runs: The folder of runs.
        base: Leave the adapter off.
        model: The base of an adapter that does not name one on this machine.

    Raises:
        MacftError: Nothing has that name, or the adapter is another base's.
    """
    try:
        adapter = find_adapter(name, runs)
    except RunError:
        if _is_run(name, runs):
            raise
        return _open_model(_model_or_say(name, home), name)
    if (adapter / "config.json").is_file():
        return _open_full(adapter, name, home, base)
    config = read_adapter_config(adapter)
    origin = config.get("macft", {})
    base_name = model or _base_of(name, runs) or config.get("base_model_name_or_path")
    if not base_name:
        raise ModelError(f"{adapter.name} does not name its base", fix="Name it with --model.")
    folder = resolve(base_name, home)
    # As in training: an adapter learns the errors of its base's quantization too.
    loaded, _ = load_model(folder, quantize=origin.get("quantize"), group_size=origin.get("quantize_group_size", 64))
    if not base:
        load_adapter(loaded, adapter, base_fingerprint=fingerprint(folder))
    changed = origin.get("template_hash", "") not in {"", template_hash(folder)}
    note = "the chat template is not the one this adapter was trained with" if changed else ""
    own_name = adapter.parent.name if adapter.name == "adapter" else adapter.name
    title = folder.name if base else f"{folder.name} + {own_name}"
    thinking = bool(origin.get("enable_thinking", False))
    return ChatSession(title, note, loaded.eval(), _answering(folder), thinking)


def _is_run(name: str, runs: Path) -> bool:
    try:
        find_run(name, runs)
    except RunError:
        return False
    return True


def _model_or_say(name: str, home: Path) -> Path:
    try:
        return resolve(name, home)
    except ModelError:
        raise ModelError(
            f"{name!r} is no run, adapter folder or model on this machine",
            fix="`macft runs` and `macft models` list what there is; `latest` is the last run.",
        ) from None


def _open_full(folder: Path, name: str, home: Path, base: bool) -> ChatSession:
    try:
        origin = json.loads((folder / "macft.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        origin = {}
    if base and "base_model" not in origin:
        raise ModelError(f"{name} does not say which model it was before", fix="Chat with that model by its own name.")
    thinking = bool(origin.get("enable_thinking", False))
    if base:
        return _open_model(resolve(_recipe_model(folder) or origin["base_model"], home), origin["base_model"], thinking)
    return _open_model(folder, name, thinking)


def _recipe_model(folder: Path) -> str | None:
    recipe = folder.parent / "recipe.toml"
    return load_recipe(recipe).model if recipe.is_file() else None


def _open_model(folder: Path, title: str, enable_thinking: bool = False) -> ChatSession:
    return ChatSession(title, "", load_model(folder)[0].eval(), _answering(folder), enable_thinking)


def _answering(folder: Path) -> TokenizerWrapper:
    tokenizer = load_tokenizer(folder)
    tokenizer.eos_token_ids = find_stop_ids(tokenizer)
    return tokenizer


def _base_of(name: str, runs: Path) -> str | None:
    try:
        return load_recipe(find_run(name, runs).path / "recipe.toml").model
    except RunError:
        return None

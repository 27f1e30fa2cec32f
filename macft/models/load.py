"""A model folder becomes an MLX model and a tokenizer.

The rule: no code from a model's folder ever runs, and memory never holds more than one layer beyond what stays. What
does not fit its own config is refused by name, before a forward pass.

Import this module before any other part of mlx-lm, whose import fails where few files may be open.
"""

import resource
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map_with_path

from macft.data.chat_template import find_stop_ids
from macft.errors import ModelError
from macft.models.dequantized import multiply_dequantized
from macft.models.describe import describe, read_config, text_config
from macft.models.templates import WatchedTemplate


@contextmanager
def _file_limit_kept() -> Iterator[None]:
    """Raise the limit of open files to what mlx-lm wants or the system allows, and let nothing else change it.

    At import mlx-lm sets (2048, 4096), which raises where the hard limit is lower, and lowers it for good where it is
    higher.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2048 if hard == resource.RLIM_INFINITY else min(2048, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    setrlimit = resource.setrlimit
    resource.setrlimit = lambda *_: None
    try:
        yield
    finally:
        resource.setrlimit = setrlimit


with _file_limit_kept():
    import mlx_lm.utils
    from mlx_lm.tokenizer_utils import TokenizerWrapper
    from transformers import PreTrainedTokenizerBase

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}


def load_model(
    folder: Path, *, quantize: int | None = None, group_size: int = 64, compute_dtype: str = "auto"
) -> tuple[nn.Module, dict[str, Any]]:
    """Load a model, frozen and in evaluation mode, with all its weights in memory.

    A model that is stored quantized loads as it is, whatever `quantize` says. So does one imported from GGUF, as far as
    its blocks are affine: they keep the file's codes, bits and group size, and only what is left is quantized here.

    Args:
        folder: A model folder.
        quantize: Bits to quantize linear layers and embeddings to while loading; None loads them as stored.
        group_size: Weights that share a scale, where this function quantizes.
        compute_dtype: `float32`, `bfloat16`, `float16`; `auto` is float32 on a CPU and the model's own on Metal.

    Returns:
        The model, and its config in the keys that mlx-lm reads, with `quantization` when weights are quantized.

    Raises:
        ModelError: The model is damaged, unsupported, or needs code of its own; tensors are named.
    """
    model, config = load_lazily(folder, quantize=quantize, group_size=group_size, compute_dtype=compute_dtype)
    _materialize(model)
    return model, config


def load_lazily(
    folder: Path, *, quantize: int | None = None, group_size: int = 64, compute_dtype: str = "auto"
) -> tuple[nn.Module, dict[str, Any]]:
    """Make the model that `load_model` makes, with none of its weights read until they are used.

    Args, Returns and Raises are those of `load_model`; `compute_dtype="stored"` casts nothing.
    """
    facts = describe(folder)
    if not facts.trainable:
        raise ModelError(
            f"{facts.name} cannot be loaded: {facts.why_not}", fix="Choose a text model that mlx-lm loads."
        )
    if quantize and not facts.is_quantized and (folder / "quantized" / "config.json").exists():
        folder = folder / "quantized"
    model, config = _load_lazily(folder)
    if dtype := _dtype(compute_dtype):
        cast_floats(model, dtype)
    if quantize and not facts.is_quantized:
        quantize_layers(model, config, bits=quantize, group_size=group_size)
    if mx.default_device() == mx.cpu:
        multiply_dequantized(model)
    model.freeze()
    return model, config


def load_stopping_tokenizer(folder: Path) -> TokenizerWrapper:
    """Load a model's tokenizer as training uses it: it also stops where the chat template ends a turn.

    Raises:
        ModelError: As for `load_tokenizer`.
    """
    tokenizer = load_tokenizer(folder)
    tokenizer.eos_token_ids = find_stop_ids(tokenizer)
    return tokenizer


def load_tokenizer(folder: Path) -> TokenizerWrapper:
    """Load a model's tokenizer, offline; it stops at the end tokens of the tokenizer and of both configs.

    Raises:
        ModelError: It is missing, damaged, in need of its own code, or of another vocabulary than the model.
    """
    known = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model", "vocab.txt")
    if not any((folder / name).exists() for name in known):
        raise ModelError(f"{folder} has no tokenizer.json or tokenizer.model", fix="Fetch the model again.")
    rows = text_config(read_config(folder)).get("vocab_size")
    try:
        tokenizer = _load_tokenizer(folder)
    except Exception as error:  # transformers, tokenizers and protobuf raise whatever they like on a damaged file
        own_code = "trust_remote_code" in str(error)
        reason = "it needs its own code, which macft never runs" if own_code else _one_line(error)
        raise ModelError(f"the tokenizer in {folder} cannot be loaded ({reason})") from error
    _check_vocabulary(tokenizer, rows, folder)
    return tokenizer


def to_old_dialect(config: dict[str, Any]) -> dict[str, Any]:
    """Return the keys of RoPE as transformers 4 wrote them, from the `rope_parameters` of transformers 5.

    Most families of mlx-lm read only the old keys, and silently compute with their defaults when these are missing.
    Keys that the config already has in the old form are left alone.
    """
    parameters = config.get("rope_parameters")
    if not isinstance(parameters, dict):
        return {}
    by_layer = {key: value for key, value in parameters.items() if isinstance(value, dict)}
    everywhere = by_layer.get("full_attention") or parameters
    old: dict[str, Any] = {key: everywhere[key] for key in ("rope_theta", "partial_rotary_factor") if key in everywhere}
    if everywhere.get("rope_type", "default") != "default":
        old["rope_scaling"] = {key: value for key, value in everywhere.items() if key != "rope_theta"}
    if local := by_layer.get("sliding_attention"):
        old["rope_local_base_freq"] = local.get("rope_theta", 10000.0)
    if "full_attention" in (kinds := config.get("layer_types") or []):
        old["sliding_window_pattern"] = kinds.index("full_attention") + 1
    return {key: value for key, value in old.items() if config.get(key) is None}


def _load_lazily(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    try:
        old = to_old_dialect(mlx_lm.utils.load_config(folder))
        model, config = mlx_lm.utils.load_model(folder, lazy=True, model_config=old, trust_remote_code=False)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, AssertionError, IndexError) as error:
        raise ModelError(f"{folder} does not fit its config.json: {_one_line(error)}") from error
    return model, config


def quantize_layers(
    model: nn.Module, config: dict[str, Any], *, bits: int, group_size: int, only: Container[str] | None = None
) -> None:
    """Put quantized layers, still unevaluated, in the place of plain ones; record them in the config.

    A config that records quantized layers already keeps their entries; layers of other bits get entries of their own.

    Args:
        only: Paths of the layers; left out, all that the family quantizes.
    """
    default = {"group_size": group_size, "bits": bits, "mode": "affine"}
    recorded = config.setdefault("quantization", dict(default))
    choose: Callable[[str, nn.Module], Any] = getattr(model, "quant_predicate", None) or (lambda _path, _module: True)

    def wanted(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if not hasattr(module, "to_quantized") or module.weight.shape[-1] % group_size:
            return False
        if only is not None and path not in only:
            return False
        recorded.pop(path, None)
        choice = choose(path, module)
        own = dict(choice) if isinstance(choice, dict) else dict(default)
        if choice and own != {key: recorded.get(key) for key in own}:
            recorded[path] = own
        return own if choice else False

    nn.quantize(model, group_size, bits, class_predicate=wanted)
    config["quantization_config"] = recorded


def _dtype(name: str) -> mx.Dtype | None:
    """Return the type to compute in; None leaves the model as it is stored."""
    if name == "auto":
        # Half precision is many times slower than float32 on MLX's CPU backend.
        return mx.float32 if mx.default_device() == mx.cpu else None
    return DTYPES.get(name)


def cast_floats(model: nn.Module, dtype: mx.Dtype) -> None:
    """Cast a model's floating-point weights, but for those that its family keeps."""
    may_cast: Callable[[str], bool] = getattr(model, "cast_predicate", lambda _name: True)

    def cast(name: str, value: mx.array) -> mx.array:
        return value.astype(dtype) if mx.issubdtype(value.dtype, mx.floating) and may_cast(name) else value

    model.update(tree_map_with_path(cast, model.parameters()))


def _materialize(model: nn.Module) -> None:
    """Evaluate a model one leaf module at a time, so that no more than one is held in both old and new form."""
    for module in model.modules():
        if not module.children():
            mx.eval(module.parameters())
    mx.eval(model.parameters())
    mx.clear_cache()


def _load_tokenizer(folder: Path) -> TokenizerWrapper:
    ends = mlx_lm.utils.load_config(folder).get("eos_token_id")
    safely = {"trust_remote_code": False, "local_files_only": True}
    tokenizer = mlx_lm.utils.load_tokenizer(folder, safely, eos_token_ids=ends)
    if (folder / "tokenizer.json").exists() or not (folder / "tokenizer.model").exists():
        return _watched(tokenizer)
    # From a bare tokenizer.model transformers 5 guesses a class by the family, and may cut text at other places.
    if not _agrees_with_sentencepiece(tokenizer, folder):
        from transformers import LlamaTokenizer

        ends = [ends] if isinstance(ends, int) else ends
        tokenizer = TokenizerWrapper(LlamaTokenizer.from_pretrained(folder, **safely), eos_token_ids=ends)
        if not _agrees_with_sentencepiece(tokenizer, folder):
            raise ValueError("transformers reads tokenizer.model otherwise than sentencepiece does")
    return _watched(tokenizer)


def _watched(tokenizer: TokenizerWrapper) -> TokenizerWrapper:
    """Let the chat template be rendered in a process that is watched, unless it is code of transformers or mlx-lm."""
    own = tokenizer._tokenizer
    if own.chat_template is not None and type(own).apply_chat_template is PreTrainedTokenizerBase.apply_chat_template:
        tokenizer._chat_template = tokenizer._chat_template or WatchedTemplate(own)
    return tokenizer


def _agrees_with_sentencepiece(tokenizer: TokenizerWrapper, folder: Path) -> bool:
    from sentencepiece import SentencePieceProcessor

    original = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    probe = "The quick brown fox, naïve in 1984: 東京"
    return bool(tokenizer.encode(probe, add_special_tokens=False) == original.encode(probe))


def _check_vocabulary(tokenizer: TokenizerWrapper, rows: Any, folder: Path) -> None:
    """Refuse a tokenizer whose ordinary tokens lie beyond the embedding.

    Added tokens may: some text models carry an image token that they never meet, and ids are checked again when data is
    prepared.
    """
    added = set(tokenizer.get_added_vocab().values())
    highest = max((index for index in tokenizer.get_vocab().values() if index not in added), default=0)
    if isinstance(rows, int) and highest >= rows:
        raise ModelError(
            f"the tokenizer in {folder} knows id {highest}, but the model embeds only {rows} tokens",
            fix="Fetch the model again: the tokenizer is another model's.",
        )


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + " …"

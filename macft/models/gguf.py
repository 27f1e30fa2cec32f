"""A llama GGUF file becomes an ordinary model folder.

The rule: no number is rounded. Weights are written as float32, as the `gguf` package computes them. Blocks that already
are MLX's affine form are also written as they are, into `quantized/`, a model folder inside the folder, so that asking
for a quantized base does not quantize a second time. Files are read with the `gguf` package, never by MLX.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from macft.errors import ModelError

Array = npt.NDArray[Any]

GROUP_SIZE = 32
"""Weights that share a scale, in the blocks of GGUF that are affine."""

_AFFINE_BITS = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}
_PRE_TOKENIZERS = ("smollm", "gpt-2")
_CONTROL, _USER_DEFINED = 3, 4

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTER_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def import_gguf(
    path: Path, folder: Path, *, keep_quantized: bool = True, source: Mapping[str, str] | None = None
) -> None:
    """Write the model of a GGUF file into a folder, in the layout of transformers and mlx-lm.

    Args:
        path: The file.
        folder: Where to; made when missing. Not atomic: write aside and rename.
        keep_quantized: Also write `quantized/`, with the file's own codes, where its blocks are affine.
        source: Where the file came from, for `macft_source.json`.

    Raises:
        ModelError: The file is damaged, or holds what macft cannot import.
    """
    model = _Gguf(path)
    tensors = dict(model.tensors())
    model.check_complete(tensors)
    folder.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(model, folder)
    _write_weights({name: _dequantize(name, tensor) for name, tensor in tensors.items()}, folder)
    _write_json(folder / "config.json", model.config())
    if keep_quantized and (quantization := _quantization(tensors)):
        (folder / "quantized").mkdir(exist_ok=True)
        parts = (part for name, tensor in tensors.items() for part in _keep_codes(name, tensor))
        _write_weights(dict(parts), folder / "quantized")
        _write_json(folder / "quantized" / "config.json", {**model.config(), "quantization": quantization})
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    facts = {"name": model.text("general.name", path.stem), "licence": model.text("general.license", "")}
    _write_json(
        folder / "macft_source.json",
        {**facts, "family": "llama", "file": path.name, "file_sha256": digest, **(source or {})},
    )


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A stored tensor: its GGUF type, and its rows as stored, heads un-permuted."""

    kind: str
    rows: Array


class _Gguf:
    """The checked metadata and tensors of one llama file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reader = _open(path)
        if (family := self.text("general.architecture")) != "llama":
            raise ModelError(f"{path} holds a {family!r} model (macft imports the llama family from GGUF)")
        if (scaling := self.text("llama.rope.scaling.type", "none")) != "none":
            raise ModelError(f"{path} uses {scaling!r} RoPE scaling, which macft does not import from GGUF")
        self.layers = self.number("llama.block_count")
        self.width = self.number("llama.embedding_length")
        self.hidden = self.number("llama.feed_forward_length")
        self.heads = self.number("llama.attention.head_count")
        self.kv_heads = self.number("llama.attention.head_count_kv", self.heads)
        self.head_dim = self.number("llama.attention.key_length", self.width // self.heads)
        if self.number("llama.rope.dimension_count", self.head_dim) != self.head_dim or self.head_dim % 2:
            raise ModelError(f"{path} rotates a part of each head, which macft does not import from GGUF")
        if self.layers > len(self.reader.tensors):
            raise ModelError(f"{path} has fewer tensors than `llama.block_count` says ({self.layers})")
        self.tokens: list[str] = self.values("tokenizer.ggml.tokens", str)
        self.is_tied = all(tensor.name != "output.weight" for tensor in self.reader.tensors)

    def value(self, key: str, kind: type, default: Any = None) -> Any:
        """Return a value of the metadata, of the type it must have."""
        field = self.reader.fields.get(key)
        try:
            found = default if field is None else field.contents()
        except (ValueError, LookupError):
            found = None
        if not isinstance(found, kind):
            raise ModelError(f"{self.path}: `{key}` is {'missing' if field is None else 'damaged'}")
        return found

    def values(self, key: str, kind: type) -> list[Any]:
        """Return a list of the metadata, with items of the type they must have."""
        found: list[Any] = self.value(key, list)
        if not all(isinstance(item, kind) for item in found):
            raise ModelError(f"{self.path}: `{key}` is damaged")
        return found

    def text(self, key: str, default: str | None = None) -> str:
        return str(self.value(key, str, default))

    def number(self, key: str, default: int | None = None) -> int:
        if (found := int(self.value(key, int, default))) < 1:
            raise ModelError(f"{self.path}: `{key}` is {found} (expected a number above 0)")
        return found

    def real(self, key: str, default: float | None = None) -> float:
        """Return a number above 0, as the shortest decimal that means the stored float32."""
        found = float(str(np.float32(self.value(key, float, default))))
        if not 0 < found < float("inf"):
            raise ModelError(f"{self.path}: `{key}` is {found} (expected a number above 0)")
        return found

    def token(self, key: str) -> int | None:
        """Return the id of a token with a role, None when the file gives none."""
        if self.reader.fields.get(f"tokenizer.ggml.{key}_token_id") is None:
            return None
        found = int(self.value(f"tokenizer.ggml.{key}_token_id", int))
        if not 0 <= found < len(self.tokens):
            raise ModelError(f"{self.path}: the {key} token is {found}, beyond the vocabulary of {len(self.tokens)}")
        return found

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the names and shapes that the model must have."""
        width, q, kv = self.width, self.heads * self.head_dim, self.kv_heads * self.head_dim
        outer = {
            "model.embed_tokens": (len(self.tokens), width),
            "model.norm": (width,),
            "lm_head": (len(self.tokens), width),
        }
        if self.is_tied:
            del outer["lm_head"]
        layer = {
            "input_layernorm": (width,),
            "self_attn.q_proj": (q, width),
            "self_attn.k_proj": (kv, width),
            "self_attn.v_proj": (kv, width),
            "self_attn.o_proj": (width, q),
            "post_attention_layernorm": (width,),
            "mlp.gate_proj": (self.hidden, width),
            "mlp.up_proj": (self.hidden, width),
            "mlp.down_proj": (width, self.hidden),
        }
        inner = {f"model.layers.{i}.{name}": shape for i in range(self.layers) for name, shape in layer.items()}
        return outer | inner

    def tensors(self) -> Iterator[tuple[str, _Tensor]]:
        """Yield each tensor under its mlx-lm name, without `.weight`, in the rows' usual order."""
        shapes = self.shapes()
        for stored in self.reader.tensors:
            name = _name(stored.name)
            shape = tuple(int(size) for size in reversed(stored.shape))
            if name not in shapes:
                raise ModelError(f"{self.path} has a tensor that a llama model does not: {stored.name}")
            if shape != shapes[name]:
                raise ModelError(f"{self.path}: {stored.name} has shape {list(shape)} (expected {list(shapes[name])})")
            heads = {"q_proj": self.heads, "k_proj": self.kv_heads}.get(name.rpartition(".")[2])
            rows = np.asarray(stored.data)
            yield name, _Tensor(stored.tensor_type.name, _unpermute(rows, heads) if heads else rows)

    def check_complete(self, tensors: Mapping[str, _Tensor]) -> None:
        """Raise when a tensor that the model needs is not among those read."""
        if missing := [name for name in self.shapes() if name not in tensors]:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ModelError(f"{self.path} lacks the tensor for {missing[0]}{more}")

    def config(self) -> dict[str, Any]:
        """Return `config.json`, in the keys of both transformers 4 and 5."""
        theta = self.real("llama.rope.freq_base", 10000.0)
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.width,
            "intermediate_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": len(self.tokens),
            "max_position_embeddings": self.number("llama.context_length"),
            "hidden_act": "silu",
            "rms_norm_eps": self.real("llama.attention.layer_norm_rms_epsilon"),
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": self.is_tied,
            "rope_theta": theta,
            "rope_scaling": None,
            "rope_parameters": {"rope_type": "default", "rope_theta": theta},
            **self.token_ids(),
            "dtype": "float32",
            "torch_dtype": "float32",
        }

    def token_ids(self) -> dict[str, int | None]:
        """Return the ids that begin, end and fill a text, in the keys of a config."""
        return {f"{name}_token_id": self.token(key) for name, key in _ROLES.items() if name != "unk"}


_ROLES = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}


def _open(path: Path) -> Any:
    from gguf import GGUFReader

    class CheckedReader(GGUFReader):  # type: ignore[misc]  # the package is untyped
        """A reader that refuses to read beyond the end of the file, where the plain one reads nothing, for ever."""

        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Array:
            if int(offset) + np.dtype(dtype).itemsize * int(count) > len(self.data):
                raise ValueError("the file ends early")
            found: Array = super()._get(offset, dtype, count, override_order)
            return found

    try:
        with np.errstate(over="raise"):
            return CheckedReader(path)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, LookupError, TypeError, ArithmeticError, MemoryError) as error:
        raise ModelError(f"{path} is not a sound GGUF file ({error})", fix="Fetch the file again.") from None


def _name(stored: str) -> str:
    """Return a tensor's mlx-lm name without `.weight`; `""` for one that a llama model does not have."""
    name, _, leaf = stored.rpartition(".")
    if leaf != "weight":
        return ""
    match name.split("."):
        case ["blk", layer, part] if part in _LAYER_NAMES:
            return f"model.layers.{layer}.{_LAYER_NAMES[part]}"
        case [part] if part in _OUTER_NAMES:
            return _OUTER_NAMES[part]
    return ""


def _unpermute(rows: Array, heads: int) -> Array:
    """Undo llama.cpp's order of rows, which interleaves the two halves of each head."""
    halves = rows.reshape(heads, -1, 2, rows.shape[-1])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _dequantize(name: str, tensor: _Tensor) -> Array:
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    try:
        with np.errstate(all="ignore"):
            floats: Array = dequantize(tensor.rows, GGMLQuantizationType[tensor.kind])
    except NotImplementedError:
        raise ModelError(f"macft does not read GGUF tensors of type {tensor.kind}, like {name}") from None
    if not np.isfinite(floats).all():
        raise ModelError(f"the weights of {name} are not all finite numbers", fix="Fetch the file again.")
    return np.ascontiguousarray(floats, dtype=np.float32)


def _quantization(tensors: Mapping[str, _Tensor]) -> dict[str, Any]:
    """Return mlx-lm's `quantization` of the tensors that are affine: the commonest, and where others differ."""
    bits = {name: _AFFINE_BITS[tensor.kind] for name, tensor in tensors.items() if tensor.kind in _AFFINE_BITS}
    if not bits:
        return {}
    common = Counter(bits.values()).most_common(1)[0][0]
    others = {name: {"group_size": GROUP_SIZE, "bits": own} for name, own in bits.items() if own != common}
    return {"group_size": GROUP_SIZE, "bits": common, "mode": "affine", **others}


def _keep_codes(name: str, tensor: _Tensor) -> Iterator[tuple[str, Array]]:
    """Yield a tensor as MLX stores it: packed codes with scales and biases when it is affine, else float32."""
    if tensor.kind not in _AFFINE_BITS:
        yield name, _dequantize(name, tensor)
        return
    codes, scales, biases = _affine(tensor)
    if _AFFINE_BITS[tensor.kind] == 4:
        codes = codes[:, 0::2] | codes[:, 1::2] << 4
    yield name, np.ascontiguousarray(codes).view("<u4")
    yield f"{name}.scales", scales
    yield f"{name}.biases", biases


def _affine(tensor: _Tensor) -> tuple[Array, Array, Array]:
    """Split rows of blocks into codes [rows, columns] (uint8), scales and biases [rows, blocks] (float32)."""
    block_bytes = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}[tensor.kind]
    blocks = tensor.rows.reshape(len(tensor.rows), -1, block_bytes)

    def halves(start: int) -> Array:
        return np.ascontiguousarray(blocks[..., start : start + 2]).view("<f2")[..., 0].astype(np.float32)

    scales = halves(0)
    if tensor.kind == "Q8_0":
        return (blocks[..., 2:] ^ 128).reshape(len(blocks), -1), scales, scales * np.float32(-128)
    packed = blocks[..., 4:] if tensor.kind == "Q4_1" else blocks[..., 2:]
    codes = np.concatenate([packed & 15, packed >> 4], axis=-1).reshape(len(blocks), -1)
    return codes, scales, halves(2) if tensor.kind == "Q4_1" else scales * np.float32(-8)


def _write_tokenizer(model: _Gguf, folder: Path) -> None:
    tokenizer = _tokenizer(model)
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {name: model.token(key) for name, key in _ROLES.items()}
    template = model.text("tokenizer.chat_template", "")
    _write_json(
        folder / "tokenizer_config.json",
        {
            # Not GPT2Tokenizer: transformers 5 would rebuild that one's pre-tokenizer, and lose the split of digits.
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": model.number("llama.context_length"),
            "clean_up_tokenization_spaces": False,
            **{f"{name}_token": None if index is None else model.tokens[index] for name, index in roles.items()},
            **({"chat_template": template} if template else {}),
        },
    )
    if template:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    _write_json(folder / "generation_config.json", model.token_ids())


def _tokenizer(model: _Gguf) -> Any:
    """Rebuild the byte-level BPE tokenizer from the vocabulary and merges in the file's metadata."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    kind, pre = model.text("tokenizer.ggml.model"), model.text("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2" or pre not in _PRE_TOKENIZERS:
        known = ", ".join(_PRE_TOKENIZERS)
        raise ModelError(f"{model.path} has a {kind}/{pre} tokenizer (macft rebuilds gpt2 with {known})")
    vocabulary = {token: index for index, token in enumerate(model.tokens)}
    merges = [tuple(merge.split(" ")) for merge in model.values("tokenizer.ggml.merges", str)]
    kinds = model.values("tokenizer.ggml.token_type", int)
    sound = all(len(merge) == 2 and {*merge, "".join(merge)} <= vocabulary.keys() for merge in merges)
    if not sound or not len(vocabulary) == len(model.tokens) == len(kinds):
        raise ModelError(f"{model.path} has a damaged vocabulary", fix="Fetch the file again.")
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    digits = [pre_tokenizers.Digits(individual_digits=True)] if pre == "smollm" else []
    by_words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, by_words])
    tokenizer.decoder = decoders.ByteLevel()
    bos = model.token("bos")
    if model.value("tokenizer.ggml.add_bos_token", bool, False) and bos is not None:
        start = model.tokens[bos]
        tokenizer.post_processor = processors.TemplateProcessing(f"{start} $A", special_tokens=[(start, bos)])
    added = [
        (token, kind) for token, kind in zip(model.tokens, kinds, strict=True) if kind in {_CONTROL, _USER_DEFINED}
    ]
    for token, token_kind in added:
        tokenizer.add_tokens([AddedToken(token, special=token_kind == _CONTROL, normalized=False)])
    return tokenizer


def _write_weights(tensors: Mapping[str, Array], folder: Path) -> None:
    from safetensors.numpy import save_file

    named = {name if name.endswith((".scales", ".biases")) else f"{name}.weight": tensors[name] for name in tensors}
    save_file(named, folder / "model.safetensors", metadata={"format": "mlx"})


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

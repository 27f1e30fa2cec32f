"""Facts about a model, read from its `config.json` and the headers of its weights.

The rule: no weights are loaded and neither MLX nor transformers is imported, so that a plan, a list of models and the
studio can ask at any time.
"""

import hashlib
import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macft.errors import ModelError
from macft.models.headers import TensorHeader, read_headers
from macft.models.sizes import Sizes, estimate_sizes

HYBRID_FAMILIES = {"qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_next", "kimi_linear"}
"""Families with recurrent layers, which mlx-lm unrolls token by token in training."""

RENAMED_FAMILIES = {
    "mistral": "llama",
    "llava": "mistral3",
    "phi-msft": "phixtral",
    "falcon_mamba": "mamba",
    "joyai_llm_flash": "deepseek_v3",
    "kimi_k2": "deepseek_v3",
    "qwen2_5_vl": "qwen2_vl",
    "minimax_m2": "minimax",
    "iquestcoder": "llama",
    "xverse": "llama",
    "gemma4_unified": "gemma4",
    "deepseek_v41_text": "deepseek_v41",
}
"""Families that mlx-lm reads with another family's module; a test holds this equal to mlx-lm's own table."""

_QUANTIZERS = {"awq", "gptq", "mxfp4", "mxfp8", "fp8", "compressed-tensors", "modelopt", "affine"}
_OTHER_SENSES = ("vision_config", "audio_config", "vision_tower", "speech_config")
_ALIASES = {
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "hidden_size": ("n_embd", "d_model", "dim"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads"),
    "intermediate_size": ("n_inner", "ffn_dim", "hidden_dim"),
    "max_position_embeddings": ("n_positions", "max_seq_len", "seq_length"),
}
_FLOATS = {"F64", "F32", "F16", "BF16"}
_SAMPLES, _SAMPLE_BYTES = 256, 256


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a model is, before anything of it is loaded; only name and place when it could not be read.

    Attributes:
        family: The `model_type` of its config.
        parameters: Weights before any quantization, counted once when embeddings are tied.
        weight_bytes: Size of its tensors as stored.
        float_values: Floating-point numbers among them, scales included; loading casts these.
        code_bytes: Bytes of the rest: the codes of quantized weights.
        bits: Stored bits a parameter, scales included.
        context: Longest sequence that is computed right, in tokens; None when the config does not say.
        licence: As the model card says, `""` when nothing does.
        is_quantized: Its weights are stored quantized.
        trainable: macft can train adapters on it.
        why_not: Why it cannot be trained; for a trainable model, a warning, mostly `""`.
    """

    name: str
    path: Path
    family: str = ""
    parameters: int = 0
    weight_bytes: int = 0
    float_values: int = 0
    code_bytes: int = 0
    bits: float = 0.0
    layers: int = 0
    hidden_size: int = 0
    intermediate_size: int = 0
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    vocab_size: int = 0
    context: int | None = None
    tied: bool = False
    licence: str = ""
    has_chat_template: bool = False
    is_quantized: bool = False
    trainable: bool = False
    why_not: str = ""


def describe(folder: Path, name: str | None = None, *, without_weights: bool = False) -> ModelFacts:
    """Read the facts of the model in a folder.

    Args:
        folder: A model folder: `config.json` and `model*.safetensors`.
        name: What to call it; left out, the folder's name.
        without_weights: Compute the sizes from the config when the weights are not there, as before a download.

    Raises:
        ModelError: A file or key is missing, or a file is damaged.
    """
    config = read_config(folder)
    text = text_config(config)
    from_config = without_weights and not any(folder.glob("model*.safetensors"))
    tensors = {} if from_config else read_headers(folder)
    trainable, why_not = _judge(config)
    number = _Numbers(folder / "config.json", text, required=trainable)
    heads, hidden = number("num_attention_heads"), number("hidden_size")
    layers, inner = number("num_hidden_layers"), number("intermediate_size", 4 * hidden)
    kv_heads, head_dim = number("num_key_value_heads", heads), number("head_dim", hidden // max(heads, 1))
    vocabulary = number("vocab_size")
    tied = bool(text.get("tie_word_embeddings", not any("lm_head." in key for key in tensors) and not from_config))
    sizes = _stored_sizes(tensors, config, tied=tied)
    if from_config:
        shape = {"layers": layers, "width": hidden, "inner": inner, "heads": heads, "kv_heads": kv_heads}
        more = {"head_dim": head_dim, "vocabulary": vocabulary}
        sizes = estimate_sizes(text, _quantization(config), **shape, **more, tied=tied)
    return ModelFacts(
        name=name or _name(folder),
        path=folder,
        family=str(config["model_type"]),
        **sizes._asdict(),
        bits=round(8 * sizes.weight_bytes / max(sizes.parameters, 1), 2),
        layers=layers,
        hidden_size=hidden,
        intermediate_size=inner,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocabulary,
        context=_context(text, number),
        tied=tied,
        licence=_licence(folder, config),
        has_chat_template=bool(read_chat_template(folder)),
        is_quantized=bool(_quantization(config)),
        trainable=trainable,
        why_not=why_not,
    )


def describe_as_loaded(folder: Path, *, quantize: int | None) -> ModelFacts:
    """Read the facts of what `load_model` will load: of an imported GGUF file's own codes where those are asked for."""
    facts = describe(folder, without_weights=True)
    if quantize and not facts.is_quantized and (folder / "quantized" / "config.json").exists():
        return describe(folder / "quantized", facts.name)
    return facts


def read_config(folder: Path) -> dict[str, Any]:
    """Read a model's `config.json`.

    Raises:
        ModelError: It is missing, no JSON object, or without `model_type`.
    """
    if not (folder / "config.json").exists():
        raise ModelError(f"{folder} has no config.json", fix="Name a folder that holds a model.")
    config = _read_json(folder / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise ModelError(f"{folder / 'config.json'}: `model_type` is missing (expected a model family)")
    return config


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a config that describes the language model."""
    nested = config.get("text_config")
    return {**config, **nested} if isinstance(nested, dict) else config


def fingerprint(folder: Path) -> str:
    """Identify a base model, wherever it is stored and however it is cut into files.

    Hashes the config, every tensor's name, type and shape, and up to 64 KiB sampled evenly over the tensors, so that
    the work stays small for any size of model.

    Returns:
        64 hexadecimal digits.

    Raises:
        ModelError: The folder holds no sound model.
    """
    config = {
        key: value for key, value in read_config(folder).items() if key not in {"transformers_version", "_name_or_path"}
    }
    tensors = read_headers(folder)
    shapes = [(name, tensor.dtype, tensor.shape) for name, tensor in tensors.items()]
    digest = hashlib.sha256(json.dumps([config, shapes], sort_keys=True).encode())
    for tensor in list(tensors.values())[:: max(1, len(tensors) // _SAMPLES)]:
        with tensor.file.open("rb") as stream:
            stream.seek(max(tensor.start, (tensor.start + tensor.end - _SAMPLE_BYTES) // 2))
            digest.update(stream.read(min(_SAMPLE_BYTES, tensor.end - tensor.start)))
    return digest.hexdigest()


def tokenizer_hash(folder: Path) -> str:
    """Return a hash of everything that makes tokens of a text: the tokenizer's files and the chat template."""
    digest = hashlib.sha256(template_hash(folder).encode())
    for pattern in ("tokenizer*", "*tokens*.json", "vocab.*", "merges.txt", "spiece.model", "generation_config.json"):
        for file in sorted(folder.glob(pattern)):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def template_hash(folder: Path) -> str:
    """Identify a model's chat template; `""` when it has none.

    Raises:
        ModelError: The file that holds it is damaged.
    """
    template = read_chat_template(folder)
    return hashlib.sha256(template.encode()).hexdigest() if template else ""


def read_chat_template(folder: Path) -> str:
    """Return a model's chat template; `""` when it has none, JSON when it has several.

    Raises:
        ModelError: The file that holds it is damaged.
    """
    if (file := folder / "chat_template.jinja").exists():
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            raise ModelError(f"{file} cannot be read as text") from None
    for file in (folder / "chat_template.json", folder / "tokenizer_config.json"):
        template = _read_json(file).get("chat_template") if file.exists() else None
        if template:
            return template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return ""


class _Numbers:
    """Reads natural numbers of a config under the names that families give them."""

    def __init__(self, file: Path, config: Mapping[str, Any], *, required: bool) -> None:
        self.file, self.config, self.required = file, config, required

    def __call__(self, key: str, default: int | None = None) -> int:
        for name in (key, *_ALIASES.get(key, ())):
            value = self.config.get(name)
            if isinstance(value, int) and value > 0:
                return value
            if value is not None and not isinstance(value, list) and self.required:
                raise ModelError(f"{self.file}: `{name}` is {value!r} (expected a number above 0)")
        if default is None and self.required:
            raise ModelError(f"{self.file}: `{key}` is missing (expected a number above 0)")
        return default or 0


def _judge(config: dict[str, Any]) -> tuple[bool, str]:
    """Say whether macft trains such a model, and why not or with what warning."""
    family = config["model_type"]
    if sense := next((key for key in _OTHER_SENSES if config.get(key)), None):
        return False, f"{family} reads more than text (`{sense}` in config.json); macft trains text models only"
    if config.get("model_file"):
        return False, f"it needs its own code ({config['model_file']}), which macft never runs"
    if not _is_supported(family):
        own = " without its own code, which macft never runs" if config.get("auto_map") else ""
        return False, f"the family {family!r} is not one that mlx-lm can load{own}"
    method = _quantization(config).get("quant_method", "affine")
    if method not in _QUANTIZERS:
        return False, f"its weights are quantized by {method!r}, which mlx-lm cannot load"
    if family in HYBRID_FAMILIES:
        return True, (
            f"{family} has recurrent layers, which train slowly and may run out of memory; "
            "Qwen3, Llama 3.2, Gemma 3, SmolLM and Phi do not"
        )
    return True, ""


def _is_supported(family: str) -> bool:
    # Looking for the module's file keeps mlx-lm, and with it MLX, out of the process.
    spec = importlib.util.find_spec("mlx_lm")
    name = RENAMED_FAMILIES.get(family, family)
    roots = (spec.submodule_search_locations or []) if spec else []
    return name.isidentifier() and any((Path(root) / "models" / f"{name}.py").exists() for root in roots)


def _quantization(config: dict[str, Any]) -> dict[str, Any]:
    text = text_config(config)
    found = text.get("quantization") or text.get("quantization_config")
    return found if isinstance(found, dict) else {}


def _stored_sizes(tensors: Mapping[str, TensorHeader], config: dict[str, Any], *, tied: bool) -> Sizes:
    # A head beside tied embeddings is stored, but never loaded.
    used = {key: tensor for key, tensor in tensors.items() if not (tied and "lm_head." in key)}
    floats = [tensor for tensor in used.values() if tensor.dtype in _FLOATS]
    return Sizes(
        parameters=sum(_parameters(key, tensor, tensors, config) for key, tensor in used.items()),
        weight_bytes=sum(tensor.end - tensor.start for tensor in tensors.values()),
        float_values=sum(tensor.elements for tensor in floats),
        code_bytes=sum(tensor.end - tensor.start for tensor in used.values() if tensor.dtype not in _FLOATS),
    )


def _parameters(name: str, tensor: TensorHeader, tensors: Mapping[str, TensorHeader], config: dict[str, Any]) -> int:
    """Count the weights that one stored tensor stands for."""
    layer, _, leaf = name.rpartition(".")
    if leaf in {
        "scales",
        "biases",
        "qzeros",
        "g_idx",
        "weight_scale",
        "weight_scale_inv",
        "weight_shape",
        "global_scale",
    }:
        return 0
    is_packed = leaf in {"qweight", "weight_packed"} or (leaf == "weight" and f"{layer}.scales" in tensors)
    if not is_packed:
        return tensor.elements
    quantization = _quantization(config)
    own = quantization.get(layer)
    bits = (own if isinstance(own, dict) else quantization).get("bits", 4)
    return (tensor.end - tensor.start) * 8 // int(bits)


def _context(config: dict[str, Any], number: _Numbers) -> int | None:
    longest = number("max_position_embeddings", 0)
    if config["model_type"] == "gemma2":
        # mlx-lm ignores the sliding window of Gemma 2, so longer sequences would be computed wrong.
        longest = min(longest or 4096, number("sliding_window", 4096))
    return longest or None


def _name(folder: Path) -> str:
    if folder.parent.name == "snapshots":
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/", 1)
    return folder.name


def _licence(folder: Path, config: dict[str, Any]) -> str:
    if (source := folder / "macft_source.json").exists():
        return str(_read_json(source).get("licence", ""))
    if (card := folder / "README.md").exists():
        head = card.read_text(encoding="utf-8", errors="replace")[:4000]
        if match := re.search(r"\A---\n(?:.*\n)*?license:\s*([^\s#]+)", head):
            return match.group(1).strip("'\"")
    return str(config.get("license") or "")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} cannot be read as JSON ({error})") from None
    if not isinstance(value, dict):
        raise ModelError(f"{file} is not a JSON object")
    return value

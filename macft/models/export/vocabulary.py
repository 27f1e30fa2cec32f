"""A tokenizer as the metadata of a GGUF file.

The rule: llama.cpp cuts text by rules of its own that it finds by name. A tokenizer whose rules are not exactly those
of a name that is known here is refused, since a wrong name cuts text at other places and says nothing.
"""

import json
from pathlib import Path
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper

from macft.data.chat_template import find_stop_ids
from macft.errors import ModelError
from macft.models.describe import read_chat_template

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PRE_TOKENIZERS = {
    "gpt-2": ["gpt2 words"],
    "smollm": ["single digits", "gpt2 words"],
    "llama-bpe": [_WORDS + r"\p{N}{1,3}" + _REST, "bytes"],
    "qwen2": [_WORDS + r"\p{N}" + _REST, "bytes"],
}
"""How a text is cut before merges, by llama.cpp's name."""
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5


def write_vocabulary(writer: Any, folder: Path, tokenizer: TokenizerWrapper, rows: int) -> None:
    """Add a model's tokens, merges, special tokens and chat template to a GGUF file.

    Args:
        writer: The `gguf` package's.
        folder: Of the model.
        tokenizer: Of the model.
        rows: Of the embedding; ids beyond the tokenizer's are written as unused.

    Raises:
        ModelError: The tokenizer is not byte-level BPE with known rules.
    """
    told = read_tokenizer_file(folder)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(find_pre_tokenizer(told, folder))
    tokens, kinds = _tokens(told, rows)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in told["model"]["merges"]])
    roles = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "pad": tokenizer.pad_token_id}
    roles["unk"] = getattr(tokenizer, "unk_token_id", None)
    for role, index in roles.items():
        if index is not None:
            getattr(writer, f"add_{role}_token_id")(index)
    others = sorted(find_stop_ids(tokenizer) - {tokenizer.eos_token_id})
    if others:
        writer.add_eot_token_id(others[0])
    writer.add_add_bos_token(adds_bos(tokenizer))
    if (template := read_chat_template(folder)) and not template.startswith("["):
        writer.add_chat_template(template)


def adds_bos(tokenizer: TokenizerWrapper) -> bool:
    """Tell whether the tokenizer itself starts every text with its token for that."""
    opened = tokenizer.encode("a")
    return bool(opened) and opened[0] == tokenizer.bos_token_id


def find_pre_tokenizer(told: dict[str, Any], folder: Path) -> str:
    """Return llama.cpp's name for the rules by which a `tokenizer.json` cuts text.

    Raises:
        ModelError: They are none that macft knows.
    """
    model = told.get("model") or {}
    rules = [_rule(step) for step in _steps(told.get("pre_tokenizer"))]
    normalizers = {step.get("type") for step in _steps(told.get("normalizer"), key="normalizers")}
    # llama.cpp loads no vocabulary without merges.
    is_known_model = model.get("type") == "BPE" and bool(model.get("merges"))
    for name, known in _PRE_TOKENIZERS.items():
        if is_known_model and rules == known and normalizers <= ({"NFC"} if name == "qwen2" else set()):
            return name
    raise ModelError(
        f"the tokenizer in {folder.name} cuts text by rules that macft cannot name for llama.cpp",
        fix="`--to mlx` writes a folder that llama.cpp's own convert_hf_to_gguf.py reads.",
    )


def read_tokenizer_file(folder: Path) -> dict[str, Any]:
    """Read a model's `tokenizer.json`.

    Raises:
        ModelError: It is missing or damaged.
    """
    try:
        told: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder.name} has no tokenizer.json that can be read ({error})") from None
    return told


def _steps(part: Any, key: str = "pretokenizers") -> list[dict[str, Any]]:
    if not part:
        return []
    return [step for inner in part[key] for step in _steps(inner, key)] if part.get("type") == "Sequence" else [part]


def _rule(step: dict[str, Any]) -> str:
    match step:
        case {"type": "Digits", "individual_digits": True}:
            return "single digits"
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            return "gpt2 words"
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}:
            return "bytes"
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False}:
            return pattern
    return f"unknown {step.get('type')}"


def _tokens(told: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Return every token's text and kind by id, and placeholders for ids without one."""
    tokens, kinds = [f"[PAD{index}]" for index in range(rows)], [_UNUSED] * rows
    for token, index in told["model"]["vocab"].items():
        if index < rows:
            tokens[index], kinds[index] = token, _NORMAL
    for added in told.get("added_tokens") or []:
        if added["id"] < rows:
            tokens[added["id"]] = added["content"]
            kinds[added["id"]] = _CONTROL if added["special"] else _USER_DEFINED
    return tokens, kinds

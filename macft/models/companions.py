"""What belongs to a model beside its weights: config, tokenizer, chat template, licence.

The rule: a written model is read by old and new tools alike: RoPE in both dialects, the chat template in both places.
No code is copied, and no path of this machine.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from macft.errors import ModelError
from macft.models.describe import read_chat_template, read_config

TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.jinja",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "generation_config.json",
)
_LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
_OF_THIS_MACHINE = ("_name_or_path", "name_or_path", "auto_map", "macft")


def copy_tokenizer(base: Path, folder: Path) -> None:
    """Copy the tokenizer, the chat template and the generation settings of a model, never its code.

    Raises:
        ModelError: One of them is a link to something outside the model.
    """
    for pattern in TOKENIZER_FILES:
        for file in base.glob(pattern):
            if file.is_file() and file.suffix != ".py":
                _copy(file, folder / file.name)


def _copy(file: Path, target: Path) -> None:
    """Copy a file of a model; what a link leads to elsewhere is not the model's, and might be anybody's secret."""
    place, folder = file.resolve(), file.parent.resolve()
    of_hub = [folder.parent.parent / "blobs"] if folder.parent.name == "snapshots" else []
    if not any(place.is_relative_to(root) for root in (folder, *of_hub)):
        raise ModelError(f"{file} is a link to {place}, outside its model", fix="Put the file itself there.")
    shutil.copyfile(place, target)


def write_companions(base: Path, folder: Path, config: dict[str, Any]) -> None:
    """Write everything but the weights of a model that was made from another.

    Args:
        base: The model it was made from.
        folder: Where to; it exists.
        config: Of the new model, from `make_config`.
    """
    copy_tokenizer(base, folder)
    for pattern in _LICENCES:
        for file in base.glob(pattern):
            _copy(file, folder / file.name)
    _write_json(folder / "config.json", config)
    template, told = read_chat_template(base), folder / "tokenizer_config.json"
    settings = json.loads(told.read_text(encoding="utf-8")) if told.is_file() else {}
    kept = {key: value for key, value in settings.items() if key not in _OF_THIS_MACHINE}
    if template and isinstance(settings.get("chat_template", ""), str):  # else there are several, in the settings
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        kept["chat_template"] = template
    if settings:
        _write_json(told, kept)


def make_config(base: Path, old_dialect: dict[str, Any], *, dtype: str, quantization: dict[str, Any]) -> dict[str, Any]:
    """Return the `config.json` of a model that was made from another.

    Args:
        base: The model it was made from.
        old_dialect: The keys of RoPE as transformers 4 wrote them.
        dtype: Of its floating-point weights.
        quantization: As mlx-lm writes it; empty for a model that is not quantized.
    """
    dropped = {"quantization", "quantization_config", *_OF_THIS_MACHINE}
    config = {key: value for key, value in (read_config(base) | old_dialect).items() if key not in dropped}
    if isinstance(nested := config.get("text_config"), dict):
        config["text_config"] = {key: value for key, value in nested.items() if key not in dropped}
    config |= {"dtype": dtype, "torch_dtype": dtype}
    if quantization:
        config |= {"quantization": quantization, "quantization_config": quantization}
    return config


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

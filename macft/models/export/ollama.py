"""A Modelfile: how Ollama loads, asks and stops a model.

The rule: Ollama asks with the template that was trained with, or the Modelfile says that it could not be written.
"""

from collections.abc import Sequence
from pathlib import Path

from mlx_lm.tokenizer_utils import TokenizerWrapper

from macft.data.chat_template import find_stop_ids
from macft.errors import ModelError
from macft.models.export.chat_format import find_chat_format, write_ollama_template
from macft.models.export.vocabulary import adds_bos

NO_TEMPLATE = "its chat template is no plain sequence of turns: Ollama will take the template inside the model, or none"


def write_modelfile(
    folder: Path,
    tokenizer: TokenizerWrapper,
    *,
    base: str,
    adapter: str = "",
    system: str = "",
    enable_thinking: bool = False,
) -> list[str]:
    """Write `Modelfile`.

    Args:
        folder: Where to.
        tokenizer: With the template that was trained with.
        base: What `FROM` names: a file or folder beside the Modelfile, or a model of Ollama's.
        adapter: What `ADAPTER` names, empty for a fused model.
        system: A system message; left out, the template's own.
        enable_thinking: As in training.

    Returns:
        What the person should know.

    Raises:
        ModelError: A text cannot be written into a Modelfile.
    """
    form = find_chat_format(tokenizer, enable_thinking=enable_thinking)
    lines = [f"FROM {base}", *([f"ADAPTER {adapter}"] if adapter else [])]
    if form:
        lines.append(f"TEMPLATE {_quoted(write_ollama_template(form, adds_bos=adds_bos(tokenizer)))}")
    if said := system or (form.system if form else ""):
        lines.append(f"SYSTEM {_quoted(said)}")
    lines += [f'PARAMETER stop "{stop}"' for stop in _stops(tokenizer)]
    (folder / "Modelfile").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [] if form else [NO_TEMPLATE]


def _stops(tokenizer: TokenizerWrapper) -> Sequence[str]:
    texts = {str(tokenizer.convert_ids_to_tokens(index)) for index in find_stop_ids(tokenizer)}
    return sorted(text for text in texts if '"' not in text)


def _quoted(text: str) -> str:
    if '"""' in text:
        raise ModelError('a text for the Modelfile holds """, which ends it', fix="Leave it out of --system.")
    return f'"""{text}"""'

"""The families' chat templates, and conversations to ask them about."""

from pathlib import Path

from mlx_lm.tokenizer_utils import TokenizerWrapper

from macft.models.export.chat_format import ChatFormat, find_chat_format
from macft.models.load import load_tokenizer
from tests.golden import load_case

TEMPLATES = Path(__file__).parents[2] / "data" / "templates"
NAMES = sorted(file.stem for file in TEMPLATES.glob("*.jinja"))
NOT_PLAIN = {"llama2", "mistral_v1", "mistral_v3"}
"""These put the system message into the first question."""
TURNS = [
    [("user", 'Say "{{ .Content }}", {% please %}')],
    [("user", "One?"), ("assistant", "Two.\n\nThree."), ("user", "Four?")],
]


def tokenizer_with(name: str) -> TokenizerWrapper:
    tokenizer = load_tokenizer(load_case("llama").folder)
    template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    tokenizer._tokenizer.chat_template = tokenizer.chat_template = template
    tokenizer._tokenizer.bos_token = "<|endoftext|>"
    return tokenizer


def find_format(name: str) -> ChatFormat | None:
    return find_chat_format(tokenizer_with(name), enable_thinking=False)


def conversations(form: ChatFormat) -> list[list[tuple[str, str]]]:
    told = [[("system", "Be brief."), *turns] for turns in TURNS] if "system" in form.roles else []
    return [*TURNS, *told]

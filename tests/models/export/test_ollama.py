"""A Modelfile asks exactly as training did: what Go makes of its template is what the chat template renders."""

import json

import pytest

from macft.errors import ModelError
from macft.models.export.chat_format import write_ollama_template
from macft.models.export.ollama import NO_TEMPLATE, write_modelfile
from tests.golden import HERE
from tests.models.export.conversations import NAMES, NOT_PLAIN, conversations, find_format, tokenizer_with

GO = json.loads((HERE / "ollama" / "templates.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in NOT_PLAIN])
def test_ollama_renders_what_the_chat_template_renders(name: str) -> None:
    """The template is the one that Go rendered (`make_ollama.py`), and Go's text is the tokenizer's."""
    form, tokenizer = find_format(name), tokenizer_with(name)
    assert form is not None
    assert write_ollama_template(form, adds_bos=False) == GO[name]["template"]
    for turns, rendered in zip(conversations(form), GO[name]["rendered"], strict=True):
        messages = [{"role": role, "content": text} for role, text in turns]
        expected = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        assert rendered == expected


@pytest.mark.parametrize("name", sorted(NOT_PLAIN))
def test_a_template_that_is_no_sequence_of_turns_is_left_to_ollama(name: str, tmp_path) -> None:
    assert find_format(name) is None
    assert write_modelfile(tmp_path, tokenizer_with(name), base="./m.gguf") == [NO_TEMPLATE]
    assert "TEMPLATE" not in (tmp_path / "Modelfile").read_text()


def test_what_the_tokenizer_writes_first_is_not_in_the_template() -> None:
    form = find_format("gemma")
    assert form is not None
    assert form.opening == "<|endoftext|>"
    assert not write_ollama_template(form, adds_bos=True).startswith("<|endoftext|>")


def test_the_modelfile_has_the_base_the_stops_and_the_system(tmp_path) -> None:
    tokenizer = tokenizer_with("smollm2")
    assert write_modelfile(tmp_path, tokenizer, base="smollm2:135m", adapter="./lora.gguf") == []
    lines = (tmp_path / "Modelfile").read_text().splitlines()
    assert lines[:2] == ["FROM smollm2:135m", "ADAPTER ./lora.gguf"]
    assert 'SYSTEM """You are a helpful AI assistant named SmolLM, trained by Hugging Face"""' in lines
    assert 'PARAMETER stop "<|im_end|>"' in lines
    write_modelfile(tmp_path, tokenizer, base="./model.gguf", system="Answer in JSON.")
    assert 'SYSTEM """Answer in JSON."""\n' in (tmp_path / "Modelfile").read_text()
    with pytest.raises(ModelError, match="which ends it"):
        write_modelfile(tmp_path, tokenizer, base="./model.gguf", system='a """ b')

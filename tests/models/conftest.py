"""A tiny random llama, as a folder and as a GGUF file."""

from pathlib import Path

import pytest

from tests.models.tiny import make_weights, write_gguf, write_model


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A model folder of 3 layers, width 64, vocabulary 512, without a tokenizer."""
    return write_model(tmp_path / "tiny", make_weights())


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a GGUF file."""
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", make_weights())

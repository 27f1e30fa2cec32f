"""What does not fit into CI: llama.cpp, transformers and peft themselves on what macft wrote."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map
from mlx_lm.tokenizer_utils import TokenizerWrapper

from macft.chat.generate import answer_batch
from macft.machine import openblas_preload
from macft.measure.kept import divergence
from macft.models.adapters import load_adapter, read_adapter
from macft.models.describe import describe, read_config
from macft.models.export.gguf_adapter import write_gguf_adapter
from macft.models.export.gguf_model import write_gguf
from macft.models.fuse import prepare_fuse, write_fused
from macft.models.load import load_model, load_tokenizer
from macft.models.peft import WEIGHTS, save_peft_tensors, to_peft
from macft.run import Run
from tests.conftest import REPOSITORY
from tests.golden import ADAPTED_NAMES, load_case
from tests.models.adapters import write_golden_adapter
from tests.models.export.lent import lend_tokenizer
from tests.models.numpy_llama import forward, read_gguf
from tests.oracles import ask

pytestmark = pytest.mark.long
PROMPTS, TOKENS = 10, 24
SETTINGS = ["steps=8", "evaluate.every=8", "evaluate.samples=0", "evaluate.test_rows=0"]
IDS = [5, 80, 120, 7, 33, 101, 66, 2, 90, 41]


def logits(folder: Path, adapter: Path | None = None) -> np.ndarray:
    """In float64, as transformers answers: float32's rounding is another on each machine."""
    model, _ = load_model(folder)
    if adapter:
        load_adapter(model, adapter)
    with mx.stream(mx.cpu):
        model.update(tree_map(lambda tensor: tensor.astype(mx.float64), model.parameters()))
        return np.array(model.eval()(mx.array([IDS]))[0])


def write_peft(source: Path, out: Path) -> Path:
    told, tensors = to_peft(*read_adapter(source))
    out.mkdir()
    save_peft_tensors(out / WEIGHTS, tensors)
    (out / "adapter_config.json").write_text(json.dumps(told))
    return out


@pytest.mark.parametrize("case", ADAPTED_NAMES)
def test_transformers_computes_the_same_with_a_fused_folder(case: str, tmp_path: Path) -> None:
    base, adapter = load_case(case).folder, write_golden_adapter(tmp_path / "adapter", case)
    (tmp_path / "out").mkdir()
    write_fused(prepare_fuse(base, adapter), tmp_path / "out")
    theirs = np.array(ask("hugging", {"model": str(tmp_path / "out"), "ids": IDS})["logits"])
    assert np.abs(theirs - logits(base, adapter)).max() < 1e-5


@pytest.mark.parametrize("kind", ["lora", "dora", "rslora"])
def test_peft_computes_the_same_with_an_exported_adapter(kind: str, tmp_path: Path) -> None:
    base, adapter = load_case("llama").folder, write_golden_adapter(tmp_path / "adapter", kind=kind)
    there = write_peft(adapter, tmp_path / "peft")
    theirs, ours = ask("hugging", {"model": str(base), "adapter": str(there), "ids": IDS}), logits(base, adapter)
    assert np.abs(np.array(theirs["logits"]) - ours).max() < 1e-5


@pytest.mark.parametrize("case", ["llama", "llama3_rope", "qwen2", "qwen3"])
def test_llama_cpp_computes_the_same_for_each_family(case: str, tmp_path: Path) -> None:
    """llama.cpp keeps keys and values in 16 bits, so its logits are near, and the likeliest token the same."""
    base = tmp_path / "base"
    base.mkdir()
    write_fused(prepare_fuse(load_case(case).folder, None), base)
    lend_tokenizer(base)
    write_gguf(tmp_path / "model.gguf", base, kind="f32", name=case)
    theirs = np.array(ask("llamacpp", {"model": str(tmp_path / "model.gguf"), "ids": IDS})["logits"])
    ours = logits(base)
    assert np.abs(theirs - ours).max() < 0.01 * np.abs(ours).max()
    assert (theirs.argmax(axis=-1) == ours.argmax(axis=-1)).all()


def train(base: Path, out: Path) -> Path:
    """Train the quickstart for some steps; returns its adapter."""
    environment = {**os.environ, "MACFT_HOME": str(base.parents[1]), "LD_PRELOAD": openblas_preload()}
    given = [word for setting in SETTINGS for word in ("--set", setting)]
    command = [sys.executable, "-m", "macft", "train", "recipes/quickstart.toml", "--out", str(out), *given]
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True)
    return Run.open(out).adapter


class Tuned:
    """SmolLM2 after eight steps of the quickstart, which change every answer."""

    def __init__(self, base: Path, folder: Path) -> None:
        self.base = base
        model, _ = load_model(base)
        self.tokenizer: TokenizerWrapper = load_tokenizer(base)
        self.tokenizer.eos_token_ids = set()  # each answer has all its tokens
        self.texts = [self.render(text) for text in self.questions()]
        self.prompts = [self.tokenizer.encode(text, add_special_tokens=False) for text in self.texts]
        self.untuned = self.answers(model)
        self.adapter = train(base, folder / "run")
        load_adapter(model, self.adapter)
        self.greedy = self.answers(model)

    def questions(self) -> list[str]:
        lines = (REPOSITORY / "recipes" / "data" / "addresses" / "test.jsonl").read_text().splitlines()
        return [json.loads(line)["messages"][0]["content"] for line in lines[:PROMPTS]]

    def render(self, text: str) -> str:
        turns = [{"role": "user", "content": text}]
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

    def answers(self, model: object) -> list[list[int]]:
        found = answer_batch(model.eval(), self.tokenizer, self.prompts, max_tokens=TOKENS)
        return [answer.token_ids for answer in found]


@pytest.fixture(scope="module")
def tuned(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    made = Tuned(smollm2, tmp_path_factory.mktemp("tuned"))
    assert sum(one != other for one, other in zip(made.greedy, made.untuned, strict=True)) >= PROMPTS // 2
    return made


@pytest.mark.real
def test_peft_computes_the_same_with_the_real_model_and_back(tuned: Tuned, tmp_path: Path) -> None:
    """To 1e-5 of the largest logit: even in float64, transformers makes norms and attention weights in float32."""
    there = write_peft(tuned.adapter, tmp_path / "peft")
    theirs = np.array(ask("hugging", {"model": str(tuned.base), "adapter": str(there), "ids": IDS})["logits"])
    assert np.abs(theirs - logits(tuned.base, tuned.adapter)).max() < 1e-5 * np.abs(theirs).max()
    assert np.abs(theirs - logits(tuned.base)).max() > 0.1
    assert (write_peft(there, tmp_path / "again") / WEIGHTS).read_bytes() == (there / WEIGHTS).read_bytes()


@pytest.fixture(scope="module")
def fused(tuned: Tuned, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fused")
    write_fused(prepare_fuse(tuned.base, tuned.adapter), folder)
    return folder


@pytest.mark.real
@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_llama_cpp_says_the_same_with_a_fused_model(kind: str, fused: Path, tuned: Tuned, tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", fused, kind=kind, name="tuned")
    asked = {"model": str(tmp_path / "model.gguf"), "prompts": tuned.prompts, "texts": tuned.texts}
    answer = ask("llamacpp", {**asked, "max_tokens": TOKENS})
    assert answer["tokens"] == tuned.prompts
    assert answer["greedy"] == tuned.greedy


@pytest.mark.real
def test_q8_0_is_read_back_and_computed_by_strangers(fused: Path, tuned: Tuned, tmp_path: Path) -> None:
    """The gguf package reads each block to half a step; NumPy and llama.cpp compute what is near."""
    read = {}
    for kind in ("f32", "q8_0"):
        write_gguf(tmp_path / f"{kind}.gguf", fused, kind=kind, name="tuned")
        read[kind] = read_gguf(tmp_path / f"{kind}.gguf")
    for name, exact in read["f32"].items():
        blocks = exact.reshape(-1, 32)
        steps = np.abs(blocks).max(axis=1) / 127
        assert (np.abs(read["q8_0"][name].reshape(-1, 32) - blocks).max(axis=1) <= 0.57 * steps).all(), name
    config = read_config(fused)
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    shape = {"heads": heads, "kv_heads": kv_heads, "theta": config["rope_theta"]}
    exact, near = (forward(read[kind], IDS, **shape) for kind in ("f32", "q8_0"))
    ours = logits(tuned.base, tuned.adapter)
    assert np.abs(exact - ours).max() < 1e-5 * np.abs(ours).max()
    assert divergence(ours, near).mean() < 0.01
    theirs = np.array(ask("llamacpp", {"model": str(tmp_path / "q8_0.gguf"), "ids": IDS})["logits"])
    assert divergence(near, theirs).mean() < 0.01


@pytest.mark.real
def test_llama_cpp_says_the_same_with_the_adapter_on_its_base(tuned: Tuned, tmp_path: Path) -> None:
    write_gguf(tmp_path / "base.gguf", tuned.base, kind="f32", name="base")
    config, weights = read_adapter(tuned.adapter)
    write_gguf_adapter(tmp_path / "lora.gguf", config, weights, describe(tuned.base), name="tuned")
    asked = {"model": str(tmp_path / "base.gguf"), "prompts": tuned.prompts, "max_tokens": TOKENS}
    assert ask("llamacpp", {**asked, "lora": str(tmp_path / "lora.gguf")})["greedy"] == tuned.greedy
    assert ask("llamacpp", asked)["greedy"] == tuned.untuned

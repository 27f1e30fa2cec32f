"""The real SmolLM2-135M through the command line: trained, talked to, and loaded by stock mlx-lm."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.utils
import numpy as np
import pytest
from mlx.utils import tree_map

from macft.chat.compare import Voices, open_voices
from macft.chat.sources import find_sources
from macft.events import Evaluated, RunStarted, Scored, StepDone
from macft.gallery import list_gallery, read_head
from macft.machine import openblas_preload, read_machine
from macft.models.adapters import adapter_parameters, load_adapter
from macft.models.load import load_model, load_tokenizer
from macft.recipe import load_recipe
from macft.run import Run
from tests.conftest import REPOSITORY
from tests.greedy import TIE, compare_with_stock, load_stock

QUESTION = "Say it in French: good morning"
SHORT = ["evaluate.every=4", "evaluate.samples=0", "evaluate.max_tokens=6", "schedule.name=constant"]
"""What keeps these tests short: no samples, evaluation before and after only. Rows of some 30 tokens do the rest."""


def rows() -> str:
    pairs = [
        ("good morning", "bonjour"),
        ("good night", "bonne nuit"),
        ("thank you", "merci"),
        ("please", "s'il te plaît"),
    ]
    chats = [
        [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": f"Say it in French: {english}"},
            {"role": "assistant", "content": french},
        ]
        for english, french in pairs
    ]
    return "\n".join(json.dumps({"messages": chat}) for chat in chats)


class Bench:
    """The real model, four short rows, and a shell without a network."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.model, self.folder = model, folder
        self.environment = {
            **os.environ,
            "MACFT_HOME": str(model.parents[1]),
            "MACFT_RUNS": str(folder / "runs"),
            "HF_HUB_OFFLINE": "1",
            "LD_PRELOAD": openblas_preload(),
        }
        self.rows = folder / "rows.jsonl"
        self.rows.write_text(rows(), encoding="utf-8")

    def python(self, *arguments: str, status: int = 0) -> str:
        """Run a module and return what it printed; of one that ends with another status, what it complained of."""
        command = [sys.executable, "-m", *arguments]
        done = subprocess.run(
            command, cwd=REPOSITORY, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stderr
        return done.stderr if status else done.stdout

    def fuse(self, run: Run, *wishes: str) -> dict[str, Any]:
        """Fuse a run and return what was measured of it."""
        out = self.folder / "-".join([run.name, "fused", *wishes])
        told = self.python("macft", "fuse", run.name, "--out", str(out), "--json", *wishes)
        return dict(json.loads(told)["result"])

    def train(self, recipe: str, *settings: str) -> Run:
        runs = self.folder / "runs"
        out = runs / f"{Path(recipe).stem}-{len(list(runs.glob('*')))}"
        files = ["data.leaks=allow", *(f'data.{name}=["{self.rows}"]' for name in ("valid", "test"))]
        given = [word for setting in (*files, *SHORT, *settings) for word in ("--set", setting)]
        self.python("macft", "train", recipe, "--data", str(self.rows), "--out", str(out), *given)
        return Run.open(out)


@pytest.fixture(scope="module")
def bench(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(smollm2, tmp_path_factory.mktemp("bench"))


@pytest.fixture(scope="module")
def tuned(bench: Bench) -> Run:
    return bench.train("recipes/quickstart.toml", "steps=4", "batch_size=4", "evaluate.test_rows=2")


@pytest.mark.real
def test_a_few_steps_teach_it(tuned: Run) -> None:
    events, _ = tuned.read()
    losses = [event.metrics["loss"] for event in events if isinstance(event, StepDone)]
    assert len(losses) == 4
    assert losses == sorted(losses, reverse=True)
    before, after = (event.metrics["eval_loss"] for event in events if isinstance(event, Evaluated))
    assert after < 0.8 * before
    assert [event.rows for event in events if isinstance(event, Scored)] == [2]


@pytest.mark.real
def test_stock_mlx_lm_computes_the_same_with_the_adapter(bench: Bench, tuned: Run) -> None:
    tokens = mx.array([load_tokenizer(bench.model).encode(QUESTION)])
    ours, _ = load_model(bench.model)
    base = ours(tokens)
    load_adapter(ours, tuned.adapter)
    theirs, _ = mlx_lm.utils.load_model(bench.model)
    theirs = mlx_lm.utils.load_adapters(theirs, str(tuned.adapter)).eval()
    assert mx.array_equal(ours(tokens), theirs(tokens))
    assert mx.abs(ours(tokens) - base).max().item() > 0.1


@pytest.mark.real
def test_stock_mlx_lm_and_chat_give_the_same_answer(bench: Bench, tuned: Run) -> None:
    ask = ["--prompt", QUESTION, "--max-tokens", "8"]
    folders = ["--model", str(bench.model), "--adapter-path", str(tuned.adapter)]
    theirs = bench.python("mlx_lm", "generate", *folders, *ask, "--temp", "0").split("=" * 10)[1]
    ours = bench.python("macft", "chat", tuned.name, *ask)
    assert ours.strip()
    assert ours.strip() == theirs.strip()
    assert bench.python("macft", "chat", tuned.name, "--base", *ask).strip() not in {"", ours.strip()}


@pytest.mark.real
def test_stock_mlx_lm_generates_the_same_from_the_fused_folder(bench: Bench, tuned: Run) -> None:
    ask = ["--prompt", QUESTION, "--max-tokens", "8", "--temp", "0"]
    done = bench.fuse(tuned)
    assert done["kept"] > 0.9999
    assert done["kl_base"] > 0.01
    folders = ["--model", str(bench.model), "--adapter-path", str(tuned.adapter)]
    with_adapter = bench.python("mlx_lm", "generate", *folders, *ask).split("=" * 10)[1]
    fused = bench.python("mlx_lm", "generate", "--model", done["path"], *ask).split("=" * 10)[1]
    assert fused.strip() == with_adapter.strip() != ""


def in_float64(folder: Path, adapter: Path | None = None) -> np.ndarray:
    """Logits without float32's rounding, which is another on each machine."""
    tokens = mx.array([load_tokenizer(folder).encode(QUESTION)])
    model, _ = load_model(folder)
    if adapter:
        load_adapter(model, adapter)
    with mx.stream(mx.cpu):
        model.update(tree_map(lambda tensor: tensor.astype(mx.float64), model.parameters()))
        return np.array(model.eval()(tokens)[0])


@pytest.mark.real
@pytest.mark.long
def test_fusing_keeps_what_training_changed_or_is_refused(bench: Bench, tuned: Run) -> None:
    exact, eight = bench.fuse(tuned, "--dtype", "float32"), bench.fuse(tuned, "--quantize", "8")
    wanted = in_float64(bench.model, tuned.adapter)
    assert np.abs(in_float64(Path(exact["path"])) - wanted).max() <= 2e-6 * np.abs(wanted).max()
    assert exact["kl"] <= 1e-6
    assert eight["kl"] <= 1e-3
    assert eight["kl"] <= 0.05 * eight["kl_base"]
    out = bench.folder / "four"
    said = bench.python("macft", "fuse", tuned.name, "--out", str(out), "--quantize", "4", status=1)
    assert "of what training changed" in said
    assert not out.exists()
    four = bench.fuse(tuned, "--quantize", "4", "--force")
    assert four["kept"] < 0.95
    print({name: (result["kl"], result["kept"]) for name, result in (("8 bits", eight), ("4 bits", four))})


@pytest.mark.real
@pytest.mark.long
def test_a_base_that_training_quantized_is_fused_as_training_saw_it(bench: Bench) -> None:
    run = bench.train("recipes/sft-qlora-addresses.toml", "steps=4", "batch_size=4", "evaluate.test_rows=0")
    fused = bench.fuse(run, "--dequantize")
    assert fused["kl"] <= 1e-6
    assert fused["kl_base"] > 0.01


@pytest.mark.real
def test_its_qlora_twin_trains_on_four_bits(bench: Bench) -> None:
    settings = ["steps=2", "batch_size=1", "evaluate.test_rows=0", "checkpoint.every=2"]
    run = bench.train("recipes/sft-qlora-addresses.toml", *settings)
    events, _ = run.read()
    assert [event.quantize for event in events if isinstance(event, RunStarted)] == [4]
    before, after = (event.metrics["eval_loss"] for event in events if isinstance(event, Evaluated))
    assert after < before
    model, config = load_model(bench.model, quantize=4)
    assert config["quantization"]["bits"] == 4
    load_adapter(model, run.adapter)
    assert all(value.dtype == mx.float32 for value in adapter_parameters(model).values())


@pytest.mark.parametrize("recipe", list_gallery(), ids=lambda recipe: recipe.name)
def test_a_recipe_of_the_gallery_says_what_it_needs(recipe) -> None:
    parsed = load_recipe(recipe.path)
    assert all(Path(path).is_file() for path in [*parsed.data.train, *parsed.data.valid, *parsed.data.test])
    purpose, *head = read_head(recipe.path).splitlines()
    assert purpose.endswith(".")
    text = "\n".join(head)
    for said in ("Memory: ", "Time: ", "Run: "):
        assert said in text
    assert f"macft pull {parsed.model} && macft train {recipe.name}" in text


QUESTIONS = (
    ("Say it in French: good night", "And in English?", "Thank you."),
    ("What is the capital of France?", "And of Spain?", "Which is larger?"),
    ("Name three colours.", "Which is the darkest?", "Why?"),
    ("Write one sentence about rain.", "Make it shorter.", "Now in capitals."),
    ("What is 2 + 2?", "And 3 more?", "And minus 1?"),
    ("Say it in French: please", "Again.", "And thank you?"),
    ("Who wrote Hamlet?", "When?", "Name another play."),
    ("List two fruits.", "Which is sweeter?", "One more."),
    ("Translate to JSON: Ann is 5.", "Add a city.", "Remove the age."),
    ("Give me a word that rhymes with cat.", "Another.", "A sentence with both."),
    ("Is the sea salty?", "Why?", "In one word."),
    ("Say hello.", "Louder.", "Goodbye."),
)


def voices_of(bench: Bench, run: Run, *, base: str = "Base") -> Voices:
    sources = find_sources([str(run.path)], home=bench.model.parents[1], runs=bench.folder / "runs")
    assert [source.name for source in sources] == [base, run.name]
    return open_voices(sources, read_machine())


@pytest.mark.real
def test_two_voices_in_one_batch_say_what_stock_mlx_lm_says(bench: Bench, tuned: Run) -> None:
    stock = [load_stock(bench.model, adapter) for adapter in (None, tuned.adapter)]
    questions = [asked[:2] for asked in QUESTIONS[:2]]
    compared, differences = compare_with_stock(voices_of(bench, tuned), stock, bench.model, questions, tokens=8)
    assert compared > 20
    assert [one for one in differences if one.gap > TIE] == []


@pytest.mark.real
@pytest.mark.long
@pytest.mark.parametrize("recipe", ["quickstart", "sft-qlora-addresses"])
def test_twelve_conversations_of_three_turns_are_stock_mlx_lms(bench: Bench, recipe: str) -> None:
    """In float32, and on the 4-bit base that QLoRA learned on."""
    run = bench.train(f"recipes/{recipe}.toml", "steps=6", "batch_size=4", "evaluate.test_rows=0")
    folder = bench.model / "quantized" if "qlora" in recipe else bench.model
    stock = [load_stock(folder, adapter) for adapter in (None, run.adapter)]
    compared, differences = compare_with_stock(voices_of(bench, run), stock, bench.model, QUESTIONS, tokens=20)
    print(f"{recipe}: {compared} tokens, {differences}")
    assert compared > 500
    assert [one for one in differences if one.gap > TIE] == []

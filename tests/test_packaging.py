"""What is installed is whole, and adapters that mlx-lm made are at home here."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm.utils
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tuner.utils import linear_to_lora_layers

from macft.cli.main import run
from macft.events import Evaluated
from macft.format import clean
from macft.models.adapters import load_adapter
from macft.models.load import load_model, load_tokenizer
from macft.run import Run
from tests.conftest import REPOSITORY
from tests.golden import load_case

LLAMA = load_case("llama").folder


# The wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_holds_the_program_the_gallery_and_its_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {f"macft/{path.relative_to(REPOSITORY / 'macft')}" for path in (REPOSITORY / "macft").rglob("*.py")}
    gallery = {
        f"macft/{path.relative_to(REPOSITORY)}" for path in (REPOSITORY / "recipes").rglob("*") if path.is_file()
    }
    assert {"macft/recipes/quickstart.toml", "macft/recipes/data/addresses/LICENSE.md"} <= gallery
    packed = {name for name in names if name.startswith("macft/")}
    assert packed == sources | gallery | {"macft/py.typed"}
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"macft", "tui"}
    studio = {
        f"tui/{path.relative_to(REPOSITORY / 'tui')}"
        for path in (REPOSITORY / "tui").rglob("*.*")
        if path.suffix in {".py", ".tcss"}
    }
    assert {name for name in names if name.startswith("tui/")} == studio
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_an_installed_macft_finds_its_gallery_from_anywhere(wheel: Path, tmp_path: Path) -> None:
    # What pip does with a pure wheel, without a network and without pip: unpack it in front of everything else.
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)

    def macft(*arguments: str) -> str:
        program = "from macft.__main__ import main; main()"
        environment = {**os.environ, "PYTHONPATH": str(site), "MACFT_HOME": str(tmp_path), "MACFT_RUNS": str(tmp_path)}
        command = [sys.executable, "-c", program, *arguments]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    listed = json.loads(macft("recipes", "list", "--json"))["recipes"]
    assert {Path(recipe["path"]).parent for recipe in listed} == {site / "macft" / "recipes"}
    assert "quickstart" in {recipe["name"] for recipe in listed}
    copied = macft("recipes", "copy", "quickstart", "mine").strip()
    assert copied == "mine/quickstart.toml"
    assert (tmp_path / "mine" / "data" / "addresses" / "train.jsonl").is_file()


# Adapters made by mlx-lm


ANSWER = "yes."
ROWS = [
    {"messages": [{"role": "user", "content": f"q{n}?"}, {"role": "assistant", "content": ANSWER}]} for n in range(8)
]


class Stock:
    """A model folder, and an adapter for it that mlx-lm's own functions made and wrote down."""

    def __init__(self, folder: Path) -> None:
        self.model, self.adapter = folder / "model", folder / "adapter"
        shutil.copytree(LLAMA, self.model)
        shutil.copyfile(LLAMA / "config_v4.json", self.model / "config.json")  # the dialect that mlx-lm reads
        self.adapter.mkdir()
        mx.random.seed(0)
        self.taught, _ = mlx_lm.utils.load_model(self.model)
        self.taught.freeze()
        parameters = {"rank": 4, "scale": 5.0, "dropout": 0.0}
        linear_to_lora_layers(self.taught, 2, parameters)
        weights = dict(tree_flatten(self.taught.trainable_parameters()))
        noisy = {name: value + 0.1 * mx.random.normal(value.shape) for name, value in weights.items()}
        self.taught.load_weights(list(noisy.items()), strict=False)
        self.taught.eval()
        self.tokenizer = load_tokenizer(self.model)
        config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": parameters, "model": "elsewhere/model"}
        mx.save_safetensors(str(self.adapter / "adapters.safetensors"), noisy)
        mlx_lm.utils.save_config(config, self.adapter / "adapter_config.json")

    def prompt(self, row: dict[str, Any]) -> list[int]:
        return self.tokenizer.apply_chat_template(row["messages"][:1], add_generation_prompt=True, return_dict=False)

    def loss(self) -> float:
        """Mean loss over all rows' answers and the token that ends each, written out."""
        answer = self.tokenizer.encode(f"{ANSWER}<|im_end|>", add_special_tokens=False)
        losses = []
        for row in ROWS:
            ids = [*self.prompt(row), *answer]
            logits = self.taught(mx.array([ids]))[0]
            logprobs = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
            losses += [-logprobs[place - 1, ids[place]].item() for place in range(len(ids) - len(answer), len(ids))]
        return sum(losses) / len(losses)


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Stock:
    return Stock(tmp_path_factory.mktemp("stock"))


def test_an_adapter_of_mlx_lm_computes_the_same_here(stock: Stock) -> None:
    tokens = mx.array([[5, 80, 120, 7, 99, 3]])
    ours, _ = load_model(stock.model)
    base = ours(tokens)
    load_adapter(ours, stock.adapter)
    assert mx.abs(ours(tokens) - stock.taught(tokens)).max() < 1e-5  # macft adds the update in one product
    assert mx.abs(ours(tokens) - base).max().item() > 1e-2


def test_an_adapter_of_mlx_lm_can_be_talked_to(
    stock: Stock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MACFT_RUNS", str(tmp_path))
    ask = ["chat", str(stock.adapter), "--prompt", "q1?", "--max-tokens", "8"]
    assert run([*ask, "--model", str(stock.model)]) == 0
    theirs = mlx_lm.generate(stock.taught, stock.tokenizer, stock.prompt(ROWS[1]), max_tokens=8)
    tuned = capsys.readouterr().out
    assert tuned.strip() == clean(theirs).strip()
    assert run([*ask, "--model", str(stock.model), "--base"]) == 0
    assert capsys.readouterr().out not in {"\n", tuned}
    assert run(ask) == 3
    assert "--model" in capsys.readouterr().err


def test_an_adapter_of_mlx_lm_can_be_trained_on(stock: Stock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MACFT_RUNS", str(tmp_path))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(map(json.dumps, ROWS)))
    settings = [
        *(f'model="{stock.model}"', f'start_from="{stock.adapter}"', "lora.rank=4", "lora.alpha=20"),
        *(
            f'data.train="{rows}"',
            f'data.valid="{rows}"',
            "data.leaks=allow",
            "evaluate.every=2",
            "evaluate.samples=0",
            "steps=2",
        ),
    ]
    (tmp_path / "empty.toml").touch()
    words = [word for setting in settings for word in ("--set", setting)]
    assert run(["train", str(tmp_path / "empty.toml"), "--out", str(tmp_path / "run"), "--quiet", *words]) == 0
    result = Run.open(tmp_path / "run")
    first, last = (event.metrics["eval_loss"] for event in result.read()[0] if isinstance(event, Evaluated))
    assert first == pytest.approx(stock.loss(), rel=1e-5)
    assert last < first
    config = json.loads((result.adapter / "adapter_config.json").read_text())
    assert (config["num_layers"], config["lora_parameters"]["scale"]) == (2, 5.0)

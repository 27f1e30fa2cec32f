"""A fused model computes what the adapter on its base computes, in stock mlx-lm too; nothing is erased in silence."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import mlx_lm.utils
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors import safe_open

from macft.errors import ModelError, RecipeError, RunError
from macft.measure.kept import divergence
from macft.models.adapters import load_adapter
from macft.models.fuse import prepare_fuse, spread_codes, write_fused
from macft.models.load import load_model
from macft.models.shards import new_folder, write_shards
from tests.benchmarks.plan_peaks import Point, make_folder
from tests.conftest import REPOSITORY
from tests.golden import ADAPTED_NAMES, HERE, load_case
from tests.models.adapters import TOKENS, write_golden_adapter


def fused(base: Path, adapter: Path | None, out: Path, shard_bytes: int = 10**9, **wishes: object) -> Path:
    out.mkdir()
    write_fused(prepare_fuse(base, adapter, **wishes), out, shard_bytes=shard_bytes)
    return out


def logits(folder: Path, adapter: Path | None = None, **how: object) -> np.ndarray:
    model, _ = load_model(folder, **how)
    if adapter:
        load_adapter(model, adapter)
    return np.array(model.eval()(TOKENS)[0])


def kl(wanted: np.ndarray, found: np.ndarray) -> float:
    return float(divergence(wanted, found).mean())


def quantized(base: Path, out: Path, bits: int = 4, group_size: int = 32) -> Path:
    """A base that is stored quantized, as mlx_lm.convert writes one."""
    shutil.copytree(base, out, ignore=shutil.ignore_patterns("*.safetensors", "numbers.npz"))
    model, config = load_model(base, quantize=bits, group_size=group_size)
    write_shards(out, dict(tree_flatten(model.parameters())))
    (out / "config.json").write_text(json.dumps(config))
    return out


@pytest.mark.parametrize(("case", "kind"), [(name, "lora") for name in ADAPTED_NAMES] + [("llama", "dora")])
def test_fused_equals_the_adapter_in_stock_mlx_lm(case: str, kind: str, tmp_path: Path) -> None:
    base = load_case(case).folder
    adapter = write_golden_adapter(tmp_path / "adapter", case, kind)
    out = fused(base, adapter, tmp_path / "out")
    model, _ = mlx_lm.utils.load_model(out)
    wanted = logits(base, adapter)
    assert np.abs(np.array(model(TOKENS)[0]) - wanted).max() < 2e-6 * max(1.0, np.abs(wanted).max())
    assert np.abs(logits(base) - wanted).max() > 1e-2


@pytest.mark.parametrize("kind", ["lora", "dora", "rslora"])
def test_fused_has_the_loss_that_peft_computed(kind: str, tmp_path: Path) -> None:
    case = load_case("llama")
    out = fused(case.folder, write_golden_adapter(tmp_path / "adapter", kind=kind), tmp_path / "out")
    model, _ = load_model(out)
    found = model(mx.array(case.ids)).astype(mx.float32)
    logprobs = found - mx.logsumexp(found, axis=-1, keepdims=True)
    said = np.take_along_axis(np.array(logprobs)[:, :-1], case.ids[:, 1:, None], axis=-1)[..., 0]
    mask = case.loss_mask[:, 1:]
    assert abs(-(said * mask).sum() / mask.sum() - case.adapters[kind].loss) < 2e-6


def test_a_folder_of_pefts_is_fused_as_it_is(tmp_path: Path) -> None:
    base, adapter = load_case("llama").folder, HERE / "peft" / "patterns"
    out = fused(base, adapter, tmp_path / "out")
    assert np.abs(logits(out) - logits(base, adapter)).max() < 2e-6 * 10


def test_a_quantized_base_becomes_floats_without_rounding(tmp_path: Path) -> None:
    base = quantized(load_case("llama").folder, tmp_path / "base")
    adapter = write_golden_adapter(tmp_path / "adapter")
    out = fused(base, adapter, tmp_path / "out")
    assert not {"quantization", "quantization_config"} & json.loads((out / "config.json").read_text()).keys()
    assert kl(logits(base, adapter), logits(out)) < 1e-6
    assert kl(logits(base, adapter), logits(base)) > 1e-4


@pytest.mark.parametrize("group_size", [32, 64])
def test_eight_bits_cost_little_and_four_bits_what_they_cost(group_size: int, tmp_path: Path) -> None:
    base = quantized(load_case("llama").folder, tmp_path / "base", group_size=group_size)
    adapter = write_golden_adapter(tmp_path / "adapter", times=0.2)
    wanted = logits(base, adapter)
    effect = kl(wanted, logits(base))
    eight, four = (kl(wanted, logits(fused(base, adapter, tmp_path / f"{bits}", quantize=bits))) for bits in (8, 4))
    assert eight < 1e-3
    assert eight < 0.05 * effect
    assert four > 0.2 * effect


@pytest.mark.parametrize("group_size", [32, 64])
def test_small_changes_of_a_four_bit_base_survive_eight_bits(group_size: int) -> None:
    """MLX's own 8-bit grid holds every weight of a 4-bit base, and rounds what was added to it away."""
    base = mx.random.normal((64, 1024), key=mx.random.key(0))
    base = mx.dequantize(*mx.quantize(base, group_size, 4), group_size, 4)
    step = (base.max() - base.min()) / 255
    change = 0.1 * step * mx.sign(mx.random.normal((1, 1024), key=mx.random.key(1)))

    def left(codes: tuple[mx.array, ...], size: int) -> float:
        found = mx.dequantize(*codes, size, 8) - base
        return float((found * change).sum() / (change * change).sum() / len(base))

    assert left(mx.quantize(base + change, group_size, 8), group_size) < 0.6
    assert 0.9 < left(spread_codes(base + change, mx.float32), 32) < 1.1


def test_layers_without_an_adapter_keep_the_codes_of_a_quantized_base(tmp_path: Path) -> None:
    base = quantized(load_case("llama").folder, tmp_path / "base")
    out = fused(base, HERE / "peft" / "patterns", tmp_path / "out", quantize=4)
    stored, found = (mx.load(str(folder / "model.safetensors")) for folder in (base, out))
    kept = ["model.layers.1.self_attn.v_proj", "model.embed_tokens"]
    assert all(mx.array_equal(stored[f"{name}.weight"], found[f"{name}.weight"]).item() for name in kept)
    adapted = "model.layers.0.self_attn.q_proj.weight"
    assert not mx.array_equal(stored[adapted], found[adapted]).item()
    model, _ = mlx_lm.utils.load_model(out)
    assert model(TOKENS).shape == (1, 10, 256)


def test_spread_codes_are_mlxs_own_form() -> None:
    weight = mx.random.normal((8, 96), key=mx.random.key(3))
    for dtype, worst in ((mx.float32, 0.51), (mx.bfloat16, 0.6)):
        codes, scales, biases = spread_codes(weight, dtype)
        back = mx.dequantize(codes, scales.astype(mx.float32), biases.astype(mx.float32), group_size=32, bits=8)
        steps = mx.abs(back - weight).reshape(8, 3, 32) / scales[..., None].astype(mx.float32)
        assert steps.max().item() < worst
    assert mx.array_equal(codes, spread_codes(weight, mx.bfloat16)[0]).item()


def test_fewer_bits_than_the_base_has_are_refused(tmp_path: Path) -> None:
    base = quantized(load_case("llama").folder, tmp_path / "base", bits=8)
    with pytest.raises(RecipeError, match="the base has 8 bits"):
        prepare_fuse(base, write_golden_adapter(tmp_path / "adapter"), quantize=4)


def test_what_training_quantized_is_fused_into_the_original_or_into_what_training_saw(tmp_path: Path) -> None:
    base = load_case("llama").folder
    adapter = write_golden_adapter(tmp_path / "adapter", quantize=4, quantize_group_size=32)
    wanted = logits(base, adapter, quantize=4, group_size=32)
    original = prepare_fuse(base, adapter)
    assert original.source == "the original weights"
    assert original.in_transformers
    as_trained = fused(base, adapter, tmp_path / "as_trained", dequantize=True)
    assert kl(wanted, logits(as_trained)) < 1e-6
    assert kl(wanted, logits(fused(base, adapter, tmp_path / "original"))) > 1e-4
    assert "quantization" not in json.loads((as_trained / "config.json").read_text())


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    adapter = write_golden_adapter(tmp_path / "adapter", base_fingerprint="0" * 64)
    with pytest.raises(ModelError, match="trained on another base"):
        prepare_fuse(load_case("llama").folder, adapter)


def test_the_folder_is_complete_without_code_or_paths(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(load_case("llama").folder, base)
    (base / "modeling_llama.py").write_text("raise SystemExit")
    (base / "tokenizer_code.py").write_text("raise SystemExit")
    (base / "LICENSE").write_text("Take it.")
    config = json.loads((base / "config.json").read_text())
    settings = json.loads((base / "tokenizer_config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"_name_or_path": str(base), "auto_map": {"a": "b"}}))
    (base / "tokenizer_config.json").write_text(json.dumps(settings | {"name_or_path": str(base)}))
    out = fused(base, write_golden_adapter(tmp_path / "adapter"), tmp_path / "out", dtype="bfloat16")
    names = {file.name for file in out.iterdir()}
    assert {"LICENSE", "tokenizer.json", "chat_template.jinja", "generation_config.json"} <= names
    assert not [name for name in names if name.endswith(".py")]
    assert all(str(tmp_path).encode() not in file.read_bytes() for file in out.iterdir())
    told = json.loads((out / "config.json").read_text())
    assert told["rope_theta"] == told["rope_parameters"]["rope_theta"] == 20_000.0
    assert told["dtype"] == told["torch_dtype"] == "bfloat16"
    template = json.loads((out / "tokenizer_config.json").read_text())["chat_template"]
    assert template == (out / "chat_template.jinja").read_text()


def test_shards_are_small_and_their_index_is_whole(tmp_path: Path) -> None:
    case = load_case("qwen2")
    out = fused(case.folder, None, tmp_path / "out", shard_bytes=20_000)
    files = sorted(file.name for file in out.glob("*.safetensors"))
    assert len(files) > 4
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    placed = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    stored = mx.load(str(case.folder / "model.safetensors"))
    assert placed.keys() == stored.keys()
    for name, file in placed.items():
        with safe_open(out / file, "numpy") as opened:
            assert np.array_equal(opened.get_tensor(name), np.array(stored[name]))


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), new_folder(tmp_path / "out") as aside:
        shutil.copyfile(tmp_path / "nothing", aside / "half")
    assert not list(tmp_path.iterdir())
    with new_folder(tmp_path / "out") as aside:
        (aside / "whole").write_text("whole")
        assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "whole"]
    with pytest.raises(RunError, match="is there already"), new_folder(tmp_path / "out"):
        pass


PEAKS = """
import sys, macft.models.load
import mlx.core as mx
from pathlib import Path
from macft.models.adapters import adapter_parameters, attach, load_adapter, write_adapter_files
from macft.models.fuse import prepare_fuse, write_fused
from macft.models.layerwise import run_once
from macft.models.load import load_lazily
from macft.recipe import LoraTable
base, folder = Path(sys.argv[1]), Path(sys.argv[2])
model, _ = load_lazily(base, compute_dtype="stored")
config = attach(model, LoraTable(rank=2), kind="lora", seed=0)
(folder / "adapter").mkdir()
write_adapter_files(folder / "adapter", adapter_parameters(model), config, {})
del model
(folder / "out").mkdir()
mx.reset_peak_memory()
write_fused(prepare_fuse(base, folder / "adapter"), folder / "out")
print(mx.get_peak_memory())
mx.reset_peak_memory()
model, _ = load_lazily(folder / "out", compute_dtype="stored")
assert run_once(model, mx.array([[1, 2, 3, 4]])).shape == (1, 4, 512)
print(mx.get_peak_memory())
"""


def test_fusing_and_comparing_hold_a_layer_not_a_model(tmp_path: Path) -> None:
    """A model of 60 layers in a process of its own: MLX's own count of its peak."""
    point = Point(layers=60, width=256, inner=1024, heads=4, kv_heads=2, head_dim=64, vocabulary=512)
    base = make_folder(point, tmp_path)
    size = sum(file.stat().st_size for file in base.glob("*.safetensors"))
    code = [sys.executable, "-c", PEAKS, str(base), str(tmp_path)]
    done = subprocess.run(code, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    fusing, comparing = map(int, done.stdout.split())
    assert fusing < size / 8
    assert comparing < size / 8

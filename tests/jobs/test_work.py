"""Fusing and exporting from a run to what another tool reads."""

import json
from pathlib import Path

import mlx.core as mx
import mlx_lm.utils
import numpy as np
import pytest
from gguf import GGUFReader

from macft.errors import DoesNotFit, MacftError, ModelError, RecipeError, RunError, Stopped
from macft.events import JobPlanned, PhaseProgress, RunStarted
from macft.models.adapters import load_adapter
from macft.models.load import load_model
from macft.run import find_run, list_runs
from tests.golden import HERE
from tests.jobs.conftest import SECRET, Desk, Willing, write_result
from tests.models.numpy_llama import forward, read_gguf

TOKENS = mx.array([[5, 80, 120, 7, 33, 101, 66, 2]])
TARGETS = ["mlx", "peft", "gguf-adapter", "gguf", "ollama"]


def logits(folder: Path, adapter: Path | None = None) -> np.ndarray:
    model, _ = load_model(folder)
    if adapter:
        load_adapter(model, adapter)
    return np.array(model.eval()(TOKENS)[0])


def test_a_fused_run_loads_in_stock_mlx_lm_and_kept_all(desk: Desk, tiny_model: Path) -> None:
    result = desk.result("fuse")
    theirs, _ = mlx_lm.utils.load_model(Path(result.path))
    expected = logits(tiny_model, desk.run.adapter)
    assert np.abs(np.array(theirs(TOKENS)[0]) - expected).max() < 2e-6 * np.abs(expected).max()
    assert result.metrics["kept"] == 1.0
    assert result.metrics["agreement"] == 1.0
    assert result.metrics["kl_base"] > 0.01
    assert result.metrics["tokens"] > 50
    assert result.size_bytes == sum(file.stat().st_size for file in Path(result.path).iterdir())


def test_it_says_what_it_plans_and_how_far_it_is(desk: Desk) -> None:
    events, folder = desk.do("fuse")
    started, planned = events[:2]
    assert isinstance(started, RunStarted)
    assert (started.kind, started.model) == ("fuse", "tiny")
    assert isinstance(planned, JobPlanned)
    assert (planned.dtype, planned.source) == ("float32", "the original weights")
    assert planned.size_bytes > 300_000
    phases = {event.name for event in events if isinstance(event, PhaseProgress)}
    assert phases == {"tokenize", "write", "compare"}
    assert SECRET not in (folder.path / "events.jsonl").read_text()


def test_what_lost_too_much_is_taken_away_again(desk: Desk) -> None:
    with pytest.raises(MacftError, match=r"this kept -?[\d.]+% of what training changed") as refused:
        desk.do("fuse", quantize=4)
    assert "--quantize 8" in refused.value.fix
    assert not desk.out.exists() or not list(desk.out.iterdir())
    result = desk.result("fuse", quantize=4, force=True)
    assert result.metrics["kept"] < 0.95
    assert Path(result.path).is_dir()


def test_nothing_is_written_over_and_nothing_left_behind(desk: Desk) -> None:
    desk.result("fuse")
    before = sorted(desk.out.rglob("*"))
    with pytest.raises(RunError, match="is there already"):
        desk.do("fuse")
    assert sorted(desk.out.rglob("*")) == before

    class Impatient(Willing):
        def wants_stop(self) -> bool:
            return True

    with pytest.raises(Stopped):
        desk.do("fuse", out=str(desk.out / "other"), requests=Impatient())
    assert sorted(desk.out.rglob("*")) == before


@pytest.mark.parametrize("to", TARGETS)
def test_an_export_holds_no_row_and_no_path(to: str, desk: Desk, tmp_path: Path) -> None:
    result = desk.result("export", to=to, gguf_type="q8_0")
    files = [file for file in Path(result.path).rglob("*") if file.is_file()]
    assert any(file.name == "README.md" for file in files)
    for file in files:
        content = file.read_bytes()
        for private in (SECRET, str(tmp_path), "private-rows", str(Path.home()) + "/"):
            assert private.encode() not in content, (file, private)


def test_the_card_says_what_it_is_made_of(desk: Desk) -> None:
    card = (Path(desk.result("export", to="mlx").path) / "README.md").read_text()
    assert card.startswith("---\nlicense: apache-2.0\nlibrary_name: mlx\n")
    for line in (
        "| base model | tiny |",
        "| training rows | 8 |",
        "| tokens trained on | 100 |",
        "| learning rate | 0.0002 |",
        "| rank | 8 |",
        "| loss on held-out rows, nats a token | 3.000 before, 1.500 after |",
        "| kept of what training changed | 100.00%",
    ):
        assert line in card


def test_a_gguf_file_computes_what_the_tuned_model_computes(desk: Desk, tiny_model: Path) -> None:
    out = Path(desk.result("export", to="gguf", gguf_type="f32").path)
    found = forward(read_gguf(out / "mine-f32.gguf"), TOKENS[0].tolist(), heads=4, kv_heads=2, theta=10_000.0)
    expected = logits(tiny_model, desk.run.adapter)
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
    assert not [path for path in out.parent.iterdir() if path.name.startswith(".macft-")]


def test_ollama_gets_a_fused_model_or_the_adapter_of_a_base_it_has(desk: Desk) -> None:
    fused = Path(desk.result("export", to="ollama").path)
    assert (fused / "Modelfile").read_text().startswith("FROM ./mine-f16.gguf\nTEMPLATE ")
    adapter = Path(desk.result("export", to="ollama", ollama_base="tiny:1b", out=str(desk.out / "a")).path)
    assert (adapter / "Modelfile").read_text().startswith("FROM tiny:1b\nADAPTER ./mine-lora.gguf\nTEMPLATE ")
    named = {tensor.name for tensor in GGUFReader(adapter / "mine-lora.gguf").tensors}
    assert "blk.2.ffn_down.weight.lora_b" in named


def test_lm_studio_sees_the_model_under_its_name(desk: Desk, tmp_path: Path) -> None:
    result = desk.result("export", to="lmstudio", out="", lmstudio=str(tmp_path / "models"))
    assert Path(result.path) == tmp_path / "models" / "macft" / "mine"
    mlx_lm.utils.load_model(Path(result.path))
    assert "LM Studio loads no adapters" in result.notes[1]


def test_a_peft_folder_is_fused_and_exported_without_a_run(desk: Desk) -> None:
    name, rows = str(HERE / "peft" / "lora"), [str(desk.run.path.parents[1] / "private-rows.jsonl")]
    llama = str(HERE / "llama")
    desk = desk._replace(home=desk.home)
    (desk.home / "models" / "llama").symlink_to(llama)
    result = desk.result("fuse", name, data=rows)
    expected = logits(Path(llama), Path(name))
    assert np.abs(logits(Path(result.path)) - expected).max() < 2e-6 * np.abs(expected).max()
    with pytest.raises(MacftError, match="no held-out rows to compare on") as refused:
        desk.do("fuse", name, out=str(desk.out / "second"))
    assert "--data FILES" in refused.value.fix
    assert not desk.result("fuse", name, out=str(desk.out / "third"), force=True).metrics


def test_a_fused_model_is_exported_further(desk: Desk, tiny_model: Path) -> None:
    fused = desk.result("fuse")
    again = desk.result("export", fused.path, to="gguf", gguf_type="f32")
    rows = [str(desk.run.path.parents[1] / "private-rows.jsonl")]
    compared = desk.result("export", fused.path, to="gguf", out=str(desk.out / "q8"), gguf_type="q8_0", data=rows)
    assert (again.metrics, compared.metrics["kept"]) == ({}, 1.0)
    found = read_gguf(Path(again.path) / "fuse-f32.gguf")
    expected = logits(tiny_model, desk.run.adapter)
    computed = forward(found, TOKENS[0].tolist(), heads=4, kv_heads=2, theta=10_000.0)
    assert np.abs(computed - expected).max() < 1e-5 * np.abs(expected).max()
    with pytest.raises(RecipeError, match="a whole model already"):
        desk.do("fuse", fused.path)
    with pytest.raises(RecipeError, match="holds an adapter"):
        desk.do("export", fused.path, to="peft")


def test_a_base_that_training_quantized(desk: Desk, tiny_model: Path) -> None:
    """The original weights differ from what was trained on; --dequantize does not."""
    write_result(desk.run, tiny_model, strength=0.02, quantize=4, quantize_group_size=64)
    with pytest.raises(MacftError, match="this kept") as refused:
        desk.do("fuse")
    assert "--dequantize" in refused.value.fix
    assert desk.result("fuse", dequantize=True).metrics["kept"] > 0.9999


def test_what_llama_cpp_cannot_read_is_refused_before_anything_is_written(desk: Desk, tiny_model: Path) -> None:
    write_result(desk.run, tiny_model, kind="dora")
    with pytest.raises(ModelError, match="reads no dora adapters"):
        desk.do("export", to="gguf-adapter")
    assert not desk.out.exists() or not list(desk.out.iterdir())
    assert desk.result("export", to="gguf").metrics["kept"] > 0.99


def test_a_full_disk_is_seen_before_writing(desk: Desk) -> None:
    with pytest.raises(DoesNotFit, match="of disk"):
        desk.do("fuse", free=1000)
    assert not desk.out.exists()


def test_a_job_is_listed_and_is_not_the_latest_training(desk: Desk) -> None:
    _, folder = desk.do("fuse")
    assert folder.is_job
    assert {run.name for run in list_runs(desk.runs)} == {"mine", folder.name}
    assert find_run("latest", desk.runs).name == "mine"
    assert find_run(folder.name, desk.runs).path == folder.path


def test_the_result_remembers_its_base(desk: Desk) -> None:
    told = json.loads((Path(desk.result("fuse").path) / "macft.json").read_text())
    assert told["base_model"] == "tiny"
    assert len(told["base_fingerprint"]) == 64

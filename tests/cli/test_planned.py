"""`macft plan` as people and scripts read it."""

import json
from pathlib import Path

import pytest

from macft.cli.main import run
from macft.cli.planned import BAR_CELLS, plan_lines
from macft.machine import GIB
from macft.plan import Plan, Remedy, Verdict
from tests.golden import load_case

CONFIG = {
    **{"model_type": "qwen3", "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36},
    **{"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936},
    **{"max_position_embeddings": 40960, "tie_word_embeddings": False},
}
PARTS = {"weights": 4 * GIB, "adapter": GIB, "activations": 2 * GIB, "head": GIB, "cache": 0}


def plan_of(**changes: object) -> Plan:
    values = {
        **{"parts": PARTS, "peak_bytes": 8 * GIB, "available_bytes": 12 * GIB, "verdict": Verdict.FITS},
        **{"micro_batch_tokens": 1024, "recompute": "none", "seconds": 2460.0, "is_estimate": True},
        **{"recompute_time": 1.0, "adapter_dtype": "model", "is_traced": False},
        **{"disk_bytes": GIB // 2, "remedies": ()},
    }
    return Plan(**values | changes)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MACFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(CONFIG))


@pytest.fixture
def macft(capsys):
    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(["plan", "quickstart", "--model", "./model", *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_a_plan_that_fits_is_a_bar_and_its_parts() -> None:
    assert plan_lines(plan_of()) == [
        "████████████████▓▓▓▓▒▒▒▒▒▒▒▒░░░░────────────────",
        "██ weights                  4.00 GB",
        "▓▓ adapter and optimizer    1.00 GB",
        "▒▒ activations              2.00 GB",
        "░░ logits                   1.00 GB",
        "   peak                     8.00 GB of 12.0 GB  ✔ fits",
        "time  ~ 41 min (estimate)",
        "disk  0.50 GB for the result and checkpoints",
        "pass  1,024 tokens at once, nothing computed again",
    ]


def test_what_is_computed_again_has_a_price() -> None:
    lines = plan_lines(plan_of(recompute="mlp", recompute_time=1.234))
    assert lines[-1] == "pass  1,024 tokens at once, the MLP and norms computed again (about 23% more time)"


def test_a_plan_that_does_not_fit_marks_the_limit_and_lists_what_needs_less() -> None:
    way = Remedy("quantize", 4, "quantize the base to 4 bits", 3 * GIB, "somewhat less accurate", fits=True)
    less = Remedy("lora.rank", 4, "halve the rank", GIB // 10, "learns less", fits=False)
    made = plan_of(verdict=Verdict.DOES_NOT_FIT, available_bytes=6 * GIB, remedies=(less, way), seconds=None)
    lines = plan_lines(made, "M1 8GB\x1b[31m")
    assert lines[0].index("▲") == BAR_CELLS * 6 // 8
    assert "of 6.0 GB on M1 8GB␛[31m  ✘ does not fit" in lines[5]
    assert lines[6] == "time  unknown"
    assert lines[-2:] == [
        "  --set lora.rank=4                −0.10 GB  halve the rank: learns less",
        "✔ --set quantize=4                 −3.00 GB  quantize the base to 4 bits: somewhat less accurate",
    ]


def test_every_line_fits_a_narrow_terminal(macft) -> None:
    assert max(map(len, macft("--for", "M2 Air 16GB")[1].splitlines())) <= 100


def test_one_can_ask_before_downloading_and_for_another_mac(macft) -> None:
    code, out, err = macft("--for", "M2 Air 16GB")
    assert (code, err) == (4, "")
    assert "8.0 GB on M2 Air 16GB  ✘ does not fit" in out
    assert macft("--for", "M4 Max 128GB")[0] == 0


def test_fitting_says_what_it_changed(macft) -> None:
    code, out, err = macft("--for", "M2 Air 16GB", "--fit")
    assert code == 0
    assert "✔ fits" in out
    assert err == "changed to fit: --set quantize=4\n"
    values = json.loads(macft("--for", "M2 Air 16GB", "--fit", "--json")[1])
    assert (values["schema"], values["changes"], values["machine"]) == (1, {"quantize": 4}, "M2 Air 16GB")
    assert macft("--for", "M2 Air 16GB", "--set", "quantize=4")[0] == 0


def test_json_holds_the_whole_plan(macft) -> None:
    code, out, _ = macft("--for", "M2 Air 16GB", "--json")
    made = json.loads(out)["plan"]
    assert (code, made["verdict"]) == (4, "does not fit")
    assert made["peak_bytes"] == sum(made["parts"].values())
    assert (made["recompute"], made["is_traced"], made["adapter_dtype"]) == ("layer", False, "model")
    assert made["recompute_time"] > 1.2
    assert {"key", "value", "text", "saves_bytes", "price", "fits"} == set(made["remedies"][0])


def test_this_machine_is_timed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["plan", "quickstart", "--model", str(load_case("llama").folder)]
    assert run(command) == 0
    assert "time  ~ " in capsys.readouterr().out
    run([*command, "--json"])
    assert json.loads(capsys.readouterr().out)["plan"]["is_traced"]
    assert (tmp_path / "home" / "calibration.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--for", "M2 Air 12GB"], 2, "The nearest is 'M2 Air 8GB'."),
        (["--for", "ThinkPad"], 2, "is no Mac that macft knows"),
        (["--set", "model=some/model"], 6, "macft pull some/model --config-only"),
        (["--data", "nothing.jsonl"], 3, "no such file or folder"),
        (["--for", "M1 8GB", "--fit"], 4, "GB may be used"),
    ],
)
def test_what_cannot_be_planned(macft, arguments: list[str], code: int, said: str) -> None:
    exit_code, out, err = macft(*arguments)
    assert (exit_code, out) == (code, "")
    assert said in err

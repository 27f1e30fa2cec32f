import json
import signal
import sys
import zipfile
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest

from macft.doctor import Finding, Probe, bundle, diagnose, frames_of, probe_mlx, redact, without_text
from macft.events import (
    CheckpointSaved,
    Evaluated,
    Event,
    PhaseProgress,
    RunEnded,
    RunStarted,
    Sampled,
    Scored,
    StepDone,
    StepSkipped,
    Warned,
    encode_event,
)
from macft.machine import GIB, MachineFacts
from macft.recipe import dump_recipe, make_recipe
from macft.run import Run

AIR = MachineFacts(
    system="Darwin",
    chip="Apple M2",
    cores=8,
    memory_bytes=16 * GIB,
    working_set_bytes=16 * GIB * 2 // 3,
    on_battery=False,
    battery_percent=80,
    macos_version="15.5",
    rosetta=False,
    python="3.12.4",
)
LINUX = replace(AIR, system="Linux", chip="AMD EPYC", macos_version="", battery_percent=None)
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

# Everything private in the run below; none of it may be found in a bundle, not even in pieces.
ROW = "Zebulon Quartermaine, 14 Vinegar Lane"
ANSWER = "Xylophagous"
TOKEN = "hf_AbCdEfGhIjKlMnOpQrSt"
SECRETS = ("Zebulon", "Vinegar", ANSWER, TOKEN, "AbCdEf", "wilhelmina", "clients", "divorce", "5309", "90210")


def examine(machine: MachineFacts, tmp_path: Path, probe: Probe | None = None, **more) -> dict[str, Finding]:
    findings = diagnose(
        machine,
        models=tmp_path / "models",
        runs=tmp_path / "runs",
        environ=more.pop("environ", OFFLINE),
        probe=lambda: probe or Probe(True, "the GPU", 11 * GIB),
        **more,
    )
    return {finding.what: finding for finding in findings}


def levels(findings: dict[str, Finding], word: str) -> list[str]:
    return [finding.level for what, finding in findings.items() if word in what]


def test_a_good_mac_has_nothing_to_mend(tmp_path):
    findings = examine(AIR, tmp_path)
    assert {finding.level for what, finding in findings.items() if "free where" not in what} == {"ok"}
    assert "16.0 GB memory, of which training may use 10.7 GB" in findings
    assert "MLX works on the GPU; Metal recommends at most 11.0 GB" in findings


@pytest.mark.parametrize(
    ("machine", "word", "level"),
    [
        (replace(AIR, rosetta=True, chip="VirtualApple @ 2.50GHz"), "Rosetta", "bad"),
        (replace(AIR, chip="Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz"), "not Apple silicon", "bad"),
        (replace(AIR, macos_version="13.6.9"), "too old", "bad"),
        (replace(AIR, macos_version=""), "unknown", "warn"),
        (replace(AIR, macos_version="26.1"), "Impacting Interactivity", "warn"),
        (replace(AIR, memory_bytes=4 * GIB), "4.0 GB memory", "warn"),
        (replace(AIR, on_battery=True, battery_percent=31), "on battery, 31%", "warn"),
    ],
)
def test_what_is_wrong_is_said_with_a_way_out(machine, word, level, tmp_path):
    [finding] = [finding for what, finding in examine(machine, tmp_path).items() if word in what]
    assert finding.level == level
    assert finding.fix


def test_linux_wants_openblas(tmp_path):
    assert levels(examine(LINUX, tmp_path, openblas=lambda: None), "OpenBLAS") == ["warn"]
    assert levels(examine(LINUX, tmp_path, openblas=lambda: tmp_path), "OpenBLAS") == ["ok"]
    preloaded = OFFLINE | {"LD_PRELOAD": "libopenblas.so.0"}
    assert "OpenBLAS is preloaded" in examine(LINUX, tmp_path, environ=preloaded, openblas=lambda: None)


def test_an_mlx_that_crashes_is_a_finding(tmp_path):
    killed = probe_mlx([sys.executable, "-c", "import os; os.abort()"])
    assert killed == Probe(False, f"killed by signal {int(signal.SIGABRT)}")
    failed = probe_mlx([sys.executable, "-c", "import macft_is_not_mlx"])
    assert failed.said == "ModuleNotFoundError: No module named 'macft_is_not_mlx'"
    assert levels(examine(AIR, tmp_path, killed), "MLX does not work") == ["bad"]


def test_the_real_mlx_works_in_a_child():
    assert probe_mlx().works


def test_folders_that_cannot_be_used(tmp_path):
    (tmp_path / "runs").write_text("a file where the folder should be")
    assert levels(examine(AIR, tmp_path), "cannot be written") == ["bad"]


def test_going_online_is_a_warning(tmp_path):
    assert levels(examine(AIR, tmp_path, environ={}), "may go online") == ["warn"]


@pytest.fixture
def run_of_secrets(tmp_path) -> Path:
    """A run whose every text is private; returns the folder of runs."""
    recipe = make_recipe(
        {
            "model": "/Users/wilhelmina/clients/divorce-7b",
            "data": {"train": ["clients/divorce.jsonl"], "columns": {"prompt": "Zebulon"}},
            "evaluate": {"prompts": [ROW]},
            "lora": {"rank": 16},
        },
        folder=tmp_path,
    )
    run = Run.create(tmp_path / "runs" / "2026-11-22-sft", dump_recipe(recipe))
    metrics = {"loss": 1.25, "tokens_per_second": 99.0}
    for event in (
        RunStarted(method="sft", adapter="lora", model=recipe.model, versions={"mlx": "0.32.4", "host": f"at {ROW}"}),
        PhaseProgress(name="tokenize", done=3, total=7, note=ROW),
        StepDone(step=1, epoch=0.5, metrics=metrics),
        StepSkipped(step=2, rows=["/Users/wilhelmina/clients/divorce.jsonl:3"], reason=ROW),
        Evaluated(step=2, metrics={"eval_loss": 1.5}, is_best=True),
        Sampled(step=2, index=0, prompt=ROW, text=ANSWER, reference=ROW),
        CheckpointSaved(step=2, name="step-000002"),
        Warned(message=f"row {ROW} is long", fix=ROW),
        Scored(rows=2, base={"exact": 0.0}, tuned={"exact": 0.5}, examples=[{"prompt": ROW, "tuned": ANSWER}]),
        RunEnded(status="failed", step=2, reason=ROW, exit_code=3),
    ):
        run.append(event)
    with (run.path / "events.jsonl").open("a") as file:
        later = {"type": "from_the_future", "ids": [5309, 90210], "text": ROW, ROW: 1, "inner": {"Zebulon": 1}}
        file.write(json.dumps(later) + "\n" + '{"type": "torn", "text": "Zebul')
    (run.path / "plan.json").write_text(json.dumps({"peak_bytes": 123, "model": "/Users/wilhelmina/x", "note": ROW}))
    (run.path / "train.log").write_text(
        "Traceback (most recent call last):\n"
        '  File "/Users/wilhelmina/clients/.venv/lib/python3.12/site-packages/mlx_lm/tuner/lora.py", line 7, in fuse\n'
        f"    raise ValueError('{ROW}')\n"
        '  File "/Users/wilhelmina/divorce.py", line 3, in clients\n'
        f"ValueError: {ROW}\n"
        f"RuntimeError: {TOKEN}\n"
    )
    return tmp_path / "runs"


def read_bundle(path: Path) -> dict[str, str]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name).decode() for name in archive.namelist()}


def test_a_bundle_tells_the_run_without_its_text(run_of_secrets, tmp_path):
    environ = OFFLINE | {
        "HF_TOKEN": TOKEN,
        "MACFT_NOTE": f"Bearer {TOKEN}",
        "MACFT_HOME": str(Path.home() / "models"),
        "MACFT_RUNS": "/Volumes/wilhelmina/runs",
        "AWS_SECRET_ACCESS_KEY": ROW,
        "OPENBLAS_CORETYPE": "Haswell",
    }
    findings = [Finding("ok", f"runs are kept in {Path.home()}/runs"), Finding("warn", "for Wilhelmina_2", "by hand")]
    path = bundle(
        tmp_path / "report.zip", run_of_secrets, machine=AIR, findings=findings, environ=environ, user="wilhelmina"
    )
    files = read_bundle(path)

    everything = "\n".join(files).lower() + "\n".join(files.values()).lower()
    for secret in (*SECRETS, str(Path.home()) + "/"):
        assert secret.lower() not in everything, secret

    assert files["findings.txt"].splitlines() == ["ok   runs are kept in ~/runs", "warn for <user>_2 by hand"]
    told = json.loads(files["environment.json"])
    assert (told["MACFT_HOME"], told["MACFT_RUNS"]) == ("~/models", "/Volumes/<user>/runs")
    assert (told["MACFT_NOTE"], told["OPENBLAS_CORETYPE"]) == ("Bearer <token>", "Haswell")
    assert "AWS_SECRET_ACCESS_KEY" not in told
    assert json.loads(files["machine.json"]) == asdict(AIR)
    assert "mlx-lm" in json.loads(files["versions.json"])

    events = [json.loads(line) for line in files["run/events.jsonl"].splitlines()]
    for event in events:
        event.pop("time", None)
    assert events[0] == {
        "type": "run_started",
        "schema": 1,
        "kind": "train",
        "method": "sft",
        "adapter": "lora",
        "quantize": None,
        "versions": {"mlx": "0.32.4"},
    }
    assert events[1] == {
        "type": "phase",
        "name": "tokenize",
        "done": 3,
        "total": 7,
        "per_second": 0.0,
        "seconds_left": None,
    }
    assert events[2]["metrics"] == {"loss": 1.25, "tokens_per_second": 99.0}
    assert events[5] == {"type": "sample", "step": 2, "index": 0}
    assert events[6]["name"] == "step-000002"
    assert events[8] == {"type": "scores", "rows": 2, "base": {"exact": 0.0}, "tuned": {"exact": 0.5}}
    assert events[9] == {"type": "run_ended", "status": "failed", "step": 2, "exit_code": 3}
    assert events[10:] == [{"type": "from_the_future"}]

    recipe = json.loads(files["run/recipe.json"])
    assert (recipe["method"], recipe["lora"]["rank"], recipe["data"]["too_long"]) == ("sft", 16, "truncate")
    assert "model" not in recipe
    assert json.loads(files["run/plan.json"]) == {"peak_bytes": 123}
    frames = files["run/tracebacks.txt"].split("\n")
    assert frames[:3] == ["site-packages/mlx_lm/tuner/lora.py:7 in fuse", "ValueError", "RuntimeError"]


def test_a_bundle_without_a_run_still_tells_the_machine(tmp_path):
    files = read_bundle(bundle(tmp_path / "report.zip", tmp_path / "none", machine=AIR, findings=[], environ={}))
    assert set(files) == {"findings.txt", "machine.json", "versions.json", "environment.json"}


def test_a_model_is_named_when_its_name_is_public():
    assert without_text({"model": "smollm2-135m"}) == {"model": "smollm2-135m"}
    assert without_text({"model": "mlx-community/Qwen3-0.6B-4bit"}) == {"model": "mlx-community/Qwen3-0.6B-4bit"}
    for private in ("./clients", "/Users/x/clients", "~/clients", "a/b/c", "two words", "line\nbreak"):
        assert without_text({"model": private}) == {}


@pytest.mark.parametrize("kind", Event.__subclasses__(), ids=lambda kind: kind.type)
def test_no_event_of_the_vocabulary_can_carry_a_row_out(kind):
    texts = {"str": ROW, "list[str]": [ROW], "dict[str, str]": {ROW: ROW, "row": ROW}}
    texts |= {"list[dict[str, str]]": [{"prompt": ROW}]}
    values = {item.name: texts.get(type_name(item.type), 1) for item in fields(kind) if item.name != "time"}
    told = without_text(json.loads(encode_event(kind(**values))))
    assert told["type"] == kind.type
    assert "Zebulon" not in json.dumps(told)
    assert {name for name, value in values.items() if value == 1} <= set(told)


def type_name(annotation: object) -> str:
    return annotation.__name__ if annotation is str else str(annotation)


def test_redacting_leaves_words_that_merely_contain_the_name():
    assert redact("ann plans annual /Users/ann/x", home_folder=Path("/Users/ann"), user="ann") == (
        "<user> plans annual ~/x"
    )
    assert redact("/usr/lib", home_folder=Path("/"), user="") == "/usr/lib"


def test_a_log_without_a_traceback_has_no_frames():
    assert frames_of('step 1 of 3\nError: nothing\n  File "x.txt", line 3, in it\n') == ""

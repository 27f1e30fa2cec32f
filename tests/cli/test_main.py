import io
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from macft.cli.main import app, run
from tests.cli import recorded

COMMANDS = [
    ["train"],
    ["plan"],
    ["resume"],
    ["stop"],
    ["attach"],
    ["logs"],
    ["report"],
    ["runs"],
    ["runs", "list"],
    ["runs", "rm"],
    ["data", "check"],
    ["data", "clean"],
    ["data", "split"],
    ["data", "mix"],
    ["data", "replay"],
    ["data", "show"],
    ["recipes"],
    ["recipes", "list"],
    ["recipes", "show"],
    ["recipes", "copy"],
    ["recipes", "keys"],
    ["pull"],
    ["models"],
    ["chat"],
    ["compare"],
    ["eval"],
    ["fuse"],
    ["merge"],
    ["export"],
    ["serve"],
    ["doctor"],
    ["bench"],
]

ROW = '{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "It is four."}]}\n'


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("MACFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MACFT_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("MACFT_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def macft(capsys):
    def call(*arguments):
        code = run(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def finished(tmp_path):
    return recorded.write_run(tmp_path / "runs" / "tuned-1", recorded.done())


# Help and arguments


def test_no_arguments_show_the_help(macft):
    code, out, _ = macft()
    assert code == 0
    assert out == macft("--help")[1]
    for command in ("macft pull smollm2-135m", "macft train quickstart", "macft chat latest"):
        assert f"$ {command}" in out


def test_the_help_names_every_command_and_only_those(macft):
    out = macft("--help")[1]
    shown = {name for name in app if not name.startswith("-")}
    assert shown - {"_run", "_worker", "_rows"} == {command[0] for command in COMMANDS}
    assert all(f"│ {name} " in out for name in shown - {"_run", "_worker", "_rows"})
    assert "_run" not in out


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_its_help(macft, command):
    code, out, err = macft(*command, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"Usage: macft {' '.join(command)}")


def test_the_version(macft):
    assert macft("--version")[1].startswith("macft 0.")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "unknown command 'trian'. Did you mean 'train'?"),
        (["runs", "rmm", "x"], "unknown command 'rmm'. Did you mean 'rm'?"),
        (["data", "chek"], "unknown command 'chek'. Did you mean 'check'?"),
        (["recipes", "sho"], "unknown command 'sho'. Did you mean 'show'?"),
        (["train", "x", "--jsn"], "Unknown option: --jsn. Did you mean --json?"),
        (["train", "x", "y"], "unexpected argument 'y'"),
        (["train"], "RECIPE requires an argument"),
        (["data", "check", "x", "--method", "ppo"], "Choose from"),
        (["data", "show", "x", "--row", "0"], "Must be >= 1"),
        (["logs", "x", "--tail", "many"], "--tail"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_argument_is_one_line_with_a_way_out(macft, arguments, said):
    code, out, err = macft(*arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("macft: ")
    assert said in err
    assert err.endswith("--help` shows how\n")


def test_a_traceback_only_for_debug(macft, monkeypatch):
    assert "Traceback" not in macft("logs", "nope")[2]
    assert "Traceback" in macft("logs", "nope", "--debug")[2]
    monkeypatch.setenv("MACFT_DEBUG", "1")
    assert "Traceback" in macft("logs", "nope")[2]


# Recipes


def test_the_gallery_is_listed_shown_and_copied(macft, tmp_path):
    listed = json.loads(macft("recipes", "--json")[1])
    assert listed["schema"] == 1
    assert "quickstart" in {recipe["name"] for recipe in listed["recipes"]}
    assert macft("recipes", "list")[1] == macft("recipes")[1]
    assert tomllib.loads(macft("recipes", "show", "quickstart")[1])["model"] == "smollm2-135m"
    code, out, _ = macft("recipes", "copy", "quickstart", "mine")
    assert code == 0
    assert Path(out.strip()).resolve() == tmp_path / "mine" / "quickstart.toml"
    assert Path(out.strip()).is_file()


def test_every_key_is_listed(macft):
    keys = json.loads(macft("recipes", "keys", "--json")[1])["keys"]
    rank = next(key for key in keys if key["key"] == "lora.rank")
    assert rank["default"] == "8"
    assert rank["doc"]
    assert "lora.rank = 8" in macft("recipes", "keys", "--method", "pretrain")[1]


def test_a_recipe_can_come_from_stdin(macft, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO('model = "m"\nsteps = 0\n'))
    assert macft("train", "-", "--set", "lora.rnk=4")[::2] == (
        2,
        "steps: input should be greater than or equal to 1 (got 0)\nlora.rnk: unknown key. Did you mean `lora.rank`?\n",
    )


def test_stdin_that_is_no_recipe(macft, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("{"))
    code, _, err = macft("train", "-")
    assert code == 2
    assert err.startswith("macft: stdin: is not TOML")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["quikstart"], 2, "Did you mean 'quickstart'?"),
        (["quickstart"], 6, "macft pull smollm2-135m"),
        (["quickstart", "--model", "./nope"], 3, "/nope is not there"),
        (["quickstart", "--data", "rows.jsonl"], 3, "rows.jsonl"),
        (["quickstart", "--set", "steps"], 2, "--set steps: expected key=value"),
        (["quickstart", "--data", "-"], 2, "Save the rows to a file"),
    ],
)
def test_what_makes_a_run_impossible_is_said_before_it_starts(macft, tmp_path, arguments, code, said):
    exit_code, out, err = macft("train", *arguments)
    assert (exit_code, out) == (code, "")
    assert said in err
    assert not (tmp_path / "runs").exists()


# Runs


def test_no_runs_teach(macft):
    code, out, err = macft("runs")
    assert (code, out) == (0, "")
    assert "macft train quickstart" in err
    assert json.loads(macft("runs", "--json")[1]) == {"schema": 1, "runs": []}


def test_runs_are_listed(macft, finished):
    assert "✔ done  tuned-1" in macft("runs")[1]
    (listed,) = json.loads(macft("runs", "list", "--json")[1])["runs"]
    assert (listed["name"], listed["status"], listed["eval_loss"]) == ("tuned-1", "done", 0.5)


def test_a_run_is_deleted_only_when_that_is_certain(macft, finished):
    code, _, err = macft("runs", "rm", "tuned-1")
    assert code == 2
    assert "--yes" in err
    assert finished.path.is_dir()
    assert macft("runs", "rm", "tuned-1", "--yes")[0] == 0
    assert not finished.path.exists()


def test_logs_are_readable_or_as_they_are(macft, finished):
    lines = macft("logs", "latest")[1].splitlines()
    assert lines[-1].endswith("✔ done at step 20")
    assert sum("  step " in line for line in lines) == 19
    assert macft("logs", "tuned", "--tail", "2")[1].splitlines() == lines[-2:]
    assert macft("logs", "tuned-1", "--json")[1] == (finished.path / "events.jsonl").read_text()


def test_attach_to_a_finished_run_shows_its_result(macft, finished):
    finished.adapter.mkdir()
    code, out, err = macft("attach", "tuned-1")
    assert code == 0
    assert out.splitlines()[0] == str(finished.adapter)
    assert "92.0%" in out
    assert "eval @20" in err
    assert macft("attach", "tuned-1", "--json")[1] == (finished.path / "events.jsonl").read_text()


@pytest.mark.parametrize("command", ["stop", "resume"])
def test_a_finished_run_is_neither_stopped_nor_resumed(macft, finished, command):
    code, _, err = macft(command, "tuned-1")
    assert code == 1
    assert "tuned-1 is" in err


@pytest.mark.parametrize("command", [["logs"], ["attach"], ["stop"], ["resume"], ["runs", "rm"]], ids=" ".join)
def test_a_run_that_is_not_there(macft, command):
    code, out, err = macft(*command, "nope")
    assert (code, out) == (1, "")
    assert "`macft runs` lists the runs" in err


def test_a_crashed_run_exits_with_5(macft, tmp_path):
    recorded.write_run(tmp_path / "runs" / "dead", recorded.training())
    code, _, err = macft("attach", "dead")
    assert code == 5
    assert "macft resume dead" in err


# Models and data


def test_no_models_teach(macft):
    assert "macft pull smollm2-135m" in macft("models")[2]
    assert json.loads(macft("models", "--json")[1]) == {"schema": 1, "models": []}


def test_models_are_listed_with_what_is_wrong(macft, tmp_path):
    (tmp_path / "home" / "models" / "org--broken").mkdir(parents=True)
    (listed,) = json.loads(macft("models", "--json")[1])["models"]
    assert {"name", "path", "parameters", "bits", "layers", "context", "licence", "trainable"} <= set(listed)
    assert (listed["name"], listed["trainable"]) == ("org/broken", False)
    assert "✘ no" in macft("models")[1]
    assert "config.json" in macft("models")[1]


@pytest.mark.parametrize("command", [["check"], ["show", "--row", "1"]], ids=lambda value: value[0])
@pytest.mark.parametrize(("model", "code"), [("./nope", 3), ("nope", 3), ("smollm2-135m", 6), ("org/name", 6)])
def test_tokens_need_a_model_that_is_here(macft, tmp_path, command, model, code):
    (tmp_path / "rows.jsonl").write_text(ROW)
    exit_code, out, err = macft("data", command[0], "rows.jsonl", *command[1:], "--model", model)
    assert (exit_code, out) == (code, "")
    assert "macft: " in err


def test_rows_are_checked_without_a_model(macft, tmp_path):
    (tmp_path / "rows.jsonl").write_text(ROW + ROW + "{}\n")
    code, out, err = macft("data", "check", "rows.jsonl")
    assert code == 3
    assert "▲ 1 row: the same as an earlier row of the file (rows.jsonl:2)" in out
    assert "try prompting first" in out
    assert "rows.jsonl:3: has no column that macft knows" in err
    found = json.loads(macft("data", "check", "rows.jsonl", "--json", "--no-near")[1])
    assert found["schema"] == 1
    assert found["counts"] == {"unreadable": 1, "duplicate": 1}
    assert {finding["where"] for finding in found["findings"]} == {"rows.jsonl:3", "rows.jsonl:2"}
    assert macft("data", "check", "rows.jsonl", "--all")[1].startswith("rows.jsonl:3: unreadable: ")


def test_rows_are_cleaned_into_a_new_file(macft, tmp_path):
    (tmp_path / "rows.jsonl").write_text(ROW + ROW)
    code, out, err = macft("data", "clean", "rows.jsonl", "--out", "clean.jsonl")
    assert (code, out) == (0, "clean.jsonl\n")
    assert "kept 1 rows; left out: 1 duplicate; each is named in clean.removed.jsonl" in err
    assert (tmp_path / "clean.jsonl").read_text() == ROW
    done = json.loads(macft("data", "clean", "rows.jsonl", "--out", "clean.jsonl", "--json")[1])
    assert (done["schema"], done["kept"], done["removed"]) == (1, 1, {"duplicate": 1})
    assert macft("data", "clean", "rows.jsonl", "--out", "rows.jsonl")[0] == 3


@pytest.mark.parametrize(("name", "code"), [("nope", 3), ("smollm2-135m", 6)])
def test_chat_needs_something_to_talk_to(macft, name, code):
    exit_code, out, _ = macft("chat", name, "--prompt", "hi")
    assert (exit_code, out) == (code, "")


def test_doctor_tells_and_bundles(macft, tmp_path):
    code, out, err = macft("doctor", "--json", "--bundle", "bug.zip")
    found = json.loads(out)
    assert found["schema"] == 1
    assert {"level", "what", "fix"} == set(found["findings"][0])
    assert code == any(finding["level"] == "bad" for finding in found["findings"])
    assert "bug.zip" in err
    assert (tmp_path / "bug.zip").is_file()


# The process


def test_a_reader_that_leaves_hears_no_complaint(finished):
    script = "import sys; from macft.cli.main import run; sys.exit(run(['logs', 'tuned-1']))"
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.parametrize("arguments", [["--help"], ["runs"], ["models"], ["train", "nope"]], ids=" ".join)
def test_quick_commands_load_nothing_heavy(arguments):
    script = f"import sys; from macft.cli.main import run; run({arguments}); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stderr.split())
    assert not loaded & {"mlx", "mlx_lm", "transformers", "numpy", "rich.markdown", "rich.progress", "textual"}


def test_completion_is_installed_where_the_shell_looks(macft, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    code, out, _ = macft("--install-completion", "--shell", "fish")
    assert code == 0
    (script,) = tmp_path.rglob("macft.fish")
    assert str(script) in out.replace("\n", "")
    assert "resume" in script.read_text()
    assert "_run" not in script.read_text().replace("_run_", "")

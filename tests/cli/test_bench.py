import json

from macft.cli.main import run
from tests.golden import load_case


def bench(folder, *more):
    chat = [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "Good."}]
    (folder / "rows.jsonl").write_text(f"{json.dumps({'messages': chat})}\n" * 4, encoding="utf-8")
    model = str(load_case("llama").folder)
    settings = ["--set", "batch_size=2", "--set", "max_seq_length=64", "--set", "compute_dtype=float32"]
    return run(["bench", "--model", model, "--data", str(folder / "rows.jsonl"), "--batches", "1", *settings, *more])


def test_bench_prints_one_table(tmp_path, capsys):
    assert bench(tmp_path, "--plain") == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1].split()[:4] == ["rows", "4", "in", "2"]
    assert any(line.startswith("MFU") for line in out)


def test_bench_gives_the_same_as_json(tmp_path, capsys):
    assert bench(tmp_path, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["schema"] == 1
    assert report["counters"]["updates"] == 2
    assert report["times"]["batches"] == 1
    assert report["times"]["peak"]["per_second"] > 0


def test_a_model_that_is_not_here_is_said(capsys):
    assert run(["bench", "--model", "nobody/nothing"]) in {3, 6}
    assert "Traceback" not in capsys.readouterr().err

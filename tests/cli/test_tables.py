import json

import numpy as np
import pytest

from macft.api import RunSummary
from macft.cli import tables
from macft.data.chat_template import Encoded
from macft.data.inspect import RowView
from macft.data.report import DataReport
from macft.events import Evaluated
from macft.run import Run
from macft.state import fold
from tests.cli import recorded


@pytest.fixture
def summary(tmp_path):
    run = recorded.write_run(tmp_path / "tuned-1", recorded.done())
    return RunSummary(run, run.state(), "done")


def test_a_run_as_json(summary):
    assert tables.run_values(summary) == {
        "name": "tuned-1",
        "path": str(summary.run.path),
        "status": "done",
        "step": 20,
        "total_steps": 20,
        "method": "sft",
        "adapter": "lora",
        "model": "smollm2-135m",
        "loss": 1.0,
        "eval_loss": 0.5,
        "eval_margin": None,
        "eval_accuracy": None,
        "best_step": 20,
        "updated": recorded.STARTED + 21,
    }


def test_a_run_without_events_is_listed(tmp_path):
    run = recorded.write_run(tmp_path / "new", [])
    row = RunSummary(run, run.state(), "waiting")
    assert tables.run_values(row)["model"] is None
    assert tables.run_lines([row])[1].split() == ["·", "waiting", "new", "–", "–", "–", "–", "–", "–"]


def test_the_table_of_runs(summary):
    assert tables.run_lines([summary], now=recorded.STARTED + 21 + 7200) == [
        "STATUS  RUN      MODEL         METHOD     STEP   LOSS  BEST EVAL         AGE",
        "✔ done  tuned-1  smollm2-135m  sft lora  20/20  1.000  0.500 @20  2 h 00 min",
    ]


def test_a_preference_run_is_listed_by_margin_and_accuracy(tmp_path):
    run = recorded.write_run(tmp_path / "tone-1", recorded.preferring())
    row = RunSummary(run, run.state(), "done")
    assert tables.run_lines([row], now=recorded.STARTED + 21)[1].endswith("1.000  margin 2.000, accuracy 80% @20  0 s")
    values = tables.run_values(row)
    assert (values["eval_margin"], values["eval_accuracy"]) == (2.0, 0.8)


def test_a_preference_run_ends_with_what_held_out_pairs_say(summary):
    assert tables.held_out_lines(fold(recorded.preferring())) == [
        "held out              start      @20",
        "rewards/accuracies        –    80.0%",
        "rewards/margins       0.000    2.000",
        "logps/chosen        -50.000  -48.000",
        "logps/rejected      -40.000  -60.000",
        "loss                  0.700    0.200",
    ]
    assert tables.held_out_lines(summary.state) == []
    last = recorded.evaluated_pairs(20)
    worse = Evaluated(step=20, metrics=last.metrics, is_best=False)
    assert tables.held_out_lines(fold([*recorded.preferring()[:5], worse]))[0].split() == [
        "held",
        "out",
        "start",
        "@20",
    ]
    assert tables.held_out_lines(fold(recorded.preferring()[:5])) == []


def test_scores_stand_side_by_side():
    assert tables.score_lines(recorded.scored()) == [
        "50 test rows   Base  tuned",
        "exact match    0.0%  92.0%",
        "f1            12.5%  98.0%",
    ]


def test_the_result_begins_with_the_adapter(tmp_path, capsys):
    run = recorded.write_run(tmp_path / "r", recorded.done())
    run.adapter.mkdir()
    tables.print_result(run, fold(recorded.done()))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(run.path / "adapter")
    assert "1  1 Main St  (better)" in lines
    head = next(line for line in lines if line.startswith("expected"))
    answers = lines[lines.index(head) + 1]
    assert [answers.index(text) for text in ('{"n": 1}', "I am sorry")] == [head.index("expected"), head.index("Base")]
    assert answers.rindex('{"n": 1}') == head.index("tuned")


def test_a_run_that_was_stopped_before_its_first_step_has_no_result(tmp_path, capsys):
    tables.print_result(Run(tmp_path), fold([]))
    assert capsys.readouterr().out == ""


ROW = RowView(
    "a.jsonl:3",
    [("user\nhi你", False), ("hello", True), ("\nyou\x1b\n", True)],
    Encoded(np.array([1, 2, 3], dtype=np.int32), np.array([False, True, True])),
)


def test_without_a_terminal_trained_text_is_marked_below(capsys):
    tables.print_row(ROW, with_ids=True, plain=False)
    assert capsys.readouterr().out.splitlines() == [
        "a.jsonl:3 · 3 tokens · 2 trained on (67%)",
        "",
        "user⏎",
        "hi你hello⏎",
        "    ▔▔▔▔▔▔",
        "you␛⏎",
        "▔▔▔▔▔",
        "",
        "ids 1 2 3",
    ]


def test_a_row_as_json(capsys):
    tables.print_json(tables.row_values(ROW))
    values = json.loads(capsys.readouterr().out)
    assert values["schema"] == 1
    assert values["spans"][1] == {"text": "hello", "trained": True}
    assert (values["ids"], values["loss_mask"]) == ([1, 2, 3], [0, 1, 1])
    assert (values["tokens"], values["supervised_tokens"]) == (3, 2)


def report(**changes):
    values = {
        "rows_read": 300,
        "train_rows": 298,
        "valid_rows": 0,
        "test_rows": 0,
        "tokens": 30_000,
        "supervised_tokens": 12_000,
        "length_p50": 90,
        "length_p90": 200,
        "length_p99": 400,
        "length_max": 512,
        "histogram": ((128, 250), (256, 40), (512, 8)),
        "dropped": {},
        "dropped_where": {},
        "truncated_rows": 0,
        "split_rows": 0,
        "duplicate_rows": 0,
        "leaked_rows": 0,
        "formats": {"messages": 300},
        "notes": {},
        "responses": {},
    }
    return DataReport(**{**values, **changes})


def test_a_report_of_good_rows():
    assert tables.report_lines(report()) == [
        "rows      300 read (300 messages), 298 to train on",
        "tokens    30,000, of which 12,000 are trained on (40%)",
        "lengths   █▃▂  p50 90 · p90 200 · p99 400 · longest 512 tokens",
        "✔ nothing was left out, cut or changed",
    ]


def test_a_report_counts_what_was_changed():
    lines = tables.report_lines(
        report(dropped={"nothing to learn in it": 2}, truncated_rows=1, duplicate_rows=7, notes={"a\x1bnote": 3})
    )
    assert lines[3:] == [
        "▲ 2 rows: left out: nothing to learn in it",
        "▲ 1 row: cut to max_seq_length",
        "▲ 7 rows: the same as an earlier one",
        "▲ 3 rows: a␛note",
    ]


def test_a_report_of_nothing():
    assert "longest 0" in tables.report_lines(report(histogram=(), length_max=0, tokens=0, supervised_tokens=0))[2]

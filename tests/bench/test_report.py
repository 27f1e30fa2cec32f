import json
from dataclasses import asdict

import numpy as np
import pytest

from macft.bench.clock import Peak
from macft.bench.report import BenchReport, Counters, Times, bench, padded_share
from macft.bench.sample import Estimate
from macft.cli.bench import report_lines
from macft.data.batches import make_batch
from macft.recipe import make_recipe
from tests.golden import load_case
from tests.training.conftest import ArrayRows

COUNTERS = Counters(806, 101, 85_592, 35_463, 0.0, 0.0757, 173, 4.976e8, 2**29)
TIMES = Times(
    12,
    Estimate(4.0, 3.5, 4.5),
    Estimate(3.9, 3.4, 4.4),
    Estimate(150.0, 140.0, 160.0),
    Estimate(155.0, 150.0, 161.0),
    Peak(112e9, 110e9),
    Estimate(0.5, 0.45, 0.55),
    Estimate(0.52, 0.5, 0.54),
)


def test_the_table_says_counters_first_and_units_with_every_number():
    report = BenchReport("smollm2-135m", "cpu", "float32", "stream", 8, 512, COUNTERS, TIMES)
    assert report_lines(report) == [
        "smollm2-135m         float32 on the cpu, stream, batches of 8",
        "rows                 806 in 101 updates of at most 512 tokens a pass",
        "tokens               85,592, of which 35,463 are trained on",
        "padding              0.0% on a flat stream, 7.6% in padded rows",
        "shapes               173 different ones in an epoch",
        "work a token         498 MFLOP, useful ones only",
        "peak memory          0.5 GB beside the weights",
        "an update            4.00 (3.50 – 4.50) s, in CPU seconds 3.90 (3.40 – 4.40)",
        "tokens/s             150 (140 – 160)",
        "matrix products      112 GFLOP/s at best, in float32",
        "MFU                  50% (45% – 55%) of that",
        "tokens a CPU second  155 (150 – 161)",
        "MFU, CPU seconds     52% (50% – 54%) of 110 GFLOP",
        "Medians of 12 batches spread over an epoch, with their 95% intervals.",
    ]


def test_padding_is_counted_against_the_longest_row_of_a_micro_batch():
    rows = ArrayRows([np.arange(6), np.arange(2)], [np.ones(6, bool), np.ones(2, bool)])
    batches = [make_batch(rows, np.arange(2))]
    assert padded_share(batches, on_stream=True) == 0.0
    assert padded_share(batches, on_stream=False) == pytest.approx(1 - 8 / 12)


def test_a_bench_of_a_tiny_model_counts_what_it_was_given(tmp_path):
    file = tmp_path / "rows.jsonl"
    answers = ["Good.", "A little longer than that one.", "Yes.", "It depends on who is asking."]
    chats = [[{"role": "user", "content": "How?"}, {"role": "assistant", "content": answer}] for answer in answers]
    file.write_text("\n".join(json.dumps({"messages": chat}) for chat in chats), encoding="utf-8")
    recipe = make_recipe(
        {
            "model": "tiny",
            "batch_size": 2,
            "compute_dtype": "float32",
            "max_seq_length": 64,
            "data": {"train": [str(file)], "valid_fraction": 0.0},
        }
    )
    done = []
    report = bench(recipe, load_case("llama").folder, batches=2, progress=lambda *step: done.append(step))
    assert done == [(1, 2), (2, 2)]
    assert (report.counters.rows, report.counters.updates, report.times.batches) == (4, 2, 2)
    assert report.path == "stream"
    assert report.counters.padded_on_stream == 0.0
    assert report.counters.peak_bytes > 0
    assert 0.0 < report.times.share_of_peak.value < 1.0
    json.dumps(asdict(report))

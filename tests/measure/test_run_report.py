"""A run's page: all of it stands in the folder, nothing is markup that a row brought, nothing is fetched."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from macft import api
from macft.curves import Curve
from macft.errors import RunError
from macft.events import (
    Evaluated,
    Event,
    RunEnded,
    RunStarted,
    Sampled,
    Scored,
    StepDone,
    TrainingPlanned,
    Warned,
)
from macft.measure.chart import Series, draw, nice_ticks
from macft.measure.run_report import Reported, charts, figure_rows, write_report
from macft.run import Run

EVIL = "<script>alert(1)</script>\x1b[31m"
FETCHING = {"src", "href", "srcset", "action", "data", "poster", "background"}


class Reader(HTMLParser):
    """Notes what a browser would do with a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.open, self.text = set[str](), set[str](), list[str](), ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in {"meta", "circle", "path"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def events(method: str, losses: list[float]) -> list[Event]:
    """What a small run says."""
    pairs = {"eval_rewards/margins": 0.5, "eval_rewards/accuracies": 0.75} if method == "dpo" else {}
    return [
        RunStarted(time=1000.0, method=method, adapter="lora", model=EVIL, versions={"macft": "0.1.0"}),
        TrainingPlanned(
            total_steps=len(losses), steps_per_epoch=4, train_rows=40, valid_rows=5, trainable_parameters=1000,
            parameters=10_000, micro_batch_tokens=512, device="cpu", head="supervised rows",
        ),
        Evaluated(step=0, metrics={"eval_loss": 2.5}),
        Sampled(step=0, index=0, prompt="Who?", text="nobody"),
        *(
            StepDone(step=step, epoch=0.1, metrics={"loss": loss, "tokens_per_second": 70.0 + step,
                                                    "peak_memory_bytes": 2**30})
            for step, loss in enumerate(losses, start=1)
        ),
        Sampled(step=len(losses), index=0, prompt="Who?", text=EVIL),
        Evaluated(step=len(losses), metrics={"eval_loss": 1.25} | pairs, is_best=True),
        Warned(message="slow", fix="wait"),
        Scored(rows=3, base={"exact_match": 0.0}, tuned={"exact_match": 2 / 3},
               examples=[{"prompt": "p", "reference": "r", "base": "b", "tuned": EVIL, "change": "better"}]),
        RunEnded(time=1090.0, status="done", step=len(losses)),
    ]  # fmt: skip


def make_run(path: Path, method: str = "sft", rate: str = "0.001", losses: tuple[float, ...] = (2.0, 1.5, 1.0)) -> Run:
    run = Run.create(path, f'method = "{method}"\nlearning_rate = {rate}\n[data]\ntrain = ["rows.jsonl"]\n')
    for event in events(method, list(losses)):
        run.append(event)
    (path / "plan.json").write_text(json.dumps({"parts": {"weights": 2**29}, "peak_bytes": 2**30, "seconds": 120.0}))
    return run


def test_the_figures_are_those_of_the_events(tmp_path: Path) -> None:
    rows = dict(figure_rows([Reported.read(make_run(tmp_path / "one", "dpo"))]))
    assert rows["end"] == ["done, step 3 of 3"]
    assert rows["held-out loss before"] == ["2.500"]
    assert rows["best"] == ["1.250 · margin 0.500 · accuracy 75% at step 3"]
    assert rows["time"] == ["2 min · 2 min planned"]
    assert rows["speed"] == ["72 tokens/s (median)"]
    assert rows["memory"] == ["1.0 GB at its highest · 1.0 GB planned"]


def test_a_page_stands_alone_and_takes_no_row_for_markup(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one")
    run.write_note(EVIL)
    page = write_report([Reported.read(run)])
    read = Reader(page)
    assert read.open == []
    assert not read.tags & {"script", "link", "img", "iframe", "object", "form", "a"}
    assert not read.attributes & FETCHING
    assert not re.search(r"url\(|@import|https?:", page)
    assert "\x1b" not in page
    # The model's name, the note, a sample, an example.
    assert read.text.count("<script>alert(1)</script>␛[31m") == 4
    assert "learning_rate = 0.001" in read.text


def test_two_runs_say_what_differs(tmp_path: Path) -> None:
    runs = [Reported.read(make_run(tmp_path / name, rate=rate)) for name, rate in (("a", "0.001"), ("b", "0.01"))]
    page = write_report(runs)
    assert "<tr><td>learning_rate</td><td>0.001</td><td>0.01</td></tr>" in page
    assert "<td>train</td>" not in page
    assert len(charts(runs)) == 2


def test_a_run_that_never_stepped_has_a_page_too(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "none", "")
    page = write_report([Reported.read(run)])
    assert "waiting, step 0 of –" in page
    assert "<svg" not in page


def test_a_chart_puts_points_where_they_belong() -> None:
    chart = draw("loss", [Series("train", Curve([0.0, 10.0], [0.0, 1.0]))])
    # The y-axis spans -0.05 to 1.05 between 192 and 8, the x-axis 0 to 10 between 56 and 628.
    assert "M56.0 183.6L628.0 16.4" in chart
    assert "loss over steps. train: 0 to 1" in chart
    assert draw("loss", [Series("train", Curve([], []))]) == ""


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 60, [0, 20, 40, 60]),
        (0.28, 0.71, [0.3, 0.4, 0.5, 0.6, 0.7]),
        (-3, 12, [0, 5, 10]),
        (0, 1e-4, [0, 2e-5, 4e-5, 6e-5, 8e-5, 1e-4]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


def test_the_page_goes_into_the_runs_folder_or_where_one_says(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one")
    assert api.report([str(run.path)]) == run.path / "report.html"
    assert api.report([str(run.path)], tmp_path / "page.html").read_text() == (run.path / "report.html").read_text()
    with pytest.raises(RunError, match="cannot be written"):
        api.report([str(run.path)], tmp_path / "nowhere" / "page.html")
    (run.path / "job.json").write_text("{}")
    with pytest.raises(RunError, match="trained nothing"):
        api.report([str(run.path)])

import io
import json

import pytest
from rich.console import Console

from macft.cli.render import JsonView, LiveView, PlainView, render
from macft.events import Evaluated, PhaseProgress, RunEnded, RunResumed, Sampled, Warned, decode_event
from tests.cli import recorded

EVIL = "\x1b]0;owned\x07[bold red]x[/]\r\x1b[2J"


def plain(events):
    lines = []
    state = render(events, PlainView(lines.append))
    return lines, state


def test_a_recorded_run_as_lines():
    lines, state = plain(recorded.done())
    assert lines == [
        "sft · lora on smollm2-135m, quantized to 4 bits",
        "reading rows",
        "loading the model",
        "20 steps · 1,276 training and 64 validation rows · 4.88 M of 139 M parameters (3.50%)"
        " · 512 tokens a pass, padded · cpu",
        "▲ 7 rows say the same as another",
        "  Drop them.",
        "step 2/20 · loss 1.900 · 1,372 tok/s · 1.5 GB · ETA 9 s",
        "step 4/20 · loss 1.800 · 1,372 tok/s · 1.5 GB · ETA 8 s",
        "step 6/20 · loss 1.700 · 1,372 tok/s · 1.5 GB · ETA 7 s",
        "✘ step 7 changed nothing: loss nan, gradient norm nan",
        "  rows rows.jsonl:1, rows.jsonl:2, rows.jsonl:3, rows.jsonl:4 and 2 more",
        "step 8/20 · loss 1.600 · 1,372 tok/s · 1.5 GB · ETA 6 s",
        "step 10/20 · loss 1.500 · 1,372 tok/s · 1.5 GB · ETA 5 s",
        "eval @10 · eval_loss 1.500",
        'sample @10 · 1 Main St Springfield → {"number": "1"}',
        "saved step-000010",
        "step 12/20 · loss 1.400 · 1,372 tok/s · 1.5 GB · ETA 4 s",
        "step 14/20 · loss 1.300 · 1,372 tok/s · 1.5 GB · ETA 3 s",
        "step 16/20 · loss 1.200 · 1,372 tok/s · 1.5 GB · ETA 2 s",
        "step 18/20 · loss 1.100 · 1,372 tok/s · 1.5 GB · ETA 1 s",
        "step 20/20 · loss 1.000 · 1,372 tok/s · 1.5 GB · ETA 0 s",
        "eval @20 · eval_loss 0.500 ★ best",
        'sample @20 · 1 Main St Springfield → {"number": "1"}',
        "saved step-000020 ★ best",
        "Base and tuned answered 50 test rows",
        "✔ done at step 20",
    ]
    assert state.status == "done"


def test_a_preference_run_says_margin_and_accuracy():
    lines, _ = plain(recorded.preferring())
    assert lines[:2] == ["dpo · lora on smollm2-135m", "asking the reference"]
    assert lines[3] == "eval @0 · eval_loss 0.700 · margin 0.000 ★ best"  # equal rewards: no accuracy yet
    assert lines[4] == "step 2/20 · loss 1.900 · margin 0.100 · accuracy 55% · 1,372 tok/s · 1.5 GB · ETA 9 s"
    assert lines[-2] == "eval @20 · eval_loss 0.200 · margin 2.000 · accuracy 80% ★ best"


def test_a_slow_run_reports_every_ten_seconds():
    planned = recorded.training()[:5]
    steps = [recorded.step(number) for number in range(1, 4)]
    slow = [type(event)(**{**fields(event), "time": recorded.STARTED + 100 * event.step}) for event in steps]
    lines, _ = plain([*planned, *slow])
    assert [line.split(" ·")[0] for line in lines[-3:]] == ["step 1/20", "step 2/20", "step 3/20"]


def fields(event):
    return {name: getattr(event, name) for name in ("step", "epoch", "metrics")}


def test_a_failure_is_left_to_the_error():
    assert plain(recorded.failed())[0] == ["sft · lora on smollm2-135m, quantized to 4 bits"]


def test_a_stop_says_how_to_go_on():
    event = RunEnded(status="stopped", step=5, reason="you asked for it", fix="`macft resume` goes on from here.")
    assert plain([event])[0] == ["■ stopped at step 5: you asked for it. `macft resume` goes on from here."]


def test_a_resumed_run_says_where_it_goes_on():
    assert plain([RunResumed(step=200)])[0] == ["goes on from step 200"]


def test_a_loss_that_was_not_finite_is_a_dash():
    event = decode_event('{"type": "evaluation", "time": 1, "step": 3, "metrics": {"eval_loss": null}}')
    assert plain([event])[0] == ["eval @3 · eval_loss –"]


def test_json_lines_are_the_events_themselves():
    lines, narration = [], []
    view = JsonView(lines.append, narration.append)
    render(recorded.done(), view)
    view.say("aside")
    assert [decode_event(line) for line in lines] == recorded.done()
    assert json.loads(lines[0])["schema"] == 1
    assert narration == ["aside"]


def live(events, *, colour=True):
    out = io.StringIO()
    console = Console(
        file=out,
        force_terminal=True,
        width=100,
        no_color=not colour,
        markup=True,
        color_system="truecolor",
        legacy_windows=False,
    )
    view = LiveView(console)
    try:
        state = render(events, view)
        # What the bar shows at this moment, beside what was written above it.
        with console.capture() as capture:
            console.print(view._progress.get_renderable())
    finally:
        view.close()
    return out.getvalue(), capture.get(), state


def test_the_bar_shows_step_loss_speed_memory_and_time_left():
    _, bar, _ = live(recorded.training()[:12])
    for part in ("training", "6/20", "loss 1.700", "1,372 tok/s", "1.5 GB", "ETA 7 s"):
        assert part in bar


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (PhaseProgress(name="tokenize", done=150, total=300), "reading rows"),
        (
            PhaseProgress(name="tokenize", done=5_000, total=90_000, per_second=1_000.0, seconds_left=85.0),
            "5,000/90,000 · 1,000/s · 1 min left",
        ),
        (PhaseProgress(name="load"), "loading the model"),
        (PhaseProgress(name="answer", done=10, total=100), "10/100"),
        (PhaseProgress(name="fetching x", done=1_000, total=2_000, note="MB"), "1,000/2,000 MB"),
    ],
)
def test_every_phase_has_its_bar(event, text):
    assert text in live([event])[1]


def test_rare_things_stand_above_the_bar_and_steps_do_not():
    above, _, _ = live(recorded.done())
    for part in ("eval @20 · eval_loss 0.500 ★ best", "saved step-000010", "▲ 7 rows", "✘ step 7", "✔ done"):
        assert part in above
    assert "step 12/20" not in above


def test_without_colour_there_is_none():
    above, bar, _ = live(recorded.done(), colour=False)
    assert "\x1b[3" not in above.replace("\x1b[?", "") + bar
    assert "▲ 7 rows" in above


@pytest.mark.parametrize("show", [lambda events: live(events)[0], lambda events: "\n".join(plain(events)[0])])
def test_text_of_rows_and_models_neither_styles_nor_steers(show):
    events = [
        Sampled(step=1, index=0, prompt=EVIL, text=EVIL),
        Warned(message=EVIL, fix=EVIL),
        Evaluated(step=1, metrics={"eval_loss": 1.0}),
        PhaseProgress(name=EVIL, note=EVIL, done=1, total=2),
    ]
    shown = show(events)
    assert "[bold red]x[/]" in shown
    assert "\x1b]0;" not in shown
    assert "\x1b[2J" not in shown
    assert "\x07" not in shown

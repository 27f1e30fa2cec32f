"""A run as it was recorded: 20 steps, two evaluations, one of everything else."""

from pathlib import Path

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
    TrainingPlanned,
    Warned,
)
from macft.run import Run

STARTED = 1_700_000_000.0
STEP_SECONDS = 0.5
STEPS = 20


def step(number: int) -> StepDone:
    metrics = {
        "loss": 2.0 - number / 20,
        "tokens_per_second": 1372.4,
        "step_seconds": STEP_SECONDS,
        "peak_memory_bytes": 3 * 2**30 // 2,
    }
    return StepDone(time=STARTED + 3 + number * STEP_SECONDS, step=number, epoch=number / 10, metrics=metrics)


def training() -> list[Event]:
    events: list[Event] = [
        RunStarted(time=STARTED, method="sft", adapter="lora", model="smollm2-135m", quantize=4),
        PhaseProgress(time=STARTED, name="tokenize", done=0, total=300),
        PhaseProgress(time=STARTED + 1, name="tokenize", done=300, total=300),
        PhaseProgress(time=STARTED + 2, name="load"),
        TrainingPlanned(
            time=STARTED + 3,
            total_steps=STEPS,
            steps_per_epoch=10,
            train_rows=1_276,
            valid_rows=64,
            trainable_parameters=4_884_480,
            parameters=139_399_488,
            micro_batch_tokens=512,
            device="cpu",
            head="supervised rows",
        ),
        Warned(time=STARTED + 3, message="7 rows say the same as another", fix="Drop them."),
    ]
    for number in range(1, STEPS + 1):
        time = STARTED + 3 + number * STEP_SECONDS
        if number == 7:
            rows = [f"rows.jsonl:{line}" for line in range(1, 7)]
            events.append(StepSkipped(time=time, step=7, rows=rows, reason="loss nan, gradient norm nan"))
            continue
        events.append(step(number))
        if number in {10, 20}:
            events += [
                Evaluated(time=time, step=number, metrics={"eval_loss": 2.5 - number / 10}, is_best=number == 20),
                Sampled(time=time, step=number, index=0, prompt="1 Main St\nSpringfield", text='{"number": "1"}'),
                CheckpointSaved(time=time, step=number, name=f"step-{number:06}", is_best=number == 20),
            ]
    return events


def scored() -> Scored:
    example = {
        "prompt": "1 Main St",
        "reference": '{"n": 1}',
        "base": "I am sorry",
        "tuned": '{"n": 1}',
        "change": "better",
    }
    return Scored(
        time=STARTED + 20,
        rows=50,
        base={"exact_match": 0.0, "f1": 0.125},
        tuned={"exact_match": 0.92, "f1": 0.98},
        examples=[example],
    )


def done() -> list[Event]:
    return [*training(), scored(), RunEnded(time=STARTED + 21, status="done", step=STEPS)]


def failed() -> list[Event]:
    ended = RunEnded(
        time=STARTED + 1, status="failed", step=0, reason="a.jsonl:1: bad\na.jsonl:2: worse", fix="Mend.", exit_code=3
    )
    return [training()[0], ended]


def write_run(path: Path, events: list[Event]) -> Run:
    run = Run.create(path, 'model = "smollm2-135m"\n')
    for event in events:
        run.append(event)
    return run


def preferring() -> list[Event]:
    """A DPO run of 20 steps: what differs from any other."""
    started = RunStarted(time=STARTED, method="dpo", adapter="lora", model="smollm2-135m")
    phases = [PhaseProgress(time=STARTED + place, name="reference", done=775 * place, total=775) for place in (0, 1)]
    planned = next(event for event in training() if isinstance(event, TrainingPlanned))
    events: list[Event] = [started, *phases, planned, evaluated_pairs(0)]
    for number in range(1, STEPS + 1):
        plain = step(number)
        watched = {"rewards/margins": number / 20, "rewards/accuracies": 0.5 + number / 40}
        events.append(StepDone(time=plain.time, step=number, epoch=plain.epoch, metrics=plain.metrics | watched))
    return [*events, evaluated_pairs(20), RunEnded(time=STARTED + 21, status="done", step=STEPS)]


def evaluated_pairs(number: int) -> Evaluated:
    metrics = {
        "eval_loss": 0.7 - number / 40,
        "eval_rewards/margins": number / 10,
        "eval_rewards/accuracies": number / 25,
        "eval_logps/chosen": -50.0 + number / 10,
        "eval_logps/rejected": -40.0 - number,
    }
    return Evaluated(time=STARTED + 3 + number, step=number, metrics=metrics, is_best=True)

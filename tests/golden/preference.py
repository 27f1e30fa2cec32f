"""Reference numbers of TRL's own preference trainers, frozen so that the suite needs neither torch nor TRL.

The rule: everything here is NumPy, in mlx-lm's conventions, made by `make_preference.py` and never by hand.

    golden = load_preference()
    golden.prompts[0], golden.chosen[0], golden.rejected[0]        # token ids of the first pair
    case = golden.cases["sigmoid"]
    case.options, case.loss, case.metrics, case.gradients          # of the `llama` case's lora adapter

The model is `load_case("llama")` with its `lora` adapter, the reference the same with the adapter off.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.golden import HERE, Arrays

FOLDER: Path = HERE / "preference"

DPO_CASES: dict[str, dict[str, Any]] = {
    "sigmoid": {"loss": "sigmoid", "beta": 0.1},
    "cdpo": {"loss": "sigmoid", "beta": 0.1, "label_smoothing": 0.1},
    "robust": {"loss": "robust", "beta": 0.1, "label_smoothing": 0.1},
    "hinge": {"loss": "hinge", "beta": 0.1},
    "ipo": {"loss": "ipo", "beta": 0.1},
    "apo_zero": {"loss": "apo_zero", "beta": 0.1},
    "apo_down": {"loss": "apo_down", "beta": 0.1},
    "sigmoid_norm": {"loss": "sigmoid_norm", "beta": 1.0},
    "sigmoid_sft": {"loss": "sigmoid", "beta": 0.1, "sft_weight": 0.3},
    "sigmoid_ld": {"loss": "sigmoid", "beta": 0.1, "ld_alpha": 0.5},
}
REFERENCE_FREE_CASES: dict[str, dict[str, Any]] = {
    "simpo": {"method": "simpo", "beta": 2.0, "gamma": 0.5, "alpha": 0.0},
    "simpo_sft": {"method": "simpo", "beta": 2.0, "gamma": 0.5, "alpha": 1.0},
    "orpo": {"method": "orpo", "beta": 0.1},
    "cpo": {"method": "cpo", "beta": 0.1, "alpha": 1.0, "label_smoothing": 0.1},
}
KTO_CASES: dict[str, dict[str, Any]] = {
    "kto": {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.5},
}
LABELS = (True, True, False, False, True, False)
"""KTO's batch: the chosen response of the first two pairs, the rejected one of the third, and so on; with these the
divergence is above 0."""


@dataclass(frozen=True, slots=True)
class PreferenceCase:
    """What TRL says of one loss on the batch.

    Attributes:
        options: In macft's names; `alpha` and `sft_weight` weigh the cross-entropy on chosen.
        loss: Of the whole batch, nats.
        metrics: Under TRL's names.
        gradients: d loss / d LoRA, `model.layers.N.<target>.lora_a` (in, r) and `.lora_b` (r, out); float32.
    """

    options: Mapping[str, Any]
    loss: float
    metrics: Mapping[str, float]
    gradients: Arrays


@dataclass(frozen=True, slots=True)
class GoldenPreference:
    """One batch of real pairs and what TRL says about it in fp64.

    Attributes:
        rows: The pairs as text.
        prompts: Token ids a pair; `chosen` and `rejected` likewise, EOS included.
        logprobs: Sums a response [P], nats: `policy/chosen`, `policy/rejected`, `reference/chosen`,
            `reference/rejected`, the same below `ld/`, and of KTO's batch `kto/policy`, `kto/reference` and the
            mismatched `kto/kl_policy`, `kto/kl_reference`.
        cases: By name, of `DPO_CASES`, `REFERENCE_FREE_CASES` and `KTO_CASES`.
    """

    rows: Sequence[Mapping[str, str]]
    prompts: Sequence[np.ndarray]
    chosen: Sequence[np.ndarray]
    rejected: Sequence[np.ndarray]
    logprobs: Arrays
    cases: Mapping[str, PreferenceCase]


def load_rows() -> list[dict[str, str]]:
    """Read the pairs as text."""
    return [json.loads(line) for line in (FOLDER / "rows.jsonl").read_text().splitlines()]


def load_preference() -> GoldenPreference:
    """Read the batch and every case."""
    with np.load(FOLDER / "numbers.npz") as archive:
        numbers = dict(archive)
    options = DPO_CASES | REFERENCE_FREE_CASES | KTO_CASES
    count = len(load_rows())
    sides = {side: [numbers[f"ids/{side}/{row}"] for row in range(count)] for side in ("prompt", "chosen", "rejected")}
    return GoldenPreference(
        rows=load_rows(),
        prompts=sides["prompt"],
        chosen=sides["chosen"],
        rejected=sides["rejected"],
        logprobs=_below(numbers, "logprobs/"),
        cases={
            name: PreferenceCase(
                options=options[name],
                loss=float(numbers[f"{name}/loss"]),
                metrics={key: float(value) for key, value in _below(numbers, f"{name}/metrics/").items()},
                gradients=_below(numbers, f"{name}/gradients/"),
            )
            for name in options
        },
    )


def _below(numbers: Arrays, prefix: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(prefix): value for key, value in numbers.items() if key.startswith(prefix)}

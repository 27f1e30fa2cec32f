"""Every preference loss, its metrics and its gradients against TRL's own trainers: once naively, once by the engine.

Naive: one response at a time, its prompt before it, all logits, in float64; nothing of the engine is used but the model
and the losses. So the formulas are compared with nothing rounded, on any machine. The engine computes in float32.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map

from macft.data.batches import split_micro_batches
from macft.losses import preference
from macft.losses.logprobs import token_logprobs
from macft.losses.preference import Pair, PreferenceLoss
from macft.losses.responses import response_logprobs
from macft.losses.supervised import cross_entropy
from macft.models.adapters import adapters_off
from macft.models.head import find_head
from macft.models.stream import prepare_stream
from macft.recipe import KtoRecipe, Recipe, make_recipe
from macft.training.objectives import make_objective, to_device
from macft.training.reference import ReferencePass, refer
from tests.golden import load_case
from tests.golden.preference import (
    DPO_CASES,
    KTO_CASES,
    LABELS,
    REFERENCE_FREE_CASES,
    GoldenPreference,
    PreferenceCase,
    load_preference,
)
from tests.training.conftest import ResponseArrays, adapted

Options = Mapping[str, Any]
Answer = tuple[mx.array, dict[str, mx.array]]


@pytest.fixture(scope="module")
def golden() -> GoldenPreference:
    return load_preference()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return adapted(load_case("llama"), "lora")


@pytest.fixture(scope="module")
def precise_model() -> nn.Module:
    model = adapted(load_case("llama"), "lora")
    model.update(tree_map(lambda tensor: tensor.astype(mx.float64), model.parameters()))
    return model


@dataclass(frozen=True)
class Naive:
    """The golden batch, one sequence a response."""

    golden: GoldenPreference

    def tokens(self, model: nn.Module, prompt: np.ndarray, response: np.ndarray) -> mx.array:
        """Log-probabilities of every token but the first, prompt and all, nats."""
        ids = mx.array(np.concatenate([prompt, response]))
        return token_logprobs(model(ids[None])[0, :-1], ids[1:])

    def sums(
        self, model: nn.Module, prompts: Any, responses: Any, shared: Any = None, ld_alpha: float = 1.0
    ) -> mx.array:
        """Summed log-probabilities of the responses, each after its prompt; beyond `shared` tokens times ld_alpha."""
        parts, weights = [], []
        for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            parts.append(self.tokens(model, prompt, response)[len(prompt) - 1 :])
            beyond = np.arange(len(response)) >= (shared[row] if shared else len(response))
            weights.append(np.where(beyond, ld_alpha, 1.0).astype(np.float32))
        segment = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        weight = mx.array(np.concatenate(weights))
        return response_logprobs(mx.concatenate(parts), weight, mx.array(segment), len(parts))

    def pair(self, model: nn.Module, ld_alpha: float = 1.0) -> Pair:
        golden = self.golden
        shared = [min(len(c), len(r)) for c, r in zip(golden.chosen, golden.rejected, strict=True)]
        return Pair(
            self.sums(model, golden.prompts, golden.chosen, shared, ld_alpha),
            self.sums(model, golden.prompts, golden.rejected, shared, ld_alpha),
        )

    def lengths(self) -> Pair:
        return Pair(
            *(mx.array([float(len(ids)) for ids in side]) for side in (self.golden.chosen, self.golden.rejected))
        )

    def nll(self, model: nn.Module, *, with_prompt: bool = False) -> mx.array:
        """Mean over tokens of −log p, on chosen responses."""
        parts = [
            self.tokens(model, prompt, chosen)[0 if with_prompt else len(prompt) - 1 :]
            for prompt, chosen in zip(self.golden.prompts, self.golden.chosen, strict=True)
        ]
        logprobs = mx.concatenate(parts)
        return cross_entropy(logprobs, mx.ones_like(logprobs)) / logprobs.size


def metrics_of(found: PreferenceLoss, logps: Pair) -> dict[str, mx.array]:
    return {
        "rewards/chosen": found.chosen_rewards.mean(),
        "rewards/rejected": found.rejected_rewards.mean(),
        "rewards/margins": (found.chosen_rewards - found.rejected_rewards).mean(),
        "rewards/accuracies": (found.chosen_rewards > found.rejected_rewards).mean(),
        "logps/chosen": logps.chosen.mean(),
        "logps/rejected": logps.rejected.mean(),
    }


def dpo(model: nn.Module, naive: Naive, options: Options) -> Answer:
    ld_alpha = options.get("ld_alpha", 1.0)
    policy = naive.pair(model, ld_alpha)
    with adapters_off(model):
        reference = naive.pair(model, ld_alpha)
    loss: Callable[..., PreferenceLoss] = getattr(preference, options["loss"])
    lengths = (naive.lengths(),) if options["loss"] in ("ipo", "sigmoid_norm") else ()
    given = {key: options[key] for key in ("beta", "label_smoothing") if key in options}
    found = loss(policy, reference, *lengths, **given)
    total = found.loss.mean()
    if "sft_weight" in options:
        total = total + options["sft_weight"] * naive.nll(model)
    return total, metrics_of(found, policy)


def reference_free(model: nn.Module, naive: Naive, options: Options) -> Answer:
    method, beta, lengths = options["method"], options["beta"], naive.lengths()
    policy = naive.pair(model)
    mean = Pair(policy.chosen / lengths.chosen, policy.rejected / lengths.rejected)
    if method == "orpo":
        found, nll = preference.orpo(policy, lengths, beta=beta), naive.nll(model, with_prompt=True)
        log_odds = preference.log_odds_ratio(policy, lengths)
        metrics = metrics_of(found, mean) | {
            "nll_loss": nll,
            "log_odds_ratio": preference.log_sigmoid(log_odds).mean(),
            "log_odds_chosen": log_odds.mean(),
        }
        return found.loss.mean() + nll, metrics
    if method == "simpo":
        found, logps = preference.simpo(policy, lengths, beta=beta, gamma=options["gamma"]), mean
    else:
        found, logps = preference.cpo(policy, beta=beta, label_smoothing=options["label_smoothing"]), policy
    nll = naive.nll(model) if options["alpha"] else mx.array(0.0)
    return found.loss.mean() + options["alpha"] * nll, metrics_of(found, logps) | {"nll_loss": nll}


def kto(model: nn.Module, naive: Naive, options: Options) -> Answer:
    golden = naive.golden
    responses = [
        (chosen if label else rejected)
        for label, chosen, rejected in zip(LABELS, golden.chosen, golden.rejected, strict=True)
    ]
    mismatched = responses[-1:] + responses[:-1]
    policy, kl_policy = (naive.sums(model, golden.prompts, each) for each in (responses, mismatched))
    with adapters_off(model):
        reference, kl_reference = (naive.sums(model, golden.prompts, each) for each in (responses, mismatched))
    kl = preference.mismatched_kl(kl_policy, kl_reference)
    found = preference.kto(policy, reference, mx.array(LABELS), kl, **options)
    good, bad = (mx.array(np.flatnonzero(np.array(LABELS) == label)) for label in (True, False))
    metrics = {
        "rewards/chosen": found.rewards[good].mean(),
        "rewards/rejected": found.rewards[bad].mean(),
        "rewards/margins": found.rewards[good].mean() - found.rewards[bad].mean(),
        "logps/chosen": policy[good].mean(),
        "logps/rejected": policy[bad].mean(),
        "kl": kl,
    }
    return found.loss.mean(), metrics


METHODS = [(name, dpo) for name in DPO_CASES]
METHODS += [(name, reference_free) for name in REFERENCE_FREE_CASES]
METHODS += [(name, kto) for name in KTO_CASES]


@pytest.mark.parametrize(("name", "method"), METHODS, ids=[name for name, _ in METHODS])
def test_loss_metrics_and_gradients_equal_trl(
    name: str, method: Callable[..., Answer], precise_model: nn.Module, golden: GoldenPreference
) -> None:
    case, naive = golden.cases[name], Naive(golden)
    measured: dict[str, mx.array] = {}

    def total() -> mx.array:
        loss, metrics = method(precise_model, naive, case.options)
        measured.update({key: mx.stop_gradient(value) for key, value in metrics.items()})
        return loss

    with mx.stream(mx.cpu):
        loss, gradients = nn.value_and_grad(precise_model, total)()
        assert loss.dtype == mx.float64
        numbers = {key: float(value.item()) for key, value in measured.items()}
        found = {key: np.array(value) for key, value in tree_flatten(gradients)}
    assert numbers.keys() == case.metrics.keys()
    check_numbers(case, loss.item(), numbers)
    check_gradients(case, found)


def check_numbers(case: PreferenceCase, loss: float, metrics: Mapping[str, float], largest_ratio: float = 0.0) -> None:
    """Within 5e-6 of TRL; in float32, of the largest of what is averaged, which differences of 300 nats are made of.

    Args:
        largest_ratio: The largest log-ratio of a response, nats, where the numbers were made in float32.
    """
    assert loss == pytest.approx(case.loss, rel=5e-6)
    for key in metrics.keys() & case.metrics.keys():
        averaged = {"rewards": case.options["beta"] * largest_ratio, "kl": largest_ratio}.get(key.split("/")[0], 0.0)
        assert abs(metrics[key] - case.metrics[key]) <= 5e-6 * max(1.0, abs(case.metrics[key]), averaged), key


def largest_ratio(golden: GoldenPreference) -> float:
    """The largest log-ratio of a response, nats."""
    sums = golden.logprobs
    sides = ("chosen", "rejected")
    return max(float(np.abs(sums[f"policy/{side}"] - sums[f"reference/{side}"]).max()) for side in sides)


def check_gradients(case: PreferenceCase, gradients: Mapping[str, np.ndarray]) -> None:
    """Within 1e-5 of the largest."""
    assert gradients.keys() == case.gradients.keys()
    scale = max(np.abs(value).max() for value in case.gradients.values())
    assert max(np.abs(gradients[key] - value).max() for key, value in case.gradients.items()) <= 1e-5 * scale


@pytest.mark.parametrize(("prefix", "ld_alpha"), [("", 1.0), ("ld/", 0.5)])
def test_sums_a_response_equal_trl(
    prefix: str, ld_alpha: float, precise_model: nn.Module, golden: GoldenPreference
) -> None:
    naive = Naive(golden)
    with mx.stream(mx.cpu):
        found = {"policy": naive.pair(precise_model, ld_alpha)}
        with adapters_off(precise_model):
            found["reference"] = naive.pair(precise_model, ld_alpha)
        for which, pair in found.items():
            for side, values in pair._asdict().items():
                np.testing.assert_allclose(np.array(values), golden.logprobs[f"{prefix}{which}/{side}"], rtol=5e-7)


RECIPES = {name: {"method": "dpo", **options} for name, options in DPO_CASES.items()}
RECIPES |= {name: {**options} for name, options in REFERENCE_FREE_CASES.items()}
RECIPES |= {name: {"method": "kto", **options} for name, options in KTO_CASES.items()}
for simpo in (RECIPES["simpo"], RECIPES["simpo_sft"]):
    simpo["sft_weight"] = simpo.pop("alpha")


WATCHED = {f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")}
WATCHED |= {"logps/chosen", "logps/rejected", "kl"}


def rows_of(recipe: Recipe, golden: GoldenPreference) -> ResponseArrays:
    """The golden batch as the recipe's method has it."""
    if not isinstance(recipe, KtoRecipe):
        return ResponseArrays(list(map(list, zip(golden.prompts, golden.chosen, golden.rejected, strict=True))))
    sides = zip(LABELS, golden.prompts, golden.chosen, golden.rejected, strict=True)
    return ResponseArrays(
        [[prompt, chosen if label else rejected] for label, prompt, chosen, rejected in sides], np.array(LABELS)
    )


@pytest.mark.parametrize("tokens", [10_000, 150])
@pytest.mark.parametrize("name", RECIPES)
def test_the_engine_equals_trl_however_an_update_is_split(
    name: str, tokens: int, model: nn.Module, golden: GoldenPreference, tmp_path: Path
) -> None:
    """Shared prompts, flat stream, own head, reference pass: 150 tokens a pass make several passes of the six rows."""
    case, recipe = golden.cases[name], make_recipe({"model": "m", **RECIPES[name]})
    objective = make_objective(recipe, find_head(model), prepare_stream(model, longest=128))
    assert objective.stream.layers
    score = ReferencePass(model, objective.head, objective.stream, tokens=tokens, folder=tmp_path, stands_on={})
    with adapters_off(model):
        (rows,) = refer(recipe, [rows_of(recipe, golden)], score, lambda *_: None, limit=512)
    parts = split_micro_batches(np.arange(len(rows)), rows.lengths, tokens=tokens, rows=len(rows))
    batches = [rows.batch(part) for part in parts]
    assert (len(batches) == 1) == (tokens == 10_000)
    whole = np.sum([objective.survey(model, batch) for batch in batches], axis=0).tolist()
    sums, gradients = [], {key: np.zeros_like(value) for key, value in case.gradients.items()}
    for batch in batches:
        found, tree = nn.value_and_grad(model, lambda b: objective.sums(model, b, mx.array(whole), mx.random.key(0)))(
            to_device(batch)
        )
        sums.append({"loss": found.loss.item()} | {key: value.item() for key, value in found.metrics.items()})
        for key, value in tree_flatten(tree):
            gradients[key] += np.array(value) / whole[0]
    total = {key: sum(one[key] for one in sums) for key in sums[0]}
    loss = total.pop("loss") / whole[0]
    metrics = objective.metrics(total, whole)
    assert WATCHED & case.metrics.keys() <= metrics.keys() <= case.metrics.keys() | {"nll_loss"}
    check_numbers(case, loss, metrics, largest_ratio(golden))
    check_gradients(case, gradients)


def test_orpo_can_leave_the_prompt_out_of_its_cross_entropy(model: nn.Module, golden: GoldenPreference) -> None:
    """The paper's form: TRL's loss with the mean over the answers in the place of the mean over prompt and answer."""
    recipe, naive = make_recipe({"model": "m", "method": "orpo", "nll_on_prompt": False}), Naive(golden)
    objective = make_objective(recipe, find_head(model), prepare_stream(model, longest=128))
    (rows,) = refer(recipe, [rows_of(recipe, golden)], lambda *_: np.zeros(0), lambda *_: None, limit=512)
    batch = rows.batch(np.arange(len(rows)))
    whole = objective.survey(model, batch)
    found = objective.sums(model, to_device(batch), mx.array(whole), mx.random.key(0)).loss.item() / whole[0]
    case = golden.cases["orpo"]
    expected = case.loss - case.metrics["nll_loss"] + naive.nll(model).item()
    assert found == pytest.approx(expected, rel=5e-6)

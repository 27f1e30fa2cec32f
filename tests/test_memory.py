"""Bytes by part, held against MLX's own arrays and against peaks that fresh processes measure."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import pytest

from macft import memory
from macft.losses import logprobs
from macft.memory import CPU_PADDED, CPU_STREAM, METAL, SPLIT_HEADS, STREAMED, Learner, Pass
from macft.models import stream
from macft.models.adapters import attach, count_values
from macft.models.describe import describe, describe_as_loaded
from macft.models.load import load_model
from macft.recipe import LoraTable, make_recipe
from tests.benchmarks import plan_grid
from tests.benchmarks.plan_peaks import measure
from tests.golden import NAMES, load_case

ALL = frozenset({"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}) | frozenset(
    {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
)


def learner_of(**changes: object) -> Learner:
    return Learner(**{"linears": ALL, "layers": 3, "rank": 4, "kind": "lora", "optimizer": "adamw"} | changes)


def pass_of(**changes: object) -> Pass:
    values = {"tokens": 64, "laid": 64, "longest": 32, "supervised": 32, "recompute": "none", "accumulates": False}
    return Pass(**values | changes)


@pytest.mark.parametrize("point", plan_grid.QUICK.values(), ids=plan_grid.QUICK)
def test_the_predicted_peak_is_the_measured_one(point) -> None:
    measured = measure(point)["peak"]
    for traced in (True, False):
        made = plan_grid.predict(point, traced=traced)
        assert made.is_traced == traced
        assert plan_grid.LOWEST <= made.peak_bytes / measured <= plan_grid.HIGHEST


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("targets", ["all", "attention", "mlp", ["q_proj", "mlp.down_proj"]], ids=str)
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_adapters_are_counted_as_they_are_attached(name: str, targets: str | list[str], kind: str) -> None:
    folder = load_case(name).folder
    facts, (model, _) = describe(folder), load_model(folder)
    attach(model, LoraTable(rank=3, targets=targets, layers=2), kind=kind, seed=0)
    learner = learner_of(linears=memory.choose_linears(facts, targets), layers=2, rank=3, kind=kind)
    assert memory.count_adapter(facts, learner) == count_values(model.trainable_parameters())[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("quantize", [None, 8, 4])
def test_weights_are_counted_as_they_are_loaded(name: str, quantize: int | None) -> None:
    folder = load_case(name).folder
    recipe = make_recipe({"model": str(folder), "quantize": quantize, "quantize_group_size": 32})
    model, _ = load_model(folder, quantize=quantize, group_size=32)
    planned = plan_grid.plan(
        recipe, describe_as_loaded(folder, quantize=quantize), plan_grid.DataFacts(1, 8, 4, 8, 8), plan_grid.LINUX
    )
    assert planned.parts["weights"] == pytest.approx(count_values(model.parameters())[1], rel=0.02)


@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (4, 64), (8, 128)])
def test_quantized_weights_are_as_large_as_mlx_makes_them(bits: int, group_size: int) -> None:
    parts = mx.quantize(mx.zeros((128, 256)), group_size=group_size, bits=bits)
    predicted = memory.quantized_bytes(128 * 256, bits=bits, group_size=group_size, value_bytes=4)
    assert predicted == sum(part.nbytes for part in parts)


def test_constants_are_the_engines() -> None:
    assert memory.CHUNK_ROWS == logprobs.CHUNK_ROWS
    assert CPU_STREAM.longest_scores == stream.KEPT_SCORES
    assert CPU_STREAM.query_block == stream.QUERY_BLOCK


def test_the_families_said_to_take_streams_do() -> None:
    assert {describe(load_case(name).folder).family for name in NAMES} <= STREAMED <= SPLIT_HEADS


def test_what_a_layer_keeps_by_hand() -> None:
    """Golden llama: D = I = Q = 64, K = 32, 4 heads; rows of 32 tokens.

    Inputs of both norms 2·64, of q/k/v 64, of gate/up 64, queries 64, keys and values 64, attended 64, gate, up and
    sigmoid 3·64, their product 64, seven linears' rank 7·4, attention weights 4·32.
    """
    facts = describe(load_case("llama").folder)
    by_hand = 128 + 64 + 64 + 64 + 64 + 64 + 192 + 64 + 28 + 128
    assert memory.kept_values(facts, learner_of(), pass_of(), CPU_STREAM) == by_hand
    only_queries = learner_of(linears=frozenset({"self_attn.q_proj"}))
    assert memory.kept_values(facts, only_queries, pass_of(), CPU_STREAM) == by_hand - 64 - 64 - 64 - 24
    longer = pass_of(longest=stream.KEPT_SCORES + 1)
    assert memory.kept_values(facts, learner_of(), longer, CPU_STREAM) == by_hand - 128
    assert memory.kept_values(facts, learner_of(), longer, CPU_PADDED) == by_hand - 128 + 64 + 4 * (
        stream.KEPT_SCORES + 1
    )


def test_attention_weights_by_hand() -> None:
    """Rows of 192 tokens in blocks of 64 queries: 64·64 + 64·128 + 64·192 weights a head, 128 a token."""
    facts = describe(load_case("llama").folder)
    assert memory.score_values(facts, pass_of(longest=192), CPU_STREAM) == 4 * 128
    assert memory.score_values(facts, pass_of(longest=40), CPU_STREAM) == 4 * 40
    assert memory.score_values(facts, pass_of(longest=192), CPU_PADDED) == 4 * 192


def test_what_is_computed_again_is_not_kept() -> None:
    """As above: pointwise keeps gate and up but neither sigmoid nor product, no normed input, no low-rank product; mlp
    nothing of the MLP but its input; layer one input a layer.
    """
    facts = describe(load_case("llama").folder)

    def kept(level: str) -> float:
        return memory.kept_values(facts, learner_of(), pass_of(recompute=level), CPU_STREAM)

    outer = 128 + 64 + 64 + 64 + 128  # inputs of norms, attended, queries, keys and values, attention weights
    assert kept("pointwise") == outer + 2 * 64
    assert kept("mlp") == outer
    assert kept("layer") == 64
    assert memory.activation_bytes(facts, learner_of(), pass_of(recompute="layer"), METAL)[0] == 3 * 64 * 64 * 2


def test_rows_that_share_a_prompt_keep_it_in_each_attention_row() -> None:
    """Only attention sees the prompt twice: queries 64, keys and values 64, and attention weights 4·32."""
    facts = describe(load_case("llama").folder)
    alone = memory.kept_values(facts, learner_of(), pass_of(), CPU_STREAM)
    shared = memory.kept_values(facts, learner_of(), pass_of(laid=96), CPU_STREAM)
    assert shared == alone + 0.5 * (64 + 64 + 128)


def test_the_head_grows_with_chunks_and_then_no_more() -> None:
    facts = describe(load_case("llama").folder)

    def logits(rows: int) -> int:
        states = memory.head_bytes(facts, learner_of(), pass_of(supervised=0), METAL, quantized=False)
        return memory.head_bytes(facts, learner_of(), pass_of(supervised=rows), METAL, quantized=False) - states

    assert logits(128) == 2 * 128 * 256 * 4
    assert logits(512) == 2 * 2 * 256 * 256 * 4
    assert logits(5000) == logits(50_000) == 3 * 2 * 256 * 256 * 4


def test_moments_are_the_optimizers_own() -> None:
    from macft.recipe import OptimizerTable
    from macft.training.optimizers import make_optimizer

    for name, copies in memory.MOMENTS.items():
        layer = nn.Linear(256, 256, bias=False)
        optimizer = make_optimizer(OptimizerTable(name=name), 1e-3)
        optimizer.init(layer.trainable_parameters())
        optimizer.apply_gradients({"weight": mx.ones((256, 256))}, layer.trainable_parameters())
        held, _ = count_values({key: value for key, value in optimizer.state.items() if key == "weight"})
        assert held / 256**2 == pytest.approx(copies, abs=0.01), name


def test_the_grid_covers_what_a_plan_can_ask(tmp_path: Path) -> None:
    points = plan_grid.grid(str(tmp_path))
    assert len(points) >= 24
    assert {point.recompute for point in points.values()} == set(memory.LEVELS)
    assert {point.method for point in points.values()} == {"sft", "dpo", "orpo", "kto"}
    assert {point.quantize for point in points.values()} == {None, 4, 8}
    assert {point.optimizer for point in points.values()} == set(memory.MOMENTS)
    assert {point.vocabulary for point in points.values()} >= {512, 152_000}

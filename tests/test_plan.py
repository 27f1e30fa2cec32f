"""Plans of models that nobody could load here: pure arithmetic on facts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from macft.data.estimate import estimate_data
from macft.errors import DoesNotFit, RecipeError
from macft.machine import GIB
from macft.macs import CHIPS, find_mac
from macft.memory import LEVELS
from macft.models.describe import ModelFacts
from macft.plan import TIGHT_SHARE, Calibration, DataFacts, Plan, Verdict, change, fit, make_pass, plan, refusal
from macft.recipe import DataTable, Recipe, make_recipe

QWEN3_8B = ModelFacts(
    name="Qwen3-8B",
    path=Path(),
    family="qwen3",
    parameters=8_190_735_360,
    weight_bytes=16_381_470_720,
    float_values=8_190_735_360,
    layers=36,
    hidden_size=4096,
    intermediate_size=12288,
    heads=32,
    kv_heads=8,
    head_dim=128,
    vocab_size=151_936,
    trainable=True,
)
DATA = DataFacts(rows=1000, tokens=400_000, supervised_tokens=160_000, longest=2048, p99=1200)
CALIBRATION = Calibration("chip", "0.32", matmul_flops=2e12, step_flops=1e12)


def recipe_of(**changes: Any) -> Recipe:
    return make_recipe({"model": "m", "batch_size": 4, **changes})


def plan_for(mac: str, recipe: Recipe | None = None, model: ModelFacts = QWEN3_8B, data: DataFacts = DATA) -> Plan:
    machine, calibration = find_mac(mac)
    return plan(recipe or recipe_of(), model, data, machine, calibration)


def test_a_large_mac_takes_what_a_small_one_cannot() -> None:
    large, small = plan_for("M3 Ultra 512GB"), plan_for("M2 Air 16GB")
    assert (large.verdict, small.verdict) == (Verdict.FITS, Verdict.DOES_NOT_FIT)
    assert (large.recompute, large.micro_batch_tokens) == ("none", 8192)
    assert (small.recompute, small.micro_batch_tokens) == ("layer", DATA.longest)
    assert large.remedies == ()
    assert large.peak_bytes == sum(large.parts.values())
    assert large.parts["weights"] == 2 * QWEN3_8B.parameters


def test_the_verdict_turns_at_the_limits() -> None:
    machine = find_mac("M4 Max 128GB")[0]
    recipe = recipe_of(recompute="layer", batch_size=1)
    peak = plan(recipe, QWEN3_8B, DATA, machine).peak_bytes

    def verdict(usable: float) -> Verdict:
        return plan(recipe, QWEN3_8B, DATA, replace(machine, working_set_bytes=round(usable / 0.75))).verdict

    assert verdict(peak / TIGHT_SHARE * 1.01) == Verdict.FITS
    assert verdict(peak / TIGHT_SHARE * 0.99) == Verdict.TIGHT
    assert verdict(peak * 1.01) == Verdict.TIGHT
    assert verdict(peak * 0.99) == Verdict.DOES_NOT_FIT


def test_less_memory_never_makes_a_pass_larger() -> None:
    machine = find_mac("M4 Max 128GB")[0]
    sizes = [replace(machine, working_set_bytes=size * GIB) for size in range(20, 100, 5)]
    made = [plan(recipe_of(), QWEN3_8B, DATA, size) for size in sizes]
    for level in LEVELS:
        tokens = [one.micro_batch_tokens for one in made if one.recompute == level]
        assert tokens == sorted(tokens)
    levels = [LEVELS.index(one.recompute) for one in made]
    assert levels == sorted(levels, reverse=True)
    assert set(levels) == {0, 1, 2, 3}  # each is the cheapest that fits somewhere


def test_every_remedy_saves_what_it_says_and_costs_something() -> None:
    recipe = recipe_of(recompute="none")
    made = plan_for("M2 Air 16GB", recipe)
    assert len(made.remedies) >= 3
    ways = [(way.key, way.value) for way in made.remedies[:4]]
    assert ways == [*(("recompute", level) for level in LEVELS[1:]), ("max_seq_length", DATA.p99)]
    for way in made.remedies:
        after = plan_for("M2 Air 16GB", change(recipe, way.key, way.value))
        assert made.peak_bytes - after.peak_bytes == way.saves_bytes > 0
        assert way.fits == (after.verdict != Verdict.DOES_NOT_FIT)
        assert way.price
    assert next(way for way in made.remedies if way.key == "max_seq_length").price == "10 rows cut"


@pytest.mark.parametrize("mac", ["M2 Air 16GB", "M1 Air 16GB", "M3 Pro 18GB"])
@pytest.mark.parametrize("changes", [{}, {"recompute": "none"}, {"adapter": "full"}, {"quantize": 8}], ids=str)
def test_fitting_makes_it_fit(mac: str, changes: dict[str, Any]) -> None:
    machine, _ = find_mac(mac)
    fitted = fit(recipe_of(**changes), QWEN3_8B, DATA, machine)
    assert plan(fitted, QWEN3_8B, DATA, machine).verdict != Verdict.DOES_NOT_FIT


def test_what_no_change_fits_is_refused() -> None:
    machine, _ = find_mac("M1 8GB")
    with pytest.raises(DoesNotFit) as caught:
        fit(recipe_of(), QWEN3_8B, DATA, machine)
    assert caught.value.exit_code == 4


def test_one_change_is_enough_where_one_is() -> None:
    machine, _ = find_mac("M2 Air 16GB")
    assert fit(recipe_of(), QWEN3_8B, DATA, machine) == recipe_of(quantize=4)
    large, _ = find_mac("M4 Max 128GB")
    assert fit(recipe_of(), QWEN3_8B, DATA, large) == recipe_of()


def test_a_refusal_names_needed_available_and_three_ways() -> None:
    error = refusal(plan_for("M2 Air 16GB"))
    assert "needs 1" in error.message
    assert "8.0 GB may be used" in error.message
    assert error.fix.startswith("--set quantize=4 (somewhat less accurate, saves ")
    assert error.fix.count("--set") == 3
    assert error.fix.endswith("--force trains all the same.")


def test_time_by_hand() -> None:
    """A frozen base: 4 FLOPs a body weight and token, 4·0.4 a head weight, attention on rows of 400 tokens.

    1000 rows of 400 tokens are 250 steps of 4; the machine makes 1e12 useful FLOP/s.
    """
    head = 151_936 * 4096
    body, scores = 8_190_735_360 - 2 * head, 36 * 32 * 128 * 400
    by_hand = 4 * (body + 0.4 * head + scores) * 400_000 / 1e12
    machine, _ = find_mac("M4 Max 128GB")
    assert plan(recipe_of(), QWEN3_8B, DATA, machine, CALIBRATION).seconds == pytest.approx(by_hand)
    twice = plan(recipe_of(steps=500), QWEN3_8B, DATA, machine, CALIBRATION)
    assert twice.seconds == pytest.approx(2 * by_hand)
    assert plan(recipe_of(), QWEN3_8B, DATA, machine).seconds is None
    assert plan(recipe_of(), QWEN3_8B, replace(DATA, rows=0), machine, CALIBRATION).seconds is None


def test_the_time_of_computing_again_by_hand() -> None:
    """Norms and activations are 2% of a step. An MLP makes gate and up again, a layer also q, k, v, o and the scores.

    A step is 4 FLOPs a body weight and token, 4·0.4 a head weight, and 4 a score; what is made again costs 2.
    """
    head = 151_936 * 4096
    scores = 36 * 32 * 128 * 400
    step = 4 * (8_190_735_360 - 2 * head + 0.4 * head + scores)
    mlp, attention = 36 * 2 * 4096 * 12288, 36 * 2 * (4096 * 4096 + 4096 * 1024)
    by_hand = {"none": 1.0, "pointwise": 1.02, "mlp": 1.02 + 2 * mlp / step}
    by_hand["layer"] = by_hand["mlp"] + 2 * (attention + scores) / step
    machine, _ = find_mac("M4 Max 128GB")
    whole = plan(recipe_of(recompute="none"), QWEN3_8B, DATA, machine, CALIBRATION).seconds
    for level, times in by_hand.items():
        made = plan(recipe_of(recompute=level), QWEN3_8B, DATA, machine, CALIBRATION)
        assert made.recompute_time == pytest.approx(times)
        assert whole is not None
        assert made.seconds == pytest.approx(times * whole)


def test_pairs_lay_their_prompt_out_once() -> None:
    """A pair of 100 + 50 + 50 tokens: 200 in the stream, 300 in attention, 100 supervised; with ORPO all are."""
    data = DataFacts(rows=1000, tokens=200_000, supervised_tokens=100_000, longest=150, p99=150, widest=200)
    part = make_pass(recipe_of(method="dpo"), QWEN3_8B, data, "none", 400)
    assert (part.tokens, part.laid, part.longest, part.supervised) == (400, 600, 150, 200)
    assert make_pass(recipe_of(method="orpo"), QWEN3_8B, data, "none", 400).supervised == 400
    padded = make_pass(recipe_of(method="dpo"), replace(QWEN3_8B, family="phi3"), data, "none", 400)
    assert (padded.tokens, padded.laid) == (300, 300)  # half the budget, each answer with its own prompt
    chats = make_pass(recipe_of(), QWEN3_8B, data, "none", 400)
    assert (chats.tokens, chats.laid) == (400, 400)


def test_a_trace_puts_the_count_right() -> None:
    machine, _ = find_mac("M4 Max 128GB")
    recipe = recipe_of(recompute="none")
    counted = plan(recipe, QWEN3_8B, DATA, machine)
    traced = plan(recipe, QWEN3_8B, DATA, machine, scales={"none": 1.1, "layer": 3.0})
    assert (counted.is_traced, traced.is_traced) == (False, True)
    assert traced.parts["weights"] == counted.parts["weights"]
    assert traced.parts["activations"] == pytest.approx(1.1 * counted.parts["activations"], rel=1e-6)
    again = plan(recipe_of(recompute="mlp"), QWEN3_8B, DATA, machine, scales={"none": 1.1})
    assert not again.is_traced


def test_families_that_may_not_be_taken_apart_compute_whole_layers_again() -> None:
    machine = find_mac("M4 Max 128GB")[0]
    unknown = replace(QWEN3_8B, family="phi3")
    sizes = [replace(machine, working_set_bytes=size * GIB) for size in range(20, 100, 5)]
    assert {plan(recipe_of(), unknown, DATA, size).recompute for size in sizes} == {"none", "layer"}


def test_float32_adapters_take_more_where_the_base_is_narrower() -> None:
    model, wide = plan_for("M3 Ultra 512GB"), plan_for("M3 Ultra 512GB", recipe_of(adapter_dtype="float32"))
    assert (model.adapter_dtype, wide.adapter_dtype) == ("model", "float32")
    assert wide.parts["activations"] > 1.2 * model.parts["activations"]
    tight = recipe_of(adapter_dtype="float32", recompute="none", quantize=4)
    assert "adapter_dtype" in [way.key for way in plan_for("M2 Air 16GB", tight).remedies]


def test_disk_by_hand() -> None:
    """Rank 1 on one layer's q_proj: 4096 + 4096 values; the result, and four checkpoints with two moments."""
    recipe = recipe_of(lora={"rank": 1, "layers": 1, "targets": ["q_proj"]})
    assert plan_for("M4 Max 128GB", recipe).disk_bytes == 8192 * 4 * (1 + 4 * 3)


def test_what_is_guessed_is_marked() -> None:
    machine, published = find_mac("M4 Max 128GB")
    sure = plan(recipe_of(), QWEN3_8B, DATA, machine, CALIBRATION)
    assert not sure.is_estimate
    assert plan(recipe_of(), QWEN3_8B, DATA, machine, published).is_estimate
    assert plan(recipe_of(), QWEN3_8B, replace(DATA, is_estimate=True), machine, CALIBRATION).is_estimate
    assert plan(recipe_of(), replace(QWEN3_8B, family="mamba"), DATA, machine, CALIBRATION).is_estimate


def test_rows_are_cut_to_the_recipe() -> None:
    short = plan_for("M2 Air 16GB", recipe_of(max_seq_length=256, quantize=4))
    assert short.peak_bytes < plan_for("M2 Air 16GB", recipe_of(quantize=4, recompute="none")).peak_bytes
    cut = DATA.cut(100)
    assert (cut.tokens, cut.longest, cut.p99) == (100_000, 100, 100)
    assert cut.supervised_share == DATA.supervised_share
    assert DATA.cut(4096) is DATA


# Macs


@pytest.mark.parametrize(
    ("name", "chip", "memory"),
    [
        ("M2 Air 16GB", "Apple M2", 16),
        ("m2 air, 24 gb", "Apple M2", 24),
        ("MacBook Air M3", "Apple M3", 8),
        ("M1 Max", "Apple M1 Max", 32),
        ("M3 Ultra 512GB", "Apple M3 Ultra", 512),
        ("Mac mini M4 Pro 48GB", "Apple M4 Pro", 48),
        ("M4 mini", "Apple M4", 16),
        ("MacBook Pro M4 Max 64GB", "Apple M4 Max", 64),
        ("M2 Ultra Studio 192GB", "Apple M2 Ultra", 192),
    ],
)
def test_macs_are_found_by_name(name: str, chip: str, memory: int) -> None:
    machine, calibration = find_mac(name)
    assert (machine.chip, machine.memory_bytes, calibration.chip) == (chip, memory * GIB, chip)
    assert machine.is_apple_silicon
    assert calibration.is_estimate


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("M5 Air 16GB", "The nearest is 'M"),
        ("M2 Air 12GB", "The nearest is 'M2 Air 8GB'."),
        ("M4 Ultra", "The nearest is 'M"),
        ("", "Like 'M2 Air 16GB'."),
        ("?", "Like 'M2 Air 16GB'."),
    ],
)
def test_unknown_macs_name_the_nearest(name: str, fix: str) -> None:
    with pytest.raises(RecipeError) as caught:
        find_mac(name)
    assert caught.value.fix.startswith(fix)


def test_later_and_larger_chips_are_faster() -> None:
    for generation in ("M1", "M2", "M3", "M4"):
        kinds = [CHIPS[name] for name in CHIPS if name.startswith(generation)]
        assert [chip.tflops for chip in kinds] == sorted(chip.tflops for chip in kinds)
        assert [chip.bandwidth for chip in kinds] == sorted(chip.bandwidth for chip in kinds)


# Rows that nobody has tokenized yet


def test_files_are_guessed_by_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"text": "{"x" * size}"}}\n' for size in [27] * 99 + [3987]))
    table = DataTable(train=[str(path)], valid_fraction=0.1)
    facts = estimate_data(table, method="sft", max_seq_length=2048, batch_size=4)
    assert (facts.rows, facts.longest, facts.is_estimate) == (90, 2000, True)
    assert facts.tokens == round((99 * 10 + 1000) * 0.9)
    assert facts.supervised_share == pytest.approx(0.5, abs=0.01)
    assert estimate_data(table, method="sft", max_seq_length=64, batch_size=4).longest == 64


def test_documents_are_cut_and_nothing_is_one_full_batch(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("x" * 10_000)
    table = DataTable(train=[str(tmp_path)], valid_fraction=0.0)
    book = estimate_data(table, method="pretrain", max_seq_length=256, batch_size=4)
    assert (book.rows, book.tokens, book.supervised_share, book.longest) == (10, 2500, 1.0, 256)
    nothing = estimate_data(DataTable(), method="sft", max_seq_length=256, batch_size=4)
    assert (nothing.rows, nothing.tokens, nothing.longest) == (0, 1024, 256)

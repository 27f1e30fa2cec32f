import mlx.core as mx

from macft.bench.engine import read_shape
from macft.bench.flops import Shape, padded_flops, useful_flops
from macft.models.adapters import attach
from macft.models.describe import describe
from macft.models.load import load_model
from macft.recipe import LoraTable
from tests.golden import load_case
from tests.models.tiny import HEADS, HIDDEN, KV_HEADS, LAYERS, VOCABULARY, WIDTH, make_weights, write_model

TINY = Shape(body=100, head=50, adapters=10, layers=2, attention_width=8)


def test_the_formula_against_sums_made_by_hand():
    # Two rows of 3 and 2 tokens, 2 of them supervised. Body: 5 · 4 · 100 = 2000. Adapters: 5 · 6 · 10 = 300.
    # Head: 2 · 4 · 50 = 400. Pairs: 6 + 3 = 9, each 12 · 8 in 2 layers: 1728.
    assert useful_flops(TINY, [3, 2], supervised=2) == 2000 + 300 + 400 + 1728


def test_padding_counts_for_the_side_that_pads():
    # Two rows of 4: 8 tokens through body (3200), adapters (480) and head (1600), 20 pairs (3840).
    assert padded_flops(TINY, rows=2, length=4) == 3200 + 480 + 1600 + 3840


def test_the_work_of_an_update_is_the_sum_of_its_rows():
    together = useful_flops(TINY, [7, 3, 5], supervised=4)
    assert together == sum(useful_flops(TINY, [row], supervised=part) for row, part in ((7, 4), (3, 0), (5, 0)))


def test_a_models_shape_is_counted_by_hand(tmp_path):
    folder = write_model(tmp_path / "tiny", make_weights())
    model, _ = load_model(folder, compute_dtype="float32")
    attach(model, LoraTable(rank=4, targets="all"), kind="lora", seed=0)
    kv = WIDTH // HEADS * KV_HEADS
    inputs_and_outputs = [(WIDTH, WIDTH)] * 2 + [(WIDTH, kv)] * 2 + [(WIDTH, HIDDEN)] * 2 + [(HIDDEN, WIDTH)]
    assert read_shape(model, describe(folder)) == Shape(
        body=LAYERS * sum(a * b for a, b in inputs_and_outputs),
        head=WIDTH * VOCABULARY,
        adapters=LAYERS * 4 * sum(a + b for a, b in inputs_and_outputs),
        layers=LAYERS,
        attention_width=WIDTH,
    )


def test_quantizing_changes_no_count():
    case = load_case("llama")
    shapes = []
    for bits in (None, 8):
        model, _ = load_model(case.folder, quantize=bits, group_size=32, compute_dtype="float32")
        shapes.append(read_shape(model, describe(case.folder)))
        mx.clear_cache()
    assert shapes[0] == shapes[1]

"""What the plan predicts beside what MLX counts, over a grid of shapes and methods on the CPU backend.

    python -m tests.benchmarks.plan_grid          every point, a process each (some minutes)

The rule: predicted ÷ measured lies in 0.90 … 1.15 for every point.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from macft.machine import GIB, MIB, MachineFacts
from macft.models.describe import describe_as_loaded
from macft.plan import DataFacts, Plan, plan
from tests.benchmarks.plan_peaks import ROOT, Point, make_folder, measure, recipe_of

LOWEST, HIGHEST = 0.90, 1.15
LINUX = MachineFacts("Linux", "any", 2, 4096 * GIB, 4096 * GIB, False, None, "", False, "3.11")
"""So large that the plan never has to shrink what a point asks for."""
SMOL = {"width": 576, "inner": 1536, "heads": 9, "kv_heads": 3, "head_dim": 64, "layers": 3}
GOLDEN = str(ROOT / "tests" / "golden" / "llama")
QUICK = {
    "SmolLM2's layers, V = 8k": Point(**SMOL, vocabulary=8192, rows=4, length=64),
    "the same recomputed": Point(**SMOL, vocabulary=8192, rows=4, length=64, recompute="layer"),
    "4 bits, V = 32k": Point(**SMOL, vocabulary=32768, rows=4, length=32, quantize=4),
    "V = 152k, narrow": Point(width=128, inner=256, vocabulary=152_000, rows=4, length=64),
    "full, V = 8k": Point(**SMOL, vocabulary=8192, rows=2, length=64, adapter="full"),
    "golden llama": Point(model=GOLDEN, rows=4, length=32),
}
"""Six points that CI measures."""


def grid(smollm2: str) -> dict[str, Point]:
    """Return all points; `smollm2` is the folder of the real model."""
    points = dict(QUICK)
    real = {"model": smollm2, "rank": 8}
    for length, rows in ((64, 2), (128, 4), (512, 1), (1024, 1)):
        for recompute in ("none", "layer"):
            name = f"SmolLM2-135M {rows}x{length} {recompute}"
            points[name] = Point(**real, rows=rows, length=length, recompute=recompute)
    points["SmolLM2-135M 4 bits"] = Point(**real, rows=4, length=64, quantize=4)
    points["SmolLM2-135M 4 bits layer"] = Point(**real, rows=2, length=128, quantize=4, recompute="layer")
    for vocabulary in (512, 32768, 152_000):
        for recompute in ("none", "layer"):
            shape = {**SMOL, "width": 384, "heads": 6, "inner": 1024, "layers": 6, "vocabulary": vocabulary}
            points[f"V = {vocabulary:,} 4x128 {recompute}"] = Point(**shape, rows=4, length=128, recompute=recompute)
    wide = {"width": 1024, "inner": 3072, "heads": 16, "kv_heads": 8, "head_dim": 64, "layers": 4, "vocabulary": 32000}
    points["wide, 8 bits"] = Point(**wide, rows=4, length=64, quantize=8)
    points["wide, 4 bits layer, all supervised"] = Point(
        **wide, rows=4, length=128, quantize=4, recompute="layer", share=1.0
    )
    points["wide, rank 64"] = Point(**wide, rows=8, length=32, rank=64)
    points["wide, attention only"] = Point(**wide, rows=8, length=32, targets="attention")
    points["wide, last layer"] = Point(**wide, rows=8, length=32, adapted=1)
    points["wide, dora"] = Point(**wide, rows=8, length=32, adapter="dora")
    points["qwen3's layers"] = Point(family="qwen3", **{**wide, "head_dim": 128}, rows=4, length=64)
    points["gemma3's layers"] = Point(family="gemma3_text", **{**wide, "head_dim": 128}, rows=4, length=64)
    points["untied, all supervised"] = Point(**wide, tied=False, rows=8, length=64, share=1.0)
    points["full, adamw"] = Point(**wide, rows=4, length=64, adapter="full")
    points["full, sgd, all supervised"] = Point(**wide, rows=8, length=64, adapter="full", optimizer="sgd", share=1.0)
    points["full, adafactor"] = Point(**wide, rows=8, length=64, adapter="full", optimizer="adafactor")
    points["golden llama 2x128 layer"] = Point(model=GOLDEN, rows=2, length=128, recompute="layer")
    points["golden llama full"] = Point(model=GOLDEN, rows=4, length=128, adapter="full")
    points["full, lion"] = Point(**wide, rows=4, length=64, adapter="full", optimizer="lion")
    points["full, muon"] = Point(**wide, rows=4, length=64, adapter="full", optimizer="muon")
    points["full, layer, four micro-batches"] = Point(
        **SMOL, vocabulary=2048, rows=8, length=64, parts=4, adapter="full", recompute="layer"
    )
    points["padded rows"] = Point(**SMOL, vocabulary=2048, rows=8, length=64, padded=True)
    points["padded rows 1x1024"] = Point(**SMOL, vocabulary=2048, rows=1, length=1024, padded=True)
    points["four micro-batches"] = Point(**wide, rows=2, length=64, parts=4)
    return points


def predict(point: Point) -> Plan:
    """Return the plan of a point."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_folder(point, Path(scratch))
        recipe = recipe_of(point, folder)
        facts = describe_as_loaded(folder, quantize=recipe.quantize)
        rows, length = point.rows * point.parts, point.length
        supervised = rows * round(point.share * length)
        data = DataFacts(rows, rows * length, supervised, length, length)
        recipe = recipe.model_copy(update={"micro_batch_size": point.rows})
        if point.padded:  # a family whose attention is not known, of the same shape
            facts = replace(facts, family="phi3")
        return plan(recipe, facts, data, LINUX)


def main() -> int:
    """Print the table; fail when any point is out of bounds."""
    import os

    home = Path(os.environ.get("MACFT_HOME") or Path.home() / "macft")
    points = grid(str(home / "models" / "smollm2-135m"))
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    outside = 0
    print(f"{'point':36} {'predicted':>10} {'measured':>10}  ratio")
    for name, point in points.items():
        if wanted not in name:
            continue
        predicted, measured = predict(point), measure(point)["peak"]
        ratio = predicted.peak_bytes / measured
        outside += not LOWEST <= ratio <= HIGHEST
        parts = " ".join(f"{part} {size / MIB:.0f}" for part, size in predicted.parts.items() if size)
        print(
            f"{name:36} {predicted.peak_bytes / MIB:7.1f} MB {measured / MIB:7.1f} MB  {ratio:5.3f}  {parts}",
            flush=True,
        )
    return 1 if outside else 0


if __name__ == "__main__":
    sys.exit(main())

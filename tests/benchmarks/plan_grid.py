"""What the plan predicts beside what MLX counts, over a grid of shapes and methods on the CPU backend.

    python -m tests.benchmarks.plan_grid          every point, a process each (some minutes)

The rule: predicted ÷ measured lies in 0.90 … 1.15 for every point.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from macft.machine import GIB, MIB, MachineFacts
from macft.memory import LEVELS
from macft.models.describe import describe_as_loaded
from macft.plan import DataFacts, Plan, plan
from macft.training.trace import even_rows, trace_scales
from tests.benchmarks.plan_peaks import ROOT, Point, make_folder, measure, recipe_of

LOWEST, HIGHEST = 0.90, 1.15
LINUX = MachineFacts("Linux", "any", 2, 4096 * GIB, 4096 * GIB, False, None, "", False, "3.11")
"""So large that the plan never has to shrink what a point asks for."""
SMOL = {"width": 576, "inner": 1536, "heads": 9, "kv_heads": 3, "head_dim": 64, "layers": 3}
GOLDEN = str(ROOT / "tests" / "golden" / "llama")
QUICK = {
    "SmolLM2's layers, V = 8k": Point(**SMOL, vocabulary=8192, rows=4, length=64),
    "the same, dpo": Point(**SMOL, vocabulary=8192, rows=4, length=64, method="dpo"),
    "the same, pointwise": Point(**SMOL, vocabulary=8192, rows=4, length=64, recompute="pointwise"),
    "4 bits, V = 32k, layer": Point(**SMOL, vocabulary=32768, rows=4, length=32, quantize=4, recompute="layer"),
    "V = 152k, narrow, mlp": Point(width=128, inner=256, vocabulary=152_000, rows=4, length=64, recompute="mlp"),
    "full, V = 8k": Point(**SMOL, vocabulary=8192, rows=2, length=64, adapter="full"),
}
"""Six points that CI measures."""


def grid(smollm2: str) -> dict[str, Point]:
    """Return all points; `smollm2` is the folder of the real model."""
    points = dict(QUICK)
    real = {"model": smollm2, "rank": 8}
    for length, rows in ((64, 2), (128, 4), (512, 1), (1024, 1)):
        for recompute in LEVELS:
            name = f"SmolLM2-135M {rows}x{length} {recompute}"
            points[name] = Point(**real, rows=rows, length=length, recompute=recompute)
    points["SmolLM2-135M 4 bits"] = Point(**real, rows=4, length=64, quantize=4)
    points["SmolLM2-135M 4 bits layer"] = Point(**real, rows=2, length=128, quantize=4, recompute="layer")
    for vocabulary in (512, 32768, 152_000):
        for recompute in LEVELS:
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
    points["padded rows, mlp"] = Point(**SMOL, vocabulary=2048, rows=8, length=64, padded=True, recompute="mlp")
    points["golden llama"] = Point(model=GOLDEN, rows=4, length=32)
    points["qwen3's layers, pointwise"] = replace(points["qwen3's layers"], recompute="pointwise")
    points["gemma3's layers, mlp"] = replace(points["gemma3's layers"], recompute="mlp")
    for method in ("dpo", "orpo", "kto"):
        points[f"SmolLM2-135M 2x128 {method}"] = Point(**real, method=method, rows=2, length=128)
    points["SmolLM2-135M 2x128 dpo, 4 bits, mlp"] = Point(
        **real, method="dpo", rows=2, length=128, quantize=4, recompute="mlp"
    )
    points["V = 152,000 4x128 dpo, long prompts"] = replace(points["V = 152,000 4x128 none"], method="dpo", share=0.2)
    points["V = 152,000 4x128 dpo, layer"] = replace(points["V = 152,000 4x128 layer"], method="dpo")
    points["padded rows, dpo"] = replace(points["padded rows"], method="dpo")
    points["full, dpo"] = replace(points["full, adamw"], method="dpo")
    points["four micro-batches"] = Point(**wide, rows=2, length=64, parts=4)
    return points


def predict(point: Point, *, traced: bool = True) -> Plan:
    """Return the plan of a point, with what a trace says or without."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = make_folder(point, Path(scratch))
        recipe = recipe_of(point, folder)
        facts = describe_as_loaded(folder, quantize=recipe.quantize)
        count, answer = point.rows * point.parts, round(point.share * point.length)
        rows = even_rows(point.method, count=count, prompt=point.length - answer, answer=answer)
        lengths, longest = rows.lengths, int(rows.longest.max())
        data = DataFacts(
            count, int(lengths.sum()), int(rows.supervised.sum()), longest, longest, widest=int(lengths.max())
        )
        recipe = recipe.model_copy(update={"micro_batch_size": point.rows})
        if point.padded:  # a family whose attention is not known, of the same shape
            facts = replace(facts, family="phi3")
        return plan(recipe, facts, data, LINUX, scales=trace_scales(recipe, facts, data, LINUX) if traced else None)


def main() -> int:
    """Print the table; fail when any point is out of bounds."""
    import os

    home = Path(os.environ.get("MACFT_HOME") or Path.home() / "macft")
    points = grid(str(home / "models" / "smollm2-135m"))
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    outside = 0
    print(f"{'point':38} {'measured':>10}  planned counted  parts, MB")
    for name, point in points.items():
        if wanted not in name:
            continue
        peak, planned, counted = measure(point)["peak"], predict(point), predict(point, traced=False)
        ratios = [one.peak_bytes / peak for one in (planned, counted)]
        outside += not all(LOWEST <= ratio <= HIGHEST for ratio in ratios)
        parts = " ".join(f"{part} {size / MIB:.0f}" for part, size in planned.parts.items() if size)
        print(f"{name:38} {peak / MIB:7.1f} MB  {ratios[0]:7.3f} {ratios[1]:7.3f}  {parts}", flush=True)
    return 1 if outside else 0


if __name__ == "__main__":
    sys.exit(main())

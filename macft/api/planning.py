"""Recipes, and what a run of one will need."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from macft.errors import DataError, DoesNotFit, ModelError, NeedsNetwork, Problem
from macft.gallery import find_recipe
from macft.machine import GIB, MachineFacts, free_disk_bytes, home, read_machine
from macft.plan import Calibration, DataFacts, Plan, Scales, Verdict, refusal
from macft.plan import fit as fit_recipe
from macft.plan import plan as make_plan
from macft.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from macft.bench.report import BenchReport
    from macft.models.describe import ModelFacts


def read_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by path or gallery name, with `key=value` overrides."""
    return load_recipe(find_recipe(name), overrides)


def plan(recipe: Recipe, *, mac: str = "", calibrated: bool = True) -> Plan:
    """Say what a run will need and whether it fits; no weights are read, so the model's config is enough.

    Args:
        recipe: What to do. Its rows are guessed from the files' sizes.
        mac: Plan for this Mac instead, like `M2 Air 16GB`; its times are estimates.
        calibrated: Measure this machine's speed, once, for the time, and trace what the recipe's pass takes; this
            takes MLX and a second. Without, bytes are counted, and there is no time.

    Raises:
        MacftError: The model's config is not here, data files are missing, or no such Mac is known.
    """
    facts, data, machine = _plan_facts(recipe, mac)
    if not calibrated:
        return make_plan(recipe, facts, data, machine)
    scales = _trace(recipe, facts, data, machine)
    return make_plan(recipe, facts, data, machine, _calibration(mac, machine), scales=scales)


def fit(recipe: Recipe, *, mac: str = "") -> Recipe:
    """Return the recipe with the cheapest changes that make it fit.

    Raises:
        DoesNotFit: No change is enough.
        MacftError: As for `plan`.
    """
    while True:  # a changed recipe has traces of its own, which may want more
        facts, data, machine = _plan_facts(recipe, mac)
        fitted = fit_recipe(recipe, facts, data, machine, scales=_trace(recipe, facts, data, machine))
        if fitted == recipe:
            return recipe
        recipe = fitted


def bench(recipe: Recipe, *, batches: int, progress: Callable[[int, int], None] | None = None) -> "BenchReport":
    """Count and time what a recipe's training costs on this machine; nothing is saved.

    Raises:
        MacftError: The model is not here, or its data cannot be read.
    """
    from macft.bench.report import bench as measure
    from macft.models.catalog import resolve

    check_inputs(recipe)
    return measure(recipe, resolve(recipe.model, home()), batches=batches, progress=progress)


def _plan_facts(recipe: Recipe, mac: str) -> "tuple[ModelFacts, DataFacts, MachineFacts]":
    from macft.data.estimate import estimate_data
    from macft.macs import find_mac
    from macft.models.catalog import resolve
    from macft.models.describe import describe_as_loaded

    machine = find_mac(mac)[0] if mac else read_machine()
    try:
        folder = resolve(recipe.model, home())
    except NeedsNetwork as error:
        command = f"macft pull {recipe.model} --config-only"
        raise NeedsNetwork(error.message, fix=f"`{command}` fetches the config, which is enough to plan.") from None
    facts = describe_as_loaded(folder, quantize=recipe.quantize)
    if not facts.trainable:
        raise ModelError(f"{facts.name} cannot be trained: {facts.why_not}", fix="`macft models` lists those that can.")
    check_files(recipe)
    longest = min(recipe.max_seq_length, facts.context or recipe.max_seq_length)
    data = estimate_data(recipe.data, method=recipe.method, max_seq_length=longest, batch_size=recipe.batch_size)
    return facts, data, machine


def _trace(recipe: Recipe, facts: "ModelFacts", data: DataFacts, machine: MachineFacts) -> Scales:
    import macft.models.load  # noqa: F401 — first: it guards the import of mlx-lm
    from macft.training.trace import trace_scales

    return trace_scales(recipe, facts, data, machine)


def _calibration(mac: str, machine: MachineFacts) -> Calibration:
    from macft.macs import find_mac
    from macft.training.calibrate import calibrate

    return find_mac(mac)[1] if mac else calibrate(home(), machine.chip)


def check_fit(recipe: Recipe, folder: Path) -> None:
    """Refuse a run that needs more memory or disk than there is.

    Raises:
        DoesNotFit: With the cheapest way to make it fit.
    """
    made = plan(recipe, calibrated=False)
    if made.verdict == Verdict.DOES_NOT_FIT and (made := plan(recipe)).verdict == Verdict.DOES_NOT_FIT:
        raise refusal(made)
    if (free := free_disk_bytes(folder)) < made.disk_bytes:
        needed = f"{made.disk_bytes / GIB:.1f} GB of disk, and {free / GIB:.1f} GB are free at {folder}"
        raise DoesNotFit(f"this run needs {needed}", fix="--set checkpoint.keep=1, --out on another disk, or --force.")


def check_files(recipe: Recipe) -> None:
    """Refuse rows that are not there.

    Raises:
        DataError: With every file that is missing.
    """
    data = recipe.data
    named = [path for path in (*data.train, *data.valid, *data.test, *data.general) if path != "-"]
    if missing := [Problem(path, "no such file or folder") for path in named if not Path(path).exists()]:
        raise DataError(missing, fix="Paths in a recipe are relative to the recipe.")


def check_inputs(recipe: Recipe) -> None:
    """Refuse rows and models that no run could use, before one begins.

    Raises:
        MacftError: The files, the model, or its family.
    """
    from macft.models.catalog import resolve
    from macft.models.describe import describe

    check_files(recipe)
    facts = describe(resolve(recipe.model, home()))
    if not facts.trainable:
        raise ModelError(f"{facts.name} cannot be trained: {facts.why_not}", fix="`macft models` lists those that can.")

"""What does not fit into CI: the recipes of the gallery, to their end, on the real model."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from macft.machine import openblas_preload
from macft.run import Run
from tests.conftest import REPOSITORY

pytestmark = [pytest.mark.long, pytest.mark.real]


@pytest.mark.parametrize(("name", "minutes"), [("quickstart", 10), ("sft-qlora-addresses", 15)])
def test_a_recipe_of_the_gallery_keeps_its_promise(name: str, minutes: float, smollm2: Path, tmp_path: Path) -> None:
    """Base is near zero, the gain is plain, and it takes no longer than the recipe says."""
    environment = {**os.environ, "MACFT_HOME": str(smollm2.parents[1]), "LD_PRELOAD": openblas_preload()}
    command = [
        sys.executable,
        "-m",
        "macft",
        "train",
        f"recipes/{name}.toml",
        "--out",
        str(tmp_path / "run"),
        "--plain",
    ]
    started = time.monotonic()
    subprocess.run(command, cwd=REPOSITORY, env=environment, check=True)
    assert time.monotonic() - started < 60 * minutes
    scores = Run.open(tmp_path / "run").state().scores
    assert scores is not None
    assert scores.base["field_f1"] < 0.1
    assert scores.tuned["valid_json"] > 0.9
    assert scores.tuned["field_f1"] > 0.5

"""Fixtures that several rooms' tests share."""

import os
from pathlib import Path

import pytest

from macft.models.fetch import pull
from tests.shelf import Shelf, make_shelf

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def home_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what a test writes out of the person's own `~/macft`."""
    if "MACFT_HOME" not in os.environ:
        monkeypatch.setenv("MACFT_HOME", str(tmp_path_factory.getbasetemp() / "home"))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of the real SmolLM2-135M, fetched once into `MACFT_TEST_HOME` and kept between runs."""
    home = Path(os.environ.get("MACFT_TEST_HOME") or REPOSITORY / ".cache" / "macft-tests")
    return pull("smollm2-135m", home)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    """A home with a tiny model, and a folder for runs."""
    return make_shelf(tmp_path)

"""Fixtures that several rooms' tests share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from macft.models.fetch import pull
from tests.faults.network import GUARD, watch
from tests.shelf import Shelf, make_shelf

REPOSITORY = Path(__file__).parent.parent
watch()


@pytest.fixture(autouse=True)
def nothing_leaves_this_machine() -> Iterator[None]:
    """Fail a test in which anything connected or looked a name up beyond this machine, even if it was caught."""
    before = len(GUARD.breaches)
    yield
    assert GUARD.breaches[before:] == []


@pytest.fixture(autouse=True)
def home_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what a test writes out of the person's own `~/macft`."""
    if "MACFT_HOME" not in os.environ:
        monkeypatch.setenv("MACFT_HOME", str(tmp_path_factory.getbasetemp() / "home"))


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of the real SmolLM2-135M, fetched once into `MACFT_TEST_HOME` and kept between runs."""
    home = Path(os.environ.get("MACFT_TEST_HOME") or REPOSITORY / ".cache" / "macft-tests")
    with GUARD.online():
        return pull("smollm2-135m", home)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    """A home with a tiny model, and a folder for runs."""
    return make_shelf(tmp_path)

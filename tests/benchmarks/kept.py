"""What was measured so far, a file a case: the comparison can be made in pieces."""

import json
from pathlib import Path
from typing import Any

from macft.bench.clock import Peak
from macft.bench.sample import Estimate
from tests.benchmarks.counters import Counters
from tests.benchmarks.curves import Curves, Point
from tests.benchmarks.memory import Memory
from tests.benchmarks.preference_page import Against, Peaks
from tests.benchmarks.sides import BENCH
from tests.benchmarks.speed import Speed

KINDS: dict[str, Any] = {
    kind.__name__: kind for kind in (Against, Counters, Curves, Estimate, Memory, Peak, Peaks, Point, Speed)
}
FOLDER = BENCH / "measured"


def keep(name: str, value: Any, folder: Path = FOLDER) -> None:
    """Write one case's figures."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(_told(value), indent=1), encoding="utf-8")


def find(name: str, folder: Path = FOLDER) -> Any:
    """Return a case's figures; None when it was not measured."""
    path = folder / f"{name}.json"
    return _read(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def _told(value: Any) -> Any:
    if hasattr(value, "_asdict"):
        return {"kind": type(value).__name__, **{name: _told(part) for name, part in value._asdict().items()}}
    return [_told(part) for part in value] if isinstance(value, list) else value


def _read(value: Any) -> Any:
    if isinstance(value, dict) and "kind" in value:
        return KINDS[value.pop("kind")](**{name: _read(part) for name, part in value.items()})
    return [_read(part) for part in value] if isinstance(value, list) else value

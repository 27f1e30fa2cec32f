"""What the hygiene checks cost on a million rows, and what they find in rows that are known.

    python -m tests.benchmarks.hygiene                  1,000,000 rows of some 60 tokens: time and memory
    python -m tests.benchmarks.hygiene FOLDER           share of the rows of each file that is named, by kind

The rule: at most five minutes on two cores and 2 GB; one row in a hundred is nearly the same as another. Tokens are
counted with no tokenizer here: 45 words of English are some 60 tokens of the usual ones.
"""

import random
import resource
import sys
import tempfile
import time
from pathlib import Path

from macft.data.hygiene.check import check_rows
from macft.data.writing import dump_row
from macft.machine import MIB
from tests.data.hygiene.planted import clean_row, edit

ROWS, EVERY, KEPT = 1_000_000, 100, 20_000


def write_million(path: Path, rows: int = ROWS, seed: int = 5) -> None:
    """Write rows, of which every hundredth is an earlier one with a word or two changed."""
    rng, kept = random.Random(seed), []
    with path.open("wb") as file:
        for number in range(rows):
            is_edited = number % EVERY == EVERY - 1
            row = edit(rng, rng.choice(kept)) if is_edited else clean_row(rng, number, sentences=2)
            if number % 7 == 0 and len(kept) < KEPT:
                kept.append(row)
            file.write(dump_row(row))


def measure(folder: Path) -> None:
    """Write and check a million rows, and print what it took."""
    path = folder / "million.jsonl"
    write_million(path)
    before, wall = time.process_time(), time.perf_counter()
    report = check_rows([str(path)])
    seconds, wall = time.process_time() - before, time.perf_counter() - wall
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1 if sys.platform == "darwin" else 1024)
    peak = peak // MIB if sys.platform == "darwin" else peak
    print(f"{report.total:,} rows: {wall:.0f} s, {seconds:.0f} s of CPU, {peak:,} MB at the highest; {report.count()}")


def tell_alarms(folder: Path) -> None:
    """Print what is named in the training rows of every folder."""
    for path in sorted(folder.rglob("*.jsonl")):
        report = check_rows([str(path)])
        shares = ", ".join(f"{kind} {rows / report.total:.2%}" for kind, rows in report.count().items())
        print(f"{path.relative_to(folder)}  {report.total:,} rows  {shares or 'nothing'}")


if __name__ == "__main__":
    if sys.argv[1:]:
        tell_alarms(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as aside:
            measure(Path(aside))

"""Which rows are held out.

The rule: a row's place depends on what it says alone. It never moves when other rows come or go, when a column that
macft does not read changes, or when the keys are in another order; equal rows share a side.
"""

import hashlib
import json
from dataclasses import asdict

from macft.data.examples import Example, ResponseExample

_HASHES = float(2**64)


def hash_example(example: Example) -> int:
    """Return a hash of what an example says, without where it stands; 64 bits."""
    return _hash(example, asdict(example) | {"where": None})


def hash_place(example: Example) -> int:
    """Return the hash that decides whether a row is held out: of its prompt alone when it has responses; 64 bits.

    So all responses to a prompt stay on one side.
    """
    if not isinstance(example, ResponseExample):
        return hash_example(example)
    prompt = example.prompt if isinstance(example.prompt, str) else [asdict(turn) for turn in example.prompt]
    return _hash(example, {"prompt": prompt, "tools": example.tools})


def _hash(example: Example, content: dict[str, object]) -> int:
    text = json.dumps([type(example).__name__, content], sort_keys=True, ensure_ascii=False, default=str)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def is_held_out(row_hash: int, fraction: float) -> bool:
    """Return whether the row with this hash is among the held-out `fraction`."""
    return row_hash < fraction * _HASHES

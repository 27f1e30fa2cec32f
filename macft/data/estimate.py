"""How many rows and tokens files hold, guessed from their bytes, for a plan before anything is tokenized.

The rule: no tokenizer, and nothing is parsed; a guess errs to the long side, and the plan says that it is one.
"""

from collections.abc import Iterator
from pathlib import Path

from macft.data.sources import list_files
from macft.plan import DataFacts
from macft.recipe import DataTable

BYTES_A_TOKEN = 4
"""Of English text in common tokenizers."""
LEAST_BYTES_A_TOKEN = 2
"""For the longest row: other scripts and code take more tokens."""
SUPERVISED_SHARE = 0.5
"""Of a chat, when only answers are trained on."""
PAIR_METHODS = {"dpo", "orpo", "simpo", "cpo"}
"""Methods whose rows hold two answers, so that one may be twice as wide as it is long."""
_BY_LINE = {".jsonl", ".csv", ".tsv"}


def estimate_data(table: DataTable, *, method: str, max_seq_length: int, batch_size: int) -> DataFacts:
    """Guess the facts about the rows of a recipe; without files, one batch of the longest rows it allows.

    Args:
        table: Names the files.
        method: `pretrain` cuts whole documents to `max_seq_length`; a row of pairs holds two answers.
        max_seq_length: Longest row, in tokens.
        batch_size: Rows an update.
    """
    named = [path for path in table.train if path != "-"]
    lengths = sorted(_row_bytes(list_files(named), cut=max_seq_length * BYTES_A_TOKEN, documents=method == "pretrain"))
    whole = method == "pretrain" or table.train_on == "all"
    share = 1.0 if whole else SUPERVISED_SHARE
    widest = max_seq_length * (2 if method in PAIR_METHODS else 1)
    if not lengths:
        tokens = batch_size * widest
        return DataFacts(
            0, tokens, int(share * tokens), max_seq_length, max_seq_length, widest=widest, is_estimate=True
        )
    held = table.valid_fraction if not table.valid else 0.0
    tokens = sum(min(widest, -(-size // BYTES_A_TOKEN)) for size in lengths)
    most, p99 = (-(-size // LEAST_BYTES_A_TOKEN) for size in (lengths[-1], lengths[99 * len(lengths) // 100]))
    return DataFacts(
        rows=max(1, round(len(lengths) * (1 - held))),
        tokens=max(1, round(tokens * (1 - held))),
        supervised_tokens=max(1, round(tokens * (1 - held) * share)),
        longest=max(1, min(max_seq_length, most)),
        p99=max(1, min(max_seq_length, p99)),
        valid_tokens=round(tokens * held),
        widest=max(1, min(widest, most)),
        is_estimate=True,
    )


def _row_bytes(files: list[Path], *, cut: int, documents: bool) -> Iterator[int]:
    """Yield the bytes of each row, a line where rows are lines; anything else is cut into full rows."""
    for file in files:
        if file.suffix.lower() in _BY_LINE:
            with file.open("rb") as lines:
                sizes = [len(line) for line in lines if line.strip()]
        else:
            sizes = [file.stat().st_size]
        for size in sizes:
            if documents or file.suffix.lower() not in _BY_LINE:
                yield from [cut] * (size // cut)
                size %= cut
            if size:
                yield size

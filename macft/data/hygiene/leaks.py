"""Held-out rows that are trained on, told before a run starts.

The rule: a score on rows that were trained on is no score. Only the same prompts count here (normalized, as in
`macft data check`), since rows that are nearly the same are a matter of judgement.
"""

from collections.abc import Iterable, Iterator

from macft.data.examples import RowProblem
from macft.data.hygiene.texts import hash_text, normalize, read_texts
from macft.data.sources import Row, read_rows
from macft.errors import DataError, Problem
from macft.recipe import DataTable


def refuse_leaks(data: DataTable) -> None:
    """Refuse rows when some of `valid` or `test` ask what `train` asks; what cannot be read is skipped.

    Raises:
        DataError: Every such row, with the training row it is like.
    """
    if data.leaks == "allow" or not (data.valid or data.test) or "-" in data.train:
        return
    asked = dict[int, str]()
    for row, prompt in _hash_prompts([*data.valid, *data.test], data):
        asked.setdefault(prompt, row.where)
    trained = dict[int, str]()
    for row, prompt in _hash_prompts(data.train, data) if asked else ():
        if prompt in asked:
            trained.setdefault(prompt, row.where)
    if not trained:
        return
    problems = [
        Problem(row.where, f"is held out, and asks what {trained[prompt]} asks, which is trained on")
        for row, prompt in _hash_prompts([*data.valid, *data.test], data)
        if prompt in trained
    ]
    way_out = "`macft data clean TRAIN --held-out HELD_OUT --out FILE` writes training rows without them"
    raise DataError(problems, fix=f"{way_out}; --set data.leaks=allow trains all the same.")


def _hash_prompts(files: Iterable[str], data: DataTable) -> Iterator[tuple[Row, int]]:
    for row in read_rows(list(files), []):
        try:
            texts = read_texts(row, data.columns)
        except RowProblem:
            continue
        yield row, hash_text(normalize(texts.prompt or texts.answer))

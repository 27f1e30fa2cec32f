"""Set Base beside tuned: the rows of a table, and a few answers to look at.

The rule: data only, for whoever draws it. Examples are the first of their kind, never the nicest.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from macft.measure.answers import AnswerScores


class ScoreRow(NamedTuple):
    """One metric of both, each 0 to 1; None where it was not measured."""

    metric: str
    base: float | None
    tuned: float | None


def render_scores(base: Mapping[str, float], tuned: Mapping[str, float]) -> list[ScoreRow]:
    """Pair the metrics of two `AnswerScores`, or of a `scores` event, in their own order."""
    return [ScoreRow(metric, base.get(metric), tuned.get(metric)) for metric in {**tuned, **base}]


def pick_examples(
    base: AnswerScores, tuned: AnswerScores, prompts: Sequence[str], *, count: int = 3
) -> list[dict[str, str]]:
    """Pick rows to show side by side: the first better, the first worse, the first unchanged, then more of them.

    Returns:
        Up to `count` dicts of prompt, reference, base, tuned and change (`better`, `worse` or `unchanged`).
    """
    rows = list(zip(prompts, base.rows, tuned.rows, strict=True))
    changes = [_change(before.score, after.score) for _, before, after in rows]
    seen: dict[str, int] = {}
    ranked = []
    for place, change in enumerate(changes):
        seen[change] = seen.get(change, 0) + 1
        ranked.append((seen[change], _KINDS.index(change), place))
    return [
        {
            "prompt": rows[place][0],
            "reference": rows[place][1].reference,
            "base": rows[place][1].answer,
            "tuned": rows[place][2].answer,
            "change": changes[place],
        }
        for _, _, place in sorted(ranked)[:count]
    ]


_KINDS = ("better", "worse", "unchanged")


def _change(before: float, after: float) -> str:
    if after == before:
        return "unchanged"
    return "better" if after > before else "worse"

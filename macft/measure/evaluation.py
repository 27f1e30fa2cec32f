"""Base and tuned on the same rows: how likely the rows are to each, what each answers, and whether that differs.

The rule: both read a row in one batch and answer a question in one batch. A figure is made of what each row adds, so
each has an interval, and each difference a paired test.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from macft.chat.compare import Voices
from macft.chat.panes import Ask, Reply, Sampling
from macft.chat.score import RowLikelihood
from macft.data.chat_template import Encoded, find_stop_ids
from macft.data.inspect import detect
from macft.data.prepare import prepare
from macft.data.questions import Question
from macft.errors import ModelError, Problem, RecipeError
from macft.measure.answers import AnswerScores, RowScore, score_answers
from macft.measure.comparison import answer_asks
from macft.measure.kept import first_answer
from macft.measure.overlap import score_rouge
from macft.measure.resampling import Figure, compare_paired, find_interval, mean, ratio
from macft.measure.translation import bleu, chrf
from macft.models.describe import describe
from macft.models.load import load_tokenizer
from macft.recipe import DataTable, EvaluateTable, Recipe

LABEL_WORDS = 8
"""Longest label; what is longer is a text, even when it comes often."""
LOSS, PERPLEXITY = "loss", "perplexity"
Tell = Callable[[str, int, int], None]


class HeldOut(NamedTuple):
    """What both are asked: rows to read [N], and questions with their references."""

    rows: list[Encoded]
    questions: list[Question]


class Outcomes(NamedTuple):
    """How many answers became right, became wrong, and stayed what they were."""

    fixed: int
    broken: int
    right_in_both: int
    wrong_in_both: int


@dataclass(frozen=True, slots=True)
class Measured:
    """One model on all rows.

    Attributes:
        name: Of the voice.
        figures: By metric, each 0 to 1 but for `loss`, nats a supervised token.
        answers: Scored one by one, in the order of the questions.
        is_right: Whether each answer is right: exact, or the label that was asked for.
        cut: Answers that were as long as allowed.
    """

    name: str
    figures: dict[str, Figure]
    answers: AnswerScores
    is_right: list[bool]
    cut: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Base and tuned on the same rows."""

    held_out: HeldOut
    base: Measured
    tuned: Measured

    @property
    def outcomes(self) -> Outcomes:
        """The four-way table."""
        pairs = list(zip(self.base.is_right, self.tuned.is_right, strict=True))
        kinds = ((False, True), (True, False), (True, True), (False, False))
        return Outcomes(*(pairs.count(kind) for kind in kinds))

    def worst(self, count: int) -> list[int]:
        """Return the questions that tuned answered worst; of equals, those that Base answered best come first."""
        scores = [(after.score, -before.score) for before, after in self._pairs()]
        return sorted(range(len(scores)), key=lambda place: scores[place])[:count]

    def values(self, *, worst: int = 10) -> dict[str, Any]:
        """Return all figures as JSON values; `loss` brings `perplexity` with it."""
        both = {"base": self.base, "tuned": self.tuned}
        intervals = {
            side: _with_perplexity({name: list(find_interval(figure)) for name, figure in own.figures.items()})
            for side, own in both.items()
        }
        return {
            "rows": len(self.held_out.rows),
            "questions": len(self.held_out.questions),
            **{
                side: _with_perplexity({name: figure.value for name, figure in own.figures.items()})
                for side, own in both.items()
            },
            "intervals": intervals,
            "p": {name: compare_paired(self.base.figures[name], self.tuned.figures[name]) for name in self.metrics},
            "outcomes": self.outcomes._asdict(),
            "cut": {side: own.cut for side, own in both.items()},
            "worst": [self.example(place) for place in self.worst(worst)],
        }

    @property
    def metrics(self) -> list[str]:
        """The metrics that both have, in their order."""
        return list(self.tuned.figures)

    def example(self, place: int) -> dict[str, Any]:
        """Return a question with both answers and their scores."""
        before, after = self.base.answers.rows[place], self.tuned.answers.rows[place]
        return {
            "prompt": self.held_out.questions[place].text,
            "reference": before.reference,
            "base": before.answer,
            "tuned": after.answer,
            "base_score": before.score,
            "tuned_score": after.score,
        }

    def _pairs(self) -> Iterable[tuple[RowScore, RowScore]]:
        return zip(self.base.answers.rows, self.tuned.answers.rows, strict=True)


def read_held_out(
    folder: Path,
    recipe: Recipe | None,
    files: Sequence[str],
    *,
    limit: int | None,
    progress: Callable[[int, int], None],
) -> HeldOut:
    """Read rows as the run's training would: with its template, columns and length.

    Args:
        folder: The model's.
        recipe: The run's; None for an adapter without one.
        files: Rows; none for the recipe's own test rows, or else its held-out ones.
        limit: Most rows; None for all.
        progress: Told (rows read, all rows).

    Raises:
        DataError: Rows cannot be used, all of them named.
        RecipeError: There are no rows.
    """
    data = recipe.data if recipe else DataTable()
    own = data.test or data.valid
    if not (files or own):
        problem = Problem("--data", "is needed: the recipe names no test or validation rows")
        raise RecipeError([problem], fix="Like `--data test.jsonl`.")
    given = list(files or own)
    method: str = recipe.method if recipe else "sft"
    if files and method != "pretrain":
        method = detect(data.model_copy(update={"train": given}))
    tokenizer, facts = load_tokenizer(folder), describe(folder)
    tokenizer.eos_token_ids = find_stop_ids(tokenizer)
    prepared = prepare(
        data.model_copy(update={"train": given, "valid": [], "test": given, "valid_fraction": 0.0}),
        tokenizer,
        method=method,
        max_seq_length=min(recipe.max_seq_length if recipe else 2048, facts.context or 2048),
        vocab_size=facts.vocab_size,
        evaluate=EvaluateTable(samples=0, test_rows=limit or 2**31),
        progress=progress,
    )
    rows = [Encoded(*first_answer(prepared.train, place)) for place in range(len(prepared.train))]
    return HeldOut(rows[:limit], prepared.test)


def evaluate_voices(voices: Voices, held_out: HeldOut, *, max_tokens: int, tell: Tell) -> Evaluation:
    """Let two voices read and answer the same.

    Args:
        voices: Base and tuned, in this order.
        held_out: What is read and asked.
        max_tokens: Longest answer.
        tell: Told (what is done, how many are done, of how many).

    Raises:
        ModelError: They are not two.
    """
    if len(voices.voices) != 2:
        name = voices.voices[0].name
        raise ModelError(f"{name} is no tuned model, so there is no Base beside it", fix="Name a run.")
    weighed = voices.weigh(held_out.rows, progress=partial(tell, "reading rows"))
    sampling = Sampling(max_tokens=max_tokens)
    asks = [Ask(voice, (), sampling, ids=tuple(question.ids)) for question in held_out.questions for voice in range(2)]
    replies = list(answer_asks(voices, asks, progress=partial(tell, "answering questions")))
    references = [question.reference for question in held_out.questions]
    sides = [
        _measure(voice.name, [row[place] for row in weighed], [pair[place] for pair in replies], references)
        for place, voice in enumerate(voices.voices)
    ]
    return Evaluation(held_out, *sides)


def _measure(name: str, rows: Sequence[RowLikelihood], replies: Sequence[Reply], references: Sequence[str]) -> Measured:
    tokens = [row.tokens for row in rows]
    figures = {LOSS: ratio([-row.logprob for row in rows], tokens)}
    figures["token_accuracy"] = ratio([row.right for row in rows], tokens)
    texts = [reply.text for reply in replies]
    answers = score_answers(texts, references)
    labels = _are_labels(references)
    is_right = [row.is_exact or (labels and _label(row.answer) == _label(row.reference)) for row in answers.rows]
    if answers.rows:
        figures |= _figures_of_answers(answers, texts, references)
        figures |= {"accuracy": mean(is_right)} if labels else {}
    return Measured(name, figures, answers, is_right, sum(reply.finish_reason == "length" for reply in replies))


def _figures_of_answers(answers: AnswerScores, texts: Sequence[str], references: Sequence[str]) -> dict[str, Figure]:
    rows, figures = answers.rows, dict[str, Figure]()
    if "valid_json" in answers.metrics:
        figures["valid_json"] = mean([row.is_json for row in rows])
    figures["exact_match"] = mean([row.is_exact for row in rows])
    if "field_f1" in answers.metrics:
        matched = [2 * row.matched_fields for row in rows]
        figures["field_f1"] = ratio(matched, [row.answer_fields + row.reference_fields for row in rows])
    figures["f1"] = mean([row.f1 for row in rows])
    rouge = [score_rouge(*pair) for pair in zip(texts, references, strict=True)]
    figures |= {
        "rouge1": mean([row.rouge1 for row in rouge]),
        "rouge2": mean([row.rouge2 for row in rouge]),
        "rougeL": mean([row.rouge_l for row in rouge]),
    }
    return figures | {"bleu": bleu(texts, references), "chrf": chrf(texts, references)}


def _are_labels(references: Sequence[str]) -> bool:
    """Tell whether the references are labels: short, and each twice on average or more."""
    found = {_label(reference) for reference in references}
    return 0 < 2 * len(found) <= len(references) and all(0 < len(label.split()) <= LABEL_WORDS for label in found)


def _label(text: str) -> str:
    """Return a label without case, white space around it and a full stop."""
    return " ".join(text.casefold().split()).rstrip(".")


def _with_perplexity(values: dict[str, Any]) -> dict[str, Any]:
    """Put e to the loss behind the loss, and None where a figure is not a number."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found[name] = _known(value)
        if name == LOSS:
            found[PERPLEXITY] = _known([math.exp(end) for end in value] if isinstance(value, list) else math.exp(value))
    return found


def _known(value: Any) -> Any:
    if isinstance(value, list):
        return [_known(end) for end in value]
    return value if math.isfinite(value) else None

"""What rows and a goal speak for, in plain words: prompting or tuning, which model to begin with, which method.

The rule: it explains and never decides. Every line says what it goes by; counts are rules of thumb, and said to be.
"""

import re

from macft.data.hygiene.findings import KINDS, HygieneReport

FEW, SOME, MANY, VERY_MANY = 50, 500, 10_000, 100_000
"""Rows: too few to tune on, enough for a style or a format, for a task, for all weights."""
_GOALS = {
    "knowledge": r"know|facts?\b|document|handbook|manual|wiki|polic|catalog|price|questions (?:about|from)|recall"
    r"|remember|up.to.date|latest|知识|文档",
    "style": r"style|tone|voice|sound|persona|write like|brand|character|语气|风格",
    "format": r"json|yaml|xml|csv|format|extract|classif|label|categor|sql|schema|tag|code|格式|分类",
    "preference": r"prefer|better|shorter|longer|concise|polite|less|safer|refus|helpful|rude|verbose",
}


def advise(report: HygieneReport, goal: str = "") -> list[str]:
    """Return advice, a plain sentence or two each.

    Args:
        report: What is in the rows.
        goal: What the model is to do, in the person's words; empty when it was not said.
    """
    lines = [_advise_amount(report), _advise_model(report), _advise_method(report)]
    wanted = [name for name, words in _GOALS.items() if re.search(words, goal, re.IGNORECASE)]
    return [line for line in (*lines, *_advise_goal(goal, wanted)) if line]


def _advise_amount(report: HygieneReport) -> str:
    removed = {kind for kind in KINDS if "duplicate" in kind or kind in {"unreadable", "empty_answer"}}
    places = {(finding.file, finding.line) for finding in report.findings if finding.kind in removed}
    held_out = set(report.held_out)
    rows = report.trained - sum(file not in held_out for file, _ in places)
    said = f"{rows:,} usable {'row' if rows == 1 else 'different rows'}"
    if rows < FEW:
        return (
            f"{said}: try prompting first, with a handful of them as examples in the prompt. "
            f"Below some {FEW} rows, tuning mostly learns them by heart."
        )
    if rows < SOME:
        return (
            f"{said}: enough for LoRA to teach a style or a format; use a low rank (8), two or three epochs, and "
            f"watch the held-out loss. For a task with many cases, collect {SOME:,} or more."
        )
    if rows < MANY:
        return f"{said}: LoRA is the right tool; full tuning would forget more and gain little."
    if rows < VERY_MANY:
        return f"{said}: LoRA with a higher rank (16 to 64). Compare full tuning only when LoRA stops short."
    return f"{said}: LoRA still is the cheap first try; with this much, full tuning can pay, if memory allows it."


def _advise_model(report: HygieneReport) -> str:
    kinds, rows = report.kinds, max(1, sum(report.kinds.values()))
    if kinds.get("text", 0) > rows / 2:
        return (
            'Documents: continue a base model with method = "pretrain", then teach it to answer with chats; '
            "an instruct model loses some of its manners on raw text."
        )
    if rows < MANY:
        return (
            "Begin with an instruct model: it can hold a conversation already, and rows this few need not teach that."
        )
    return (
        "An instruct model is the safe beginning. A base model is worth a try here, if its own manners should be yours "
        "alone: the rows are many enough to teach them."
    )


def _advise_method(report: HygieneReport) -> str:
    kinds = report.kinds
    if pairs := kinds.get("pair", 0):
        few = " They are few: expect a nudge, not a new manner." if pairs < SOME else ""
        return (
            f"{pairs:,} pairs: dpo, after sft when the model does not yet answer the way the chosen ones do; "
            f"orpo does both in one run.{few}"
        )
    if labeled := kinds.get("labeled", 0):
        return f"{labeled:,} answers with a thumb up or down: kto."
    if kinds.get("text", 0) == sum(kinds.values()):
        return ""
    return (
        "Answers to imitate: sft. When what is right is easier to point at than to write, collect pairs "
        "(`macft compare RUN --pick`) and go on with dpo."
    )


def _advise_goal(goal: str, wanted: list[str]) -> list[str]:
    if not goal:
        return [
            "Style and format are tuned, knowledge is retrieved. Say what it is for with --goal, and this says more."
        ]
    lines = []
    if "knowledge" in wanted:
        lines.append(
            "Your goal names knowledge, and knowledge is retrieved: tuning teaches how to answer, and little that is "
            "true. Keep facts in documents, put what is looked up into the prompt, and tune on that."
        )
    if {"style", "format"} & set(wanted):
        lines.append(
            "Your goal is a style or a format: that is what tuning does best, and sft on clean rows is enough."
        )
    if "preference" in wanted:
        lines.append("Your goal compares (better, shorter, politer): pairs and dpo say that more directly than sft.")
    return lines or ["Style and format are tuned, knowledge is retrieved: see which of these your goal is."]

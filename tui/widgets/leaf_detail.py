"""What is said of one leaf of the tree of adapters."""

from textual.content import Content

from macft.format import MISSING, clean, one_line, size
from tui.tree import ADAPTER, BASE, CHECKPOINT, JOB, Leaf
from tui.widgets.job_line import describe as describe_job
from tui.widgets.run_detail import LABEL_WIDTH

WAYS = {
    BASE: "Runs and adapters below it were trained on it.",
    CHECKPOINT: "s serves it; r on Home goes on from the newest.",
}
OTHERWISE = "f fuses · e exports · s serves · a trains on from it"


def describe(leaf: Leaf) -> Content:
    """Return a leaf's facts, and what can be done with it."""
    if leaf.kind == JOB and leaf.row:
        return Content.assemble(describe_job(leaf.row, "c"), "\n\n", OTHERWISE if leaf.path else "x removes it")
    parts: list[Content | tuple[str, str]] = [(one_line(leaf.shown, 200), "bold"), ("\n", "")]
    for name, value in _facts(leaf):
        parts.append(Content.assemble("\n", (f"{name:<{LABEL_WIDTH}}", "$foreground 60%"), clean(value)))
    if leaf.facts and leaf.facts.problem:
        parts.append((f"\n\n✘ {clean(leaf.facts.problem)}", "bold $error"))
    parts.append(Content(f"\n\n{WAYS.get(leaf.kind, OTHERWISE)}"))
    return Content.assemble(*parts)


def _facts(leaf: Leaf) -> list[tuple[str, str]]:
    facts = leaf.facts
    found = list[tuple[str, str]]()
    if leaf.kind == BASE:
        return [("below it", f"{len(leaf.below)} runs and adapters")]
    if facts:
        found.append(("base", facts.base or MISSING))
        found.append(("kind", f"{facts.kind}, rank {facts.rank}, scale {facts.scale:g}" if facts.rank else facts.kind))
        if facts.layers > 0:
            found.append(("layers", f"the last {facts.layers}"))
        if facts.quantize:
            found.append(("trained", f"over a base of {facts.quantize} bits"))
        found.append(("made by", " ".join(filter(None, (facts.writer, facts.method))) + _at(facts.step)))
        found += [("merged", part) for part in facts.merged]
        found += [(name, value[:16]) for name, value in _hashes(leaf) if value]
    elif leaf.row and leaf.row.state.started and leaf.kind != ADAPTER:
        found.append(("base", leaf.row.state.started.model))
    if leaf.size_bytes:
        found.append(("size", size(leaf.size_bytes)))
    if leaf.metric and leaf.metric != MISSING:
        found.append(("best" if leaf.is_best or leaf.kind != CHECKPOINT else "measured", leaf.metric))
    if leaf.path:
        found.append(("where", str(leaf.path)))
    return found


def _hashes(leaf: Leaf) -> list[tuple[str, str]]:
    return [("recipe", leaf.facts.recipe_hash), ("rows", leaf.facts.data_hash)] if leaf.facts else []


def _at(step: int) -> str:
    return f" at step {step:,}" if step else ""

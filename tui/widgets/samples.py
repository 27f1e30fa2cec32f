"""One sample prompt, and what the model answered at the start, half-way and now."""

from textual.content import Content
from textual.widgets import Static

from macft.events import Sampled
from macft.format import clean, one_line
from macft.state import RunState


class Samples(Static):
    """The answers to one of the sample prompts, side by side in time."""

    place = 0

    def show(self, state: RunState) -> None:
        """Draw the chosen prompt's answers."""
        prompts = sorted({sample.index for sample in state.samples})
        self.border_title = (
            "Samples" if not prompts else f"Samples  {self.place % len(prompts) + 1}/{len(prompts)}  [ ]"
        )
        if not prompts:
            self.update(Content("Sample prompts are answered at every evaluation."))
            return
        answers = [sample for sample in state.samples if sample.index == prompts[self.place % len(prompts)]]
        self.update(describe(pick_three(answers), lines=max(1, (self.size.height - 2) // 3)))


def pick_three(answers: list[Sampled]) -> list[Sampled]:
    """Return the first answer, the one half-way, and the newest."""
    places = sorted({0, len(answers) // 2, len(answers) - 1})
    return [answers[place] for place in places]


def describe(answers: list[Sampled], *, lines: int) -> Content:
    """Return the prompt, and each answer with its step."""
    first = answers[0]
    parts: list[Content | tuple[str, str]] = [("prompt  ", "$foreground 60%"), Content(one_line(first.prompt, 300))]
    for answer in answers:
        text = "\n".join(clean(answer.text).strip().splitlines()[:lines]) or "(nothing)"
        parts += [(f"\n{answer.step:>6,}  ", "$accent"), Content(text)]
    if first.reference:
        parts += [("\nwanted  ", "$success"), Content(one_line(first.reference, 300))]
    return Content.assemble(*parts)

"""A model's own answers as rows, to rehearse on when it is tuned.

The rule: only whole answers become rows. One that was cut at `max_tokens`, or is empty, would teach to stop early or to
say nothing; it is counted instead.

Source: self-synthesized rehearsal, Huang et al. 2024, arXiv:2403.01244.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from macft.chat.panes import NOTHING_YET, Ask, Reply, Sampling, Turn
from macft.data.writing import dump_row, write_rows
from macft.errors import DataError, Problem

if TYPE_CHECKING:
    from macft.chat.compare import Voices


class Replayed(NamedTuple):
    """What was written: the file, its rows, and the answers that did not become rows."""

    out: Path
    rows: int
    cut: int
    empty: int


def replay(
    voices: "Voices",
    prompts: Sequence[tuple[Turn, ...]],
    sampling: Sampling,
    *,
    out: Path,
    progress: Callable[[int, int], None] | None = None,
) -> Replayed:
    """Answer every prompt in one batch and write the answers as rows of chats.

    Args:
        voices: The first of them answers.
        prompts: Conversations that end with a person's turn.
        sampling: How tokens are chosen.
        out: The new file, JSONL.
        progress: Called with answers done and prompts in all.

    Raises:
        DataError: No answer is whole; nothing is written.
    """
    asks = [Ask(0, turns, sampling) for turns in prompts]
    replies, done = [NOTHING_YET] * len(asks), 0
    for part in voices.stream(asks):
        replies[part.ask] = replies[part.ask].plus(part)
        done += part.finish_reason is not None
        if part.finish_reason and progress:
            progress(done, len(asks))
    cut = sum(reply.finish_reason != "stop" for reply in replies)
    whole = [
        (turns, reply)
        for turns, reply in zip(prompts, replies, strict=True)
        if reply.finish_reason == "stop" and reply.text.strip()
    ]
    if not whole:
        why = f"of {len(replies)} answers, {cut} were cut at {sampling.max_tokens} tokens, the others are empty"
        raise DataError([Problem(str(out), f"would be empty: {why}")], fix="Raise --max-tokens.")
    return Replayed(out, write_rows(out, _rows(whole)), cut, len(replies) - cut - len(whole))


def _rows(whole: Sequence[tuple[tuple[Turn, ...], Reply]]) -> Iterator[bytes]:
    for turns, reply in whole:
        messages = [{"role": role, "content": text} for role, text in (*turns, ("assistant", reply.text.strip()))]
        yield dump_row({"messages": messages})

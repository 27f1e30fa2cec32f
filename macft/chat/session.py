"""A conversation: a comparison of one voice.

The rule: what a person talks to is what is compared, measured and picked from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from macft.chat.compare import Voices, open_voices
from macft.chat.panes import Ask, Parts, Sampling, Turn
from macft.chat.sources import find_source
from macft.machine import read_machine


@dataclass(frozen=True)
class ChatSession:
    """A model that answers.

    Attributes:
        title: What is talked to, for people.
        note: Something the person should know, empty most of the time.
    """

    title: str
    note: str
    voices: Voices

    def reply(self, turns: Sequence[Turn], sampling: Sampling) -> Parts:
        """Stream the answer to the turns so far; a model without a chat template continues their text."""
        return self.voices.stream([Ask(0, tuple(turns), sampling, pane="chat")])


def open_chat(name: str, *, home: Path, runs: Path, base: bool = False, model: str | None = None) -> ChatSession:
    """Load what a name means: a run, a checkpoint of it, an adapter folder, or a model.

    Args:
        name: As the person wrote it.
        home: macft's folder of models.
        runs: The folder of runs.
        base: Leave the adapter off.
        model: The base of an adapter that does not name one on this machine.

    Raises:
        MacftError: Nothing has that name, or the adapter is another base's.
    """
    source = find_source(name, home=home, runs=runs, model=model)
    if base and (source.adapter or source.base):
        source = source.without_adapter(home)
    title = f"{source.folder.name} + {source.name}" if source.adapter else source.folder.name
    return ChatSession(title, source.note, open_voices([source], read_machine()))

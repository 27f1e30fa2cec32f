"""Every key of the studio, in one table that the footer, the palette, the help and key remapping are made from.

The rule: one key means one thing on a screen. An action's id never changes, so that a person's own keys survive.
"""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from textual.binding import Binding

from macft.machine import home

EVERYWHERE = "everywhere"
KEYS_FILE = "keys.toml"


class Action(NamedTuple):
    """Something a person can do.

    Attributes:
        name: With its scope the id, like `home.resume`.
        key: As Textual names keys; several are separated by commas.
        call: The Textual action that does it.
        label: A word or two, for the footer.
        help: One sentence.
        in_footer: The footer has room for eight.
    """

    name: str
    key: str
    call: str
    label: str
    help: str
    in_footer: bool = True


SCREENS = {"home": 1, "models": 2, "data": 3, "train": 4, "live": 5, "compare": 6, "adapters": 7}
"""Modes of the app, with their digits."""
PARTS = {"compare": ("verdict",)}
"""Scopes of parts of a screen that have keys of their own while they have the focus."""

ACTIONS: dict[str, tuple[Action, ...]] = {
    EVERYWHERE: (
        *(
            Action(name, str(digit), f"app.go('{name}')", name.title(), f"Go to {name.title()}.", in_footer=False)
            for name, digit in SCREENS.items()
        ),
        Action("help", "question_mark,f1", "app.show_help", "Help", "Show all keys of this screen."),
        Action("theme", "ctrl+y", "app.next_theme", "Theme", "Change to the next theme.", in_footer=False),
    ),
    "home": (
        Action("open", "enter", "open", "Open", "Open the run, and follow it if it is going on."),
        Action("resume", "r", "resume", "Resume", "Go on with a stopped or crashed run from its last checkpoint."),
        Action("stop", "s", "stop", "Stop", "Let the run finish its step, save and end."),
        Action("compare", "c", "compare", "Compare", "Ask Base and the run, or the two marked runs, side by side."),
        Action("again", "a", "again", "Again", "Open the run's recipe on Train, to start another with changes."),
        Action("mark", "space", "mark", "Mark", "Mark two runs, to compare what they did.", in_footer=False),
        Action(
            "overlay",
            "equals_sign",
            "overlay",
            "Diff",
            "Show the marked runs' curves and what their recipes differ in.",
        ),
        Action("note", "n", "note", "Note", "Write a note on the run.", in_footer=False),
        Action(
            "remove", "x", "remove", "Remove", "Remove the run; `u` brings it back within 30 seconds.", in_footer=False
        ),
        Action("undo", "u", "undo", "Undo", "Bring back the run that was removed last.", in_footer=False),
        Action("filter", "slash", "filter", "Filter", "Show only runs whose name, model or note holds some letters."),
        Action("down", "j", "down", "Down", "Go down.", in_footer=False),
        Action("up", "k", "up", "Up", "Go up.", in_footer=False),
        Action("top", "g", "top", "Top", "Go to the first run.", in_footer=False),
        Action("bottom", "G", "bottom", "Bottom", "Go to the last run.", in_footer=False),
        Action("quit", "q", "app.quit", "Quit", "Close the studio; runs go on.", in_footer=False),
    ),
    "models": (
        Action("use", "enter", "use", "Use", "Put the model into the recipe on Train."),
        Action("pull", "p", "pull", "Fetch", "Fetch a model; nothing else in the studio goes online."),
        Action("end_pull", "k", "end_pull", "End fetching", "End it; what was fetched stays.", in_footer=False),
        Action("quantize", "q", "quantize", "Quantize", "Write a copy with 4 or 8 bits a weight; the model stays."),
        Action("cancel", "c", "cancel", "Cancel", "Cancel the quantizing; nothing of it is left.", in_footer=False),
        Action("refresh", "r", "refresh", "Look again", "Look at the folders again.", in_footer=False),
        Action("filter", "slash", "filter", "Filter", "Show only models whose name holds some letters."),
    ),
    "data": (
        Action("open", "o", "open_file", "Open", "Open a file, or a folder of files."),
        Action("train", "a", "train", "Train on it", "Put the rows into the recipe on Train."),
        Action("mask", "m", "mask", "Mask", "Show what is trained on, or the row as it stands in its file."),
        Action("tokens", "t", "token_ids", "Ids", "Show the row token by token, with their ids."),
        Action("pair", "v", "pair", "Pair", "Show a pair's answers side by side, or in a row.", in_footer=False),
        Action("filter", "slash", "filter", "Filter", "Show only rows that hold some words."),
        Action("flagged", "f", "flagged", "Flags", "Show only rows that something is the matter with, or all."),
        Action("duplicates", "d", "drop_duplicates", "Drop ≈", "Take out rows that say the same as an earlier one."),
        Action("drop", "x", "drop", "Drop", "Take out the row; `u` brings it back.", in_footer=False),
        Action("edit", "e", "edit", "Edit", "Write the row anew, as JSON.", in_footer=False),
        Action("undo", "u", "undo", "Undo", "Take back what was dropped or edited last.", in_footer=False),
        Action("save", "s", "save", "Copy", "Write a copy with what was dropped and edited, split or whole."),
        Action("part", "p", "part", "Part", "Show the rows held out for validation or tests.", in_footer=False),
        Action("model", "l", "model", "Model", "See the rows through another model's tokenizer.", in_footer=False),
        Action("read", "enter", "read", "Read", "Give the row all the room; `esc` gives it back.", in_footer=False),
        Action("before", "left_square_bracket", "window(-1)", "Tokens −", "Show the tokens before.", in_footer=False),
        Action("after", "right_square_bracket", "window(1)", "Tokens +", "Show the tokens after.", in_footer=False),
        Action("again", "r", "again", "Read again", "Read the rows again.", in_footer=False),
        Action("down", "j", "down", "Down", "Go down.", in_footer=False),
        Action("up", "k", "up", "Up", "Go up.", in_footer=False),
        Action("top", "g", "top", "Top", "Go to the first row.", in_footer=False),
        Action("bottom", "G", "bottom", "Bottom", "Go to the last row.", in_footer=False),
    ),
    "train": (
        Action("start", "ctrl+r", "start", "Start", "Start the run; it goes on when the studio is closed."),
        Action("fit", "f", "fit", "Make it fit", "Apply the cheapest change that makes the plan fit."),
        Action("copy", "y", "copy", "Copy command", "Copy the command that does the same without the studio."),
        Action("save", "ctrl+s", "save", "Save", "Save the recipe as a file of your own; its comments stay."),
        Action("keys", "e", "every_key", "All keys", "Show every key of the recipe, or the essential ones."),
        Action("revert", "ctrl+z", "revert", "Revert", "Go back to the recipe as it is on disk.", in_footer=False),
    ),
    "adapters": (
        Action("fuse", "f", "fuse", "Fuse", "Make the adapter part of its base: a whole model."),
        Action("merge", "m", "merge", "Merge", "Make one adapter of those that are marked."),
        Action("export", "e", "export", "Export", "Write it for another tool."),
        Action("ollama", "o", "export_to('ollama')", "Ollama", "Write it for Ollama.", in_footer=False),
        Action(
            "lmstudio",
            "l",
            "export_to('lmstudio')",
            "LM Studio",
            "Fuse it, and link it into LM Studio's folder.",
            in_footer=False,
        ),
        Action("serve", "s", "serve", "Serve", "Serve it to OpenAI-style clients on this machine; again ends that."),
        Action("again", "a", "again", "Train on", "Start from it: put it into the recipe on Train."),
        Action("mark", "space", "mark", "Mark", "Mark adapters, to merge them."),
        Action("cancel", "c", "cancel", "Cancel", "Cancel the job; nothing of it is left.", in_footer=False),
        Action("add", "i", "add", "Add", "Add an adapter's folder that macft did not make.", in_footer=False),
        Action("remove", "x", "remove", "Remove", "Remove it; `u` brings it back within 30 seconds.", in_footer=False),
        Action("undo", "u", "undo", "Undo", "Bring back what was removed last.", in_footer=False),
        Action("filter", "slash", "filter", "Filter", "Show only what has some words in its name or base."),
        Action("refresh", "r", "refresh", "Look again", "Look at the folders again.", in_footer=False),
        Action("down", "j", "down", "Down", "Go down.", in_footer=False),
        Action("up", "k", "up", "Up", "Go up.", in_footer=False),
    ),
    "live": (
        Action("pause", "p", "pause", "Pause", "Let the run wait after its step, or go on."),
        Action("stop", "s", "stop", "Stop & save", "Let the run finish its step, save and end."),
        Action("sample", "m", "sample", "Sample now", "Answer the sample prompts after this step."),
        Action("resume", "r", "resume", "Resume", "Go on with a stopped or crashed run from its last checkpoint."),
        Action(
            "axis", "l", "log_axis", "Log y", "Draw the loss on a logarithmic axis, or a linear one.", in_footer=False
        ),
        Action("maximize", "z", "maximize_chart", "Zoom", "Give the chart all the room, or give it back."),
        Action("freeze", "space", "freeze", "Freeze", "Hold this view still; the run goes on.", in_footer=False),
        Action(
            "previous",
            "left_square_bracket",
            "sample_prompt(-1)",
            "Prompt −",
            "Show the sample prompt before.",
            in_footer=False,
        ),
        Action(
            "next",
            "right_square_bracket",
            "sample_prompt(1)",
            "Prompt +",
            "Show the next sample prompt.",
            in_footer=False,
        ),
        Action("compare", "c", "compare", "Compare", "Ask Base and the run the same, side by side.", in_footer=False),
        Action("detach", "d,escape", "app.go('home')", "Leave", "Go back to the runs; this one goes on."),
    ),
    "compare": (
        Action("voices", "v", "voices", "Voices", "Choose who answers: runs, checkpoints, models."),
        Action("say", "i", "focus_say", "Type", "Go to the line where a message is written; esc leaves it."),
        Action("next", "n", "next", "Next", "Show the next prompt of the list."),
        Action("anew", "ctrl+n", "anew", "New", "Begin a new talk."),
        Action("again", "ctrl+g", "again", "Again", "Ask the last question again, with the settings as they are."),
        Action("settings", "ctrl+o", "settings", "Settings", "Change the system prompt and the sampling."),
        Action("prompts", "ctrl+l", "prompts", "List", "Ask a file of prompts, and judge the answers one by one."),
        Action("blind", "ctrl+t", "blind", "Blind", "Hide names until the verdict, or show them.", in_footer=False),
        Action("undo", "u", "undo", "Undo", "Take the last verdict back, out of its file too.", in_footer=False),
        Action("winner", "w", "winner", "Go on", "Go on in all panes from the better answer.", in_footer=False),
        Action("train", "t", "train", "Train DPO", "Put a DPO run on the picks into Train.", in_footer=False),
        Action("link", "l", "link", "Link", "Scroll the panes together, or each by itself.", in_footer=False),
        Action("restart", "ctrl+r", "restart", "Restart", "Start the models' process anew.", in_footer=False),
    ),
    "verdict": (
        Action("first", "1", "screen.judge('1')", "A", "A is better.", in_footer=False),
        Action("second", "2", "screen.judge('2')", "B", "B is better.", in_footer=False),
        Action("tie", "0", "screen.judge('tie')", "Tie", "Both are as good.", in_footer=False),
        Action("both_bad", "x", "screen.judge('both bad')", "Both bad", "Neither is good.", in_footer=False),
        Action("edit", "e", "screen.edit", "Edit", "Edit the winner: it becomes the chosen answer.", in_footer=False),
        Action("up", "up", "screen.scroll(-1)", "Up", "Scroll the answers up.", in_footer=False),
        Action("down", "down", "screen.scroll(1)", "Down", "Scroll the answers down.", in_footer=False),
    ),
}
"""Actions by scope: a screen's, or everywhere's."""


def bindings(scope: str) -> list[Binding]:
    """Return a scope's keys as Textual takes them."""
    return [
        Binding(
            action.key,
            action.call,
            action.label,
            show=action.in_footer,
            tooltip=action.help,
            id=f"{scope}.{action.name}",
        )
        for action in ACTIONS[scope]
    ]


def actions_of(screen: str) -> Iterator[Action]:
    """Yield what can be done on a screen, its own actions first."""
    for scope in (screen, *PARTS.get(screen, ())):
        yield from ACTIONS.get(scope, ())
    yield from ACTIONS[EVERYWHERE]


def read_keys(folder: Path | None = None) -> dict[str, str]:
    """Return the person's own keys, action id to key, from `keys.toml` in macft's folder.

    Raises:
        ValueError: It is not TOML, or names an action that does not exist.
    """
    path = (folder or home()) / KEYS_FILE
    if not path.is_file():
        return {}
    keys = tomllib.loads(path.read_text(encoding="utf-8"))
    flat = {
        f"{scope}.{name}": str(key)
        for scope, table in keys.items()
        for name, key in (table.items() if isinstance(table, dict) else ())
    }
    known = {f"{scope}.{action.name}" for scope, actions in ACTIONS.items() for action in actions}
    if unknown := sorted(flat.keys() - known):
        raise ValueError(f"{path}: no such action: {', '.join(unknown)}")
    return flat

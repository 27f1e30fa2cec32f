from pathlib import Path

import pytest

from tui.actions import ACTIONS, EVERYWHERE, PARTS, SCREENS, actions_of, read_keys
from tui.app import Studio

VERDICTS = {"compare": {"1", "2"}}
"""Digits that go to screens unless the verdict bar has the focus."""
SCREEN_OF = {part: screen for screen, parts in PARTS.items() for part in parts}


@pytest.mark.parametrize("screen", list(SCREENS))
def test_one_key_means_one_thing_on_a_screen(screen: str) -> None:
    keys = [key for action in actions_of(screen) for key in action.key.split(",")]
    shared = {key for key in keys if keys.count(key) > 1}
    assert shared <= VERDICTS.get(screen, set())


@pytest.mark.parametrize("scope", [scope for scope in ACTIONS if scope != EVERYWHERE])
def test_every_action_is_there_and_the_footer_has_room(scope: str) -> None:
    screen = Studio.MODES[SCREEN_OF.get(scope, scope)]
    for action in ACTIONS[scope]:
        owner = Studio if action.call.startswith("app.") else screen
        name = action.call.removeprefix("app.").removeprefix("screen.").partition("(")[0]
        assert hasattr(owner, f"action_{name}"), action
    assert sum(action.in_footer for action in ACTIONS[scope]) <= 8


@pytest.mark.parametrize("scope", list(ACTIONS))
def test_no_key_is_one_that_macos_or_tmux_takes(scope: str) -> None:
    for action in ACTIONS[scope]:
        for key in action.key.split(","):
            assert not key.startswith(("super+", "meta+", "alt+", "ctrl+left", "ctrl+right", "ctrl+up", "ctrl+down"))
            assert key != "ctrl+b"


def test_digits_are_the_screens() -> None:
    digits = {action.key: action.name for action in ACTIONS[EVERYWHERE] if action.key.isdigit()}
    assert digits == {str(digit): name for name, digit in SCREENS.items()}


def test_a_person_may_have_other_keys(tmp_path: Path) -> None:
    (tmp_path / "keys.toml").write_text('[home]\nresume = "R"\n')
    assert read_keys(tmp_path) == {"home.resume": "R"}
    (tmp_path / "keys.toml").write_text('[home]\nresum = "R"\n')
    with pytest.raises(ValueError, match=r"home\.resum"):
        read_keys(tmp_path)

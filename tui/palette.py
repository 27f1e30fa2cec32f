"""The command palette: every action of the screen that is up, by its words."""

from typing import cast

from textual.command import DiscoveryHit, Hit, Hits, Provider

from tui.actions import Action, actions_of
from tui.screens.frame import StudioScreen


class StudioCommands(Provider):
    """Offers the actions table."""

    @property
    def _actions(self) -> list[Action]:
        return list(actions_of(self.screen.NAME if isinstance(self.screen, StudioScreen) else ""))

    async def discover(self) -> Hits:
        """Offer everything while nothing is typed."""
        for action in self._actions:
            yield DiscoveryHit(action.label, self._runner(action), help=f"{action.help}  ({key_name(action)})")

    async def search(self, query: str) -> Hits:
        """Offer what fits the words."""
        matcher = self.matcher(query)
        for action in self._actions:
            if (score := matcher.match(f"{action.label} {action.help}")) > 0:
                yield Hit(score, matcher.highlight(action.label), self._runner(action), help=action.help)

    def _runner(self, action: Action):  # type: ignore[no-untyped-def]
        async def run() -> None:
            await cast(StudioScreen, self.screen).run_action(action.call)

        return run


def key_name(action: Action) -> str:
    """Return an action's first key as a person writes it."""
    first = action.key.split(",")[0]
    names = {
        "question_mark": "?",
        "slash": "/",
        "equals_sign": "=",
        "left_square_bracket": "[",
        "right_square_bracket": "]",
    }
    return names.get(first, first.replace("ctrl+", "^"))

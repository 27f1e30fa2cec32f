"""The tree of adapters as lines: names on the left, sizes and metrics in columns of their own."""

from collections.abc import Callable, Sequence
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import Tree
from textual.widgets.tree import TreeNode

from tui.tree import BASE, Leaf, label, walk

GUIDE, ARROW = 2, 2
"""Cells that a level is set in, and those of the sign that a node can be opened by."""
LEAST = 30


class LeafTree(Tree[Leaf], inherit_bindings=False):
    """A tree that is written anew and keeps its cursor and what is shut.

    Args:
        id: Its id.
    """

    class Resized(Message):
        """There is another width to write the lines for."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "cursor_up", "Up", show=False),
        Binding("down", "cursor_down", "Down", show=False),
        Binding("pageup", "page_up", "Page up", show=False),
        Binding("pagedown", "page_down", "Page down", show=False),
        Binding("home", "scroll_home", "First", show=False),
        Binding("end", "scroll_end", "Last", show=False),
        Binding("enter", "select_cursor", "Open or shut", show=False),
        Binding("left", "cursor_parent", "Above", show=False),
    ]

    def __init__(self, *, id: str) -> None:
        super().__init__("", id=id)
        self.show_root, self.guide_depth = False, GUIDE

    def on_resize(self) -> None:
        """Ask to be written anew."""
        self.post_message(self.Resized())

    def show(self, leaves: Sequence[Leaf], is_wanted: Callable[[str], bool], marked: set[str]) -> Leaf | None:
        """Write the tree, and return what the cursor is on then.

        Args:
            leaves: The bases.
            is_wanted: Whether a line with these words shall be there; what is above one always is.
            marked: Names of leaves with a mark.
        """
        before = [node for node in _nodes(self.root) if node.data]
        shut = {node.data.name for node in before if node.data and not node.is_expanded and node.data.below}
        wanted = self.cursor_node.data.name if self.cursor_node and self.cursor_node.data else ""
        self.clear()
        for leaf in leaves:
            self._write(self.root, leaf, is_wanted, marked, shut)
        self.root.expand()
        nodes = _nodes(self.root)
        place = next((node for node in nodes if node.data and node.data.name == wanted), None)
        first = next((node for node in nodes if node.data and node.data.kind != BASE), None)
        node = place or first
        if node:
            self.call_after_refresh(self.move_cursor, node)
        return node.data if node else None

    def _write(
        self, above: TreeNode[Leaf], leaf: Leaf, is_wanted: Callable[[str], bool], marked: set[str], shut: set[str]
    ) -> None:
        if not any(is_wanted(f"{one.shown} {one.kind} {leaf.shown}") for one in walk([leaf])):
            return
        depth = 0 if above is self.root else 1 if above.parent is self.root else 2
        mark = "◆ " if leaf.name in marked else ""
        taken = GUIDE * depth + (ARROW if leaf.below else 0) + len(mark)
        text = Text(mark + label(leaf, max(LEAST, self.scrollable_content_region.width) - taken))
        if not leaf.below:
            above.add_leaf(text, leaf)
            return
        node = above.add(text, leaf, expand=leaf.name not in shut)
        for below in leaf.below:
            self._write(node, below, is_wanted, marked, shut)


def _nodes(node: TreeNode[Leaf]) -> list[TreeNode[Leaf]]:
    return [one for child in node.children for one in (child, *_nodes(child))]

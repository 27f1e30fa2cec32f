"""A model's Markdown, whole and while it grows."""

import pytest

from tui.markdown import end_of_finished, lay_out, lay_out_growing

ANSWER = """# Lost parcels

Please **do** this:

1. Ask a neighbour.
2. Ask the *courier*.

```python
def ask():

    return "where?"
```

| who | when |
|-----|------|
| us  | now  |

Then wait."""


def words(text: str) -> list[str]:
    return text.split()


@pytest.mark.parametrize("end", range(0, len(ANSWER) + 1, 3))
def test_a_growing_answer_shows_the_words_of_the_same_text_laid_out_whole(end: int) -> None:
    assert words(lay_out_growing(ANSWER[:end], 40).plain) == words(lay_out(ANSWER[:end], 40).plain)


def test_no_line_is_wider_than_the_pane() -> None:
    for width in (10, 20, 38, 56):
        assert max(map(len, lay_out(ANSWER, width).plain.splitlines())) <= width


def test_a_block_is_finished_by_what_follows_it_and_code_by_its_fence() -> None:
    assert end_of_finished("One.\n\nTwo") == len("One.\n\n")
    assert end_of_finished("One.\n\n") == 0
    assert end_of_finished("```\na\n\nb") == 0
    assert end_of_finished("```\na\n\nb\n```\n\nThen") == len("```\na\n\nb\n```\n\n")
    assert end_of_finished("1. a\n\n   still a") == 0


def test_what_a_model_writes_cannot_steer_the_terminal() -> None:
    laid_out = lay_out("\x1b[2J[link](file:///etc/passwd) \x9b31m", 40)
    assert "\x1b" not in laid_out.plain
    assert "\x9b" not in laid_out.plain
    assert not any("link" in str(span.style) for span in laid_out.spans)

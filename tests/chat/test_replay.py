import json

import pytest

from macft.chat.panes import Part, Sampling, Voice
from macft.chat.replay import replay
from macft.errors import DataError


class Parrot:
    """Says its last question again, letter by letter, side by side; one that ends with `…` never ends."""

    voices = (Voice("Base", "model"), Voice("tuned", "model", "adapter"))

    def __init__(self) -> None:
        self.asks = []

    def stream(self, asks):
        self.asks = asks
        texts = [ask.turns[-1][1] for ask in asks]
        for at in range(max(map(len, texts))):
            for place, text in enumerate(texts):
                if at < len(text) - 1:
                    yield Part(place, text[at], 1, None, 0.1)
                elif at == len(text) - 1:
                    yield Part(place, "", 2, "length" if text.endswith("…") else "stop", 0.1)

    def score(self, questions, *, kl=False):
        raise NotImplementedError

    def close(self):
        pass


def test_whole_answers_become_rows_and_others_are_counted(tmp_path):
    prompts = [
        (("user", "Paris?"),),
        (("system", "Be brief."), ("user", "Who!")),
        (("user", "On and on…"),),
        (("user", "?"),),
    ]
    voices, told = Parrot(), []
    done = replay(voices, prompts, Sampling(), out=tmp_path / "rows.jsonl", progress=lambda *said: told.append(said))
    assert (done.rows, done.cut, done.empty) == (2, 1, 1)
    assert [json.loads(line)["messages"] for line in done.out.read_text().splitlines()] == [
        [{"role": "user", "content": "Paris?"}, {"role": "assistant", "content": "Paris"}],
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Who!"},
            {"role": "assistant", "content": "Who"},
        ],
    ]
    assert {ask.voice for ask in voices.asks} == {0}  # the base, though a tuned voice is there too
    assert told[-1] == (4, 4)


def test_without_a_whole_answer_nothing_is_written(tmp_path):
    with pytest.raises(DataError, match="1 were cut at 512 tokens"):
        replay(Parrot(), [(("user", "On and on…"),)], Sampling(), out=tmp_path / "rows.jsonl")
    assert not list(tmp_path.iterdir())

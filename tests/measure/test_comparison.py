"""Figures are sums divided once; pages show text as text."""

from collections.abc import Iterator, Sequence

from macft.chat.compare import Question
from macft.chat.panes import Ask, Part, Reply, Sampling, Voice
from macft.chat.score import Likelihood
from macft.measure.comparison import Comparison, Exchange, answer_prompts, score_exchanges
from macft.measure.comparison_pages import write_html, write_markdown

VOICES = [Voice("Base", "/private/models/tiny"), Voice("tuned|1", "/private/models/tiny", "/private/runs/one")]
TURNS = (("system", "kind"), ("user", "what <b>is</b> it?"))


class Echoes:
    """Voices that say the last word, the second twice; later asks are ready first."""

    def __init__(self) -> None:
        self.voices: Sequence[Voice] = VOICES
        self.asked: list[Ask] = []

    def stream(self, asks: Sequence[Ask]) -> Iterator[Part]:
        self.asked += asks
        for place in reversed(range(len(asks))):
            word = asks[place].turns[-1][1].split()[-1]
            for _ in range(asks[place].voice):
                yield Part(place, word + " ", 5, None, 0.5)
            yield Part(place, word, 6, "length" if asks[place].voice else "stop", 2.0)

    def score(self, questions: Sequence[Question], *, kl: bool = False) -> list[list[list[Likelihood]]]:
        return [
            [
                [
                    Likelihood(-(1.0 + voice) * len(said.token_ids), len(said.token_ids), 0.25 if kl else None)
                    for voice in (0, 1)
                ]
                for said in question.answers
            ]
            for question in questions
        ]

    def close(self) -> None:
        pass


def test_replies_come_by_prompt_and_in_their_order() -> None:
    echoes, told = Echoes(), list[tuple[int, int]]()
    prompts = [(("user", "say one"),), (("user", "say two"),)]
    found = list(answer_prompts(echoes, prompts, Sampling(seed=4), progress=lambda *done: told.append(done)))
    assert [[reply.text for reply in replies] for replies in found] == [["one", "one one"], ["two", "two two"]]
    assert found[0][0] == Reply("one", [], 2.0, "stop")
    assert found[0][1].token_ids == [5, 6]
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert {ask.sampling.seed for ask in echoes.asked} == {4}
    assert not any(ask.pane for ask in echoes.asked)


def compared(*, kl: bool = False) -> Comparison:
    replies = [[Reply("a\nb | *c*", [1] * 4, 2.0, "stop"), Reply("<script>", [2] * 2, 1.0, "length")]] * 2
    return Comparison(VOICES, Sampling(), score_exchanges(Echoes(), [TURNS] * 2, replies, kl=kl))


def test_figures_are_sums_divided_once() -> None:
    base, tuned = compared(kl=True).figures()
    assert (base.tokens, base.seconds, base.tokens_per_second, base.cut) == (8, 2.0, 2.0, 0)
    assert (tuned.tokens, tuned.cut) == (4, 2)
    assert base.logprobs == [-1.0, -1.0]
    assert tuned.logprobs == [-2.0, -2.0]
    assert tuned.kl == 0.25
    unscored = Comparison(VOICES, Sampling(), [Exchange(TURNS, compared().exchanges[0].replies, [])]).figures()
    assert (unscored[0].logprobs, unscored[0].kl) == ([], None)


def test_the_markdown_page_keeps_text_as_text() -> None:
    page = write_markdown(compared())
    assert "| a<br>b \\| \\*c\\* | &lt;script> |" in page
    assert "| Base | tuned\\|1 |" in page
    assert "> **user** what &lt;b>is&lt;/b> it?" in page
    assert "2 prompts, greedy, at most 512 tokens." in page
    assert "/private" not in page
    assert "KL" not in page
    assert "KL a token" in write_markdown(compared(kl=True))


def test_the_html_page_stands_alone() -> None:
    page = write_html(compared())
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert "/private" not in page
    assert page.count("<section>") == 2
    assert "tuned|1" in page

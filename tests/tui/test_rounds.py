"""What was said side by side: histories, duels, seats."""

from macft.chat.panes import Part, Sampling
from macft.chat.preferences import Duel
from tui.rounds import Round, Talk, seat

NAMES = ("Base", "support")


def answer(one: Round, *texts: str) -> Round:
    for voice, text in enumerate(texts):
        one.take(Part(voice, text, 7, None, 0.5))
        one.take(Part(voice, "", 2, "stop", 1.0))
    one.end = "done"
    return one


def test_each_voice_goes_on_with_a_history_of_its_own() -> None:
    talk = Talk((0, 1), opening=(("system", "Be brief."),))
    answer(talk.begin("Hi", Sampling()), "Hello", "Yes?")
    second = talk.begin("And now?", Sampling())
    assert second.asked[0] == (
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "And now?"),
    )
    assert [turns[2] for turns in second.asked] == [("assistant", "Hello"), ("assistant", "Yes?")]


def test_sides_of_a_duel_are_the_panes() -> None:
    talk = Talk((1, 0))
    answer(talk.begin("Hi", Sampling(temperature=0.5, seed=3)), "Hello", "Yes?")
    duel = talk.duel(NAMES)
    assert isinstance(duel, Duel)
    assert duel.turns == (("user", "Hi"),)
    assert [(side.voice, side.text) for side in duel.sides] == [("support", "Yes?"), ("Base", "Hello")]
    assert (duel.seed, duel.sampling["temperature"], "seed" in duel.sampling) == (3, 0.5, False)


def test_what_cannot_be_judged_says_why() -> None:
    talk = Talk((0, 1))
    one = talk.begin("Hi", Sampling())
    assert "esc stops" in str(talk.duel(NAMES))
    answer(one, "Hello", "Hello")
    assert "Both say the same" in str(talk.duel(NAMES))
    one.replies[1] = one.replies[1]._replace(text="Yes?")
    answer(talk.begin("And now?", Sampling()), "A", "B")
    assert "its own way" in str(talk.duel(NAMES))
    three = Talk((0, 1, 2))
    answer(three.begin("Hi", Sampling()), "a", "b", "c")
    assert "between two voices" in str(three.duel(("x", "y", "z")))


def test_what_comes_after_the_end_is_dropped() -> None:
    one = Round(((("user", "Hi"),),), Sampling())
    one.take(Part(0, "Hel", 7, None, 0.1))
    one.end = "stopped"
    one.take(Part(0, "lo", 8, None, 0.2))
    assert one.replies[0].text == "Hel"


def test_names_are_hidden_until_the_verdict_and_the_winner_may_be_edited() -> None:
    talk = Talk((1, 0), is_blind=True)
    one = answer(talk.begin("Hi", Sampling()), "Hello", "Yes?")
    assert talk.hides_names
    assert talk.winner() is None
    one.verdict = "1"
    assert not talk.hides_names
    assert talk.winner() == (("user", "Hi"), ("assistant", "Yes?"))
    one.edited = "Yes, please?"
    assert talk.winner() == (("user", "Hi"), ("assistant", "Yes, please?"))
    one.verdict = "both bad"
    assert talk.winner() is None


def test_seats_are_shuffled_only_for_blind_pairs() -> None:
    assert seat(3, blind=True, seed=0, number=0) == (0, 1, 2)
    assert seat(2, blind=False, seed=0, number=0) == (0, 1)
    seats = [seat(2, blind=True, seed=0, number=number) for number in range(200)]
    assert 70 < seats.count((1, 0)) < 130
    assert seats == [seat(2, blind=True, seed=0, number=number) for number in range(200)]

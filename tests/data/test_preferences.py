"""Rows of preferences: pairs, scored responses and labeled completions, and why others are refused."""

import pytest

from macft.data.examples import EMPTY_TURN, Message, NothingToLearn, ResponseExample, RowProblem
from macft.data.preferences import NONE_BETTER, SAME, detect_method, parse_preferences
from macft.data.sources import Row

USER, GOOD, BAD = Message("user", "q"), Message("assistant", "good"), Message("assistant", "bad")
TURNS = {"q": {"role": "user", "content": "q"}} | {
    text: {"role": "assistant", "content": text} for text in ("good", "bad", "fine")
}
Q, G, B, F = TURNS["q"], TURNS["good"], TURNS["bad"], TURNS["fine"]
CHAT = ResponseExample((USER,), ((GOOD,), (BAD,)))
TEXT = ResponseExample("q", (" good", " bad"))


def parse(value, *, method="dpo", strings="text", columns=None):
    return parse_preferences(Row(value, "a.jsonl:1", "a.jsonl", 1), columns, method=method, strings=strings)


def one(value, **options):
    (example,) = parse(value, **options)
    assert example.where == "a.jsonl:1"
    return ResponseExample(**{name: getattr(example, name) for name in ResponseExample.__slots__} | {"where": ""})


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": [Q], "chosen": [G], "rejected": [B]},
        {"prompt": [Q], "chosen": "good", "rejected": "bad"},  # a pick
        {"prompt": "q", "chosen": [G], "rejected": [B]},
        {"prompt": "q", "chosen": [Q, G], "rejected": [Q, B]},  # UltraFeedback, binarized
        {"prompt": [Q], "chosen": [Q, G], "rejected": [Q, B]},
        {"chosen": [Q, G], "rejected": [Q, B]},
        {"chosen": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "good"}], "rejected": [Q, B]},
    ],
)
def test_pairs_of_messages(value):
    assert one(value) == CHAT


def test_pairs_of_strings_are_text_or_a_chat():
    row = {"prompt": "q", "chosen": " good", "rejected": " bad"}
    assert one(row) == TEXT
    assert one({"prompt": "q", "chosen": "good", "rejected": "bad"}, strings="chat") == CHAT
    assert (
        one(
            {"question": "q", "a": " good", "b": " bad"}, columns={"prompt": "question", "chosen": "a", "rejected": "b"}
        )
        == TEXT
    )
    assert one(row | {"system": "be nice"}).prompt == (Message("system", "be nice"), USER)


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        (
            "\n\nHuman: q\n\nAssistant: good",
            "\n\nHuman: q\n\nAssistant: bad",
            ("\n\nHuman: q\n\nAssistant:", " good", " bad"),
        ),
        ("q: Paris", "q: Paul", ("q: Pa", "ris", "ul")),
        ("q: yes", "q: yes, sir", ("q: ye", "s", "s, sir")),
        ("q: a", "q: b c", ("q:", " a", " b c")),
    ],
)
def test_the_prompt_is_what_texts_have_in_common_and_nothing_is_used_up(chosen, rejected, expected):
    prompt, *responses = expected
    assert one({"chosen": chosen, "rejected": rejected}) == ResponseExample(prompt, tuple(responses), is_implied=True)


def test_a_transcript_can_be_read_as_a_chat():
    start = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: q\n\nAssistant:"
    example = one({"chosen": f"{start} good", "rejected": f"{start} bad"}, strings="chat")
    assert example.prompt == (Message("user", "hi"), Message("assistant", "hello"), USER)
    assert example.responses == ((GOOD,), (BAD,))


def test_answers_of_several_turns_begin_where_they_part():
    example = one({"chosen": [Q, G], "rejected": [Q, G, Q, B]})
    assert (example.prompt, example.responses) == ((USER,), ((GOOD,), (GOOD, USER, BAD)))


@pytest.mark.parametrize(
    ("columns", "margin"),
    [
        ({"margin": 0.5}, 0.5),
        ({"score_chosen": 9, "score_rejected": "7.5"}, 1.5),
        ({"chosen_score": 1, "rejected_score": 2}, -1.0),
        ({"score_chosen": None, "score_rejected": 1}, None),
    ],
)
def test_margins(columns, margin):
    assert one({"prompt": "q", "chosen": " good", "rejected": " bad"} | columns).margin == margin


def test_scored_responses_become_every_pair_with_a_better_one():
    row = {"prompt": "q", "responses": ["a", "b", "c", "d"], "scores": [1, 3, 3, 2]}
    found = {(*example.responses, example.margin) for example in parse(row)}
    assert found == {("b", "a", 2), ("c", "a", 2), ("d", "a", 1), ("b", "d", 1), ("c", "d", 1)}
    ranked = parse({"prompt": [Q], "responses": [[G], "bad"], "ranks": [1, 2]})
    assert [(example.responses, example.margin) for example in ranked] == [(((GOOD,), (BAD,)), None)]


@pytest.mark.parametrize("good", [True, 1, 1.0, "true", "Thumbs Up", "👍", "1", "good"])
@pytest.mark.parametrize("bad", [False, 0, -1, "false", "thumbs down", "👎", "bad"])
def test_labels(good, bad):
    for label, expected in ((good, True), (bad, False)):
        assert one({"prompt": "q", "completion": "x", "label": label}, method="kto").label is expected


def test_kto_takes_a_pair_as_a_desirable_and_an_undesirable_response():
    examples = parse({"prompt": [Q], "chosen": [G], "rejected": [B], "margin": 2}, method="kto")
    assert [(example.responses, example.label, example.margin) for example in examples] == [
        (((GOOD,),), True, None),
        (((BAD,),), False, None),
    ]


def test_tools_come_along():
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert one({"prompt": [Q], "chosen": [G], "rejected": [B], "tools": tools}).tools == tuple(tools)


@pytest.mark.parametrize(
    ("value", "method", "problem"),
    [
        (
            {"prompt": "q", "completion": "x"},
            "dpo",
            "has none of the columns of pairs (found prompt, completion; expected",
        ),
        ({"prompt": "q", "completion": "x", "label": 1}, "dpo", "has none of the columns of pairs"),
        ({"prompt": "q", "completion": "x"}, "kto", "has none of the columns of pairs or labeled completions"),
        ({"prompt": "q", "responses": ["a", "b"], "scores": [1, 2]}, "kto", "has none of the columns"),
        ({"prompt": "q", "chosen": "a", "rejected": None}, "dpo", "rejected is null (expected text or messages)"),
        ({"prompt": "q", "chosen": 3, "rejected": "b"}, "dpo", "chosen is a number (expected text or messages)"),
        ({"chosen": "a", "rejected": "b"}, "dpo", "has no prompt, and chosen and rejected begin differently"),
        ({"chosen": [G], "rejected": [B]}, "dpo", "has no prompt, and chosen and rejected begin differently"),
        (
            {"chosen": [Q, G, Q, B], "rejected": [Q, G, Q | {"content": "r"}, B]},
            "dpo",
            "chosen goes on after the prompt with the role user",
        ),
        ({"prompt": [Q], "chosen": [Q], "rejected": [B]}, "dpo", "chosen goes on after the prompt with the role user"),
        (
            {"prompt": "q", "chosen": "a", "rejected": "b", "margin": "much"},
            "dpo",
            "margin is text (expected a number)",
        ),
        ({"prompt": "q", "responses": ["a", "b"]}, "dpo", "has responses without scores or ranks"),
        (
            {"prompt": "q", "responses": ["a", "b"], "scores": [1]},
            "dpo",
            "has 2 responses and 1 scores (expected as many)",
        ),
        ({"responses": ["a", "b"], "scores": [1, 2]}, "dpo", "prompt is missing (expected text or messages)"),
        ({"prompt": "q", "completion": "x", "label": "maybe"}, "kto", "label is 'maybe' (expected true or false"),
        ({"prompt": "q", "completion": "x", "label": 0.5}, "kto", "label is 0.5 (expected true or false"),
        (
            {"prompt": [Q], "chosen": [{"role": "robot", "content": "x"}], "rejected": [B]},
            "dpo",
            'chosen[0].role is "robot"',
        ),
    ],
)
def test_refusals_name_what_is_wrong(value, method, problem):
    with pytest.raises(RowProblem) as caught:
        parse(value, method=method)
    assert caught.value.what.startswith(problem)
    assert not isinstance(caught.value, NothingToLearn)


@pytest.mark.parametrize(
    ("value", "method", "reason"),
    [
        ({"prompt": "q", "chosen": "", "rejected": "b"}, "dpo", EMPTY_TURN),
        ({"prompt": "q", "chosen": "a", "rejected": " \n"}, "dpo", EMPTY_TURN),
        ({"prompt": [Q], "chosen": [], "rejected": [B]}, "dpo", EMPTY_TURN),
        ({"prompt": [Q], "chosen": [Q], "rejected": [Q, B]}, "dpo", EMPTY_TURN),
        ({"chosen": [Q, G | {"content": ""}], "rejected": [Q, B]}, "dpo", EMPTY_TURN),
        ({"prompt": "q", "responses": ["a", "b"], "scores": [2, 2]}, "dpo", NONE_BETTER),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "kto", SAME),
    ],
)
def test_what_teaches_nothing_is_told_apart_from_what_is_wrong(value, method, reason):
    with pytest.raises(NothingToLearn) as caught:
        parse(value, method=method)
    assert caught.value.reason == reason


def test_the_method_is_told_by_the_columns():
    pair = {"chosen": "a", "rejected": "b"}
    assert detect_method(pair, {}) == detect_method({"prompt": "q", "responses": []}, {}) == "dpo"
    assert detect_method({"yes": "a", "no": "b"}, {"chosen": "yes", "rejected": "no"}) == "dpo"
    assert detect_method({"prompt": "q", "completion": "x", "label": 1}, {}) == "kto"
    assert detect_method({"prompt": "q", "completion": "x"}, {}) == detect_method({"messages": []}, {}) == "sft"

import dataclasses
import json

import pytest

from macft.data.hygiene.advice import advise
from macft.data.hygiene.check import check_rows
from macft.data.hygiene.findings import KINDS
from macft.data.hygiene.texts import read_texts
from macft.data.sources import Row
from macft.errors import DataError
from tests.conftest import REPOSITORY
from tests.data.hygiene.planted import chat, plant, write

MEASURED = ("addresses", "devils", "thumbs", "tone")


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    train, held_out, faults = plant(tmp_path_factory.mktemp("planted"), rows=1500, each=20)
    return check_rows([str(train)], [str(held_out)]), faults


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in {"unreadable"} and "between" not in kind])
def test_planted_faults_are_found_and_nothing_else(planted, kind):
    report, faults = planted
    found = {finding.line for finding in report.of(kind)}
    assert len(found & faults[kind]) >= 0.99 * len(faults[kind])
    assert len(found - faults[kind]) <= 0.01 * report.total


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_planted_faults_are_found_in_ten_thousand_rows(tmp_path, seed):
    train, held_out, faults = plant(tmp_path, rows=10_000, each=100, seed=seed)
    report = check_rows([str(train)], [str(held_out)])
    for kind, lines in faults.items():
        found = {finding.line for finding in report.of(kind)}
        assert len(found & lines) >= 0.99 * len(lines), kind
        assert len(found - lines) <= 0.01 * report.total, kind


@pytest.mark.parametrize("name", MEASURED)
def test_real_rows_raise_few_alarms(name):
    """The rows that come with macft: but for doubles, which they have, at most one in a hundred is named."""
    report = check_rows([str(REPOSITORY / "recipes" / "data" / name / "train.jsonl")])
    alarms = {finding.line for finding in report.findings if "duplicate" not in finding.kind}
    assert len(alarms) <= 0.01 * report.total


def test_addresses_that_differ_in_a_number_are_different(tmp_path):
    path = REPOSITORY / "recipes" / "data" / "addresses" / "train.jsonl"
    lines = path.read_text().splitlines()
    for finding in check_rows([str(path)]).of("near_duplicate"):
        one, other = (json.loads(lines[int(place.split(":")[1]) - 1]) for place in (finding.where, finding.other))
        digits = [{*"".join(c if c.isdigit() else " " for c in json.dumps(row)).split()} for row in (one, other)]
        assert finding.similarity >= 0.9 or digits[0] == digits[1]


def test_doubles_between_files_name_both_places(tmp_path):
    one = write(tmp_path / "one.jsonl", [chat("What is a yoke?", "An implement, madam."), chat("Who?", "Bierce.")])
    two = write(tmp_path / "two.jsonl", [chat("WHO?", " bierce. "), chat("When?", "In 1911, they say.")])
    (finding,) = check_rows([str(one), str(two)]).findings
    assert (finding.kind, finding.where, finding.other) == ("duplicate_between", "two.jsonl:1", "one.jsonl:2")


def test_rows_that_cannot_be_read_are_findings_and_the_rest_is_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [chat("Hi", "Hello there."), {"completion": "", "prompt": "Hi"}, {"nothing": 1}, chat("A", "B c d.")]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n{broken\n")
    report = check_rows([str(path)])
    assert [(each.kind, each.where) for each in report.findings] == [
        ("unreadable", "rows.jsonl:3"),
        ("unreadable", "rows.jsonl:5"),
        ("empty_answer", "rows.jsonl:2"),
    ]
    assert report.total == 5


@pytest.mark.parametrize("name", ["nope.jsonl", "empty.jsonl"])
def test_without_rows_there_is_nothing_to_check(tmp_path, name):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError):
        check_rows([str(tmp_path / name)])


def test_labels_are_balanced_and_are_no_repeated_replies(tmp_path):
    rows = [chat(f"Is the {n}th of them red or blue?", "Blue" if n % 4 else "Red") for n in range(40)]
    report = check_rows([str(write(tmp_path / "rows.jsonl", rows))])
    assert report.labels == {"Blue": 30, "Red": 10}
    assert not report.of("repeated_answer")


def test_preferences_and_documents_are_read(tmp_path):
    rows = [
        {"prompt": "Define a yoke.", "chosen": "An implement, madam.", "rejected": "A wooden frame."},
        {"text": "SCENE 1. Westminster. A street."},
        {"prompt": "Define.", "completion": "Words.", "label": True},
    ]
    report = check_rows([str(write(tmp_path / "rows.jsonl", rows))])
    assert report.kinds == {"pair": 1, "text": 1, "labeled": 1}
    assert {"chosen", "rejected", "desirable", "text", "user"} == set(report.lengths)
    assert report.lengths["chosen"].longest == len("An implement, madam.")


def test_secrets_are_never_shown(planted):
    report, faults = planted
    told = json.dumps(list(report.of("personal_data")))
    assert len(report.of("personal_data")) == len(faults["personal_data"])
    assert not any(character.isdigit() for finding in report.of("personal_data") for character in finding.what)
    assert "@" not in told


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (10, "try prompting first"),
        (200, "a style or a format"),
        (5000, "full tuning would forget"),
        (20_000, "higher rank"),
    ],
)
def test_the_amount_of_rows_is_weighed(planted, rows, said):
    report = dataclasses.replace(planted[0], rows={"rows.jsonl": rows}, findings=[])
    assert said in advise(report)[0]


def test_a_goal_of_knowledge_is_told_to_look_things_up(planted):
    assert any("retrieved" in line for line in advise(planted[0], "answer questions about our handbook"))
    assert any("does best" in line for line in advise(planted[0], "write like our brand"))


@pytest.mark.parametrize(
    "messages",
    [
        [("user", "Hi"), ("assistant", "Hello.")],
        [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Who?"), ("assistant", "Me.")],
        [("user", "Hi"), ("assistant", "Hello."), ("user", "Bye")],
    ],
)
def test_a_plain_chat_is_what_parsing_makes_of_it(messages):
    turns = [{"role": role, "content": text} for role, text in messages]
    one, other = (
        read_texts(Row({"messages": turns, **more}, "x:1", "x", 1), {}) for more in ({}, {"source": "parsed in full"})
    )
    assert one == other

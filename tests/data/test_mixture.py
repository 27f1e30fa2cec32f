from collections import Counter
from itertools import groupby

import pytest

from macft.data.mixture import Part, mix_rows, parse_part
from macft.errors import DataError, RecipeError
from tests.data.hygiene.planted import chat, write


@pytest.fixture
def parts(tmp_path):
    def make(name, rows):
        return str(write(tmp_path / f"{name}.jsonl", [chat(f"{name} {n}?", f"It is {n}.") for n in range(rows)]))

    return make("big", 300), make("small", 50)


def count(path):
    return Counter(line.split('"content": "')[1].split()[0] for line in path.read_text().splitlines())


def test_weights_are_shares_of_the_largest_mixture_without_repeats(tmp_path, parts):
    done = mix_rows([Part(parts[0], 3), Part(parts[1], 1)], out=tmp_path / "out.jsonl")
    assert count(done.out) == {"big": 150, "small": 50}
    assert len(set(done.out.read_text().splitlines())) == done.rows == 200


def test_rows_are_shuffled_and_the_same_every_time(tmp_path, parts):
    one, two, other = (
        mix_rows([Part(parts[0], 1), Part(parts[1], 1)], out=tmp_path / name, seed=seed).out.read_text()
        for name, seed in (("1", 0), ("2", 0), ("3", 1))
    )
    assert one == two != other
    runs = [len(list(group)) for _, group in groupby(one.splitlines(), key=lambda line: "big" in line)]
    assert max(runs) < 15  # two parts of 50 behind each other would be runs of 50


def test_caps_bound_a_part_and_the_mixture(tmp_path, parts):
    done = mix_rows([Part(parts[0], 1, 20), Part(parts[1], 1)], out=tmp_path / "out.jsonl")
    assert count(done.out) == {"big": 20, "small": 20}
    done = mix_rows([Part(parts[0], None, 20), Part(parts[1])], out=tmp_path / "out.jsonl")
    assert count(done.out) == {"big": 20, "small": 50}


def test_too_few_rows_are_refused_or_repeated(tmp_path, parts):
    wanted = [Part(parts[0], 0.5), Part(parts[1], 0.5)]
    with pytest.raises(DataError, match="has 50 rows to take, and 100 are wanted"):
        mix_rows(wanted, out=tmp_path / "out.jsonl", rows=200)
    done = mix_rows(wanted, out=tmp_path / "out.jsonl", rows=200, repeat=True)
    assert count(done.out) == {"big": 100, "small": 100}
    assert set(Counter(line for line in done.out.read_text().splitlines() if "small" in line).values()) == {2}


@pytest.mark.parametrize(("rows", "shares"), [(10, (1, 1, 1)), (7, (0.5, 0.3, 0.2)), (101, (5, 3, 2))])
def test_shares_are_rounded_to_the_number_asked_for(tmp_path, parts, rows, shares):
    done = mix_rows([Part(parts[0], share) for share in shares], out=tmp_path / "out.jsonl", rows=rows)
    taken = [part["rows"] for part in done.parts]
    assert sum(taken) == rows
    assert all(abs(got - rows * share / sum(shares)) < 1 for got, share in zip(taken, shares, strict=True))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a.jsonl", Part("a.jsonl")),
        ("a.jsonl:0.5", Part("a.jsonl", 0.5)),
        ("a::9", Part("a", None, 9)),
        ("a:2:9", Part("a", 2, 9)),
    ],
)
def test_a_part_is_read(text, part):
    assert parse_part(text) == part


@pytest.mark.parametrize("text", ["a:b", "a:0", "a:-1", "a:inf", "a:nan", "a:1:x", "a:1:0", "a:1:2:3"])
def test_a_part_that_makes_no_sense_is_refused(text):
    with pytest.raises(RecipeError, match="is no part of a mixture"):
        parse_part(text)


def test_weights_are_for_all_or_for_none(tmp_path, parts):
    with pytest.raises(RecipeError, match="some parts have weights"):
        mix_rows([Part(parts[0], 1), Part(parts[1])], out=tmp_path / "out.jsonl")
    with pytest.raises(RecipeError, match="needs weights"):
        mix_rows([Part(parts[0])], out=tmp_path / "out.jsonl", rows=5)
    with pytest.raises(DataError, match="no such file"):
        mix_rows([Part("nope.jsonl")], out=tmp_path / "out.jsonl")

"""The recipe: what it accepts, what it refuses and how it says so."""

import tomllib
from pathlib import Path

import pytest

from macft.errors import RecipeError
from macft.recipe import (
    PreferenceRecipe,
    PretrainRecipe,
    SftRecipe,
    apply_overrides,
    describe_fields,
    dump_recipe,
    load_recipe,
    make_recipe,
)


def problems_of(values: dict) -> dict[str, str]:
    with pytest.raises(RecipeError) as caught:
        make_recipe(values)
    return {problem.where: problem.what for problem in caught.value.problems}


def test_a_recipe_needs_only_a_model() -> None:
    recipe = make_recipe({"model": "smollm2-135m"})
    assert isinstance(recipe, SftRecipe)
    assert (recipe.lora.rank, recipe.optimizer.name, recipe.data.train_on) == (8, "adamw", "assistant")


def test_the_method_chooses_the_keys() -> None:
    assert isinstance(make_recipe({"model": "m", "method": "pretrain"}), PretrainRecipe)


def test_all_problems_are_told_at_once_with_the_nearest_name() -> None:
    found = problems_of({"model": "m", "lora": {"rnk": 3}, "epocs": 3, "learning_rate": -1, "adapter": "lra"})
    assert found == {
        "lora.rnk": "unknown key. Did you mean `lora.rank`?",
        "epocs": "unknown key. Did you mean `epochs`?",
        "learning_rate": "input should be greater than 0 (got -1)",
        "adapter": "input should be 'lora', 'dora' or 'full' (got 'lra')",
    }


def test_a_key_outside_its_table_is_sent_to_it() -> None:
    assert problems_of({"model": "m", "rank": 8})["rank"] == "unknown key. Did you mean `lora.rank`?"


def test_one_key_has_one_line_even_when_it_may_be_several_things() -> None:
    assert problems_of({"model": "m", "lora": {"layers": 0}}) == {
        "lora.layers": "input should be 'all' (got 0), or input should be greater than or equal to 1 (got 0)"
    }


@pytest.mark.parametrize(
    ("values", "key", "part"),
    [
        ({}, "model", "is required"),
        ({"model": "m", "method": "stf"}, "method", "Did you mean 'sft'?"),
        ({"model": "m", "version": 99}, "version", "format 99"),
        ({"model": "m", "quantize": 5}, "quantize", "4 or 8"),
        ({"model": "m", "quantize_group_size": 48}, "quantize_group_size", "32, 64 or 128"),
        ({"model": "m", "steps": 0}, "steps", "greater than or equal to 1"),
        ({"model": "m", "seed": 2**40}, "seed", "less than"),
        ({"model": "m", "data": {"too_long": "cut"}}, "data.too_long", "'truncate'"),
        ({"model": "m", "data": 3}, "data", "dictionary"),
        ({"model": 7}, "model", "string"),
        ({"model": "m", "epochs": float("inf")}, "epochs", "finite number"),
        ({"model": "m", "learning_rate": float("inf")}, "learning_rate", "finite number"),
        ({"model": "m", "lora": {"alpha": float("nan")}}, "lora.alpha", "finite number"),
        ({"model": "m", "optimizer": {"betas": [0.9, 1.0]}}, "optimizer.betas.1", "less than 1"),
        ({"model": "m", "optimizer": {"betas": [-0.1, 0.9]}}, "optimizer.betas.0", "greater than or equal to 0"),
    ],
)
def test_what_is_refused(values: dict, key: str, part: str) -> None:
    assert part in problems_of(values)[key]


def test_one_string_is_a_list_of_one_file_and_paths_are_relative_to_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text('model = "./base"\n[data]\ntrain = "rows.jsonl"\nvalid = ["-"]\n')
    recipe = load_recipe(tmp_path / "recipe.toml")
    assert recipe.data.train == [str(tmp_path / "rows.jsonl")]
    assert recipe.data.valid == ["-"]
    assert recipe.model == str(tmp_path / "base")


def test_a_catalog_name_or_hub_id_is_not_taken_for_a_path(tmp_path: Path) -> None:
    assert make_recipe({"model": "org/name"}, folder=tmp_path).model == "org/name"
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert make_recipe({"model": "org/name"}, folder=tmp_path).model == str(tmp_path / "org" / "name")


def test_overrides_are_toml_or_plain_text() -> None:
    merged = apply_overrides(
        {"lora": {"rank": 8}}, ["lora.rank=16", "learning_rate=2e-4", "model=smollm2-135m", 'data.train=["a.jsonl"]']
    )
    assert merged == {
        "lora": {"rank": 16},
        "learning_rate": 2e-4,
        "model": "smollm2-135m",
        "data": {"train": ["a.jsonl"]},
    }


@pytest.mark.parametrize("override", ["lora.rank", "=3", "model.x=1"])
def test_a_bad_override_is_named(override: str) -> None:
    with pytest.raises(RecipeError, match="expected key=value"):
        apply_overrides({"model": "m"}, [override])


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"model = ", "is not TOML"),
        (b"steps = " + b"1" * 5000, "is not TOML: Exceeds the limit"),
        (b"x = " + b"[" * 5000, "is not TOML"),
        (b"\xff\xfe", "cannot be read"),
        (None, "no such recipe"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: bytes | None, part: str) -> None:
    path = tmp_path / "recipe.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError, match=part):
        load_recipe(path)


@pytest.mark.parametrize("value", ["1" * 5000, "[" * 5000])
def test_an_override_beyond_what_python_reads_is_refused_in_one_short_line(value: str) -> None:
    with pytest.raises(RecipeError) as caught:
        make_recipe(apply_overrides({"model": "m"}, [f"steps={value}"]))
    assert str(caught.value).startswith("steps: ")
    assert len(str(caught.value)) < 300


def test_a_dumped_recipe_reads_back_as_itself(tmp_path: Path) -> None:
    recipe = make_recipe({"model": "m", "steps": 3, "lora": {"targets": ["q_proj"], "layers": 2}, "compile": False})
    (tmp_path / "recipe.toml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "recipe.toml") == recipe


def test_every_key_is_documented() -> None:
    fields = describe_fields(SftRecipe)
    assert [name for name, _, text in fields if not text and "." in name] == []
    names = [name for name, _, _ in fields]
    assert {"checkpoint.every", "evaluate.every", "lora.rank", "lora.alpha", "lora.dropout", "lora.targets"} <= set(
        names
    )


@pytest.mark.parametrize("method", ["dpo", "orpo", "simpo", "cpo", "kto"])
def test_a_preference_recipe_has_keys_and_defaults_of_its_own(method):
    recipe = make_recipe({"model": "m", "method": method, "beta": 0.3})
    assert isinstance(recipe, PreferenceRecipe)
    assert (recipe.method, recipe.beta) == (method, 0.3)
    assert recipe.learning_rate < make_recipe({"model": "m"}).learning_rate
    assert make_recipe(tomllib.loads(dump_recipe(recipe))) == recipe


@pytest.mark.parametrize(
    ("method", "keys", "said"),
    [
        ("sft", {"beta": 0.1}, "beta: unknown key"),
        ("orpo", {"reference": "base"}, "reference: unknown key"),
        ("dpo", {"gamma": 0.5}, "gamma: unknown key"),
        ("dpo", {"neftune_alpha": 5.0}, "neftune_alpha: unknown key"),
        ("dpo", {"loss": "sigmoyd"}, "loss: input should be"),
        ("dpo", {"label_smoothing": 0.5}, "label_smoothing: input should be less than 0.5"),
        ("dpo", {"beta": 0.0}, "beta: input should be greater than 0"),
        ("dpo", {"ld_alpha": 1.5}, "ld_alpha: input should be less than or equal to 1"),
        ("dpo", {"lora": {"dropout": 0.1}}, "lora.dropout: must be 0 here"),
        ("dpo", {"loss": "ipo", "label_smoothing": 0.1}, 'label_smoothing: has no meaning with loss = "ipo"'),
        ("sft", {"evaluate": {"metric": "eval_rewards/margins"}}, "evaluate.metric: "),
        ("kto", {"evaluate": {"metric": "eval_rewards/accuracies"}}, "evaluate.metric: "),
    ],
)
def test_what_a_method_has_no_meaning_for_is_refused(method, keys, said):
    with pytest.raises(RecipeError) as caught:
        make_recipe({"model": "m", "method": method, **keys})
    assert said in str(caught.value)

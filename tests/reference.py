"""The recipe reference of the README, made from the model: `make reference` writes it again.

The rule: a key is documented where it is declared, in `macft/recipe.py`, and nowhere else.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from macft.recipe import PretrainRecipe, SftRecipe, describe_fields

README = Path(__file__).parents[1] / "README.md"
START, END = "<!-- reference: made by `make reference` -->", "<!-- end of reference -->"


def make_reference() -> str:
    """Return a Markdown table of every key: its default, its values where they are named, what it means."""
    choices = _choices()
    choices["method"] = ["sft", "pretrain"]
    lines = ["| key | default | what it means |", "| --- | --- | --- |"]
    for key, default, meaning in describe_fields(SftRecipe):
        named = choices.get(key, [])
        if key == "method":
            meaning = " ".join(doc for kind in (SftRecipe, PretrainRecipe) for doc in _documented(kind, "method"))
        values = f" One of {', '.join(f'`{value}`' for value in named)}." if len(named) > 1 else ""
        shown = f"`{default}`" if default and default != "required" else default
        lines.append(f"| `{key}` | {shown} | {(meaning + values).replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def read_reference(readme: str) -> str:
    """Return what stands between the two marks of a README."""
    return readme.partition(START)[2].partition(END)[0].strip()


def write_reference(path: Path = README) -> None:
    """Write the reference into a README, between its marks."""
    before, start, rest = path.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    path.write_text(f"{before}{start}\n{make_reference()}\n{end}{after}", encoding="utf-8")


def _documented(kind: type[SftRecipe | PretrainRecipe], key: str) -> Iterator[str]:
    return (f"`{kind.model_fields[key].default}`: {doc}" for name, _, doc in describe_fields(kind) if name == key)


def _choices() -> dict[str, list[Any]]:
    schema = SftRecipe.model_json_schema()
    found: dict[str, list[Any]] = {}

    def walk(table: dict[str, Any], prefix: str) -> None:
        for name, field in table["properties"].items():
            if "$ref" in field:
                walk(schema["$defs"][field["$ref"].rsplit("/", 1)[-1]], f"{prefix}{name}.")
            parts = field.get("anyOf", [field])
            found[prefix + name] = [value for part in parts for value in part.get("enum", [])]

    walk(schema, "")
    return found


if __name__ == "__main__":
    write_reference()

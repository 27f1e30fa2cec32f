"""The recipe reference of the README, made from the model: `make reference` writes it again.

The rule: a key is documented where it is declared, in `macft/recipe_methods.py` and `macft/recipe_tables.py`, and
nowhere else. Keys that all methods share come first; then those of some methods, and defaults that differ.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from macft.recipe import METHODS, BaseRecipe, describe_fields

README = Path(__file__).parents[1] / "README.md"
START, END = "<!-- reference: made by `make reference` -->", "<!-- end of reference -->"

Documented = tuple[str, str]
"""A default and its documentation."""


def make_reference() -> str:
    """Return two Markdown tables: keys of every method, and keys or defaults of some."""
    keys = {method: _documented(kind) for method, kind in METHODS.items()}
    shared = dict(_documented(BaseRecipe))
    lines = ["| key | default | what it means |", "| --- | --- | --- |"]
    methods = ", ".join(f"`{method}`" for method in METHODS)
    lines.append(f'| `method` | `"sft"` | How the model learns. One of {methods}. |')
    lines += [_line(key, *found) for key, found in shared.items()]
    lines += ["", "Keys of some methods, and defaults that differ:", ""]
    lines += ["| key | method | default | what it means |", "| --- | --- | --- | --- |"]
    for key, found, named in _own(keys, shared):
        of = ", ".join(f"`{method}`" for method in named)
        lines.append(_line(key, *found).replace("` | ", f"` | {of} | ", 1))
    return "\n".join(lines)


def list_keys() -> set[str]:
    """Return every key of every method."""
    return {key for kind in METHODS.values() for key, _, _ in describe_fields(kind)}


def read_reference(readme: str) -> str:
    """Return what stands between the two marks of a README."""
    return readme.partition(START)[2].partition(END)[0].strip()


def write_reference(path: Path = README) -> None:
    """Write the reference into a README, between its marks."""
    before, start, rest = path.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    path.write_text(f"{before}{start}\n{make_reference()}\n{end}{after}", encoding="utf-8")


def _own(
    keys: dict[str, dict[str, Documented]], shared: dict[str, Documented]
) -> Iterator[tuple[str, Documented, list[str]]]:
    """Yield each key that is not everywhere the same, with the methods that have it so."""
    said: list[tuple[str, Documented]] = []
    for found in keys.values():
        said += [item for item in found.items() if item not in said and shared.get(item[0]) != item[1]]
    for key, documented in said:
        yield key, documented, [method for method, found in keys.items() if found.get(key) == documented]


def _line(key: str, default: str, meaning: str) -> str:
    shown = f"`{default}`" if default and default != "required" else default
    return f"| `{key}` | {shown} | {meaning.replace('|', chr(92) + '|')} |"


def _documented(kind: type[BaseRecipe]) -> dict[str, Documented]:
    choices = _choices(kind)
    found = {}
    for key, default, doc in describe_fields(kind):
        named = choices.get(key, [])
        values = f" One of {', '.join(f'`{value}`' for value in named)}." if len(named) > 1 else ""
        found[key] = (default, " ".join(f"{doc}{values}".split()))
    return found


def _choices(kind: type[BaseRecipe]) -> dict[str, list[Any]]:
    schema = kind.model_json_schema()
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

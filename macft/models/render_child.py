"""Renders chat templates in a process that may be ended at any time; run as a file, it knows nothing of macft.

The rule: a template is a program of a stranger's. It sees plain values only, in Jinja's immutable sandbox, with what
transformers gives templates and nothing else.

    {"template": …, "values": {…}}  →  {"text": …} or {"error": …}, a line each
"""

import json
import sys
from datetime import datetime
from functools import cache
from typing import Any

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks an answer for trainers that read it so; here it is written as it stands."""

    tags = {"generation"}  # noqa: RUF012 — Jinja's own way

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Dict:
    """`dict` for templates: a class would hand them its attributes."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Names(Namespace):
    """`namespace` for templates, without names that could reach into Python."""

    def __init__(*args: Any, **values: Any) -> None:
        self, values = args[0], dict(*args[1:], **values)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a chat template cannot keep {name!r}")


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@cache
def compile_template(source: str) -> jinja2.Template:
    """Compile a template as `apply_chat_template` of transformers does."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _refuse,
        "strftime_now": lambda format: datetime.now().strftime(format),
        "dict": _Dict(),
        "namespace": _Names,
    }
    return environment.from_string(source)


def main() -> None:
    """Answer requests until stdin ends."""
    print("{}", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = {"text": compile_template(asked["template"]).render(**asked["values"])}
        except Exception as error:  # a template may raise anything
            answer = {"error": str(error) or type(error).__name__}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

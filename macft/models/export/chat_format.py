"""A chat template as the pieces around each role's text, and as Ollama's template.

The rule: pieces are found by rendering, never by reading the template's source, and used only when they make exactly
the text of conversations that they were not found with.
"""

from collections.abc import Callable
from itertools import takewhile
from typing import NamedTuple

from mlx_lm.tokenizer_utils import TokenizerWrapper

_SYSTEM, _ASKED, _SAID = "Be xsystemx.", "Say xaskedx.", "It is xsaidx."


class ChatFormat(NamedTuple):
    """What a template writes around texts.

    Attributes:
        opening: Before everything.
        roles: Text before and after what a role says: `system` where the template takes one, `user`, `assistant`.
        answer: What starts an answer.
        system: What the template itself says as the system when nobody does; None when it says nothing.
    """

    opening: str
    roles: dict[str, tuple[str, str]]
    answer: str
    system: str | None

    def render(self, turns: list[tuple[str, str]]) -> str:
        """Return a conversation as the template writes it, up to where the answer starts."""
        if self.system is not None and turns[0][0] != "system":
            turns = [("system", self.system), *turns]
        said = "".join(self.roles[role][0] + text + self.roles[role][1] for role, text in turns)
        return self.opening + said + self.answer


def find_chat_format(tokenizer: TokenizerWrapper, *, enable_thinking: bool) -> ChatFormat | None:
    """Take a chat template apart; None when it is no plain sequence of turns, or there is none."""
    if not tokenizer.has_chat_template:
        return None

    def render(turns: list[tuple[str, str]], ask: bool) -> str:
        messages = [{"role": role, "content": text} for role, text in turns]
        return str(
            tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=ask, enable_thinking=enable_thinking
            )
        )

    try:
        found = _take_apart(render, str(tokenizer.bos_token or ""))
        turns = [("user", "One?"), ("assistant", "Yes.\nTwo"), ("user", "And"), ("assistant", "No"), ("user", "Why")]
        checks = [turns[:1], turns, *([[("system", "Short!"), *turns]] if "system" in found.roles else [])]
        good = all(found.render(check) == render(check, True) for check in checks)
    except Exception:  # a template is a program: it may raise anything on what it does not expect
        return None
    return found if good else None


def write_ollama_template(form: ChatFormat, *, adds_bos: bool) -> str:
    """Return the template in Ollama's language, which is Go's.

    Args:
        form: From `find_chat_format`.
        adds_bos: The tokenizer itself starts every text, so the template must not.
    """
    opening = "" if adds_bos else form.opening
    branches = "".join(
        f'{{{{ {"else " if place else ""}if eq .Role "{role}" }}}}{_literal(before)}{{{{ .Content }}}}{_literal(after)}'
        for place, (role, (before, after)) in enumerate(form.roles.items())
    )
    unasked = ""
    if form.system is not None:
        said = form.system.join(form.roles["system"])
        unasked = f'{{{{ if and (eq $place 0) (ne .Role "system") }}}}{_literal(said)}{{{{ end }}}}'
    turns = f"{{{{ range $place, $_ := .Messages }}}}{unasked}{branches}{{{{ end }}}}{{{{ end }}}}"
    return f"{_literal(opening)}{turns}{_literal(form.answer)}"


def _take_apart(render: Callable[[list[tuple[str, str]], bool], str], bos: str) -> ChatFormat:
    asked, said = ("user", _ASKED), ("assistant", _SAID)
    before, to_ask = _around(render([asked], True), _ASKED)
    _, middle, end = (whole := render([asked, said, asked], False)).split(_ASKED)
    to_answer, from_answer = _around(middle, _SAID)
    after = _common_start(end, to_answer)  # some templates end the whole text with a token of its own
    answer, assistant = to_ask.removeprefix(after), to_answer.removeprefix(after)
    start = bos if bos and before.startswith(bos) and whole.count(bos) == 1 else ""
    user = before.removeprefix(start) if start else _common_end(before, from_answer)
    lead, system, roles = before.removesuffix(user), None, {}
    try:
        to_system, rest = _around(render([("system", _SYSTEM), asked], False), _SYSTEM)
    except Exception:  # a template is a program; many refuse a system message
        to_system = ""
    if to_system:
        from_system, _ = _around(rest, _ASKED)
        if before.startswith(to_system) and before.endswith(from_system):  # the template speaks as the system itself
            system = before.removeprefix(to_system).removesuffix(from_system)
            user = _common_end(from_system, from_answer).removeprefix(after)
            lead = start
        roles["system"] = (to_system.removeprefix(lead), from_system.removesuffix(user))
    roles |= {"user": (user, after), "assistant": (assistant, from_answer.removesuffix(user))}
    return ChatFormat(lead, roles, answer, system)


def _around(text: str, inner: str) -> tuple[str, str]:
    before, found, after = text.partition(inner)
    if not found:
        raise ValueError("the template does not write the text as it is")
    return before, after


def _common_start(one: str, other: str) -> str:
    same = takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return "".join(letter for letter, _ in same)


def _common_end(one: str, other: str) -> str:
    return _common_start(one[::-1], other[::-1])[::-1]


def _literal(text: str) -> str:
    return text.replace("{{", '{{ "{{" }}')

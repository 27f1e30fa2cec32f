"""Personal data and keys, by their patterns.

The rule: what is found is named, never shown. A number counts only when its checksum or its punctuation says what it
is.
"""

import re
from collections.abc import Iterator

_MAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.)+[a-z]{2,24}\b", re.IGNORECASE)
_DIGITS = re.compile(r"(?<![\w.,/$€£#-])(?:\+|\(|00)?\d(?:[ ()./-]{0,2}\d){8,18}(?![\w/-]|[.,]\d)")
_LONG_NUMBER = re.compile(r"\d[\d ()./-]{7,}\d")
"""A run of 9 to 20 digits with little between them; what it is, its shape decides."""
_PHONES = (
    re.compile(r"\+\d{1,3}[ ./-]?(?:\(?\d{1,4}\)?[ ./-]?){2,6}\d{2,}"),
    re.compile(r"(?:1[ .-])?\(\d{3}\) ?\d{3}[ .-]\d{4}"),
    re.compile(r"(?:1[.-])?\d{3}([.-])\d{3}\1\d{4}"),
    re.compile(r"(?:1 )?[2-9]\d{2} \d{3} \d{4}"),
    re.compile(r"1[3-9]\d{9}"),  # a mobile phone in China
    re.compile(r"0\d{1,4}[ /-]\d{2,4}(?:[ -]\d{2,4}){1,3}"),  # with a trunk zero, as in Europe
)
_KEYS = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|\bgh[pousr]_[0-9A-Za-z]{36,}|\bgithub_pat_\w{22,}|\bglpat-[\w-]{20,}"
    r"|\bsk-(?:proj-|ant-|live-)?[\w-]{20,}|\b[rs]k_(?:live|test)_[0-9A-Za-z]{16,}"
    r"|\bhf_[0-9A-Za-z]{30,}|\bAIza[\w-]{35}|\bxox[abprs]-[\w-]{10,}|\bnpm_[0-9A-Za-z]{36}|\bpypi-[\w-]{50,}"
    r"|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"
)
_LONG_WORD = re.compile(r"[\w-]{13,}|-----BEGIN")
"""Stands in every key; looking for it costs a tenth of the pattern."""
_ASSIGNED = re.compile(
    r"\b(?:api[_-]?key|secret|access[_-]?token|password|passwd)\b[\"']?\s*[:=]\s*[\"']?(?=[^\s\"']*\d)[^\s\"'<>{}$]{12,}"
)
_ASSIGNED_SIGNS = ("key", "secret", "token", "passw")


def find_personal(text: str) -> Iterator[str]:
    """Name the kinds of personal data that a text seems to hold, each once."""
    if "@" in text and _MAIL.search(text):
        yield "a mail address"
    if _LONG_NUMBER.search(text):
        kinds = {kind for match in _DIGITS.finditer(text) if (kind := name_number(match.group()))}
        yield from sorted(kinds)
    if _holds_key(text):
        yield "a key or password"


def _holds_key(text: str) -> bool:
    if _LONG_WORD.search(text) and _KEYS.search(text):
        return True
    lower = text.lower()
    return any(sign in lower for sign in _ASSIGNED_SIGNS) and _ASSIGNED.search(lower) is not None


def name_number(text: str) -> str:
    """Tell whether a run of digits and separators is a card or a phone number; empty when it is neither."""
    digits = "".join(filter(str.isdigit, text))
    if 13 <= len(digits) <= 19 and digits[0] in "3456" and len(set(digits)) > 1 and has_luhn_digit(digits):
        return "a card number"
    return "a phone number" if any(shape.fullmatch(text) for shape in _PHONES) else ""


def has_luhn_digit(digits: str) -> bool:
    """Tell whether the last digit is the checksum of the others.

    4111 1111 1111 1111: doubled from the right 4+1·7 doubled pairs make 8+7·2, the others 8: 30, a multiple of ten.

    Source: ISO/IEC 7812-1, annex B.
    """
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 * (value > 9)
    return total % 10 == 0

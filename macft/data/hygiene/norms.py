"""Answers that are unlike the other answers of their file: single words among sentences, ends amid a sentence.

The rule: what is common in a file is how its answers are. Only the odd ones out are told, so that labels, titles and
commands raise no alarm.
"""

import json
import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

FINISHED, OPEN, BROKEN, SHORT = range(4)
"""How an answer ends: as text ends, amid words (as lists and titles do, too), surely too early; SHORT says nothing."""
_CJK = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_LEADS_ON = (
    "the a an and or but of to in on at for with from by as that which who whose because if than into about is are was"
    " were be been has have had will would can could should may might must not its their your our my his her this these"
    " der die das und oder aber mit von für ist sind ein eine et ou mais le la les des du une dans pour avec est sont"
    " el los las y con por una"
)
_DANGLING = frozenset(_LEADS_ON.split())
_FEWEST_WORDS, _FEWEST_ANSWERS = 8, 20
_TYPICAL_WORDS, _RARE, _USUAL = 6, 0.1, 0.9
_CUT = re.compile(r"[,;:(\[{<–—-]$|\\$")


def count_words(text: str) -> int:
    """Count words; of a script without spaces, two characters are a word."""
    words = len(text.split())
    if text.isascii():
        return words
    characters = len(_CJK.findall(text))
    return max(words, (characters + 1) // 2) if characters else words


def find_ending(text: str, words: int) -> int:
    """Tell how an answer ends: FINISHED, OPEN, BROKEN or SHORT."""
    text = text.rstrip()
    if text[:1] in {"{", "["} and text[-1:] not in {"}", "]"}:
        return BROKEN if _is_open_json(text) else SHORT
    if text.count("```") % 2:
        return BROKEN
    if words < _FEWEST_WORDS:
        return SHORT
    last = text[-1:]
    if not last.isalnum():
        return BROKEN if _CUT.search(text) else FINISHED
    return BROKEN if text.rpartition(" ")[2].casefold() in _DANGLING else OPEN


def _is_open_json(text: str) -> bool:
    """Tell whether a text is the beginning of a JSON value."""
    try:
        json.JSONDecoder().raw_decode(text)
    except json.JSONDecodeError as error:
        return error.pos >= len(text) - 1 or "Unterminated" in error.msg or '":' in text
    except RecursionError:
        return False
    return False


def find_odd_answers(words: npt.NDArray[np.uint32], endings: npt.NDArray[np.uint8]) -> Iterator[tuple[int, str, str]]:
    """Yield place, kind and reason of the answers [N] of a file that are unlike its others."""
    usual = float(np.median(words)) if len(words) else 0.0
    single = np.flatnonzero(words <= 1)
    if usual >= _TYPICAL_WORDS and len(single) <= _RARE * len(words):
        for place in single:
            yield int(place), "one_word_answer", f"is a word, where answers have {usual:g} words"
    yield from _find_cut(endings)


def _find_cut(endings: npt.NDArray[np.uint8]) -> Iterator[tuple[int, str, str]]:
    broken = np.flatnonzero(endings == BROKEN)
    told = int((endings != SHORT).sum())
    finished = int((endings == FINISHED).sum())
    if len(broken) <= _RARE * len(endings):
        for place in broken:
            yield int(place), "truncated_answer", "breaks off amid a sentence or a structure"
    if told >= _FEWEST_ANSWERS and finished >= _USUAL * told:
        for place in np.flatnonzero(endings == OPEN):
            yield int(place), "truncated_answer", f"ends without a full stop, where {finished / told:.0%} have one"

"""Which language a text is in, told by its characters and its commonest words.

The rule: it is a small check, not a model. It says nothing of short texts, and nothing where a prompt asks for another
language.
"""

import re
from collections import Counter

_SCRIPTS = {
    "Chinese": "\u4e00-\u9fff\u3400-\u4dbf",
    "Japanese": "\u3040-\u30ff",
    "Korean": "\uac00-\ud7af",
    "Cyrillic": "\u0400-\u04ff",
    "Arabic": "\u0600-\u06ff",
    "Hebrew": "\u0590-\u05ff",
    "Greek": "\u0370-\u03ff",
    "Devanagari": "\u0900-\u097f",
    "Thai": "\u0e00-\u0e7f",
}
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]")
_LETTERS = re.compile(r"(?:[A-Za-z][^A-Za-z]*){4}")
_OTHER = {name: re.compile(f"[{ranges}]") for name, ranges in _SCRIPTS.items()}
_WEIGHTS = {"Chinese": 3, "Japanese": 2, "Korean": 2}
"""How many Latin letters a character says as much as."""
_WORDS = {
    "English": "the and of to is that it for with was this are be not have from you your or an by his her they will"
    " would can which there write explain describe give tell list name define please how why where what when about"
    " their has been do does i my we our should could these who",
    "German": "der die das und ist nicht ein eine zu den dem mit von für auf sich auch als wie wird sind aber oder"
    " wenn nur werden bei nach ich wir sie kann haben einen im des zum zur es über durch man",
    "French": "le les des et est une du que qui dans pour pas sur avec il elle ce cette sont au aux vous nous je"
    " ne se par plus mais ou où leur peut être très comme la un à",
    "Spanish": "el los las y es una del que en para por con no se su al lo como más pero sus o este esta ha son"
    " muy también puede hay cuando nos desde la un",
    "Italian": "il gli e è una del della che di per con non si da sono come più ma anche questo questa ha nel nella"
    " alla dei delle può essere io lo la un",
    "Portuguese": "os as e é uma do da que em para por com não se seu sua ao como mais mas dos das no na este esta"
    " são também pode quando ou muito um",
    "Dutch": "de het een en van is niet dat op te met voor zijn aan ook als er maar om bij naar uit kan wordt deze"
    " dit hebben worden ik je wij door",
    "Swedish": "och att det som är på för med av inte den ett om har till kan så men från var jag vi ska eller när",
}
_LANGUAGES = Counter[str](word for words in _WORDS.values() for word in words.split())
_LANGUAGE_OF = {
    word: language
    for language, words in _WORDS.items()
    for word in words.split()
    if _LANGUAGES[word] == 1 and (len(word) > 1 or language == "English")
}
"""Words that are common in one of the languages and in no other; single letters are names in code, too."""
_CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`", re.DOTALL)
_ASKS = re.compile(
    r"translat|übersetz|tradui|traduc|traduz|vertaal|翻译|译成|英文|英语|中文|日文|日语|法语|德语|переве|번역"
    r"|\b(?:english|german|french|spanish|italian|portuguese|dutch|swedish|chinese|mandarin|japanese|korean|russian"
    r"|arabic|hebrew|greek|hindi|thai|latin|deutsch|englisch|français|anglais|español|inglés|language|sprache|langue"
    r"|idioma)\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W\d_]+")
_LONGEST = 240
"""Characters that are looked at."""
_SHORTEST, _FEWEST, _SURE = 12, 2, 4
"""Characters and common words below which nothing is said, and how many times those of the next language they are."""


def name_mismatch(prompt: str, answer: str) -> str:
    """Say that an answer is in another language than its prompt; empty when it is not, or when it cannot be told."""
    if len(answer) < 4 or len(prompt) < 4:
        return ""
    asked, said = find_script(prompt[:_LONGEST]), find_script(answer[:_LONGEST])
    if not asked or not said:
        return ""
    if asked == said == "Latin":
        if len(answer) < _SHORTEST or len(prompt) < _SHORTEST:
            return ""
        asked, said = find_language(prompt, english=1), find_language(answer, english=_FEWEST)
    elif said == "Latin" and _is_code(answer):
        return ""
    if not asked or not said or asked == said or {asked, said} == {"Chinese", "Japanese"} or _ASKS.search(prompt):
        return ""
    said, asked = (f"{name} letters" if name == "Latin" else name for name in (said, asked))
    return f"is asked in {asked} and answered in {said}"


def find_script(text: str) -> str:
    """Name the script that four in five letters of a text are in; empty when they are mixed or too few."""
    if text.isascii():
        return "Latin" if _LETTERS.search(text) else ""
    counts = {name: _WEIGHTS.get(name, 1) * len(pattern.findall(text)) for name, pattern in _OTHER.items()}
    counts["Latin"] = len(_LATIN.findall(text))
    if counts["Japanese"]:
        counts["Japanese"] += counts.pop("Chinese")
    name, most = max(counts.items(), key=lambda item: item[1])
    return name if most >= 4 and most >= 0.8 * sum(counts.values()) else ""


def find_language(text: str, *, english: int) -> str:
    """Name the language whose common words a text in Latin letters has; empty when none is sure.

    Args:
        text: Words.
        english: How many of its words make a text English; other languages take two.
    """
    if "`" in text:
        text = _CODE.sub("", text)
    words = _WORD.findall(text[:_LONGEST].casefold())
    found = [language for word in words if (language := _LANGUAGE_OF.get(word))]
    if not found:
        return ""
    name, hits = found[0], found.count(found[0])
    if hits < len(found):
        (name, hits), (_, next_hits), *_ = Counter(found).most_common(2)
        if hits < _SURE * next_hits:
            return ""
    return name if hits >= (english if name == "English" else _FEWEST) else ""


def _is_code(text: str) -> bool:
    """Tell whether a text in Latin letters is code, JSON or a name rather than words."""
    words = sum(word.strip(".,;:!?\"'()").isalpha() for word in text.split())
    return words < 3 or words < 0.8 * len(text.split())

"""What is wrong with a row by itself.

The rule: a check says yes only to what is wrong in nearly any data. What is wrong in some data alone is left to
`norms`, which knows the file that the row is from.
"""

import re
from collections.abc import Iterator

from macft.data.hygiene.language import name_mismatch
from macft.data.hygiene.secrets import find_personal
from macft.data.hygiene.texts import Texts

_CONTROL_TOKEN = re.compile(
    r"<\|[a-z][\w ./-]{0,40}\|>|<\uff5c[^\uff5c<>]{1,40}\uff5c>"
    r"|</?s>|<<SYS>>|<</SYS>>|\[/?INST\]|\[/?(?:AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]"
    r"|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk|mask)>|\[(?:PAD|UNK|CLS|SEP|MASK|BOS|EOS)\]|<\|(?:im_start|im_end)\|>",
    re.IGNORECASE,
)
_CONTROL_CHARACTER = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069\ufff9-\ufffb]")
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad"))
_CP1252 = {ord(bytes([byte]).decode("cp1252", "replace")): byte for byte in range(0x80, 0xA0)} | {
    code: code for code in range(0x80, 0x100)
}
"""What a byte above 127 looks like to who takes it for Latin-1 or Windows-1252."""
_CP1252.pop(0xFFFD, None)
_TAIL = "".join(re.escape(chr(code)) for code, byte in _CP1252.items() if 0x80 <= byte < 0xC0)
_MISREAD = re.compile(
    f"[\u00c2-\u00c5\u00ce-\u00d1\u00d7-\u00db][{_TAIL}]|[\u00e0-\u00ef][{_TAIL}]{{2}}|[\u00f0-\u00f4][{_TAIL}]{{3}}"
)
"""UTF-8 of two, three or four bytes that was read byte by byte; of two, only where letters of common scripts start."""
_CJK_RUN = re.compile("[\u2e80-\u9fff\uf900-\ufaff]{3,}")
_LOST = re.compile("[\x80-\x84\x86-\x9f\ufffd]|锟斤拷|烫烫烫|\u00ef\u00bb\u00bf")
ROLES_TOLD = {"chosen", "rejected", "desirable", "undesirable"}


def check_row(texts: Texts) -> Iterator[tuple[str, str]]:
    """Yield kind and reason of what is wrong with a row."""
    for turn in texts.turns:
        if turn.is_answer and not turn.text.translate(_INVISIBLE).strip():
            yield "empty_answer", f"{name_turn(turn.role)} is empty"
            return
    whole = "\n".join(turn.text for turn in texts.turns)
    if control := find_control(whole):
        yield "control_token", f"holds {control}"
    if not whole.isascii() and (sign := find_mojibake(whole)):
        yield "mojibake", sign
    for kind in find_personal(whole):
        yield "personal_data", f"may hold {kind}"
    if texts.prompt and (mismatch := name_mismatch(texts.prompt, texts.answer)):
        yield "wrong_language", mismatch


def name_turn(role: str) -> str:
    """Name what a role says."""
    return f"the {role} answer" if role in ROLES_TOLD else "an answer"


def find_control(text: str) -> str:
    """Name the first control token or character of a text; empty when there is none."""
    if ("<" in text or "[" in text) and (match := _CONTROL_TOKEN.search(text)):
        return f"the control token {match.group()}"
    if text.replace("\n", "").isprintable():
        return ""
    character = _CONTROL_CHARACTER.search(text)
    return f"the control character U+{ord(character.group()):04X}" if character else ""


def find_mojibake(text: str) -> str:
    """Say how a text is garbled; empty when it is not."""
    found = [(read, meant) for match in _MISREAD.finditer(text) if (meant := _reread(read := match.group()))]
    # A letter and a sign may meet by chance, unless it is one of the two letters that all of Latin-1 turns into.
    sure = [pair for pair in found if len(pair[0]) > 2 or pair[0][0] in "ÂÃ"] or (found if len(found) > 1 else [])
    for match in _CJK_RUN.finditer(text) if not sure else ():
        if meant := _from_gbk(match.group()):
            sure.append((match.group(), meant))
    if sure:
        read, meant = sure[0]
        return f"holds {read[:8]!r}, which is {meant[:8]!r} read with the wrong encoding"
    if lost := _LOST.search(text):
        return f"holds {lost.group()!r}, which stands for characters that were lost"
    return ""


def _reread(text: str) -> str:
    """Return what UTF-8 means that was read byte by byte; empty when it is no UTF-8."""
    try:
        meant = bytes(_CP1252[ord(character)] for character in text).decode("utf-8")
    except UnicodeDecodeError:
        return ""
    return meant if meant.isprintable() or meant == "\u00a0" else ""


def _from_gbk(run: str) -> str:
    """Return what a run of Chinese characters is when it is UTF-8 that was read as GBK; empty for real Chinese."""
    try:
        raw = run.encode("gbk")
    except UnicodeEncodeError:
        return ""
    meant = raw.decode("utf-8", "ignore")  # some bytes are lost in what GBK does not have
    is_whole = 10 * len(meant.encode("utf-8")) >= 7 * len(raw)
    return meant if is_whole and _CJK_RUN.fullmatch(meant.ljust(3, "\u4e00")) else ""

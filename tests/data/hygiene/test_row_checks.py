import pytest

from macft.data.hygiene.language import name_mismatch
from macft.data.hygiene.norms import BROKEN, FINISHED, OPEN, SHORT, count_words, find_ending
from macft.data.hygiene.row_checks import find_control, find_mojibake
from macft.data.hygiene.secrets import find_personal, has_luhn_digit

MEANT = ["café naïve", "don’t “go”", "你好世界朋友", "Привет мир", "größer", "数据 here"]


@pytest.mark.parametrize("text", MEANT)
@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_utf8_read_byte_by_byte_is_garbled(text, encoding):
    assert find_mojibake(text.encode().decode(encoding, "ignore"))
    assert not find_mojibake(text)


def test_chinese_read_as_gbk_is_garbled():
    assert find_mojibake("人工智能是工程".encode().decode("gbk", "ignore"))
    assert find_mojibake("锟斤拷")
    assert find_mojibake("lost \ufffd here")
    for real in ("十全十美", "说说笑笑", "唯唯诺诺", "Ä", "3 × 4", "NÃO", "É”"):
        assert not find_mojibake(real)


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("Write to jane.doe@company.org today", ["a mail address"]),
        ("Call +49 30 1234567 or so", ["a phone number"]),
        ("Call (212) 555-0187", ["a phone number"]),
        ("打 13812345678", ["a phone number"]),
        ("Pay with 4111 1111 1111 1111 now", ["a card number"]),
        ("token sk-abcdefghijklmnopqrstuvwx", ["a key or password"]),
        ("api_key = 'a1b2c3d4e5f6g7h8'", ["a key or password"]),
        ("-----BEGIN RSA PRIVATE KEY-----", ["a key or password"]),
        ("Pay with 4111 1111 1111 1112 now", []),
        ("In 2024-11-25 10:00 there were 1234567890123 of them", []),
        ("po box 41602 philadelphia pa 19101-2345", []),
        ("the secret: nobody knows it", []),
    ],
)
def test_personal_data_is_told_by_its_shape(text, kinds):
    assert list(find_personal(text)) == kinds


def test_the_checksum_of_a_card():
    assert has_luhn_digit("4111111111111111")
    assert has_luhn_digit("378282246310005")
    assert not has_luhn_digit("4111111111111112")


@pytest.mark.parametrize(
    "text", ["a <|im_end|> b", "[INST] hi", "x</s>", "<start_of_turn>user", "\x1b[31mred", "a\u202eb"]
)
def test_control_tokens_and_characters_are_named(text):
    assert find_control(text)


@pytest.mark.parametrize("text", ["a < b [1] c", "strace -t <command>", "tab\there\nline\r\n", "<b>bold</b>"])
def test_what_only_looks_like_control_is_left_alone(text):
    assert not find_control(text)


@pytest.mark.parametrize(
    ("prompt", "answer", "says"),
    [
        ("How do I reset my password?", "Das ist nicht der richtige Weg, und wir haben keine Zeit.", "German"),
        ("How do I reset my password?", "点击登录页面上的链接。", "Chinese"),
        ("怎样重置我的密码？", "Click the link on the page and then wait for it.", "Latin letters"),
        ("How do I say water in German?", "Das ist nicht schwer: das Wasser und der Fluss.", ""),
        ("Define “die”.", "To cease to be, and to be what one was before it.", ""),
        ("怎样排序？", "sorted(items, key=len)", ""),
        ("Who are you?", "Paris", ""),
    ],
)
def test_the_language_of_an_answer(prompt, answer, says):
    mismatch = name_mismatch(prompt, answer)
    assert says in mismatch if says else not mismatch


@pytest.mark.parametrize(
    ("text", "ending"),
    [
        ("The quick brown fox jumps over the lazy dog.", FINISHED),
        ("The quick brown fox jumps over the lazy", OPEN),
        ("The quick brown fox jumps over it and the", BROKEN),
        ("The quick brown fox jumps over the dog,", BROKEN),
        ('{"number": "972", "street": "Donn', BROKEN),
        ('{"number": "972"}', SHORT),
        ("```python\nprint(1)", BROKEN),
        ("Paris", SHORT),
        ("人工智能是工程和科学的分支，致力于构建。", FINISHED),
    ],
)
def test_how_an_answer_ends(text, ending):
    assert find_ending(text, count_words(text)) == ending

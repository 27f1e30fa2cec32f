"""Every kind of malformed input is named with its file and line, and the rows around it are still read."""

import io
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from macft.data.sources import Row, read_rows
from macft.errors import Problem

GOOD = '{"text": "good"}'


def read(*paths: Path | str) -> tuple[list[Row], list[str]]:
    problems: list[Problem] = []
    rows = list(read_rows([str(path) for path in paths], problems))
    return rows, [str(problem) for problem in problems]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"text": "x"', "is not valid JSON: expecting ',' delimiter at column 13"),
        (b'{"text": "x",}', "is not valid JSON: illegal trailing comma before end of object at column 13"),
        (b"{'text': 'x'}", "is not valid JSON: expecting property name enclosed in double quotes at column 2"),
        (b"hello", "is not valid JSON: expecting value at column 1"),
        (b'{"text": "x"} {"text": "y"}', "is not valid JSON: extra data at column 15"),
        (b'{"text": "tab\there"}', "is not valid JSON: invalid control character at column 14"),
        (b'{"text": "\\x41"}', "is not valid JSON: invalid \\escape at column 11"),
        (b'["text"]', "is a list (expected an object)"),
        (b'"text"', "is text (expected an object)"),
        (b"17", "is a number (expected an object)"),
        (b"null", "is null (expected an object)"),
        (b"true", "is true (expected an object)"),
        (b'{"text": "caf\xe9"}', "is not UTF-8 text: byte 0xe9 at position 14"),
        (b'{"text": "\xff"}', "is not UTF-8 text: byte 0xff at position 11"),
        (b'{"text": "a\0b"}', "holds a NUL byte (expected UTF-8 text)"),
        (b'{"text": "x", "score": NaN}', "holds NaN, which is not JSON"),
        (b'{"text": "x", "score": -Infinity}', "holds -Infinity, which is not JSON"),
        (b'{"text": "x", "text": "y"}', 'has the key "text" twice'),
        (b'{"text": "x", "meta": {"a": 1, "a": 2}}', 'has the key "a" twice'),
        (b'{"text": "x", "n": ' + b"9" * 5000 + b"}", "holds a number of 5000 digits"),
        (b'{"text": "\\ud83d"}', "holds half of a surrogate pair, like \\ud83d alone (expected whole characters)"),
        (b'{"text": ' + b"[" * 100_000 + b"}", "is nested too deeply"),
    ],
)
def test_a_bad_line_is_named_and_reading_goes_on(tmp_path, line, problem):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(f"{GOOD}\n\n".encode() + line + f"\n{GOOD}\n".encode())
    rows, problems = read(path)
    if "illegal trailing comma" in problem and sys.version_info < (3, 13):
        problem = "is not valid JSON: expecting property name enclosed in double quotes at column 14"
    assert problems == [f"rows.jsonl:3: {problem}"]
    assert [(row.where, row.line) for row in rows] == [("rows.jsonl:1", 1), ("rows.jsonl:4", 4)]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("empty.jsonl", b"", "empty.jsonl: is empty (expected at least one row)"),
        ("blank.jsonl", b"\n \n\r\n", "blank.jsonl: is empty (expected at least one row)"),
        ("bom.jsonl", b"\xef\xbb\xbf", "bom.jsonl: is empty (expected at least one row)"),
        ("utf16.jsonl", '{"text": "x"}\n'.encode("utf-16"), "utf16.jsonl:1: is UTF-16 text (expected UTF-8)"),
        ("empty.json", b"[]", "empty.json: is empty (expected at least one row)"),
        (
            "open.json",
            b'[\n{"text": "a"},\n{"text": "b"}\n',
            "open.json:4: is not valid JSON: expecting ',' delimiter at column 1",
        ),
        ("comma.json", b'[\n{"text": "a"},\n]', "comma.json:3: is not valid JSON: expecting value at column 1"),
        ("tail.json", b'[{"text": "a"}]\nmore', "tail.json:1: is not valid JSON: extra data at column 16"),
        ("nan.json", b'[\n{"text": "a"},\n{"text": NaN}]', "nan.json:3: holds NaN, which is not JSON"),
        ("number.json", b'[{"text": "a"},\n 7]', "number.json:2: is a number (expected an object)"),
        (
            "two.json",
            b'{"a": [], "b": []}',
            "two.json:1: is an object with 2 lists (expected a list of rows, or an object that holds one list)",
        ),
        ("text.json", b'"x"', "text.json:1: is text (expected an object)"),
        ("bytes.json", b'[\n{"text": "\xe9"}]', "bytes.json:2: is not UTF-8 text: byte 0xe9 at position 11"),
        ("header.csv", b"text\n", "header.csv: is empty (expected at least one row)"),
        ("twice.csv", b"text,text\na,b\n", "twice.csv:1: has a header with an empty or a repeated name"),
        ("few.csv", b'prompt,completion\n"a\nb",c\nonly\n', "few.csv:4: has 1 cells (expected 2, as in the header)"),
        ("many.csv", b"text\na,b\n", "many.csv:2: has 2 cells (expected 1, as in the header)"),
        ("quote.csv", b'text\n"never closed\nand on\n', "quote.csv:2: is not valid CSV: unexpected end of data"),
        ("bytes.csv", b"text\n\xff\nb,c\n", "bytes.csv:2: is not UTF-8 text: byte 0xff at position 1"),
        ("empty.txt", b" \n", "empty.txt: is empty (expected at least one row)"),
        ("bytes.md", b"one\ntwo \xff\n", "bytes.md:2: is not UTF-8 text: byte 0xff at position 5"),
        ("broken.parquet", b"PAR1", "broken.parquet: is not readable as Parquet: "),
        ("rows.xlsx", b"PK", "rows.xlsx: files that end in '.xlsx' are not read (expected .jsonl, "),
        ("rows", b"{}", "rows: files without an ending are not read (expected .jsonl, "),
    ],
)
def test_a_bad_file_is_named(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    _, problems = read(tmp_path / name)
    assert problems[0].removeprefix(f"{tmp_path}/").startswith(problem)
    assert problems[0].removeprefix(f"{tmp_path}/") == problem or problem.endswith((" ", ": "))


def test_missing_paths_and_folders_without_data_are_named(tmp_path):
    (tmp_path / "folder").mkdir()
    _, problems = read(tmp_path / "nowhere.jsonl", tmp_path / "folder")
    assert problems[0] == f"{tmp_path}/nowhere.jsonl: no such file or folder"
    assert problems[1].startswith(f"{tmp_path}/folder: holds no data (looked for .jsonl, ")


def test_byte_order_mark_line_ends_and_blank_lines_are_no_obstacle(tmp_path):
    path = tmp_path / "windows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "\xe4\xbd\xa0\xe5\xa5\xbd"}\r\n\r\n   \r\n{"text": "\\ud83d\\ude00"}')
    rows, problems = read(path)
    assert problems == []
    assert [row.value["text"] for row in rows] == ["你好", "😀"]
    assert [row.line for row in rows] == [1, 4]


def test_csv_lines_count_quoted_newlines(tmp_path):
    (tmp_path / "a.csv").write_bytes(
        b'\xef\xbb\xbfprompt,completion\r\n"two\r\nlines","with ""quotes"""\r\n\r\nnext,"a,b"\r\n'
    )
    (tmp_path / "b.tsv").write_text("text\ttag\nhello\tx\n", encoding="utf-8")
    rows, problems = read(tmp_path)
    assert problems == []
    assert [(row.where, row.value) for row in rows] == [
        ("a.csv:2", {"prompt": "two\r\nlines", "completion": 'with "quotes"'}),
        ("a.csv:5", {"prompt": "next", "completion": "a,b"}),
        ("b.tsv:2", {"text": "hello", "tag": "x"}),
    ]


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ('[\n  {"text": "a"},\n\n  {"text":\n "b"}\n]\n', [2, 4]),
        ('{"version": 2, "rows": [\n{"text": "a"},\n{"text": "b"}]}', [2, 3]),
        ('{"\\u6570\\u636e": [\n{"text": "a"},\n{"text": "b"}]}', [2, 3]),
        ('{"数据" : [{"text": "a"}]}', [1]),
        ('{"title":"rows","meta":{"a":[1]},\n"rows":[{"text": "a"}], "end": "}"}', [2]),
        ('{"rows": "rows", "tags": ["rows"], "list" :\n[{"text": "a"}]}', [2]),
        ('{"text": "a"}\n{"text": "b"}\n', [1, 2]),
        ('\n{"text": "a", "more": [1]}', [2]),
    ],
)
def test_json_comes_in_four_shapes(tmp_path, content, lines):
    (tmp_path / "rows.json").write_text(content, encoding="utf-8")
    rows, problems = read(tmp_path / "rows.json")
    assert problems == []
    assert [row.line for row in rows] == lines
    assert [row.value["text"] for row in rows] == ["a", "b"][: len(lines)]


def test_folders_are_read_in_order_without_hidden_files(tmp_path):
    for name in ("b.md", "a/z.txt", ".hidden/c.txt", "image.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}\r\n", encoding="utf-8")
    rows, problems = read(tmp_path)
    assert problems == []
    assert [(row.where, row.value["text"]) for row in rows] == [
        ("z.txt:1", "text of a/z.txt\n"),
        ("b.md:1", "text of b.md\n"),
    ]


def test_what_is_about_a_folder_is_read_only_when_it_is_named(tmp_path):
    for name in ("README.md", "readme.zh.txt", "LICENSE.txt", "Changelog.md", "notes.md"):
        (tmp_path / name).write_text(f"text of {name}", encoding="utf-8")
    (tmp_path / "license_questions.jsonl").write_text(GOOD, encoding="utf-8")
    rows, problems = read(tmp_path)
    assert problems == []
    assert [row.where for row in rows] == ["license_questions.jsonl:1", "notes.md:1"]
    assert [row.where for row in read(tmp_path / "README.md")[0]] == ["README.md:1"]


def test_parquet_rows_are_numbered(tmp_path):
    pq.write_table(pa.table({"text": ["a", None]}), tmp_path / "rows.parquet")
    rows, problems = read(tmp_path / "rows.parquet")
    assert problems == []
    assert [(row.where, row.value) for row in rows] == [
        ("rows.parquet:1", {"text": "a"}),
        ("rows.parquet:2", {"text": None}),
    ]


def test_standard_input_is_jsonl(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{GOOD}\nbad\n".encode())))
    rows, problems = read("-")
    assert [row.where for row in rows] == ["stdin:1"]
    assert problems == ["stdin:2: is not valid JSON: expecting value at column 1"]


def test_a_million_rows_are_streamed(tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text(f"{GOOD}\n" * 20_000, encoding="utf-8")
    reader = read_rows([str(path)], [])
    assert next(reader).line == 1
    path.write_text("", encoding="utf-8")  # what is not read yet is not in memory either
    assert sum(1 for _ in reader) < 19_999

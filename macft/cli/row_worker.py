"""`macft _rows`: a child that reads, tokenizes and rewrites rows for a program that does not load transformers.

The rule: a line in is a request, a line out answers it, in order, and nothing else is on stdout. No answer takes much
longer than `SECONDS`: what takes longer is done in parts, and the program asks for the next one.

Every request has a `type`; an answer is an object, with `message`, `fix` and `exit_code` when something is wrong.

- `open` reads rows (`data`: a recipe's data table, of which `train` is read; `model`; `method`, told by the first row
  when left out; `max_seq_length`). The answer: `files`, `method`, `flags` (names of the bits), `limit`, `total`
  (a guess), `longer`: what becomes of rows that are too long.
- `more`: the next rows in short, in the order of `survey.Seen`, as `rows`; `said` has, by number, why a row cannot be
  used or teaches nothing; `is_done`.
- `find` looks from row `after` on for `words`: `words`, `rows`, `after` to go on from, `is_done`.
- `show` returns row `row`: `where`, `raw` (as it stands in the file), `parts` of `kind`, `count`, `supervised` and
  `tokens` ([text, ids, is trained]; `count` of them from `start` on), `said`, `oddness`. With `text` instead of what
  the file says: the row as it would be then, and `seen`.
- `save` writes a copy into `folder` (`dropped`: numbers, `edited`: number to JSON, `valid_fraction`); `save` without a
  folder goes on; `train`, `valid`, `dropped`, `unusable` rows so far, `is_done`.
"""

import json
import os
import signal
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from macft.cli.diagnostics import explain
from macft.data.examples import RowProblem
from macft.data.inspect import Piece, detect, list_tokens
from macft.data.places import Place
from macft.data.prepare import with_siblings
from macft.data.rewrite import Rewrite, read_edited
from macft.data.survey import FLAGS, Survey, contains, describe_oddness, roles_of
from macft.errors import DataError, MacftError, Problem, RecipeError
from macft.machine import home
from macft.recipe import DataTable

SECONDS = 0.2
MOST_SAID = 1000
"""Reasons that are told with the rows; `show` tells those of the others."""
MOST_RAW = 20_000


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Open(_Strict):
    type: Literal["open"]
    data: DataTable
    model: str
    method: str | None = None
    max_seq_length: int = Field(default=2048, ge=1)


class _More(_Strict):
    type: Literal["more"]


class _Find(_Strict):
    type: Literal["find"]
    words: list[str] = Field(min_length=1)
    after: int = Field(default=0, ge=0)


class _Show(_Strict):
    type: Literal["show"]
    row: int = Field(ge=1)
    start: int = Field(default=0, ge=0)
    count: int = Field(default=1000, ge=1)
    text: str | None = None


class _Save(_Strict):
    type: Literal["save"]
    folder: str = ""
    dropped: list[int] = []
    edited: dict[int, str] = {}
    valid_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)


_Requests = _Open | _More | _Find | _Show | _Save
_READER: TypeAdapter[_Requests] = TypeAdapter(Annotated[_Requests, Field(discriminator="type")])
Answer = dict[str, Any]


class RowsWorker:
    """Answers requests, one after the other."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        self._survey: Survey | None = None
        self._rewrite: Rewrite | None = None
        self._found: tuple[object, Any] = (None, None)

    def answer(self, line: str) -> Answer:
        """Answer one line; an error is an answer."""
        try:
            return self._answer(_read(line))
        except MacftError as error:
            return {"message": error.message, "fix": error.fix, "exit_code": error.exit_code}
        except Exception as error:
            message, exit_code = explain(error)
            return {"message": message.removeprefix("macft: "), "fix": "", "exit_code": exit_code}

    def _answer(self, request: _Requests) -> Answer:
        match request:
            case _Open():
                return self._open(request)
            case _More():
                return self._more()
            case _Find():
                return self._find(request)
            case _Show():
                return self._show(request)
            case _Save():
                return self._save(request)

    @property
    def survey(self) -> Survey:
        """The rows that are open."""
        if self._survey is None:
            raise MacftError("no rows are open", fix="`open` them first.")
        return self._survey

    def _open(self, request: _Open) -> Answer:
        from macft.models.catalog import resolve
        from macft.models.describe import describe
        from macft.models.load import load_tokenizer

        self._survey, self._found = None, (None, None)
        if not request.data.train:
            raise DataError([Problem("data.train", "names no file")])
        folder = resolve(request.model, home())
        facts, data = describe(folder, without_weights=True), with_siblings(request.data)
        method = request.method or detect(data)
        limit = min(request.max_seq_length, facts.context or request.max_seq_length)
        survey = Survey(data, load_tokenizer(folder), method=method, max_seq_length=limit, vocab_size=facts.vocab_size)
        self._survey = survey
        longer = "split" if method == "pretrain" else data.too_long
        held = {name: getattr(data, name) for name in ("valid", "test") if getattr(data, name)}
        told = {"method": method, "flags": FLAGS, "limit": limit, "total": survey.total, "longer": longer}
        return {**told, "train": data.train, "held_out": held}

    def _more(self) -> Answer:
        survey, before = self.survey, len(self.survey)
        rows = survey.go_on(self.seconds)
        said = {
            number: survey.problems[number]
            for number in range(before + 1, len(survey) + 1)
            if number in survey.problems and len(survey.problems) <= MOST_SAID
        }
        return {"rows": rows, "said": said, "files": survey.files, "is_done": survey.is_done}

    def _find(self, request: _Find) -> Answer:
        words = [word.lower() for word in request.words]
        key, rows = self._found
        if key != (words, request.after):
            rows = islice(enumerate(self.survey.read(), start=1), request.after, None)
        found, number, deadline = list[int](), request.after, time.monotonic() + self.seconds
        for number, (_, row) in rows:
            if contains(row, words):
                found.append(number)
            if time.monotonic() > deadline:
                break
        else:
            return {"words": words, "rows": found, "after": number, "is_done": True}
        self._found = ((words, number), rows)
        return {"words": words, "rows": found, "after": number, "is_done": False}

    def _show(self, request: _Show) -> Answer:
        survey = self.survey
        if request.row > len(survey):
            raise DataError([Problem("row", f"{request.row:,} was not read yet")])
        place, known = survey.place(request.row), survey.problems.get(request.row, "")
        told: Answer = {"row": request.row, "start": request.start, "where": _where(place)}
        try:
            row = survey.places.read(place)
        except DataError as error:
            raw = survey.places.line(place).decode("utf-8", "replace")[:MOST_RAW] if place.line else ""
            return {**told, "raw": raw, "parts": [], "oddness": "", "said": known or error.problems[0].what}
        if request.text is not None:
            row = read_edited(request.text, row)
        seen, why = survey.look(row)
        raw = json.dumps(row.value, ensure_ascii=False, indent=2, default=str)[:MOST_RAW]
        parts, oddness = list[Answer](), ""
        try:
            parts = [self._part(piece, request) for piece in survey.pieces(row)]
            oddness = describe_oddness(roles_of(survey.reader.parse(row)[0]))
        except RowProblem as problem:
            why = why or problem.what
        return {**told, "raw": raw, "parts": parts, "oddness": oddness, "said": why, "seen": seen}

    def _part(self, piece: Piece, request: _Show) -> Answer:
        tokens = list_tokens(piece.encoded, self.survey.reader.settings.tokenizer, request.start, request.count)
        count, supervised = len(piece.encoded.ids), int(piece.encoded.mask.sum())
        return {"kind": piece.kind, "count": count, "supervised": supervised, "tokens": tokens}

    def _save(self, request: _Save) -> Answer:
        if request.folder:
            if self._rewrite:
                self._rewrite.close()
            self._rewrite = Rewrite(
                self.survey,
                Path(request.folder),
                dropped=request.dropped,
                edited=request.edited,
                valid_fraction=request.valid_fraction,
            )
        if self._rewrite is None:
            raise MacftError("nothing is being saved", fix="`save` with a folder first.")
        try:
            written = self._rewrite.go_on(self.seconds)
        except BaseException:
            self._rewrite.close()
            self._rewrite = None
            raise
        is_done, folder = self._rewrite.is_done, str(self._rewrite.folder)
        if is_done:
            self._rewrite.close()
            self._rewrite = None
        return {**written._asdict(), "folder": folder, "is_done": is_done}


def run_rows() -> int:
    """Answer requests on stdin until it ends (`macft _rows`); returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for whoever asks
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is not an answer
    worker = RowsWorker()
    for line in sys.stdin:
        try:
            out.write(json.dumps(worker.answer(line), ensure_ascii=False) + "\n")
            out.flush()
        except BrokenPipeError:  # whoever asks is gone
            break
    return 0


def _where(place: Place) -> str:
    name = Path(place.file).name
    return f"{name}:{place.line}" if place.line else name


def _read(line: str) -> _Requests:
    try:
        return _READER.validate_json(line)
    except ValidationError as error:
        problems = [
            Problem(".".join(map(str, one["loc"][1:])) or "request", one["msg"].lower()) for one in error.errors()
        ]
        raise RecipeError(problems) from None

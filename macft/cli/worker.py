"""`macft _worker`: one child that answers heavy questions for a program that loads neither MLX nor transformers.

The rule: a line in is a request, a line out belongs to one, and nothing else is on stdout. One thread does all the
work, one request after the other; only `cancel` is obeyed at once. When stdin ends, so does the worker, amid a reply.

Every request is a JSON object with an `id` of the asker's choice and a `type`; unknown keys are errors. Every line of
an answer carries the `id`. The last one is `done` with a `result`, `cancelled`, or `error` with `message`, `fix` and
`exit_code` as the command line has them.

    {"id": 1, "type": "compare", "voices": ["latest"], "asks": [
        {"voice": 0, "turns": [{"role": "user", "content": "Hi"}], "pane": "a", "sampling": {"max_tokens": 64}},
        {"voice": 1, "turns": [{"role": "user", "content": "Hi"}], "pane": "b", "sampling": {"max_tokens": 64}}]}
        → {"id": 1, "type": "opened", "voices": [{"name": "Base", "model_path", "adapter", "note"}, …]}
        → {"id": 1, "type": "part", "ask": 0, "text": "He", "token_id": 7, "finish_reason": null, "seconds": 0.21} …
        → {"id": 1, "type": "done", "result": null}

- `compare` names `voices` as `macft compare` does; `base`: add Base (true); `model`; `template`: ask through the chat
  template (true). Voices stay loaded until others are named, so that no `asks` only loads them. A pane sends its whole
  conversation each time; what is known of it from the turn before is not read again. `finish_reason` is `stop`,
  `length`, or null before the end. `sampling` has the keys of `chat.panes.Sampling`.
- `chat` is the same with one voice: `name` (`base`: without its adapter, `model`), `turns`, `sampling`.
- `score` asks the loaded voices how likely answers are to each: `questions` of `turns` and `answers` (`text`,
  `token_ids`, `voice`), and `kl`. The result is, by question, answer and voice: `logprob`, `mean`, `tokens`, `kl`.
- `cancel` ends the request named by `request`, at work or waiting; what came is kept for its panes' next turns.
- `check` reads rows (`data`: a recipe's data table, `model`, `method`, `max_seq_length`), `show` one of them (`data`,
  `model`, `row`), `describe` a model (`model`). Results are those of `macft data check`, `data show` and `models` with
  `--json`.
"""

import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from macft import api
from macft.chat.panes import Ask, Sampling, Turn
from macft.cli.diagnostics import FAILED, explain
from macft.cli.tables import model_values, row_values
from macft.errors import MacftError, Problem, RecipeError
from macft.machine import home
from macft.models.catalog import resolve
from macft.models.describe import describe
from macft.recipe import DataTable

if TYPE_CHECKING:
    from macft.chat.compare import Voices

GRACE_SECONDS = 5.0
"""How long a model may go on loading after stdin has ended."""

Write = Callable[[dict[str, Any]], None]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Turn(_Strict):
    role: Literal["system", "user", "assistant"]
    content: str


class _Ask(_Strict):
    turns: list[_Turn] = Field(min_length=1)
    sampling: dict[str, Any] = {}
    voice: int = Field(default=0, ge=0)
    pane: str = ""


class _Answer(_Strict):
    text: str
    token_ids: list[int] = []
    voice: int = Field(default=0, ge=0)


class _Question(_Strict):
    turns: list[_Turn] = Field(min_length=1)
    answers: list[_Answer]


class _Request(_Strict):
    id: int | str


class _Compare(_Request):
    type: Literal["compare"]
    voices: list[str] = Field(min_length=1)
    asks: list[_Ask] = []
    base: bool = True
    model: str | None = None
    template: bool = True


class _Chat(_Request):
    type: Literal["chat"]
    name: str
    turns: list[_Turn] = Field(min_length=1)
    sampling: dict[str, Any] = {}
    base: bool = False
    model: str | None = None


class _Score(_Request):
    type: Literal["score"]
    questions: list[_Question]
    kl: bool = False


class _Cancel(_Request):
    type: Literal["cancel"]
    request: int | str


class _Check(_Request):
    type: Literal["check"]
    data: DataTable
    model: str
    method: str = "sft"
    max_seq_length: int = Field(default=2048, ge=1)


class _Show(_Request):
    type: Literal["show"]
    data: DataTable
    model: str
    row: int = Field(ge=1)


class _Describe(_Request):
    type: Literal["describe"]
    model: str


_Requests = _Compare | _Chat | _Score | _Cancel | _Check | _Show | _Describe
_READER: TypeAdapter[_Requests] = TypeAdapter(Annotated[_Requests, Field(discriminator="type")])
_SAMPLING = TypeAdapter(Sampling)


class Worker:
    """Answers requests with `write`, in the thread that calls `run`; `hear` is for another.

    Args:
        write: Sends one line of an answer; called from both threads.
    """

    def __init__(self, write: Write) -> None:
        self._write = write
        self._waiting: queue.SimpleQueue[_Requests | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._live: set[int | str] = set()
        self._cancelled: set[int | str] = set()
        self._ending = threading.Event()
        self._voices: Voices | None = None
        self._opened: object = None

    def hear(self, lines: Iterable[str]) -> None:
        """Take requests until there are no more lines."""
        try:
            for line in lines:
                if line.strip():
                    self._take(line)
        finally:
            self._ending.set()
            self._waiting.put(None)

    def _take(self, line: str) -> None:
        try:
            request = _read(line)
        except MacftError as error:
            self._write({"id": _id_of(line), "type": "error", **_said(error)})
            return
        with self._lock:
            if isinstance(request, _Cancel):
                self._cancelled |= self._live & {request.request}  # what is done cannot be cancelled
            else:
                self._live.add(request.id)
                self._waiting.put(request)
        if isinstance(request, _Cancel):
            self._write({"id": request.id, "type": "done", "result": None})

    def run(self) -> None:
        """Answer one request after the other until `hear` has ended."""
        while (request := self._waiting.get()) is not None and not self._ending.is_set():
            try:
                result = None if self._is_cancelled(request) else self._answer(request)
            except Exception as error:
                self._write({"id": request.id, "type": "error", **_said(error)})
            else:
                is_done = not self._is_cancelled(request)
                end = {"type": "done", "result": result} if is_done else {"type": "cancelled"}
                self._write({"id": request.id, **end})
            with self._lock:
                self._live.discard(request.id)
                self._cancelled.discard(request.id)

    def _is_cancelled(self, request: _Requests) -> bool:
        return request.id in self._cancelled or self._ending.is_set()

    def _answer(self, request: _Requests) -> Any:
        match request:
            case _Compare():
                self._compare(request)
            case _Chat():
                self._chat(request)
            case _Score():
                return self._score(request)
            case _Check():
                method, longest = request.method, request.max_seq_length
                report = api.check_data(request.data, model=request.model, method=method, max_seq_length=longest)
                return report.to_dict()
            case _Show():
                return row_values(api.show_row(request.data, request.row, model=request.model))
            case _Describe():
                return model_values(describe(resolve(request.model, home())))
        return None

    def _compare(self, request: _Compare) -> None:
        key = (*request.voices, request.base, request.model, request.template)
        voices = self._open(
            key,
            lambda: api.compare(request.voices, base=request.base, model=request.model, template=request.template),
        )
        asks = [Ask(one.voice, _turns(one.turns), _sampling(one.sampling), one.pane) for one in request.asks]
        if far := [ask.voice for ask in asks if ask.voice >= len(voices.voices)]:
            raise RecipeError([Problem("asks", f"voice {far[0]} of {len(voices.voices)} (they count from 0)")])
        self._stream(request, voices, asks)

    def _chat(self, request: _Chat) -> None:
        key = ("chat", request.name, request.base, request.model)
        voices = self._open(key, lambda: api.open_chat(request.name, base=request.base, model=request.model).voices)
        self._stream(request, voices, [Ask(0, _turns(request.turns), _sampling(request.sampling), pane="chat")])

    def _open(self, key: object, load: Callable[[], "Voices"]) -> "Voices":
        """Return the voices that are loaded, or load others in their place."""
        if self._voices is None or self._opened != key:
            if self._voices is not None:
                self._voices.close()
            self._voices = self._opened = None
            self._voices, self._opened = load(), key
        return self._voices

    def _stream(self, request: _Compare | _Chat, voices: "Voices", asks: Sequence[Ask]) -> None:
        self._write({"id": request.id, "type": "opened", "voices": [asdict(voice) for voice in voices.voices]})
        with closing(voices.stream(asks)) as parts:
            for part in parts:
                self._write({"id": request.id, "type": "part", **part._asdict()})
                if self._is_cancelled(request):
                    return

    def _score(self, request: _Score) -> list[list[list[dict[str, Any]]]]:
        from macft.chat.compare import Question
        from macft.chat.score import Said

        if self._voices is None:
            raise MacftError("no voices are loaded", fix="Ask them with `compare` first.")
        questions = [
            Question(_turns(one.turns), tuple(Said(said.text, said.token_ids, said.voice) for said in one.answers))
            for one in request.questions
        ]
        scored = self._voices.score(questions, kl=request.kl)
        return [[[{**one._asdict(), "mean": one.mean} for one in voices] for voices in answers] for answers in scored]


def run_worker() -> int:
    """Answer requests on stdin until it ends (`macft _worker`); returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for whoever asks
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is not an answer
    lock = threading.Lock()

    def write(values: dict[str, Any]) -> None:
        with lock:
            out.write(json.dumps(values, ensure_ascii=False) + "\n")
            out.flush()

    worker = Worker(write)

    def hear() -> None:
        worker.hear(sys.stdin)
        time.sleep(GRACE_SECONDS)
        os._exit(0)

    threading.Thread(target=hear, daemon=True).start()
    try:
        worker.run()
    except BrokenPipeError:  # whoever asks is gone, though stdin is open
        os._exit(FAILED)
    return 0


def _read(line: str) -> _Requests:
    try:
        return _READER.validate_json(line)
    except ValidationError as error:
        raise RecipeError(_problems(error)) from None


def _problems(error: ValidationError) -> list[Problem]:
    found = error.errors()
    if found[0]["loc"]:  # the first part of a place is the request's type
        return [Problem(".".join(map(str, one["loc"][1:])), one["msg"].lower()) for one in found]
    return [Problem("request", one["msg"].replace(" using discriminator", ":").lower()) for one in found]


def _id_of(line: str) -> Any:
    try:
        return json.loads(line).get("id")
    except (ValueError, AttributeError):
        return None


def _turns(turns: Sequence[_Turn]) -> tuple[Turn, ...]:
    return tuple((turn.role, turn.content) for turn in turns)


def _sampling(values: dict[str, Any]) -> Sampling:
    known = {field.name for field in fields(Sampling)}
    if strange := sorted(values.keys() - known):
        raise RecipeError([Problem(f"sampling.{strange[0]}", f"is unknown (expected {', '.join(sorted(known))})")])
    try:
        sampling = _SAMPLING.validate_python(values)
    except ValidationError as error:
        wrong = [Problem(f"sampling.{one['loc'][0]}", one["msg"].lower()) for one in error.errors()]
        raise RecipeError(wrong) from None
    sampling.check()
    return sampling


def _said(error: Exception) -> dict[str, Any]:
    if isinstance(error, MacftError):
        return {"message": error.message, "fix": error.fix, "exit_code": error.exit_code}
    message, exit_code = explain(error)
    return {"message": message.removeprefix("macft: "), "fix": "", "exit_code": exit_code}

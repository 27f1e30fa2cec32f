"""Chat templates, rendered in a child process that is watched.

The rule: a template comes with a model, from a stranger, and can loop for ever or take all memory. It is ended after
two seconds of work or at 512 MB, and then the model is refused by name.
"""

import atexit
import json
import os
import select
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

import psutil

from macft.errors import ModelError

WORK_SECONDS, WAIT_SECONDS, START_SECONDS = 2.0, 20.0, 60.0
"""Processor time of one chat, time on the clock, and time to start."""
MEMORY_BYTES = 512 * 2**20
_LOOK_SECONDS = 0.02
_REASONING = ("reasoning_content", "thinking", "reasoning")


class WatchedTemplate:
    """Renders a tokenizer's chat template; takes the place of `apply_chat_template` in mlx-lm's wrapper.

    Args:
        tokenizer: A tokenizer of transformers that has a template.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, messages: list[dict[str, Any]], **options: Any) -> str:
        """Return a chat as the template writes it.

        Raises:
            ModelError: The template was ended.
            ValueError: It refuses the chat, with its own words.
        """
        values = {"tools": None, "documents": None, "add_generation_prompt": False, **options}
        return _RENDERER.render(
            self.tokenizer.get_chat_template(None, options.get("tools")),
            {**self.tokenizer.special_tokens_map, **values, "messages": [_plain(message) for message in messages]},
        )


class Renderer:
    """The child that renders; it is started when it is needed, and anew after it was ended."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.owner = 0
        self._turn = Lock()  # a server answers several at once

    def render(self, template: str, values: dict[str, Any]) -> str:
        """Render a template with plain values.

        Raises:
            ModelError: It took too long or too much memory, and was ended.
            ValueError: It refuses the values.
        """
        with self._turn:
            return self._render(json.dumps({"template": template, "values": values}).encode() + b"\n")

    def _render(self, request: bytes) -> str:
        process = self._started()
        assert process.stdin
        try:
            process.stdin.write(request)
            process.stdin.flush()
        except BrokenPipeError:
            raise self._ended("it died") from None
        answer = self._read(process, WORK_SECONDS, WAIT_SECONDS)
        if "error" in answer:
            raise ValueError(answer["error"])
        return str(answer["text"])

    def close(self) -> None:
        """End the child."""
        if self.process and self.owner == os.getpid():
            self.process.kill()
            self.process.communicate()
        self.process = None

    def _started(self) -> "subprocess.Popen[bytes]":
        # A process that was forked has its parent's child, and must not talk to it.
        if self.process is None or self.owner != os.getpid() or self.process.poll() is not None:
            self.close()
            environ = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(Path(__file__).with_name("render_child.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environ,
                start_new_session=True,  # Ctrl-C is for the person's program
            )
            self.owner = os.getpid()
            self._read(self.process, START_SECONDS, START_SECONDS)
        return self.process

    def _read(self, process: "subprocess.Popen[bytes]", work: float, wait: float) -> dict[str, Any]:
        """Read one line, and watch the child while it is awaited."""
        assert process.stdout
        descriptor, line = process.stdout.fileno(), bytearray()
        started, worked = time.monotonic(), -1.0
        while not line.endswith(b"\n"):
            if select.select([descriptor], [], [], _LOOK_SECONDS)[0]:
                chunk = os.read(descriptor, 2**16)
                if not chunk:
                    raise self._ended("it died")
                line += chunk
            elif _memory_bytes(process.pid) + len(line) > MEMORY_BYTES:
                raise self._ended(f"it took more than {MEMORY_BYTES // 2**20} MB")
            elif worked < 0:  # looked at only now: most answers are there at once
                worked = _work_seconds(process.pid)
            elif _work_seconds(process.pid) - worked > work or time.monotonic() - started > wait:
                raise self._ended(f"it took longer than {WORK_SECONDS:g} seconds")
            if len(line) > MEMORY_BYTES:
                raise self._ended(f"it wrote more than {MEMORY_BYTES // 2**20} MB")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _ended(self, why: str) -> ModelError:
        self.close()
        return ModelError(
            f"the model's chat template was ended: {why}", fix="Use the model from a source that you trust."
        )


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message as transformers shows it to templates: without None, and with its reasoning under both names."""
    told = {key: value for key, value in message.items() if value is not None}
    reasoning = next((told[key] for key in _REASONING if key in told), None)
    return told if reasoning is None else {"thinking": reasoning, **told, "reasoning_content": reasoning}


def _work_seconds(process: int) -> float:
    with suppress(psutil.Error):
        times = psutil.Process(process).cpu_times()
        return float(times.user + times.system)
    return 0.0


def _memory_bytes(process: int) -> int:
    with suppress(psutil.Error):
        return int(psutil.Process(process).memory_info().rss)
    return 0


_RENDERER = Renderer()
atexit.register(_RENDERER.close)

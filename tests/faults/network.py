"""Watches over a whole test session: nothing connects or looks a name up beyond this machine.

The rule: an audit hook sees every socket of this process, whatever library opens it. Only fixtures that fetch the one
pinned package of the real model may go online, and they say so.
"""

import ipaddress
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LOOK_UPS = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo"}
LOCAL_NAMES = {"", "localhost", "ip6-localhost", "0.0.0.0", "::", "<broadcast>"}


class Breach(AssertionError):
    """Something wanted to reach beyond this machine."""


class Guard:
    """Refuses what would leave this machine, and remembers it: a library may swallow the refusal."""

    def __init__(self) -> None:
        self.breaches: list[str] = []
        self.is_online = False

    def hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Judge an audit event of Python's."""
        if event in LOOK_UPS:
            name = arguments[0][0] if isinstance(arguments[0], tuple) else arguments[0]
        elif event in {"socket.connect", "socket.sendto", "socket.sendmsg"}:
            address = arguments[1]
            if not isinstance(address, tuple):  # a Unix socket, or none at all
                return
            name = address[0]
        else:
            return
        if self.is_online or is_local(name):
            return
        self.breaches.append(f"{event} {name!r}")
        raise Breach(f"{event} {name!r}: nothing may leave this machine in a test")

    @contextmanager
    def online(self) -> Iterator[None]:
        """Let a fixture fetch what tests need."""
        self.is_online = True
        try:
            yield
        finally:
            self.is_online = False


def is_local(name: object) -> bool:
    """Return whether a host is this machine."""
    text = name.decode(errors="replace") if isinstance(name, bytes) else str(name if name is not None else "")
    if text.lower() in LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(text.partition("%")[0]).is_loopback
    except ValueError:
        return False


GUARD = Guard()


def watch() -> None:
    """Put the guard on duty; a hook cannot be taken away again."""
    if not getattr(sys, "_macft_watched", False):
        sys._macft_watched = True  # type: ignore[attr-defined]
        sys.addaudithook(GUARD.hear)

"""The line between ranks that says who still lives.

The rule: no rank waits for ever. MLX's collectives block until every rank takes part, and a Mac that slept, hung or
lost its cable never does. So each rank sends a beat and, when it has to leave, its reason; a rank that was lost ends
the others with that reason, if need be over a main thread that is stuck inside a collective.

Rank 0 is the hub: the others hold one connection each, to it, and it passes on what it hears.
"""

import contextlib
import json
import secrets
import select
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from threading import Event, Thread

from macft.errors import MacftError, RunCrashed, Stopped

BEAT_SECONDS = 1.0
SILENCE_SECONDS = 60.0
"""A rank that was not heard of for so long is lost; a Mac that swaps hard is silent for some seconds."""
GRACE_SECONDS = 20.0
"""So long the main thread has to notice a loss by itself, and to end in good order."""
CONNECT_SECONDS = 30.0
GO_ON = "`macft resume` under mlx.launch goes on from the last checkpoint."


@dataclass(frozen=True, slots=True)
class Loss:
    """Why a rank is no longer there."""

    rank: int
    message: str
    fix: str = GO_ON
    exit_code: int = RunCrashed.exit_code

    def to_error(self) -> MacftError:
        """Return what the ranks that are left end with."""
        message = f"rank {self.rank}: {self.message}"
        if self.exit_code in {130, 143}:
            return Stopped(message, signal_number=self.exit_code - 128, fix=self.fix)
        error = MacftError(message, fix=self.fix)
        error.exit_code = self.exit_code
        return error


class Link:
    """Beats to and from other ranks, in a thread of its own that never touches MLX.

    Args:
        rank: This one.
        peers: A connected socket a rank: all others at rank 0, rank 0 at the others.
        on_stuck: Called when a rank was lost and `close` has not been called `grace_seconds` later: ends the process.
        silence_seconds: How long a rank may be silent.
        grace_seconds: See `on_stuck`.
    """

    def __init__(
        self,
        rank: int,
        peers: dict[int, socket.socket],
        on_stuck: Callable[[Loss], None],
        *,
        silence_seconds: float = SILENCE_SECONDS,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self.rank, self._peers, self._on_stuck = rank, dict(peers), on_stuck
        self._silence, self._grace = silence_seconds, grace_seconds
        self._heard = dict.fromkeys(peers, time.monotonic())
        self._halves = dict.fromkeys(peers, b"")
        self._loss: Loss | None = None
        self._was_lost, self._closing = Event(), Event()
        for peer in self._peers.values():
            peer.setblocking(False)
        self._thread = Thread(target=self._watch, name="link", daemon=True)
        self._thread.start()

    def loss(self, *, wait_seconds: float = 0.0) -> Loss | None:
        """Return why a rank is gone, None when all are there; waits for bad news if asked to."""
        self._was_lost.wait(wait_seconds)
        return self._loss

    def close(self, reason: Loss | None = None) -> None:
        """Say goodbye, with a reason if this rank leaves before the others are done."""
        self._closing.set()
        self._thread.join()
        self._say_goodbye(self._loss or reason)
        for peer in self._peers.values():
            peer.close()

    def _say_goodbye(self, reason: Loss | None) -> None:
        for peer in self._peers.values():
            _send(peer, json.dumps({"goodbye": reason and asdict(reason)}).encode() + b"\n")

    def _watch(self) -> None:
        beaten, lost_at = 0.0, float("inf")
        while not self._closing.is_set():
            readable = select.select(list(self._peers.values()), [], [], min(BEAT_SECONDS, self._silence) / 4)[0]
            now = time.monotonic()
            for rank, peer in list(self._peers.items()):
                if peer in readable:
                    self._hear(rank, peer, now)
                elif now - self._heard[rank] > self._silence:
                    self._lose(Loss(rank, f"nothing was heard of it for {self._silence:.0f} seconds"))
            if now - beaten > min(BEAT_SECONDS, self._silence / 4):
                beaten = now
                for peer in self._peers.values():
                    _send(peer, b"\n")
            lost_at = min(lost_at, now) if self._loss else lost_at
            if self._loss and now - lost_at > self._grace:
                self._on_stuck(self._loss)
                return

    def _hear(self, rank: int, peer: socket.socket, now: float) -> None:
        try:
            data = peer.recv(65536)
        except OSError:
            data = b""
        self._heard[rank] = now
        *lines, self._halves[rank] = (self._halves[rank] + data).split(b"\n")
        for line in filter(None, lines):
            reason = json.loads(line)["goodbye"]
            self._peers.pop(rank, None)
            peer.close()
            if reason:
                self._lose(Loss(**reason))
        if not data and rank in self._peers:
            self._lose(Loss(rank, "its process is gone"))

    def _lose(self, loss: Loss) -> None:
        """Keep the first reason, and pass it on: who is lost is not listened to any longer."""
        if gone := self._peers.pop(loss.rank, None):
            gone.close()
        if self._loss is None:
            self._loss = loss
            self._was_lost.set()
            self._say_goodbye(loss)


def _send(peer: socket.socket, line: bytes) -> None:
    try:
        peer.send(line)
    except OSError:
        return  # whoever is gone, or does not read, is found out by its silence


class Hub:
    """Where rank 0 waits for the others; `port` and `secret` are told to them through MLX."""

    def __init__(self, *, host: str = "") -> None:
        self.secret = secrets.token_hex(16)
        self._listener = socket.create_server((host, 0))
        self.port: int = self._listener.getsockname()[1]

    def accept(self, others: int, *, seconds: float = CONNECT_SECONDS) -> dict[int, socket.socket]:
        """Return a connection of each other rank.

        Raises:
            MacftError: One did not come in time.
        """
        peers: dict[int, socket.socket] = {}
        deadline = time.monotonic() + seconds
        with self._listener:
            while len(peers) < others and (left := deadline - time.monotonic()) > 0:
                self._listener.settimeout(left)
                with contextlib.suppress(TimeoutError):
                    self._greet(self._listener.accept()[0], peers, left)
        if len(peers) < others:
            for peer in peers.values():
                peer.close()
            raise unreachable(f"{others - len(peers)} of {others} other ranks did not connect")
        return peers

    def _greet(self, peer: socket.socket, peers: dict[int, socket.socket], seconds: float) -> None:
        """Keep a connection that knows the secret; a stranger's is closed."""
        peer.settimeout(seconds)
        said = b""
        with contextlib.suppress(OSError):
            while not said.endswith(b"\n") and len(said) < 100 and (byte := peer.recv(1)):
                said += byte
        rank, _, secret = said.decode(errors="replace").strip().partition(" ")
        if secrets.compare_digest(secret.encode(), self.secret.encode()):
            peers[int(rank)] = peer
        else:
            peer.close()


def connect(rank: int, host: str, port: int, secret: str, *, seconds: float = CONNECT_SECONDS) -> socket.socket:
    """Connect to rank 0's hub.

    Raises:
        MacftError: It does not answer.
    """
    try:
        peer = socket.create_connection((host, port), timeout=seconds)
        peer.sendall(f"{rank} {secret}\n".encode())
    except OSError as error:
        raise unreachable(f"rank 0 does not answer at {host}:{port} ({error})") from None
    return peer


def unreachable(what: str) -> MacftError:
    """Return the error of ranks that cannot reach each other."""
    return MacftError(what, fix="Check that the machines see each other, and that no firewall keeps Python out.")

"""Ranks that fall silent, die or leave: the others hear of it, and none waits for ever."""

import socket
import time
from collections.abc import Callable, Iterator

import pytest

from macft.errors import MacftError, RunCrashed, Stopped
from macft.training.link import Hub, Link, Loss, connect

SILENCE, GRACE = 0.4, 0.3


class Star:
    """Rank 0 with two others, in one process."""

    def __init__(self) -> None:
        hub = Hub(host="127.0.0.1")
        others = {rank: connect(rank, "127.0.0.1", hub.port, hub.secret) for rank in (1, 2)}
        self.stuck: list[tuple[int, Loss]] = []
        self.hub = self.link(0, hub.accept(2, seconds=5.0))
        self.one, self.two = (self.link(rank, {0: peer}) for rank, peer in others.items())

    def link(self, rank: int, peers: dict[int, socket.socket]) -> Link:
        return Link(
            rank,
            peers,
            lambda loss: self.stuck.append((rank, loss)),
            silence_seconds=SILENCE,
            grace_seconds=GRACE,
        )


@pytest.fixture
def star() -> Iterator[Star]:
    made = Star()
    yield made
    for link in (made.one, made.two, made.hub):
        link.close()


def test_ranks_that_beat_are_not_lost(star: Star) -> None:
    assert star.hub.loss(wait_seconds=3 * SILENCE) is None
    assert star.one.loss() is None


def test_a_rank_that_leaves_in_good_order_is_not_lost(star: Star) -> None:
    star.one.close()
    assert star.hub.loss(wait_seconds=2 * SILENCE) is None
    assert star.two.loss() is None


def test_a_reason_reaches_rank_0_and_through_it_the_others(star: Star) -> None:
    star.one.close(Loss(1, "rows.jsonl:3: is no JSON", "Mend it.", 3))
    loss = star.hub.loss(wait_seconds=5.0)
    assert loss == Loss(1, "rows.jsonl:3: is no JSON", "Mend it.", 3)
    error = loss.to_error()
    assert (str(error), error.exit_code) == ("rank 1: rows.jsonl:3: is no JSON. Mend it.", 3)
    assert star.two.loss(wait_seconds=5.0) == loss


def test_a_dead_rank_is_lost(star: Star) -> None:
    dead, here = socket.socketpair()
    link = star.link(0, {3: here})
    dead.close()
    loss = link.loss(wait_seconds=5.0)
    assert loss is not None
    assert (loss.rank, loss.message) == (3, "its process is gone")
    assert loss.exit_code == RunCrashed.exit_code
    link.close()


def test_a_silent_rank_ends_a_process_that_is_stuck(star: Star) -> None:
    silent, here = socket.socketpair()
    with silent:
        link = star.link(0, {3: here})
        _wait(lambda: bool(star.stuck))
        assert "nothing was heard of it" in star.stuck[0][1].message
        link.close()


def test_a_process_that_notices_in_time_is_not_ended(star: Star) -> None:
    silent, here = socket.socketpair()
    with silent:
        link = star.link(0, {3: here})
        assert link.loss(wait_seconds=5.0)
        link.close()
        time.sleep(2 * GRACE)
    assert star.stuck == []


def test_a_stop_stays_a_stop() -> None:
    error = Loss(0, "stopped while the run was at: tokenize", "", 130).to_error()
    assert isinstance(error, Stopped)
    assert error.exit_code == 130


def test_a_stranger_is_turned_away() -> None:
    hub = Hub(host="127.0.0.1")
    stranger = connect(1, "127.0.0.1", hub.port, "guess")
    friend = connect(1, "127.0.0.1", hub.port, hub.secret)
    peers = hub.accept(1, seconds=5.0)
    assert peers[1].getpeername() == friend.getsockname()
    for each in (stranger, friend, peers[1]):
        each.close()


def test_a_rank_that_does_not_come_is_named() -> None:
    with pytest.raises(MacftError, match="1 of 2 other ranks did not connect"):
        _accept_one_of_two()


def _accept_one_of_two() -> None:
    hub = Hub(host="127.0.0.1")
    came = connect(1, "127.0.0.1", hub.port, hub.secret)
    try:
        hub.accept(2, seconds=0.2)
    finally:
        came.close()


def test_a_hub_that_is_not_there_is_named() -> None:
    hub = Hub(host="127.0.0.1")
    port = hub.port
    with pytest.raises(MacftError, match="1 of 1 other ranks did not connect"):
        hub.accept(1, seconds=0.05)
    with pytest.raises(MacftError, match=f"127.0.0.1:{port}"):
        connect(1, "127.0.0.1", port, hub.secret)


def _wait(happened: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)

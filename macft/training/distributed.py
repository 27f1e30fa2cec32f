"""Several processes that train one run together, and the single process as their simplest case.

The rule: every rank computes on its own rows and none decides alone. What differs between ranks (gradient sums, losses
of their rows, requests) is gathered before anybody acts on it, so all make the same updates in the same order; rank 0
alone writes. With one rank every function here is the identity.
"""

import faulthandler
import hashlib
import json
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import TYPE_CHECKING, Any, TypeVar, cast

import mlx.core as mx
import numpy as np
import numpy.typing as npt
from mlx.utils import tree_flatten, tree_map_with_path

from macft.errors import MacftError, RunCrashed, RunError
from macft.launcher import Launched
from macft.training.link import GO_ON, Hub, Link, Loss, connect, unreachable

if TYPE_CHECKING:
    from macft.training.loop import Requests

JOIN_SECONDS = 90.0
"""How long rank 0 waits for the others to come."""
BUCKET_BYTES = 32 * 2**20
"""Arrays are summed in pieces of about this size: few collectives, and little memory beside the gradients."""
NOTE_BYTES = 1024
"""Gathered values that fit into this take one collective, longer ones two."""

T = TypeVar("T")


class Ranks:
    """The processes that train together.

    Args:
        group: MLX's; None for a process alone.
        link: Says why a rank is gone.
    """

    def __init__(self, group: mx.distributed.Group | None = None, link: Link | None = None) -> None:
        self._group, self.link = group, link
        self.rank: int = group.rank() if group else 0
        self.size: int = group.size() if group else 1

    @property
    def leads(self) -> bool:
        """Whether this is rank 0, which alone writes."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Return every rank's value, in the order of ranks, the same list on each.

        Args:
            value: Anything that JSON holds; floats come through exactly.

        Raises:
            MacftError: A rank is gone.
        """
        if self._group is None:
            return [value]
        note = json.dumps(value).encode()
        first = len(note).to_bytes(4, "little") + note[: NOTE_BYTES - 4]
        firsts = self._gather_bytes(first, NOTE_BYTES)
        lengths = [int.from_bytes(part[:4], "little") for part in firsts]
        if max(lengths) <= NOTE_BYTES - 4:
            notes = [part[4 : 4 + length] for part, length in zip(firsts, lengths, strict=True)]
        else:
            wholes = self._gather_bytes(note, max(lengths))
            notes = [part[:length] for part, length in zip(wholes, lengths, strict=True)]
        return [cast(T, json.loads(part)) for part in notes]

    def from_leader(self, value: T) -> T:
        """Return rank 0's value of anything that JSON holds."""
        return self.gather(value if self.leads else cast(T, None))[0]

    def add(self, lists: Sequence[Sequence[float]]) -> npt.NDArray[np.float64]:
        """Return the element-wise sums of all lists of all ranks; a rank may have none."""
        total: npt.NDArray[np.float64] = np.array([each for part in self.gather(lists) for each in part]).sum(axis=0)
        return total

    def add_named(self, values: dict[str, float]) -> dict[str, float]:
        """Return the sums of all ranks' values by name; a rank may lack some."""
        parts = self.gather(values)
        names = list(dict.fromkeys(name for part in parts for name in part))
        return {name: sum(part[name] for part in parts if name in part) for name in names}

    def all_sum(self, tree: Any) -> Any:
        """Return the sums over all ranks of a tree of arrays, in float32; alone, the tree as it is.

        Raises:
            MacftError: A rank is gone.
        """
        if self._group is None:
            return tree
        summed: dict[str, mx.array] = {}
        for bucket in _buckets(_leaves(tree)):
            flat = mx.concatenate([leaf.astype(mx.float32).reshape(-1) for _, leaf in bucket])
            flat = self._collect(mx.distributed.all_sum, flat)
            pieces = mx.split(flat, list(accumulate(leaf.size for _, leaf in bucket)))
            summed |= {name: piece.reshape(leaf.shape) for piece, (name, leaf) in zip(pieces, bucket, strict=False)}
        return tree_map_with_path(lambda name, _: summed[name], tree)

    def copy_leader(self, tree: Any) -> Any:
        """Return rank 0's arrays, bit for bit, in place of one's own of the same shapes.

        Raises:
            RunError: A rank has other arrays.
            MacftError: A rank is gone.
        """
        if self._group is None:
            return tree
        shapes = str([(name, leaf.shape, leaf.dtype) for name, leaf in _leaves(tree)])
        self.require_same({"trained parameters": hashlib.sha256(shapes.encode()).hexdigest()})
        copied = {}
        for name, leaf in _leaves(tree):
            raw = mx.view(leaf.reshape(-1), mx.uint8)
            # A sum with zeros is a copy: of bytes, since adding 0.0 to -0.0 would change it.
            raw = self._collect(mx.distributed.all_sum, raw if self.leads else mx.zeros_like(raw))
            copied[name] = mx.view(raw, leaf.dtype).reshape(leaf.shape)
        return tree_map_with_path(lambda name, _: copied[name], tree)

    def key(self, key: mx.array) -> mx.array:
        """Return this rank's random key, so that ranks do not draw the same noise."""
        return key if self._group is None else mx.random.split(key, self.size)[self.rank]

    def require_same(self, facts: dict[str, str]) -> None:
        """Refuse to train when a rank differs from rank 0 in one of these.

        Raises:
            RunError: Naming the first such rank and what differs.
        """
        first, *others = self.gather(facts)
        for rank, theirs in enumerate(others, start=1):
            differing = [_difference(name, theirs.get(name, "none"), own) for name, own in first.items()]
            if named := ", ".join(filter(None, differing)):
                raise RunError(
                    f"rank {rank} would train something else than rank 0: {named}",
                    fix="Give every machine the same macft, model, rows and recipe.",
                )

    def raise_if_lost(self) -> None:
        """Raise what the ranks end with when one is gone, without waiting for it."""
        if self.link is not None and (loss := self.link.loss()):
            raise loss.to_error()

    def _gather_bytes(self, part: bytes, length: int) -> list[bytes]:
        padded = mx.array(np.frombuffer(part.ljust(length, b"\0"), np.uint8))
        gathered = np.array(self._collect(mx.distributed.all_gather, padded)).tobytes()
        return [gathered[start : start + length] for start in range(0, len(gathered), length)]

    def _collect(self, collective: Callable[..., mx.array], array: mx.array) -> mx.array:
        mx.eval(array)  # what fails here is this rank's own fault
        try:
            result = collective(array, group=self._group)
            mx.eval(result)
        except RuntimeError as error:
            loss = self.link and self.link.loss(wait_seconds=5.0)
            raise (loss.to_error() if loss else RunCrashed(f"the other ranks are gone ({error})", fix=GO_ON)) from None
        return result


ALONE = Ranks()
"""The one process of an ordinary run."""


class SharedRequests:
    """What the user asks of the ranks, the same on each: what rank 0 hears, and a stop that any of them hears.

    Args:
        own: What this rank hears.
        ranks: Asked at the same moments, as often.
    """

    def __init__(self, own: "Requests", ranks: Ranks) -> None:
        self._own, self._ranks = own, ranks

    def __call__(self) -> list[str]:
        """Return what was asked for since the last call."""
        first, *others = self._ranks.gather(self._own())
        return [*first, *(["stop"] if any("stop" in actions for actions in others) else [])]

    def wants_stop(self) -> bool:
        """Return whether a rank was asked to stop."""
        return any(self._ranks.gather(self._own.wants_stop()))


@contextmanager
def joined(launched: Launched | None, on_stuck: Callable[[Loss], None]) -> Iterator[Ranks]:
    """Meet the other ranks, and tell them why when this one has to leave.

    Args:
        launched: What `mlx.launch` said; None for a process alone.
        on_stuck: Ends this process when a rank is gone and the main thread cannot be told.

    Raises:
        MacftError: They cannot be reached.
    """
    if launched is None:
        yield ALONE
        return
    ranks = _meet(launched, on_stuck)
    try:
        yield ranks
    except BaseException as error:
        cast(Link, ranks.link).close(_reason(ranks.rank, error))
        raise
    cast(Link, ranks.link).close()


def _meet(launched: Launched, on_stuck: Callable[[Loss], None]) -> Ranks:
    # Rank 0 waits inside MLX, where neither a signal handler nor a thread of Python's runs: both ends are the system's.
    faulthandler.dump_traceback_later(JOIN_SECONDS, exit=True)
    handlers = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        group = mx.distributed.init(strict=True, backend=launched.backend)
    except RuntimeError as error:
        raise unreachable(f"the other ranks were not met ({error})") from None
    finally:
        faulthandler.cancel_dump_traceback_later()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    ranks = Ranks(group)
    hub = Hub() if ranks.leads else None
    port, secret = ranks.from_leader((hub.port, hub.secret) if hub else (0, ""))
    peers = hub.accept(ranks.size - 1) if hub else {0: connect(ranks.rank, launched.leader_host, port, secret)}
    ranks.link = Link(ranks.rank, peers, on_stuck)
    return ranks


def _reason(rank: int, error: BaseException) -> Loss:
    if isinstance(error, MacftError):
        return Loss(rank, error.message, error.fix, error.exit_code)
    return Loss(rank, f"{type(error).__name__}: {error}")


def _leaves(tree: Any) -> list[tuple[str, mx.array]]:
    """Return a tree's arrays by name: ranks may hold the same tree in different orders, as after a resume."""
    return sorted(cast(list[tuple[str, mx.array]], tree_flatten(tree)), key=lambda named: named[0])


def _buckets(named: list[tuple[str, mx.array]]) -> Iterator[list[tuple[str, mx.array]]]:
    bucket: list[tuple[str, mx.array]] = []
    for each in named:
        if bucket and 4 * sum(leaf.size for _, leaf in [*bucket, each]) > BUCKET_BYTES:
            yield bucket
            bucket = []
        bucket.append(each)
    if bucket:
        yield bucket


def _difference(name: str, theirs: str, own: str) -> str:
    """Return a fact's name when two ranks differ in it, with both values when those can be read."""
    if theirs == own:
        return ""
    return name if max(len(theirs), len(own)) > 24 else f"{name} ({theirs}, rank 0: {own})"

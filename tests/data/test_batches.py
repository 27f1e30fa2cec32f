"""Which rows an update sees, and how they lie in memory."""

import numpy as np
import pytest

from macft.data.batches import Order, make_batch, plan_epoch, shard_rows, split_micro_batches


class Rows:
    """Rows of the given lengths; ids count up through the set, the second half of each row is trained on."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = np.array(lengths)
        self.starts = np.cumsum(self.lengths) - self.lengths

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def supervised(self) -> np.ndarray:
        return self.lengths - self.lengths // 2

    def row(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        length = int(self.lengths[index])
        return self.starts[index] + np.arange(length), np.arange(length) >= length // 2


def test_every_row_comes_once_an_epoch_and_the_last_batch_is_kept() -> None:
    lengths = np.random.default_rng(0).integers(1, 500, 1003)
    batches = plan_epoch(lengths, batch_size=8, seed=3, epoch=1)
    assert sorted(np.concatenate(batches).tolist()) == list(range(1003))
    assert [len(batch) for batch in batches] == [8] * 125 + [3]


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    lengths = np.arange(50) % 7 + 1

    def order(seed: int, epoch: int) -> list[int]:
        return np.concatenate(plan_epoch(lengths, batch_size=4, seed=seed, epoch=epoch)).tolist()

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3) != order(2, 3)


def test_neighbours_in_a_batch_have_similar_lengths() -> None:
    lengths = np.random.default_rng(1).integers(10, 1000, 4096)
    batches = plan_epoch(lengths, batch_size=8, seed=0, epoch=0)
    padded = sum(len(batch) * lengths[batch].max() for batch in batches)
    shuffled = np.random.default_rng(2).permutation(4096).reshape(-1, 8)
    unsorted = sum(len(batch) * lengths[batch].max() for batch in shuffled)
    assert padded / lengths.sum() < 1.08
    assert unsorted / lengths.sum() > 1.7


def test_steps_walk_through_the_epochs() -> None:
    order = Order(np.full(10, 5), batch_size=4, seed=0)
    assert order.steps_per_epoch == 3
    seen = [sorted(np.concatenate([order.rows_of(step) for step in steps])) for steps in ((1, 2, 3), (4, 5, 6))]
    assert seen == [list(range(10))] * 2
    assert np.array_equal(order.rows_of(2), Order(np.full(10, 5), batch_size=4, seed=0).rows_of(2))


@pytest.mark.parametrize(("tokens", "rows"), [(64, 99), (64, 2), (1, 99), (10**6, 3)])
def test_micro_batches_keep_to_their_budget_and_lose_nothing(tokens: int, rows: int) -> None:
    lengths = np.array([30, 5, 9, 31, 12, 7, 8])
    parts = split_micro_batches(np.arange(7), lengths, tokens=tokens, rows=rows)
    assert sorted(np.concatenate(parts).tolist()) == list(range(7))
    for part in parts:
        assert len(part) <= rows
        assert len(part) == 1 or len(part) * lengths[part].max() <= tokens


def test_a_batch_lays_rows_into_a_stream_and_finds_them_again() -> None:
    rows = Rows([3, 6, 1, 4])
    batch = make_batch(rows, np.array([1, 3, 0]))
    assert batch.tokens.tolist() == [3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 0, 1, 2]
    laid = np.where(batch.taken.reshape(3, 6), batch.tokens[batch.gather], -1)
    assert laid.tolist() == [[3, 4, 5, 6, 7, 8], [10, 11, 12, 13, -1, -1], [0, 1, 2, -1, -1, -1]]
    assert np.array_equal(batch.tokens[batch.gather].reshape(-1)[batch.back], batch.tokens)
    real = batch.weight > 0
    assert batch.targets[real].tolist() == [6, 7, 8, 12, 13, 1, 2]
    assert batch.tokens[batch.positions[real]].tolist() == [5, 6, 7, 11, 12, 0, 1]
    assert batch.segment[real].tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert real.all()


def test_rows_without_a_target_have_one_filler() -> None:
    rows = Rows([3, 2])
    rows.row = lambda index: (np.arange(3 - index), np.zeros(3 - index, np.bool_))  # type: ignore[method-assign]
    batch = make_batch(rows, np.array([0, 1]))
    assert batch.weight.tolist() == [0.0]
    assert len(batch.positions) == len(batch.targets) == len(batch.segment) == 1


def test_the_first_token_of_a_row_is_never_a_target() -> None:
    """Nothing in its row predicts it; in the stream another row's last token stands before it."""
    rows = Rows([4, 4])
    rows.row = lambda index: (np.arange(4) + 4 * index, np.ones(4, np.bool_))  # type: ignore[method-assign]
    batch = make_batch(rows, np.array([0, 1]))
    assert batch.targets[batch.weight > 0].tolist() == [1, 2, 3, 5, 6, 7]


def test_rows_are_shared_out_by_their_tokens() -> None:
    lengths = np.array([100, 7, 8, 60, 50, 9, 1])
    shards = shard_rows(np.arange(7), lengths, 2)
    assert [shard.tolist() for shard in shards] == [[0, 5, 2, 6], [3, 4, 1]]
    assert [int(lengths[shard].sum()) for shard in shards] == [118, 117]


def test_every_row_is_in_one_shard_and_none_is_needed() -> None:
    lengths = np.arange(1, 50)
    for rows in (1, 2, 5, 49):
        shards = shard_rows(np.arange(rows), lengths, 4)
        assert sorted(np.concatenate(shards).tolist()) == list(range(rows))
        loads = [int(lengths[shard].sum()) for shard in shards]
        assert max(loads) - min(loads) <= lengths[rows - 1]


def test_one_shard_keeps_the_order() -> None:
    indices = np.array([4, 2, 9])
    assert shard_rows(indices, np.arange(10), 1)[0] is indices

"""Order and random numbers are pure functions of (seed, epoch, index)."""

from __future__ import annotations

import numpy as np
import pytest

from selkern.data.order import TrainOrder, eval_shards, permutation, sample_rng
from selkern.errors import UsageError


def test_sample_rng_is_pure_and_separates_its_arguments() -> None:
    def draw(seed: int, epoch: int, index: int, stream: int) -> tuple[float, ...]:
        return tuple(sample_rng(seed, epoch, index, stream).random(4).tolist())

    assert draw(1, 2, 3, 4) == draw(1, 2, 3, 4)
    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (2**64 - 1, 0, 0, 0)]
    assert len({draw(*key) for key in keys}) == len(keys)


def test_neighbouring_samples_share_no_random_words() -> None:
    words = [int(w) for i in range(50) for w in sample_rng(0, 0, i).bit_generator.random_raw(100)]
    assert len(set(words)) == len(words)


def test_random_numbers_are_uniform_across_samples() -> None:
    first = np.array([sample_rng(0, 0, index).random() for index in range(4000)])
    assert abs(first.mean() - 0.5) < 5 * (1 / 12) ** 0.5 / 4000**0.5
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.08


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seed_out_of_range(seed: int) -> None:
    with pytest.raises(UsageError, match=str(seed)):
        sample_rng(seed, 0, 0)


def test_permutation_is_a_permutation_that_changes_with_seed_and_epoch() -> None:
    order = permutation(1000, 7, 3)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(1000))
    assert np.array_equal(order, permutation(1000, 7, 3))
    assert not np.array_equal(order, permutation(1000, 7, 4))
    assert not np.array_equal(order, permutation(1000, 8, 3))


def test_permutation_is_pinned() -> None:
    """A saved run continues in this order: it may never change."""
    assert permutation(8, 0, 0).tolist() == [5, 3, 7, 2, 4, 1, 0, 6]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_merged_ranks_see_the_same_sequence(world: int) -> None:
    whole = [key for batch in TrainOrder(103, 8, seed=5) for key in batch]
    ranks = [list(TrainOrder(103, 8, seed=5, rank=rank, world=world)) for rank in range(world)]
    merged = [key for step in zip(*ranks, strict=True) for row in zip(*step, strict=True) for key in row]
    assert merged == whole
    assert len(whole) == 96
    assert len(set(whole)) == 96


def test_seek_gives_the_same_rest() -> None:
    order = TrainOrder(50, 4, seed=1)
    order.seek(2)
    epoch = list(order)
    order.seek(2, 7)
    assert len(order) == len(epoch) - 7
    assert list(order) == epoch[7:]
    assert {e for batch in epoch for e, _ in batch} == {2}
    order.seek(2, order.steps_per_epoch)
    assert list(order) == []


def test_a_running_iteration_keeps_its_place_when_the_order_is_moved() -> None:
    order = TrainOrder(50, 4, seed=1)
    running = iter(order)
    order.seek(3, 5)
    assert next(running)[0][0] == 0


def test_too_few_samples_names_both_numbers_and_the_fix() -> None:
    with pytest.raises(UsageError, match=r"7 training images .* batch of 8 .*batch size of 7") as caught:
        TrainOrder(7, 8, seed=0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("batch", "rank", "world"), [(8, 0, 3), (0, 0, 1), (8, 2, 2), (8, -1, 2)])
def test_wrong_shares(batch: int, rank: int, world: int) -> None:
    with pytest.raises(UsageError):
        TrainOrder(100, batch, seed=0, rank=rank, world=world)


@pytest.mark.parametrize("place", [(-1, 0), (0, -1), (0, 13)])
def test_seek_outside(place: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="0 to 12"):
        TrainOrder(50, 4, seed=1).seek(*place)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("n", [0, 1, 3, 10, 65])
def test_eval_shards_hold_every_index_once(n: int, world: int) -> None:
    shards = [eval_shards(n, 4, rank, world) for rank in range(world)]
    indices = [index for shard in shards for batch in shard for _, index in batch]
    assert sorted(indices) == list(range(n))
    assert all(0 < len(batch) <= 4 for shard in shards for batch in shard)
    assert all(epoch == 0 for shard in shards for batch in shard for epoch, _ in batch)
    for shard in shards:
        mine = [index for batch in shard for _, index in batch]
        assert mine == sorted(mine)

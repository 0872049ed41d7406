"""Order and random numbers are pure functions of (seed, epoch, index)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from selkern.data.order import (
    WINDOW_GROUPS,
    TrainOrder,
    eval_shards,
    grouped_permutation,
    permutation,
    sample_rng,
)
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


GOLDEN = "e992cf618dbbc795"


def shards_of(counts: Sequence[int]) -> NDArray[np.int32]:
    return np.repeat(np.arange(len(counts), dtype=np.int32), counts)


def test_groups_come_in_windows_and_every_sample_once(seed: int) -> None:
    groups = shards_of(np.random.default_rng(seed).integers(1500, 2500, 100).tolist())
    order = grouped_permutation(groups, seed, 3)
    assert order.dtype == np.int64
    assert np.array_equal(np.sort(order), np.arange(len(groups)))
    visits = groups[order]
    first = np.array([np.flatnonzero(visits == group)[0] for group in range(100)])
    last = np.array([np.flatnonzero(visits == group)[-1] for group in range(100)])
    open_at_once = max(int(((first <= at) & (at <= last)).sum()) for at in range(0, len(groups), 997))
    assert WINDOW_GROUPS <= open_at_once <= WINDOW_GROUPS + 1, "100 shards are 6 windows of 16 or 17"
    steps = np.abs(np.diff(visits[: len(groups) // 8]))
    assert (steps != 0).mean() > 0.8, "mixed within a window"


def test_an_order_of_groups_is_a_pure_function_of_seed_and_epoch() -> None:
    groups = shards_of([300] * 50)
    assert np.array_equal(grouped_permutation(groups, 1, 2), grouped_permutation(groups, 1, 2))
    for other in ((2, 2), (1, 3)):
        assert not np.array_equal(grouped_permutation(groups, 1, 2), grouped_permutation(groups, *other))
    digest = hashlib.sha256(grouped_permutation(groups, 1, 2).tobytes()).hexdigest()
    assert digest[:16] == GOLDEN, "an order that a run was started with must stay"


def test_few_samples_are_one_window_and_gaps_in_the_numbers_do_not_matter() -> None:
    groups = shards_of([100] * 40)
    assert np.array_equal(grouped_permutation(groups, 5, 0), permutation(4000, 5, 0))
    assert np.array_equal(grouped_permutation(3 * groups + 7, 5, 0), permutation(4000, 5, 0))
    many = shards_of([3000] * 40)
    assert np.array_equal(grouped_permutation(3 * many + 7, 5, 0), grouped_permutation(many, 5, 0))


def test_ranks_share_the_batches_of_an_order_of_groups() -> None:
    groups = shards_of([1000] * 60)
    alone = TrainOrder(60_000, 1000, 7, groups=groups)
    alone.seek(2, 30)
    ranks = [TrainOrder(60_000, 1000, 7, rank, 2, groups=groups) for rank in range(2)]
    for rank in ranks:
        rank.seek(2, 30)
    for whole, *shares in zip(alone, *ranks, strict=True):
        merged = [key for pair in zip(*shares, strict=True) for key in pair]
        assert merged == whole

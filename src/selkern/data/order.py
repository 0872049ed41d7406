"""Randomness and order as pure functions, so that workers, ranks, kill and resume cannot change a result.

Every random number of a sample comes from ``sample_rng(seed, epoch, index, stream)``, and the position in the
data is (epoch, step): nothing here has a state that would have to be saved.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from selkern.errors import UsageError

# One number per use, so that two uses of the same sample never share random numbers.
AUGMENT, ORDER, MIX, CUT = 0, 1, 2, 3
SCENES = 8  # and the two after it, one per split

Key = tuple[int, int]  # (epoch, index): names one sample, with all its random choices


def sample_rng(seed: int, epoch: int, index: int, stream: int = 0) -> np.random.Generator:
    """The random numbers of one sample, equal wherever and whenever they are drawn.

    Philox is counter-based: (seed, stream) is its key and (epoch, index) the high words of its counter, so
    no two calls share a number and a call costs microseconds.

    Args:
        seed: the run's seed, 0 to 2**64 - 1.
        epoch: 0, 1, 2, ...
        index: the sample's number in its split.
        stream: what the numbers are for (the constants of this module).
    """
    if not 0 <= seed < 2**64:
        raise UsageError(f"seed {seed} is out of range", "seed", "give a whole number from 0 to 2**64 - 1")
    key = np.array([seed, stream], dtype=np.uint64)
    counter = np.array([0, 0, index, epoch], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of ``n`` samples in one epoch: (n,) int64.

    A sort of raw Philox words: numpy promises that stream for ever, unlike ``Generator.permutation``.
    """
    raw = sample_rng(seed, epoch, 0, ORDER).bit_generator.random_raw(n)
    return np.argsort(raw, kind="stable").astype(np.int64)


WINDOW_GROUPS, WINDOW_SAMPLES = 16, 20_000  # that a window of `grouped_permutation` holds at least, on average


def grouped_permutation(groups: NDArray[np.integer], seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of samples that lie in groups, such as tar shards, in one epoch: (n,) int64.

    Groups come in an order drawn from (seed, epoch), which is cut into windows of ``WINDOW_GROUPS`` groups, and of as
    many more as hold ``WINDOW_SAMPLES`` samples; those of a window are mixed. At any time few groups are read from.

    Args:
        groups: (n,) the group of each sample, from 0.
        seed: the run's seed.
        epoch: 0, 1, 2, ...
    """
    there, compact = np.unique(groups, return_inverse=True)
    many = len(there)
    least = max(WINDOW_GROUPS, -(-WINDOW_SAMPLES * many // max(len(groups), 1)))  # groups of a window
    windows = max(1, many // least)
    raw = sample_rng(seed, epoch, 1, ORDER).bit_generator.random_raw(many)
    window = np.empty(many, dtype=np.int64)
    window[np.argsort(raw, kind="stable")] = np.arange(many) * windows // max(many, 1)
    raw = sample_rng(seed, epoch, 0, ORDER).bit_generator.random_raw(len(groups))
    return np.lexsort((raw, window[compact])).astype(np.int64)


class TrainOrder(Sampler[list[Key]]):
    """The batch sampler of training: yields this rank's share of every global batch, full batches only.

    Global batch k of an epoch is ``permutation[k * B : (k + 1) * B]`` and rank r takes ``[r::world]`` of it,
    so the merged ranks see the same batches whatever their number.

    Args:
        n: samples in the split.
        batch_size: B, the global batch, summed over ranks; divisible by ``world``.
        seed: the run's seed.
        rank: this process, 0 to world - 1.
        world: number of processes.
        groups: (n,) the group of each sample, to take them in the order of ``grouped_permutation`` instead.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        groups: NDArray[np.integer] | None = None,
    ) -> None:
        _check_shares(batch_size, rank, world)
        if batch_size % world:
            fix = "make the batch size a multiple of the number of processes"
            raise UsageError(f"batch size {batch_size} over {world} processes", "batch_size", fix)
        if n < batch_size:
            fix = f"use a batch size of {n} or less" if n else "give images to train on"
            raise UsageError(f"{n} training images are less than one batch of {batch_size}", "batch_size", fix)
        self.n, self.batch_size, self.seed, self.rank, self.world = n, batch_size, seed, rank, world
        self.groups = groups
        self.steps_per_epoch = n // batch_size
        self.epoch = 0
        self.start_step = 0

    def seek(self, epoch: int, step: int = 0) -> None:
        """The next iteration starts at this epoch and step (0 to steps_per_epoch)."""
        if epoch < 0 or not 0 <= step <= self.steps_per_epoch:
            fix = f"epoch from 0, step from 0 to {self.steps_per_epoch}"
            raise UsageError(f"no step {step} of epoch {epoch}", "seek", fix)
        self.epoch, self.start_step = epoch, step

    def __len__(self) -> int:
        return self.steps_per_epoch - self.start_step

    def __iter__(self) -> Iterator[list[Key]]:
        # Read the position now: a generator would read it at its first step, after another seek perhaps.
        return self._steps(self.epoch, self.start_step)

    def _steps(self, epoch: int, start: int) -> Iterator[list[Key]]:
        if self.groups is None:
            order = permutation(self.n, self.seed, epoch)
        else:
            order = grouped_permutation(self.groups, self.seed, epoch)
        for step in range(start, self.steps_per_epoch):
            batch = order[step * self.batch_size : (step + 1) * self.batch_size]
            yield [(epoch, int(index)) for index in batch[self.rank :: self.world]]


def eval_shards(n: int, batch_size: int, rank: int = 0, world: int = 1) -> list[list[Key]]:
    """Batches of (epoch 0, index) for evaluation: over all ranks, every index exactly once.

    Args:
        n: samples in the split.
        batch_size: samples per batch on this rank; the last batch may be smaller.
        rank: this process takes ``[rank::world]``, in order.
        world: number of processes.
    """
    _check_shares(batch_size, rank, world)
    mine = [(0, index) for index in range(rank, n, world)]
    return [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]


def _check_shares(batch_size: int, rank: int, world: int) -> None:
    if batch_size < 1:
        raise UsageError(f"batch size {batch_size}", "batch_size", "give a whole number from 1")
    if not 0 <= rank < world:
        raise UsageError(f"rank {rank} of {world} processes", "rank", "ranks go from 0 to world - 1")

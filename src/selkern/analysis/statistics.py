"""The few statistics of the studies: rank correlations and intervals that respect how images depend on each other."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"

    @property
    def sign(self) -> int:
        """1 or -1 where the interval leaves out zero, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def rank_correlation(x: Array, y: Array) -> Array:
    """Spearman's rho of x (n,) with every column of y (n, U); (U,). NaN where a column is constant."""
    return _correlation(_ranks(x[:, None]), _ranks(y))[0]


def partial_rank_correlation(x: Array, y: Array, z: Array) -> Array:
    """Spearman's rho of x (n,) with every column of y (n, U), with z (n,) or (n, K) removed from both; (U,).

    The correlation of what is left of the ranks after a linear fit to the ranks of z; with one z the usual formula.
    """
    ranks_z = _ranks(z.reshape(len(z), -1))
    known = np.concatenate([np.ones((len(z), 1)), ranks_z], axis=1)

    def rest(ranks: Array) -> Array:
        left: Array = ranks - known @ np.linalg.lstsq(known, ranks, rcond=None)[0]
        # Rounding leaves some of a column that z explains wholly; that is no figure.
        left[:, np.abs(left).max(axis=0) < 1e-9 * len(z)] = 0
        return left

    return _correlation(rest(_ranks(x[:, None])), rest(_ranks(y)))[0]


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], Array],
    clusters: NDArray[np.int64],
    *,
    draws: int = 1000,
    seed: int = 0,
) -> list[Estimate]:
    """Percentile intervals of a vector of statistics, from resampling whole clusters.

    Images made from one original (one digit in many scenes) are not independent; drawing the originals, with
    all their images, keeps the intervals honest. With one image per cluster it is the ordinary bootstrap.

    Args:
        statistic: image numbers (k,) to the figures (U,) on them.
        clusters: (n,) the cluster of every image.
    """
    members = [np.flatnonzero(clusters == cluster) for cluster in np.unique(clusters)]
    rng = np.random.default_rng(seed)
    drawn = [
        statistic(np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))]))
        for _ in range(draws)
    ]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="All-NaN")  # a figure without a value has no interval either
        low, high = np.nanpercentile(np.stack(drawn), [2.5, 97.5], axis=0)
    values = statistic(np.arange(len(clusters)))
    return [Estimate(*map(float, three)) for three in zip(values, low, high, strict=True)]


def mean_estimate(x: Array) -> Estimate:
    """The mean of x (n,) with its normal 95 % interval (a point where n is 1)."""
    mean = float(x.mean())
    half = 1.96 * float(x.std(ddof=1)) / len(x) ** 0.5 if len(x) > 1 else 0.0
    return Estimate(mean, mean - half, mean + half)


def _ranks(x: Array) -> Array:
    from scipy.stats import rankdata

    ranks: Array = rankdata(x, axis=0)
    return ranks


def _correlation(a: Array, b: Array) -> Array:
    """(A, B) correlations of the columns of a (n, A) with those of b (n, B)."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a.T @ b) / np.sqrt((a**2).sum(axis=0)[:, None] * (b**2).sum(axis=0)[None, :])


class Moments:
    """Mean and variance of arrays of numbers that come in batches (Chan's update); nothing else is kept.

    Args:
        shape: of one observation.

    Attributes:
        n: observations so far.
        mean: of them, of that shape.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.n = 0
        self.mean: Array = np.zeros(shape)
        self._squares: Array = np.zeros(shape)  # summed squared distance from the mean

    def add(self, x: Array) -> None:
        """A batch (k, *shape)."""
        if not len(x):
            return
        mean = x.mean(axis=0)
        distance = mean - self.mean
        total = self.n + len(x)
        self._squares = self._squares + ((x - mean) ** 2).sum(axis=0) + distance**2 * self.n * len(x) / total
        self.mean = self.mean + distance * len(x) / total
        self.n = total

    @property
    def std(self) -> Array:
        """Standard deviation of an observation; 0 for a single one."""
        deviation: Array = np.sqrt(self._squares / max(self.n - 1, 1))
        return deviation

    def estimates(self) -> Any:
        """Nested lists of `shape`: the mean of each number with its normal 95 % interval."""
        half = 1.96 * self.std / max(self.n, 1) ** 0.5

        def nested(mean: Any, wide: Any) -> Any:
            if np.ndim(mean) == 0:
                return Estimate(float(mean), float(mean - wide), float(mean + wide))
            return [nested(*pair) for pair in zip(mean, wide, strict=True)]

        return nested(self.mean, half)


def clustered_mean(x: Array, clusters: NDArray[np.int64]) -> Estimate:
    """The mean of x (n,) with a 95 % interval that holds where images of one cluster are alike.

    Args:
        clusters: (n,) numbers; images with the same one were made from one original.
    """
    mean = float(x.mean())
    _, member = np.unique(clusters, return_inverse=True)
    sums = np.bincount(member, weights=x - mean)
    groups = len(sums)
    half = 1.96 * float(np.sqrt((sums**2).sum() * groups / max(groups - 1, 1))) / len(x)
    return Estimate(mean, mean - half, mean + half)

"""The few statistics of the studies: rank correlations and intervals that respect how images depend on each other."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

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
    """Spearman's rho of x (n,) with every column of y (n, U), z (n,) removed from both; (U,)."""
    ranks_x, ranks_y, ranks_z = _ranks(x[:, None]), _ranks(y), _ranks(z[:, None])
    xy, xz, zy = (
        _correlation(ranks_x, ranks_y)[0],
        _correlation(ranks_x, ranks_z)[0, 0],
        _correlation(ranks_z, ranks_y)[0],
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return (xy - xz * zy) / np.sqrt((1 - xz**2) * (1 - zy**2))


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

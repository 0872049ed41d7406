"""The few statistics of the studies: rank correlations and intervals that respect how images depend on each other."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LEAST = 10  # independent originals; of fewer, resampling gives intervals that are far too narrow
_ALMOST = 1 - 1e-9  # of a correlation, whose Fisher's z is finite then


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval, whose ends are NaN where none can be given."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if np.isnan(self.value):
            return "none: the same for all"
        if np.isnan(self.low):
            return f"{self.value:+.2f} (no interval)"
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"

    @property
    def sign(self) -> int:
        """1 or -1 where the interval leaves out zero, else 0."""
        return int(self.low > 0) - int(self.high < 0)


def cells(name: str, e: Estimate) -> dict[str, float | None]:
    """A figure and the ends of its interval for a row; None, which JSON knows, for one that there is not."""
    ends = {name: e.value, f"{name}_low": e.low, f"{name}_high": e.high}
    return {key: value if math.isfinite(value) else None for key, value in ends.items()}


def rank_correlation(x: Array, y: Array) -> Array:
    """Spearman's rho of x (n,) with every column of y (n, U); (U,). NaN where a column is constant."""
    return _correlation(_ranks(x[:, None]), _ranks(y))[0]


def partial_rank_correlation(x: Array, y: Array, z: Array) -> Array:
    """Spearman's rho of x (n,) with every column of y (n, U), with z (n,) or (n, K) removed from both; (U,).

    The correlation of what is left of the ranks after a linear fit to the ranks of z; with one z the usual formula.
    """
    ranks_z = _ranks(z.reshape(len(z), -1))
    known = np.concatenate([np.ones((len(z), 1)), ranks_z], axis=1)
    return _correlation(_rest(_ranks(x[:, None]), known), _rest(_ranks(y), known))[0]


def within_rank_correlation(x: Array, y: Array, labels: NDArray[np.int64], z: Array | None = None) -> Array:
    """Rank correlation of x (n,) with every column of y (n, U) within classes; (U,).

    Images are ranked among those of their own class, as shares of it, so that nothing of the differences between
    classes is left and every image weighs alike: without ties the mean of the classes' rho, weighted by n_c - 1 / n_c.

    Args:
        labels: (n,) class of each image.
        z: (n, K) is ranked likewise and removed from both by a linear fit.
    """
    _, member = np.unique(labels, return_inverse=True)

    def ranks(values: Array) -> Array:
        # The class in front of the rank: ranks of these are those within a class, after those of the classes before.
        ordered = _ranks(member[:, None] * (len(values) + 1.0) + _ranks(values))
        counts = np.bincount(member)
        before = np.cumsum(counts) - counts
        inside: Array = (ordered - (before + (counts + 1) / 2)[member, None]) / counts[member, None]
        return inside

    ranks_x, ranks_y = ranks(x[:, None]), ranks(y)
    if z is None:
        return _correlation(ranks_x, ranks_y)[0]
    known = ranks(z.reshape(len(z), -1))
    return _correlation(_rest(ranks_x, known), _rest(ranks_y, known))[0]


def explained(x: Array, labels: NDArray[np.int64]) -> float:
    """Share of the variance of the ranks of x (n,) that the class explains; NaN where all are equal."""
    ranks = _ranks(x)
    _, member = np.unique(labels, return_inverse=True)
    means = (np.bincount(member, weights=ranks) / np.bincount(member))[member]
    return float(means.var() / ranks.var()) if ranks.var() else math.nan


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], Array],
    clusters: NDArray[np.int64],
    *,
    draws: int = 1000,
    seed: int = 0,
    together: bool = False,
) -> list[Estimate]:
    """Intervals of a vector of statistics, from resampling whole clusters.

    Images made from one original (one digit in many scenes) are not independent; drawing the originals, with
    all their images, keeps the intervals honest. With one image per cluster it is the ordinary bootstrap.

    Args:
        statistic: image numbers (k,) to the figures (U,) on them.
        clusters: (n,) the cluster of every image; of fewer than `LEAST` of them no interval is given.
        together: for correlations: intervals that hold for all of them at once, where otherwise each is a percentile
            interval by itself, of which one in twenty misses.
    """
    values = statistic(np.arange(len(clusters)))
    members = [np.flatnonzero(clusters == cluster) for cluster in np.unique(clusters)]
    if len(members) < LEAST:
        return [Estimate(float(value), math.nan, math.nan) for value in values]
    rng = np.random.default_rng(seed)
    drawn = [
        statistic(np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))]))
        for _ in range(draws)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a figure without a value has no interval either
        both = (
            _at_once(values, np.stack(drawn), len(members))
            if together
            else np.nanpercentile(drawn, [2.5, 97.5], axis=0)
        )
    low, high = both
    return [Estimate(*map(float, three)) for three in zip(values, low, high, strict=True)]


def _at_once(values: Array, drawn: Array, originals: int) -> Array:
    """(2, U) ends of intervals that all hold in 95 % of samples: the largest standardised deviation among them.

    On Fisher's z, on which correlations have nearly the same deviation wherever they lie. Resampling few originals
    gives too small a deviation; the intervals are as much wider as Student's t is than the normal distribution.
    """
    from scipy.stats import t

    wider = t.ppf(0.975, originals - 1) / 1.96 * math.sqrt(originals / (originals - 1))
    centre, z = (np.arctanh(np.clip(part, -_ALMOST, _ALMOST)) for part in (values, drawn))
    deviation = np.sqrt(np.nanmean((z - centre) ** 2, axis=0))
    with np.errstate(invalid="ignore", divide="ignore"):
        largest = np.nanmax(np.abs(z - centre) / deviation, axis=1)
    reach = wider * np.nan_to_num(np.nanpercentile(largest, 95)) * deviation
    return np.tanh(np.stack([centre - reach, centre + reach]))


def mean_estimate(x: Array) -> Estimate:
    """The mean of x (n,) with its normal 95 % interval (a point where n is 1)."""
    mean = float(x.mean())
    half = 1.96 * float(x.std(ddof=1)) / len(x) ** 0.5 if len(x) > 1 else 0.0
    return Estimate(mean, mean - half, mean + half)


def _ranks(x: Array) -> Array:
    from scipy.stats import rankdata

    ranks: Array = rankdata(x, axis=0)
    return ranks


def _rest(ranks: Array, known: Array) -> Array:
    """What is left of the columns after a linear fit to known ones."""
    left: Array = ranks - known @ np.linalg.lstsq(known, ranks, rcond=None)[0]
    # Rounding leaves some of a column that is explained wholly; that is no figure.
    left[:, np.abs(left).max(axis=0) < 1e-9 * max(np.abs(ranks).max(), 1)] = 0
    return left


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

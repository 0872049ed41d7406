"""Does the selection follow the true size of the object? The paper's claim, put to the test where sizes are known.

Classes often differ in size, and a selection that follows the class would seem to follow the size. So the headline is
the rank correlation within classes; the one pooled over classes stands beside it. A larger object is also more ink and
changes the contrast of the image: what these explain is removed in further figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from selkern.analysis.scale import ClassScale, Observation, ScaleStudy, UnitScale, observe
from selkern.analysis.statistics import (
    LEAST,
    Array,
    bootstrap,
    explained,
    partial_rank_correlation,
    rank_correlation,
    within_rank_correlation,
)
from selkern.data.preprocess import Preprocess
from selkern.data.split import Split

# Where 80 % of the objects lie within 10 % of each other, they differ by a px or two of a small input, which is what
# a box drawn by hand is wrong by.
LEAST_SPREAD = 1.1


@dataclass(frozen=True)
class Truth:
    """What is known of n images of a split.

    Attributes:
        indices: (n,) their numbers in the split, rising.
        scale: (n,) size of the object, in any unit that is proportional to px of the network's input.
        clusters: (n,) which original each was made from; their own numbers where each is its own.
        unit: what the sizes are, for an axis.
        originals: what the clusters are; empty where each image is its own.
    """

    indices: NDArray[np.int64]
    scale: Array
    clusters: NDArray[np.int64]
    unit: str = "size of the object"
    originals: str = ""

    def of(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.bool_], Array, NDArray[np.int64]]:
        """Which of some images are known, and the sizes and originals of those."""
        if not len(self.indices):
            return np.zeros(len(indices), bool), self.scale, self.clusters
        at = np.searchsorted(self.indices, indices)
        known = self.indices[np.minimum(at, len(self.indices) - 1)] == indices
        return known, self.scale[at[known]], self.clusters[at[known]]


def why_not(scale: Array) -> str:
    """Why sizes (n,) allow no study; empty where they do."""
    if len(scale) < LEAST:
        return f"no study of size: {len(scale)} of the images have one, and of fewer than {LEAST} nothing is learnt"
    if (ratio := spread(scale)) < LEAST_SPREAD:
        return (
            f"no study of size: the objects are all nearly of one size in the network's input (the 90th percentile is "
            f"{ratio:.2f} times the 10th), as in crops that each object fills"
        )
    return ""


def spread(scale: Array) -> float:
    """How many times as large as the small objects the large ones are: the 90th over the 10th percentile."""
    small, large = np.quantile(scale, [0.1, 0.9])
    return float(large / small)


def true_scale(
    model: nn.Module,
    split: Split,
    preprocess: Preprocess,
    truth: Truth,
    classes: Sequence[str] = (),
    *,
    draws: int = 1000,
) -> ScaleStudy:
    """Selection against the known size of the object.

    Args:
        truth: of the images that are studied.
        classes: names.
        draws: samples behind each interval of a correlation.
    """
    scale, clusters, labels = truth.scale, truth.clusters, split.labels[truth.indices]
    edges = np.quantile(scale, [1 / 3, 2 / 3])
    groups = np.searchsorted(edges, scale, side="right").astype(np.int64)
    seen = observe(model, split, preprocess, truth.indices.tolist(), groups=groups)
    low, high = edges
    return ScaleStudy(
        "true scale",
        len(scale),
        len(np.unique(clusters)),
        (f"below {low:.3g}", f"{low:.3g} to {high:.3g}", f"above {high:.3g}"),
        _units(seen, scale, labels, clusters, groups, draws),
        scale,
        seen.preference,
        truth.unit,
        explained(scale, labels),
        _by_class(seen, scale, labels, clusters, classes),
        truth.originals,
        _doubts(scale, labels, clusters),
    )


def _units(
    seen: Observation,
    scale: Array,
    labels: NDArray[np.int64],
    clusters: NDArray[np.int64],
    groups: NDArray[np.int64],
    draws: int,
) -> tuple[UnitScale, ...]:
    y, light = seen.preference, seen.light
    within, lit = (
        bootstrap(
            lambda i, z=z: within_rank_correlation(scale[i], y[i], labels[i], None if z is None else z[i]),  # type: ignore[misc]
            clusters,
            draws=draws,
            together=True,
        )
        for z in (None, light)
    )
    rho = bootstrap(lambda i: rank_correlation(scale[i], y[i]), clusters, draws=draws)
    partial, both = (
        bootstrap(lambda i, k=k: partial_rank_correlation(scale[i], y[i], light[i, :k]), clusters, draws=draws)  # type: ignore[misc]
        for k in (1, 2)
    )
    few = min(draws, 300)  # enough for means
    group_means = [
        bootstrap(lambda i, c=chosen: _mean(y[c][i]), clusters[chosen], draws=few)  # type: ignore[misc]
        for chosen in (groups == g for g in range(3))
    ]
    change = bootstrap(lambda i: _mean(y[i][groups[i] == 2]) - _mean(y[i][groups[i] == 0]), clusters, draws=few)
    return tuple(
        UnitScale(
            unit,
            within[u],
            lit[u],
            rho[u],
            partial[u],
            both[u],
            tuple(means[u] for means in group_means),
            change[u],
            seen.curves[u],
            float(y[:, u].mean()),
            float(y[:, u].std()),
        )
        for u, unit in enumerate(seen.units)
    )


def _mean(y: Array) -> Array:
    """Over images; NaN of none, as a sample may hold none of the small objects."""
    mean: Array = y.mean(axis=0) if len(y) else np.full(y.shape[1], np.nan)
    return mean


def _by_class(
    seen: Observation,
    scale: Array,
    labels: NDArray[np.int64],
    clusters: NDArray[np.int64],
    classes: Sequence[str],
) -> tuple[ClassScale, ...]:
    """Every class with images enough."""
    found = []
    for label in np.unique(labels):
        some = labels == label
        if some.sum() < LEAST:
            continue
        x, y = scale[some], seen.preference[some]
        rho = bootstrap(
            lambda i, x=x, y=y: rank_correlation(x[i], y[i]),  # type: ignore[misc]
            clusters[some],
            draws=300,
            together=True,
        )
        found.append(ClassScale(classes[label] if classes else str(label), int(some.sum()), tuple(rho)))
    return tuple(found)


def _doubts(scale: Array, labels: NDArray[np.int64], clusters: NDArray[np.int64]) -> tuple[str, ...]:
    """Why the figures carry no conclusion on size."""
    found = []
    _, member, counts = np.unique(labels, return_inverse=True, return_counts=True)
    medians = np.array([np.median(scale[member == c]) for c in range(len(counts))])
    several = counts[member] > 1
    ratio = spread((scale / medians[member])[several]) if several.any() else 1.0
    if ratio < LEAST_SPREAD:
        found.append(
            f"Within a class the objects are nearly of one size in the network's input (the 90th percentile is "
            f"{ratio:.2f} times the 10th): what follows the size cannot be told from what follows the class, and "
            "nothing is concluded."
        )
    if (originals := len(np.unique(clusters))) < LEAST:
        found.append(
            f"The images were made from {originals} original{'s' if originals > 1 else ''}: of fewer than {LEAST} no "
            "intervals can be given, and nothing is concluded."
        )
    return tuple(found)

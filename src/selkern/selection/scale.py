"""What units chose, and how it moves with size: the paper's Figure 3, and what every study of size results in.

Where the size of every object is known, `true_scale` holds the selection against it. `zoom_sweep` here is the paper's
way, the same images with their centre enlarged 1.0, 1.5 and 2.0 times.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from selkern.data.preprocess import Preprocess
from selkern.data.split import Split
from selkern.selection.observe import Observation, Observed, observe
from selkern.selection.preference import Selected
from selkern.selection.record import UnitInfo
from selkern.selection.result import Result
from selkern.selection.statistics import (
    LEAST,
    Array,
    Estimate,
    bootstrap,
    cells,
    explained,
    partial_rank_correlation,
    rank_correlation,
    within_rank_correlation,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class UnitScale:
    """What one unit does with the size of the object.

    Attributes:
        unit: which.
        within: rank correlation of size and preference for the larger kernel within classes; the intervals of all
            units hold at once.
        within_lit: the same with the image's mean intensity and contrast removed.
        rho: pooled over classes; from here on every interval is of the unit by itself.
        partial: the same with the image's mean intensity removed.
        partial_both: with mean intensity and contrast removed.
        groups: mean preference in each group of images (small, middle and large objects, or zooms).
        change: preference in the last group minus that in the first.
        curve: (G, C) selection of the largest kernel per channel.
        mean, std: of the preference over the images as they are, not enlarged.
    """

    unit: UnitInfo
    within: Estimate | None
    within_lit: Estimate | None
    rho: Estimate | None
    partial: Estimate | None
    partial_both: Estimate | None
    groups: tuple[Estimate, ...]
    change: Estimate
    curve: Array
    mean: float
    std: float


@dataclass(frozen=True)
class ClassScale:
    """Size and selection within one class.

    Attributes:
        name: of the class; n images.
        rho: rank correlation of size and preference per unit; the intervals of all units hold at once.
    """

    name: str
    n: int
    rho: tuple[Estimate, ...]


@dataclass(frozen=True)
class ScaleStudy(Result):
    """One study on n images.

    Attributes:
        kind: "true scale" or "zoom".
        n: images.
        clusters: independent originals among them.
        group_names: what the groups of images are.
        units: per unit, in the order of the network.
        scale, preference: (n,) and (n, U) the values behind a true-scale study; None for zooms.
        size_name: what the scale is, for an axis.
        explained: share of the variance of the sizes' ranks that the class explains.
        by_class: the classes with images enough.
        originals: what the clusters are; empty where each image is taken as independent of the others.
        doubts: why nothing is concluded from the figures, where that is so.
    """

    kind: str
    n: int
    clusters: int
    group_names: tuple[str, ...]
    units: tuple[UnitScale, ...]
    scale: Array | None = None
    preference: Array | None = None
    size_name: str = "size of the object"
    explained: float = math.nan
    by_class: tuple[ClassScale, ...] = ()
    originals: str = ""
    doubts: tuple[str, ...] = ()

    def to_rows(self) -> list[dict[str, Any]]:
        """One row per unit, plain values, for a CSV or JSON file."""
        rows = []
        for u in self.units:
            row: dict[str, Any] = {
                "unit": u.unit.label,
                "module": u.unit.name,
                "study": self.kind,
                "n": self.n,
            }
            figures = {"within_rho": u.within, "within_both_rho": u.within_lit}
            figures |= {"rho": u.rho, "partial_rho": u.partial, "partial_both_rho": u.partial_both, "change": u.change}
            figures |= dict(zip(self.group_names, u.groups, strict=True))
            for name, e in figures.items():
                row |= {} if e is None else cells(name, e)
            rows.append(row)
        return rows

    def class_rows(self) -> list[dict[str, Any]]:
        """One row per class and unit of a true-scale study."""
        return [
            {"class": c.name, "unit": u.unit.label, "n": c.n, **cells("rho", e)}
            for c in self.by_class
            for u, e in zip(self.units, c.rho, strict=True)
        ]

    def channel_rows(self) -> list[dict[str, Any]]:
        """One row per channel of every unit: the selection of its largest kernel, mean over each group of images."""
        return [
            {"unit": u.unit.label, "channel": channel, **dict(zip(self.group_names, values, strict=True))}
            for u in self.units
            for channel, values in enumerate(u.curve.T.tolist())
        ]

    def plot(self) -> Figure:
        """Mean preference of every unit in each group of images."""
        from selkern.selection.plots import bars

        title = "size of the object" if self.kind == "true scale" else "enlargement of the centre"
        return bars(self.to_rows(), self.group_names, title, self.axis_name)

    @property
    def axis_name(self) -> str:
        """What a preference is, for an axis."""
        sizes = {unit.unit.extents for unit in self.units}
        if len(sizes) == 1 and len(extents := next(iter(sizes))) == 2:
            large, small = max(extents), min(extents)
            return f"selection of {large}x{large} minus {small}x{small}"
        return "lean to larger kernels"


def zoom_sweep(selected: Selected) -> ScaleStudy:
    """Selection against the enlargement of the image's centre, paired per image (paper Figure 3)."""
    lean, change = selected.at_zoom.estimates(), selected.change.estimates()
    means = [selected.mean_selection(zoom) for zoom in range(len(selected.zooms))]
    units = tuple(
        UnitScale(
            unit,
            None,
            None,
            None,
            None,
            None,
            tuple(at[u] for at in lean),
            change[-1][u],
            np.stack([mean[unit.name][int(np.argmax(unit.extents))] for mean in means]),
            float(selected.at_zoom.mean[0, u]),
            float(selected.at_zoom.std[0, u]),
        )
        for u, unit in enumerate(selected.units)
    )
    names = tuple(f"{zoom:.1f}x" for zoom in selected.zooms)
    return ScaleStudy("zoom", selected.n, selected.n, names, units)


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
    observed: Observed | None = None,
    draws: int = 1000,
) -> ScaleStudy:
    """Selection against the known size of the object.

    Args:
        truth: of the images that are studied.
        classes: names.
        observed: a pass in which the images were seen already; without it, or where it is too short, they are run.
        draws: samples behind each interval of a correlation.
    """
    scale, clusters, labels = truth.scale, truth.clusters, split.labels[truth.indices]
    edges = np.quantile(scale, [1 / 3, 2 / 3])
    groups = np.searchsorted(edges, scale, side="right").astype(np.int64)
    seen = None if observed is None else observed.of(truth.indices, groups)
    seen = seen or observe(model, split, preprocess, truth.indices.tolist(), groups=groups)
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
    result = []
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
        result.append(ClassScale(classes[label] if classes else str(label), int(some.sum()), tuple(rho)))
    return tuple(result)


def _doubts(scale: Array, labels: NDArray[np.int64], clusters: NDArray[np.int64]) -> tuple[str, ...]:
    """Why the figures carry no conclusion on size."""
    result = []
    _, member, counts = np.unique(labels, return_inverse=True, return_counts=True)
    medians = np.array([np.median(scale[member == c]) for c in range(len(counts))])
    several = counts[member] > 1
    ratio = spread((scale / medians[member])[several]) if several.any() else 1.0
    if ratio < LEAST_SPREAD:
        result.append(
            f"Within a class the objects are nearly of one size in the network's input (the 90th percentile is "
            f"{ratio:.2f} times the 10th): what follows the size cannot be separated from what follows the class, and "
            "nothing is concluded."
        )
    if (originals := len(np.unique(clusters))) < LEAST:
        result.append(
            f"The images were made from {originals} original{'s' if originals > 1 else ''}: of fewer than {LEAST} no "
            "intervals can be given, and nothing is concluded."
        )
    return tuple(result)

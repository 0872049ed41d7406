"""The window that a unit's neurons really use: their effective receptive field, in pixels of the input.

The gradient of a neuron shows which pixels move it (Luo, Li, Urtasun, Zemel, NeurIPS 2016). Taken here for the neurons
in the centre of a unit's map, squared, so that signs do not cancel, and summed over channels: multiplied by random
signs, the channels' gradients add up to that sum in the mean. The radius is the root mean square distance from the
field's own centre.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from selkern.layers.parts import evaluating
from selkern.selection.intervene import Change, choose, forced, frozen, smallest_and_largest
from selkern.selection.record import as_written, find_units, hooked
from selkern.selection.result import Result
from selkern.selection.statistics import (
    Array,
    Estimate,
    bootstrap,
    cells,
    mean_estimate,
    rank_correlation,
    within_rank_correlation,
)
from selkern.selection.stream import Pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHOSEN, SMALLEST, LARGEST, FROZEN = "as chosen", "smallest kernel", "largest kernel", "frozen to the mean"


@dataclass(frozen=True)
class UnitField:
    """The effective receptive field of one unit's centre.

    Attributes:
        label: of the unit.
        how: as chosen, smallest kernel, largest kernel, or frozen to the mean: in all units.
        radius: mean over images, px of the input.
        radii: (n,) of each image, px.
        energy: (H, W) mean over images of the squared gradient, each image's summing to 1.
    """

    label: str
    how: str
    radius: Estimate
    radii: Array
    energy: Array


@dataclass(frozen=True)
class FieldStudy(Result):
    """Fields of every unit on n images.

    Attributes:
        n: images.
        side: of the input, px.
        indices: (n,) the images' numbers in their source.
        fields: per unit and way of selecting.
    """

    n: int
    side: int
    indices: NDArray[np.int64]
    fields: tuple[UnitField, ...]

    def of(self, label: str, how: str = CHOSEN) -> UnitField:
        """One of them. Raises StopIteration for another name."""
        return next(field for field in self.fields if (field.label, field.how) == (label, how))

    def to_rows(self) -> list[dict[str, Any]]:
        """One row per unit and way of selecting, plain values."""
        return [
            {
                "unit": f.label,
                "selection": f.how,
                "n": self.n,
                "radius_px": f.radius.value,
                "radius_px_low": f.radius.low,
                "radius_px_high": f.radius.high,
            }
            for f in self.fields
        ]

    def plot(self) -> Figure:
        """Radius per unit, as chosen and forced."""
        from selkern.selection.plots import radii

        return radii(self.to_rows(), (SMALLEST, CHOSEN, LARGEST))

    def plot_maps(self) -> Figure:
        """Where each unit's squared gradient lies, as chosen and forced."""
        from selkern.selection.plots import fields

        return fields({(f.label, f.how): f.energy for f in self.fields}, (SMALLEST, CHOSEN, LARGEST))


@dataclass(frozen=True)
class Growth:
    """Rank correlation of an object's true size and the radius of one unit's field.

    Attributes:
        label: of the unit.
        chosen_within: within classes, with the selection as it is; the intervals of all units hold at once.
        fixed_within: with the selection frozen to its mean: what is left is not the selection's doing.
        chosen, fixed: the same pooled over classes, each interval by itself.
    """

    label: str
    chosen_within: Estimate
    fixed_within: Estimate
    chosen: Estimate
    fixed: Estimate

    def to_row(self) -> dict[str, Any]:
        """Plain values."""
        row: dict[str, Any] = {"unit": self.label}
        for name in ("chosen_within", "fixed_within", "chosen", "fixed"):
            row |= cells(f"rho_{name}", getattr(self, name))
        return row


def growth(
    study: FieldStudy,
    scale: Array,
    clusters: NDArray[np.int64],
    labels: NDArray[np.int64],
    known: NDArray[np.bool_] | None = None,
) -> tuple[Growth, ...]:
    """Does the field grow with the object? Per unit; needs fields as chosen and frozen.

    Args:
        scale: (k,) size of the object in the study's images.
        clusters: (k,) the original each was made from.
        labels: (k,) the class of each.
        known: (n,) which of the study's images these are; None for all.
    """
    some = np.ones(study.n, bool) if known is None else known
    units = list(dict.fromkeys(field.label for field in study.fields))
    radii = [
        np.nan_to_num(np.stack([study.of(unit, how).radii[some] for unit in units], axis=1)) for how in (CHOSEN, FROZEN)
    ]

    def within(r: Array) -> list[Estimate]:
        return bootstrap(
            lambda i: within_rank_correlation(scale[i], r[i], labels[i]), clusters, draws=300, together=True
        )

    def pooled(r: Array) -> list[Estimate]:
        return bootstrap(lambda i: rank_correlation(scale[i], r[i]), clusters, draws=300)

    columns = [*map(within, radii), *map(pooled, radii)]
    return tuple(Growth(*row) for row in zip(units, *columns, strict=True))


def receptive_fields(
    model: nn.Module,
    images: Iterable[Pictures],
    means: Mapping[str, Array] | None = None,
    *,
    ways: Sequence[str] = (CHOSEN, SMALLEST, LARGEST, FROZEN),
    seed: int = 0,
) -> FieldStudy:
    """Effective receptive fields of the centres of all units, as chosen and with the selection forced.

    Args:
        model: with selective-kernel units; its weights get no gradients.
        images: their gradients are what is measured.
        means: unit name to mean selection (M, C), for "frozen to the mean"; None leaves that out.
        ways: of selecting, each measured on the same images.

    Raises:
        ValueError: no images.
    """
    units = {name: unit for name, (unit, _) in find_units(model).items()}
    ordered = {name: smallest_and_largest(unit.extents) for name, unit in units.items() if unit.ordered}
    known: dict[str, Mapping[str, Change]] = {
        CHOSEN: {},
        SMALLEST: {name: forced(small) for name, (small, _) in ordered.items()},
        LARGEST: {name: forced(large) for name, (_, large) in ordered.items()},
        FROZEN: {} if means is None else {name: frozen(mean) for name, mean in means.items()},
    }
    wanted = {how: known[how] for how in ways if how == CHOSEN or known[how]}
    # Numbers of all images in few growing arrays: small arrays that stay, batch by batch, would leave gaps of memory
    # between them which the next batch's large ones do not fit.
    radii: dict[tuple[str, str], array[float]] = {}
    energies: dict[tuple[str, str], Array] = {}
    indices, side = array("q"), 0
    with evaluating(model), torch.enable_grad():
        for batch in images:
            indices.extend(batch.indices.tolist())
            side = batch.x.shape[-1]
            for how, changes in wanted.items():
                with choose(model, changes):
                    for name, energy in energies_of(model, list(units), batch.x, seed).items():
                        key = (units[name].label, how)
                        radii.setdefault(key, array("d")).extend(radius_of(energy))
                        energies[key] = energies.get(key, 0.0) + energy.sum(axis=0)
    if not indices:
        raise ValueError("no images to measure receptive fields on")
    n = len(indices)
    fields = []
    for (label, how), numbers in radii.items():
        each = np.array(numbers)
        finite = each[np.isfinite(each)]  # a neuron that no pixel moves has no radius
        fields.append(UnitField(label, how, mean_estimate(finite), each, energies[label, how] / n))
    return FieldStudy(n, side, np.array(indices), tuple(fields))


def energies_of(model: nn.Module, names: Sequence[str], x: Tensor, seed: int = 0) -> dict[str, Array]:
    """Per unit (N, H, W): squared gradient of its centre by the input, each image's summing to 1.

    Args:
        names: of units, as `find_units` has them.
        x: (N, 3, H, W) normalised input.
        seed: of the signs that channels are multiplied by.
    """
    modules = dict(as_written(model).named_modules())  # a unit that is the whole model has its class's name
    kept: dict[str, Tensor] = {}

    def hook_for(name: str) -> Any:
        return lambda _module, _inputs, output: kept.__setitem__(name, output)

    with hooked(model, [(modules.get(name, as_written(model)), hook_for(name)) for name in names]):
        x = x.detach().clone().requires_grad_()
        model(x)
    result, last = {}, next(reversed(kept), None)  # after whose gradient nothing of the pass is needed any more
    for name, v in kept.items():
        signs = torch.randint(0, 2, v.shape[1:2], generator=torch.Generator().manual_seed(seed)) * 2 - 1
        centre = v[..., v.shape[-2] // 2, v.shape[-1] // 2]
        (gradient,) = torch.autograd.grad((centre * signs.to(v)).sum(), x, retain_graph=name != last)
        energy = gradient.double().square().sum(dim=1)
        total = energy.sum(dim=(1, 2), keepdim=True)
        result[name] = torch.where(total > 0, energy / total, 0.0).cpu().numpy()
    return result


def radius_of(energy: Array) -> Array:
    """(N, H, W) summing to 1 to (N,) root mean square distance from its own centre, px; NaN where all is 0."""
    rows, columns = np.arange(energy.shape[1])[:, None], np.arange(energy.shape[2])
    total = energy.sum(axis=(1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        middle = [(energy * axis).sum(axis=(1, 2)) / total for axis in (rows, columns)]
        distance = (rows - middle[0][:, None, None]) ** 2 + (columns - middle[1][:, None, None]) ** 2
        radius: Array = np.sqrt((energy * distance).sum(axis=(1, 2)) / total)
    return radius

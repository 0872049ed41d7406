"""What units chose over many images, in sums that do not grow with their number: per enlargement and per class.

The paper's Figure 3 (scale) and Figure 4 (classes) are two readings of the same pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from selkern.errors import NumericsError
from selkern.layers.parts import evaluating
from selkern.selection.record import UnitInfo, find_units, record
from selkern.selection.result import Result
from selkern.selection.statistics import Array, Estimate, Moments
from selkern.selection.stream import Pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ZOOMS = (1.0, 1.5, 2.0)  # of the paper's Figure 3


def preference(a_NMC: Tensor, extents: Sequence[int]) -> Tensor:
    """How much the selection leans to larger kernels, per image: (N, M, C) to (N,), mean over channels.

    With two branches the paper's quantity, selection of the larger minus that of the smaller kernel, -1 to 1.
    With more, the expected window, sum of a_m * extent_m, in the unit's input positions.
    """
    a_NM = a_NMC.float().mean(dim=2)
    sizes = torch.tensor(extents, dtype=torch.float32, device=a_NM.device)
    if len(extents) == 2:
        return a_NM @ torch.sign(sizes - sizes.flip(0))
    return a_NM @ sizes


def studied_units(model: nn.Module) -> tuple[UnitInfo, ...]:
    """The units of a model in which one branch sees more than another."""
    return tuple(unit for unit, _ in find_units(model).values() if unit.ordered)


@dataclass(frozen=True)
class ClassRow:
    """How one unit leans for the images of one class: n of them, per enlargement."""

    name: str
    unit: str
    n: int
    preference: tuple[Estimate, ...]


class Selected(Result):
    """Sums over a pass: add batches with `add`, read off at any time what has been seen so far.

    Args:
        units: those whose branches see windows of different sizes.
        zooms: enlargements, the first of them the image as it is.
        classes: names; images whose class is unknown count for no class.

    Raises:
        ValueError: no units.
    """

    def __init__(self, units: Sequence[UnitInfo], zooms: Sequence[float], classes: Sequence[str] = ()) -> None:
        self.units, self.zooms, self.classes = tuple(units), tuple(zooms), tuple(classes)
        if not self.units:
            raise ValueError("no selective-kernel units with windows of different sizes")
        self.n = 0
        self.at_zoom = Moments((len(zooms), len(units)))
        self.change = Moments((len(zooms), len(units)))  # against the first zoom, paired per image
        self.by_class = [Moments((len(zooms), len(units))) for _ in classes]
        self.means: list[list[Array]] = [[] for _ in units]  # per unit and zoom (M, C), summed over images

    def add(self, selections: Sequence[dict[str, Tensor]], labels: np.ndarray) -> None:
        """One batch: per zoom, unit name to selection (N, M, C) of the same images.

        Raises:
            NumericsError: a selection is not finite; nothing of the batch is added then.
        """
        columns = [
            torch.stack([preference(at[unit.name], unit.extents) for unit in self.units], dim=1) for at in selections
        ]
        lean = torch.stack(columns, dim=1).double().cpu().numpy()  # (N, Z, U)
        nonfinite = np.argwhere(~np.isfinite(lean))
        if len(nonfinite):  # added to the sums, it would spoil them for all images
            image, _, unit_number = nonfinite[0]
            where = f"image {self.n + int(image) + 1} of the pass, {self.units[unit_number].label}"
            raise NumericsError("the selection is not finite", where, "look for NaN in the image and in the weights")
        self.at_zoom.add(lean)
        self.change.add(lean - lean[:, :1])
        for label in np.unique(labels[labels >= 0]) if self.classes else ():
            self.by_class[label].add(lean[labels == label])
        for number, unit in enumerate(self.units):
            sums = [at[unit.name].double().sum(dim=0).cpu().numpy() for at in selections]
            before = self.means[number]
            self.means[number] = [a + b for a, b in zip(before, sums, strict=True)] if before else sums
        self.n += len(labels)

    def mean_selection(self, zoom: int = 0) -> dict[str, Array]:
        """Unit name to the mean selection (M, C) over the images at one zoom."""
        return {unit.name: sums[zoom] / self.n for unit, sums in zip(self.units, self.means, strict=True)}

    def class_rows(self) -> list[ClassRow]:
        """Every class that has images, for every unit."""
        rows = []
        for name, moments in zip(self.classes, self.by_class, strict=True):
            if not moments.n:
                continue
            estimates = moments.estimates()  # (Z, U)
            for u, unit in enumerate(self.units):
                rows.append(ClassRow(name, unit.label, moments.n, tuple(row[u] for row in estimates)))
        return rows

    def class_table(self) -> list[dict[str, Any]]:
        """`class_rows` as plain values."""
        table = []
        for row in self.class_rows():
            cells: dict[str, Any] = {"class": row.name, "unit": row.unit, "n": row.n}
            for zoom, e in zip(self.zooms, row.preference, strict=True):
                cells |= {f"lean_{zoom:g}x": e.value, f"lean_{zoom:g}x_low": e.low, f"lean_{zoom:g}x_high": e.high}
            table.append(cells)
        return table

    def most_different(self, count: int = 10) -> list[tuple[ClassRow, float]]:
        """Classes and units that lie farthest from the mean of all images, in standard deviations of an image."""
        mean, deviation = self.at_zoom.mean[0], np.maximum(self.at_zoom.std[0], 1e-12)
        column = {unit.label: u for u, unit in enumerate(self.units)}
        scored = []
        for row in self.class_rows():
            u = column[row.unit]
            scored.append((row, float((row.preference[0].value - mean[u]) / deviation[u])))
        return sorted(scored, key=lambda pair: -abs(pair[1]))[:count]

    def to_rows(self) -> list[dict[str, Any]]:
        """Per unit: lean at every zoom, and the paired change to the last."""
        rows = []
        lean, change = self.at_zoom.estimates(), self.change.estimates()
        for u, unit in enumerate(self.units):
            row: dict[str, Any] = {"unit": unit.label, "module": unit.name, "n": self.n}
            for z, zoom in enumerate(self.zooms):
                figures = {"lean": lean[z][u]} | ({"change": change[z][u]} if z else {})
                for name, e in figures.items():
                    key = f"{name}_{zoom:g}x"
                    row |= {key: e.value, f"{key}_low": e.low, f"{key}_high": e.high}
            rows.append(row)
        return rows

    def plot(self) -> Figure:
        """Mean preference of every class, per unit and zoom."""
        from selkern.selection.plots import classes

        return classes(self.class_table(), self.zooms)


@torch.inference_mode()
def select_over(model: nn.Module, images: Iterable[tuple[Pictures, ...]], sums: Selected) -> Selected:
    """One pass over images, each at every zoom of `sums` (`stream.stream`), adding what the units chose; gives `sums`.

    What was added before a stop stays in `sums`.

    Raises:
        ValueError: no images.
        NumericsError: a selection is not finite.
    """
    with evaluating(model), record(model) as selection:
        for together in images:
            selections = []
            for pictures in together:
                model(pictures.x)
                selections.append(dict(selection))
            sums.add(selections, together[0].labels)
    if not sums.n:
        raise ValueError("no images to study")
    return sums

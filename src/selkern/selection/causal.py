"""What does choosing buy? Accuracy when the selection is frozen, forced to one kernel, or taken from another image.

The weights stay as they are; only what the gates say is replaced (`intervene.choose`). If a network owes nothing to its
choices, freezing every unit to its mean selection changes nothing; if the choice of the *image* matters, the selection
of another image costs accuracy.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from selkern.layers.parts import evaluating
from selkern.selection.intervene import Change, choose, forced, frozen, shuffled, smallest_and_largest
from selkern.selection.record import UnitInfo, find_units
from selkern.selection.result import Result
from selkern.selection.statistics import Array, Estimate, clustered_mean
from selkern.selection.stream import Pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALL = "all units"


@dataclass(frozen=True)
class Effect:
    """What one replacement of the selection does to accuracy.

    Attributes:
        what: frozen, smallest kernel, largest kernel, shuffled.
        unit: label of the unit it was done to, or `ALL`.
        top1: share of images whose likeliest class is right.
        change: of top-1 against the network as it is, paired per image.
        flipped: share of images whose likeliest class is another than without it.
    """

    what: str
    unit: str
    top1: Estimate
    change: Estimate
    flipped: float


@dataclass(frozen=True)
class CausalStudy(Result):
    """The effects on n images.

    Attributes:
        n: images.
        top1: of the network as it is.
        effects: all units together first, then each unit frozen.
    """

    n: int
    top1: Estimate
    effects: tuple[Effect, ...]

    def to_rows(self) -> list[dict[str, Any]]:
        """One row per effect, plain values."""
        return [
            {
                "what": e.what,
                "unit": e.unit,
                "n": self.n,
                "top1": e.top1.value,
                "change": e.change.value,
                "change_low": e.change.low,
                "change_high": e.change.high,
                "flipped": e.flipped,
            }
            for e in self.effects
        ]

    def plot(self) -> Figure:
        """Change of top-1 per replacement, with intervals."""
        from selkern.selection.plots import effects

        rows = self.to_rows()
        return effects([r for r in rows if r["unit"] == ALL], [r for r in rows if r["unit"] != ALL])


@torch.inference_mode()
def causal(
    model: nn.Module,
    images: Iterable[Pictures],
    means: Mapping[str, Array],
    clusters: NDArray[np.int64] | None = None,
    *,
    given: Mapping[int, int] | None = None,
    single: bool = True,
) -> CausalStudy:
    """Accuracy with the selection as it is and replaced, on the same images in one pass.

    Args:
        model: with selective-kernel units; it is left as it was found.
        images: with known labels.
        means: unit name to its mean selection (M, C), to which "frozen" freezes; see `selection.mean_selection`.
        clusters: the original that each image of the *source* was made from, by the image's number; None: independent.
        given: the class that the network names for each image as it is, by the image's number, where that is known
            from an evaluation; None runs the images once more.
        single: whether each unit is frozen alone too, a pass over the images for each.

    Raises:
        ValueError: no images, or none with a label.
    """
    units = {name: unit for name, (unit, _) in find_units(model).items() if name in means}
    plans = [plan for plan in _plans(units, means) if single or plan[1] == ALL]
    answers, labels, indices = [array("i") for _ in range(len(plans) + 1)], array("i"), array("q")
    with evaluating(model):
        for batch in images:
            labels.extend(batch.labels.tolist())
            indices.extend(batch.indices.tolist())
            as_it_is = [given[i] for i in batch.indices.tolist()] if given else model(batch.x).argmax(dim=1).tolist()
            answers[0].extend(as_it_is)
            for number, (_, _, changes) in enumerate(plans, 1):
                with choose(model, changes):
                    answers[number].extend(model(batch.x).argmax(dim=1).tolist())
    truth, where = np.array(labels), np.array(indices)
    if not len(truth) or (truth < 0).any():
        raise ValueError("the causal check needs images whose class is known")
    groups = where if clusters is None else clusters[where]
    unchanged, *replaced = (np.array(numbers) for numbers in answers)
    right = (unchanged == truth).astype(float)
    effects = []
    for (what, unit, _), answer in zip(plans, replaced, strict=True):
        now = (answer == truth).astype(float)
        change = clustered_mean(now - right, groups)
        effects.append(Effect(what, unit, clustered_mean(now, groups), change, float((answer != unchanged).mean())))
    return CausalStudy(len(truth), clustered_mean(right, groups), tuple(effects))


def _plans(units: Mapping[str, UnitInfo], means: Mapping[str, Array]) -> list[tuple[str, str, dict[str, Change]]]:
    """(what, unit, change per unit name) of every replacement."""
    plans: list[tuple[str, str, dict[str, Change]]] = [
        ("frozen", ALL, {name: frozen(means[name]) for name in units}),
        ("shuffled", ALL, dict.fromkeys(units, shuffled)),
    ]
    ordered = {name: smallest_and_largest(unit.extents) for name, unit in units.items() if unit.ordered}
    if ordered:
        plans.append(("smallest kernel", ALL, {name: forced(small) for name, (small, _) in ordered.items()}))
        plans.append(("largest kernel", ALL, {name: forced(large) for name, (_, large) in ordered.items()}))
    plans += [("frozen", unit.label, {name: frozen(means[name])}) for name, unit in units.items()]
    return plans

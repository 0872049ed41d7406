"""What the units of one run chose on its test images, in few numbers that can be compared over seeds.

Size: per unit, the rank correlation of the object's known size and the preference for the larger kernel, and the same
with the image's mean intensity removed. Enlargement, the paper's Figure 3: per unit, the preference with the centre
enlarged 2 times minus that of the image as it is. Replaced: top-1 with other selections minus top-1 with its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import nn

from selkern.data.preprocess import Preprocess
from selkern.data.scenes import SceneSplit
from selkern.data.split import Split
from selkern.selection.causal import causal
from selkern.selection.preference import ZOOMS, Selected, select_over, studied_units
from selkern.selection.scale import observe
from selkern.selection.statistics import partial_rank_correlation, rank_correlation
from selkern.selection.stream import stream

SIZE, LIT, ENLARGED = "size", "size, intensity removed", "enlargement"
REPLACED = "top-1 with the selection"  # ... frozen, shuffled, smallest kernel, largest kernel

Rows = list[dict[str, Any]]  # what, unit, value


def selections(model: nn.Module, split: Split, preprocess: Preprocess) -> Rows:
    """The figures of a network on all images of a split; none where no unit has kernels of different sizes.

    Raises:
        DataError: an image cannot be read.
        NumericsError: a selection is not finite.
    """
    units = studied_units(model)
    if not units:
        return []
    labels = [unit.label for unit in units]
    selected = select_over(model, stream(split, preprocess, zooms=ZOOMS), Selected(units, ZOOMS))
    rows = _rows(ENLARGED, labels, selected.change.mean[-1])
    if isinstance(split, SceneSplit):
        seen = observe(model, split, preprocess, range(len(split)))
        sizes = np.array([split.truth(index).scale for index in range(len(split))])
        rows += _rows(SIZE, labels, rank_correlation(sizes, seen.preference))
        rows += _rows(LIT, labels, partial_rank_correlation(sizes, seen.preference, seen.light[:, 0]))
    images = (together[0] for together in stream(split, preprocess))
    for effect in causal(model, images, selected.mean_selection(), single=False).effects:
        rows += _rows(f"{REPLACED} {effect.what}", [effect.unit], [effect.change.value])
    return rows


def _rows(what: str, units: list[str], values: Any) -> Rows:
    """NaN, of a unit that chose the same for all images, is no figure."""
    return [
        {"what": what, "unit": unit, "value": float(value) if np.isfinite(value) else None}
        for unit, value in zip(units, values, strict=True)
    ]

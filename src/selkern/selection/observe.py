"""What the units of a network choose for each image of a pass, with the image's intensity and contrast."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from selkern.data.loader import Batch
from selkern.data.preprocess import Preprocess
from selkern.data.split import Split
from selkern.layers.parts import evaluating
from selkern.selection.preference import preference, studied_units
from selkern.selection.record import Selections, UnitInfo, record
from selkern.selection.statistics import Array
from selkern.selection.stream import light_of, stream

MOST_BYTES = 128 << 20  # of selections per channel that a pass keeps


@dataclass(frozen=True)
class Observation:
    """What the U units chose on n images.

    Attributes:
        units: the units whose branches see windows of different sizes.
        preference: (n, U) see `preference`; mean over channels.
        light: (n, 2) mean and standard deviation of the network's input image, 0 to 1: intensity and contrast.
        curves: per unit (G, C), the selection of the largest kernel per channel, mean over each group of images.
    """

    units: tuple[UnitInfo, ...]
    preference: Array
    light: Array
    curves: tuple[Array, ...]


@torch.inference_mode()
def observe(
    model: nn.Module,
    split: Split,
    preprocess: Preprocess,
    indices: Sequence[int],
    *,
    groups: NDArray[np.int64] | None = None,
    zoom: float = 1.0,
) -> Observation:
    """Run images through a model in eval mode and keep what its units chose; memory does not grow with pixels.

    Args:
        indices: the images of the split, n of them.
        groups: (n,) the group of each image, 0 to G - 1, for the curves; None makes one group.
        zoom: enlargement of the centre.

    Raises:
        DataError: an image cannot be read.
    """
    units = studied_units(model)
    groups = np.zeros(len(indices), dtype=np.int64) if groups is None else groups
    preferences, lights = [], []
    sums: list[Array | None] = [None] * len(units)
    done = 0
    images = stream(split, preprocess, indices, zooms=(zoom,), device=next(model.parameters()).device)
    with evaluating(model), record(model) as selection:
        for (batch,) in images:
            model(batch.x)
            preferences.append(_preferences(units, selection))
            lights.append(batch.light)
            member = np.eye(groups.max() + 1)[groups[done : done + len(batch)]]  # (N, G)
            for number, unit in enumerate(units):
                part = member.T @ _largest(unit, selection).double().cpu().numpy()
                sums[number] = part if sums[number] is None else sums[number] + part
            done += len(batch)
    counts = np.bincount(groups)[:, None]
    return Observation(
        units,
        np.concatenate(preferences).astype(np.float64),
        np.concatenate(lights),
        tuple(total / np.maximum(counts, 1) for total in sums if total is not None),
    )


def _preferences(units: Sequence[UnitInfo], selection: Selections) -> Array:
    """(N, U) of the latest pass."""
    columns = [preference(selection[unit.name], unit.extents).cpu() for unit in units]
    return torch.stack(columns, dim=1).numpy()


def _largest(unit: UnitInfo, selection: Selections) -> Tensor:
    """(N, C), the selection of the unit's largest kernel in the latest pass."""
    return selection[unit.name][:, int(np.argmax(unit.extents))]


class Observed:
    """What a model's units chose in a pass that something else makes, such as an evaluation.

    Within `watching()`, call `add` after the forward pass of every batch; then read off any of the images by `of`.

    Args:
        model: of the pass.
        channels: keep every image's selections per channel too, which the curves of `of` with groups are made of.
    """

    def __init__(self, model: nn.Module, *, channels: bool) -> None:
        self.model, self.units = model, studied_units(model)
        self._selection: Selections | None = None
        self._indices: list[NDArray[np.int64]] = []
        self._preferences: list[Array] = []
        self._lights: list[Array] = []
        self._channels: list[list[NDArray[np.float32]]] | None = [[] for _ in self.units] if channels else None
        self._bytes = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within the block the model's selections are recorded."""
        with record(self.model) as self._selection:
            yield

    def add(self, batch: Batch) -> None:
        """Keep what was chosen in the forward pass of this batch, which is the latest."""
        assert self._selection is not None
        if not self.units:
            return
        self._indices.append(batch.indices.numpy())
        self._preferences.append(_preferences(self.units, self._selection))
        self._lights.append(light_of(batch.images))
        if self._channels is None:
            return
        for unit, kept in zip(self.units, self._channels, strict=True):
            largest = _largest(unit, self._selection).float().cpu().numpy()
            kept.append(largest)
            self._bytes += largest.nbytes
        if self._bytes > MOST_BYTES:
            self._channels = None

    def of(self, indices: NDArray[np.int64], groups: NDArray[np.int64] | None = None) -> Observation | None:
        """What `observe` returns for these images; None where the pass lacks one, or the channels were not kept.

        Args:
            indices: numbers of images in the split.
            groups: as for `observe`; None returns no curves.
        """
        if not self._indices or (groups is not None and self._channels is None):
            return None
        known = np.concatenate(self._indices)
        order = np.argsort(known)
        at = order[np.minimum(np.searchsorted(known, indices, sorter=order), len(known) - 1)]
        if not np.array_equal(known[at], indices):
            return None
        curves: tuple[Array, ...] = ()
        if groups is not None and self._channels is not None:
            member = np.eye(groups.max() + 1)[groups].T / np.maximum(np.bincount(groups), 1)[:, None]  # (G, N)
            curves = tuple(member @ np.concatenate(kept)[at].astype(np.float64) for kept in self._channels)
        values = np.concatenate(self._preferences).astype(np.float64)
        return Observation(self.units, values[at], np.concatenate(self._lights)[at], curves)

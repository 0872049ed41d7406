"""`choose`: units take a given selection instead of their gates', within a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from selkern.selection.record import UnitInfo, find_units, hooked

Change = Callable[[Tensor], Tensor]  # a selection (N, M, C) to another of that shape


def forced(branch: int) -> Change:
    """Every channel takes one branch alone."""

    def change(a_NMC: Tensor) -> Tensor:
        alone = torch.zeros_like(a_NMC)
        alone[:, branch] = 1
        return alone

    return change


def frozen(mean_MC: NDArray[np.float64]) -> Change:
    """The same selection for every image, such as the mean over many."""

    def change(a_NMC: Tensor) -> Tensor:
        mean = torch.as_tensor(mean_MC, dtype=a_NMC.dtype, device=a_NMC.device)
        return mean.expand_as(a_NMC).contiguous()

    return change


def shuffled(a_NMC: Tensor) -> Tensor:
    """Every image takes the selection of the image before it in the batch, the first that of the last."""
    return a_NMC.roll(1, dims=0)


@contextmanager
def choose(model: nn.Module, changes: Mapping[str, Change]) -> Iterator[None]:
    """Within the block, units named by `find_units` take a changed selection; weights are untouched.

    Args:
        changes: unit name to what becomes of its selection.

    Raises:
        KeyError: a name that is no unit of the model.
    """
    result = find_units(model)

    def hook_for(unit: UnitInfo, change: Change) -> Any:
        return lambda _module, _inputs, output: unit.as_given(change(unit.canonical(output)), output)

    with hooked(model, [(result[name][1], hook_for(result[name][0], change)) for name, change in changes.items()]):
        yield


def smallest_and_largest(extents: Sequence[int]) -> tuple[int, int]:
    """Numbers of the branches with the smallest and with the largest window."""
    return int(np.argmin(extents)), int(np.argmax(extents))

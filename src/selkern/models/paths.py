"""The stretches of a network that lean training takes another way: stem and pool, and the path through a bottleneck."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from selkern.layers.parts import are_replaceable, batch_norm_of
from selkern.ops import recompute
from selkern.ops.eager import is_watched


def bottleneck(unit: Any, x: Tensor) -> Tensor:
    """conv1 -> norm1, ReLU -> mixer -> conv3 of a unit, (N, C_in, H, W) to (N, out, H / stride, W / stride).

    With `unit.memory` "lean" the two maps between them are not kept for the backward pass but computed again.
    """
    y = unit.conv1(x)
    free = are_replaceable(unit.norm1) and not is_watched(unit.mixer)
    if unit.memory == "lean" and free and recompute.is_possible(y):
        u = recompute.norm_relu(batch_norm_of(unit.norm1, y, "a unit"), y)
    else:
        u = unit.norm1(y).relu_()
    return recompute.through(unit.conv3, unit.mixer(u))


def stem_and_pool(network: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The map of the stem, and that of the pool after it.

    With `network.memory` "lean" the first, the largest map of all, is not kept for the backward pass.
    """
    stem, pool = network.stem, network.pool
    layered = type(stem) is nn.Sequential and len(stem) > 2 and not is_watched(stem)
    free = layered and are_replaceable(*stem[-2:]) and type(pool) is nn.MaxPool2d and not is_watched(pool)
    if network.memory != "lean" or not free or not recompute.is_possible(x):
        y = stem(x)
        return y, pool(y)
    *layers, norm, _relu = stem
    for layer in layers:
        x = layer(x)
    u = recompute.norm_relu(batch_norm_of(norm, x, "the stem"), x)
    return u, recompute.through(pool, u)

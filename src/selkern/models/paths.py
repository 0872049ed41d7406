"""The stretches of a network that lean training takes another way: stem and pool, and the path through a bottleneck."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from selkern.layers.parts import are_replaceable, batch_norm_of, is_watched
from selkern.ops import recompute


def bottleneck(unit: Any, x: Tensor) -> Tensor:
    """conv1 -> norm1, ReLU -> mixer -> conv3 of a unit, (N, C_in, H, W) to (N, out, H / stride, W / stride).

    With `unit.memory` "lean" the two maps between them are not kept for the backward pass but computed again.
    """
    y = unit.conv1(x)
    if unit.memory == "lean" and are_replaceable(unit.norm1) and recompute.is_possible(y):
        u = recompute.norm_relu(batch_norm_of(unit.norm1, y, "a unit"), y)
    else:
        u = unit.norm1(y).relu_()
    return recompute.through(unit.conv3, unit.mixer(u))


def stem_and_pool(network: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The map of the stem, and that of the pool after it.

    With `network.memory` "lean" the first, the largest map of all, is not kept for the backward pass.
    """
    *layers, norm, act = network.stem
    pooled = type(network.pool) is nn.MaxPool2d  # which saves what it reads
    free = pooled and are_replaceable(norm, act) and not is_watched(network.stem)
    if network.memory != "lean" or not free or not recompute.is_possible(x):
        y = network.stem(x)
        return y, network.pool(y)
    for layer in layers:
        x = layer(x)
    u = recompute.norm_relu(batch_norm_of(norm, x, "the stem"), x)
    return u, recompute.through(network.pool, u)

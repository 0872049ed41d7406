"""The stretches of a network that lean training takes another way: stem and pool, and the path through a bottleneck."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from selkern.layers.parts import forgets, lean_norm
from selkern.ops import lean


def bottleneck(unit: Any, x: Tensor) -> Tensor:
    """conv1 -> norm1, ReLU -> mixer -> conv3 of a unit, (N, C_in, H, W) to (N, out, H / stride, W / stride).

    With `unit.memory` "lean" the two maps between them are not kept for the backward pass but made again.
    """
    y = unit.conv1(x)
    if unit.memory != "lean" or unit.mixer.gate is None or not (forgets(unit.norm1) and unit.mixer.forgets()):
        return unit.conv3(unit.mixer(unit.norm1(y).relu_()))
    u, u_again = lean.norm_relu(lean_norm(unit.norm1, y, "a unit"), y)
    inputs = unit.mixer.inputs_of(u)
    v, v_again = unit.mixer.mix(inputs, u_again if inputs[0] is u else None)
    return lean.convolve(unit.conv3, v, v_again)


def stem_and_pool(network: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The map of the stem, and that of the pool after it.

    With `network.memory` "lean" the first, the largest map of all, is not kept for the backward pass.
    """
    *layers, norm, act = network.stem
    if network.memory != "lean" or type(network.pool) is not nn.MaxPool2d or not forgets(norm, act):
        y = network.stem(x)
        return y, network.pool(y)
    for layer in layers:
        x = layer(x)
    u, _ = lean.norm_relu(lean_norm(norm, x, "the stem"), x)
    return u, lean.max_pool(network.pool, u, x)

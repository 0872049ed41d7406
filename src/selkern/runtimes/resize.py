"""Images of any size made a network's input within an exported graph, as `data.preprocess` does it outside.

Pillow rounds to grey levels after each axis, and a graph once: some pixels differ by 1 level, and by up to 4 where an
image is made many times smaller (tests/export/test_resize.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from selkern.data.preprocess import Preprocess

_least: Any = torch.sym_min  # which torch leaves untyped
_most: Any = torch.sym_max


def resized(images: Tensor, preprocess: Preprocess) -> Tensor:
    """(N, H, W, 3) uint8, H and W of any size, to grey levels (N, 3, size, size), float32.

    H and W may be symbols of torch.export: lengths are computed in whole numbers, none of them below 0, since runtimes
    do not agree on how those are divided.
    """
    x = images.permute(0, 3, 1, 2).float()
    size, target = preprocess.size, preprocess.target
    high = wide = target  # of the whole image once it is resized
    if preprocess.resize != "squash":
        side = (_least if preprocess.resize == "crop" else _most)(x.shape[2], x.shape[3])
        high, wide = (_scaled(length, target, side) for length in x.shape[2:])
    x = F.interpolate(x, size=(high, wide), mode="bicubic", antialias=True).round().clamp(0, 255)
    if preprocess.resize != "pad":
        return _cut(_cut(x, 2, (high - size) // 2, size), 3, (wide - size) // 2, size)
    colour = torch.tensor(preprocess.mean_colour, dtype=x.dtype, device=x.device).view(3, 1, 1)
    x = F.pad(x - colour, (size,) * 4)
    for axis, length in ((2, high), (3, wide)):
        before = _most(length - size, 0) // 2 - _most(size - length, 0) // 2
        x = _cut(x, axis, size + before, size)
    return x + colour


def _scaled(length: Any, target: int, side: Any) -> Any:
    """round(length * target / side), halves to even as Python rounds; at least 1."""
    above, rest = (2 * length * target + side) // (2 * side), (2 * length * target + side) % (2 * side)
    half = 1 - _least(rest, 1)
    return _most(above - half * (above % 2), 1)


def _cut(x: Tensor, axis: int, start: Any, length: int) -> Tensor:
    """A part of an axis; of a known length, whatever the start."""
    return x.index_select(axis, torch.arange(length, device=x.device) + start)


def antialiased(network: Any) -> None:
    """Put Pillow's filter into a network of OpenVINO: what it reads as antialiased cubic resizing it does without.

    OpenVINO 2026.2 keeps the attribute, and its CPU kernel has the antialiased filter under another name alone.
    """
    from openvino import opset11 as ops
    from openvino.utils import replace_node

    axes = ops.constant(np.array([2, 3], dtype=np.int64))
    for node in network.get_ordered_ops():
        if node.get_type_name() == "Interpolate" and node.get_attributes()["antialias"]:
            image, sizes = (node.input_value(port) for port in (0, 1))
            lengths = ops.gather(sizes, axes, ops.constant(np.int64(0)))
            replace_node(node, ops.interpolate(image, lengths, "bicubic_pillow", "sizes", axes=axes, cube_coeff=-0.5))

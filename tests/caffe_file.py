"""A caffemodel of an SKNet written byte by byte, and its forward pass from the blobs: what test_caffe.py compares with.

Shares no code with `selkern.convert.caffe`: field numbers are those of BVLC's caffe.proto, layers and their order those
of the authors' sknet50.prototxt.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from selkern.models.trunk import Architecture

Floats = NDArray[np.float32]
Layer = tuple[str, str, list[Floats]]  # name, type, blobs

# --- The protobuf wire format ---


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def chunk(number: int, payload: bytes | str) -> bytes:
    """A length-delimited field: a string, a message or packed numbers."""
    payload = payload.encode() if isinstance(payload, str) else payload
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def whole(number: int, value: int) -> bytes:
    return varint(number << 3) + varint(value)


def blob(values: Floats, form: str = "new") -> bytes:
    """A BlobProto: "new", with "gradient" too, "old" (four sides), "double", or "unpacked" (one field per number)."""
    if form == "old":
        sides = [*(1,) * (4 - values.ndim), *values.shape]
        return b"".join(whole(at, side) for at, side in enumerate(sides, 1)) + chunk(5, values.tobytes())
    shape = chunk(7, chunk(1, b"".join(map(varint, values.shape))))
    if form == "double":
        return shape + chunk(8, values.astype(np.float64).tobytes())
    if form == "unpacked":
        return b"".join(varint(5 << 3 | 5) + struct.pack("<f", v) for v in values.ravel()) + shape
    return shape + chunk(5, values.tobytes()) + (chunk(6, values.tobytes()) if form == "gradient" else b"")


def write(path: Path, layers: list[Layer], form: str = "new", v1: bool = False) -> Path:
    """A caffemodel as Caffe saves it, with fields that the reader does not know."""
    with path.open("wb") as file:
        file.write(chunk(1, "sknet") + chunk(3, "data") + whole(5, 0))
        for name, kind, blobs in layers:
            values = [blob(values, form) for values in blobs]
            if v1:
                number = {"Convolution": 4, "InnerProduct": 14}.get(kind, 99)
                head = chunk(2, "bottom") + chunk(3, "top") + chunk(4, name) + whole(5, number)
                file.write(chunk(2, head + b"".join(chunk(6, value) for value in values)))
            else:
                head = chunk(1, name) + chunk(2, kind) + chunk(3, "bottom") + chunk(4, "top") + whole(10, 1)
                file.write(chunk(100, head + b"".join(chunk(7, value) for value in values) + chunk(106, b"\x08\x01")))
    return path


# --- The network: the authors' layers, with random weights ---


def norm_blobs(rng: np.random.Generator, name: str, c: int, caffes_own: bool) -> Iterator[Layer]:
    scale, var = (rng.uniform(0.5, 1.5, c).astype(np.float32) for _ in range(2))
    scale *= np.float32(0.3 if name.endswith("increase") else 1)  # or the sums over units grow without bound
    bias, mean = (rng.normal(0, 0.3, c).astype(np.float32) for _ in range(2))
    if caffes_own:
        factor = np.float32(rng.uniform(2, 1000))
        yield f"{name}/bn", "BatchNorm", [mean * factor, var * factor, factor.reshape(1)]
        yield f"{name}/bn/scale", "Scale", [scale, bias]
    else:
        yield f"{name}/bn", "CuDNNBatchNorm", [v.reshape(1, c, 1, 1) for v in (scale, bias, mean, var)]


def authors(arch: Architecture, classes: int = 1000, caffes_own: bool = False) -> Iterator[Layer]:
    """The layers of the authors' prototxt in file order, those without weights too."""
    rng = np.random.default_rng(0)

    def conv(name: str, out: int, inside: int, k: int, norm: bool = True) -> Iterator[Layer]:
        weight = rng.standard_normal((out, inside, k, k), dtype=np.float32) * np.float32((2 / inside / k**2) ** 0.5)
        yield name, "Convolution", [weight]
        if norm:
            yield from norm_blobs(rng, name, out, caffes_own)
            yield f"{name}/relu", "ReLU", []

    yield "input", "Input", []
    yield from conv("conv1/7x7_s2", arch.stem, 3, 7)
    inside = arch.stem
    for stage, depth in enumerate(arch.depths):
        mid, out = arch.mids[stage], arch.outs[stage]
        least = arch.min_width if isinstance(arch.min_width, int) else arch.min_width[stage]
        d = max(mid // 16, least)
        for index in range(depth):
            unit = f"conv{stage + 2}_{index + 1}"
            yield from conv(f"{unit}/1x1_reduce", mid, inside, 1)
            yield from conv(f"{unit}/3x3g32", mid, mid // arch.groups, 3)
            yield from conv(f"{unit}/3x3g32d2", mid, mid // arch.groups, 3)
            yield from conv(f"{unit}/B_fc1", d, mid, 1)
            yield from conv(f"{unit}/B_fc2", 2 * mid, d, 1, norm=False)
            yield f"{unit}/scale", "Scale", []  # the product with the selection, which has no weights
            yield f"{unit}/B_axpy", "Axpy", []
            yield from conv(f"{unit}/1x1_increase", out, mid, 1)
            if index == 0:
                yield from conv(f"{unit}/1x1_proj", out, inside, 1)
            inside = out
    weight = rng.standard_normal((classes, inside), dtype=np.float32) / np.float32(inside**0.5)
    yield "classifier", "InnerProduct", [weight, rng.standard_normal(classes, dtype=np.float32)]


def units(layers: list[Layer]) -> list[list[Layer]]:
    """Layers with weights, a convolution with its norm together."""
    groups: list[list[Layer]] = []
    for layer in layers:
        if layer[2]:
            groups.append([layer]) if layer[1] in ("Convolution", "InnerProduct") else groups[-1].append(layer)
    return groups


def moved(groups: list[list[Layer]], steps: int) -> list[list[Layer]]:
    """Each projection `steps` places earlier: 0 last, 1 before the last 1x1, 6 first."""
    groups = list(groups)
    for at in [at for at, group in enumerate(groups) if "1x1_proj" in group[0][0]]:
        groups.insert(at - steps, groups.pop(at))
    return groups


def forward(layers: list[Layer], arch: Architecture, x: Tensor) -> Tensor:
    """Logits (N, classes) in float64, from the blobs by name as the prototxt wires them."""
    blobs = {name: [torch.from_numpy(v).double() for v in values] for name, _, values in layers}

    def conv(name: str, x: Tensor, stride: int = 1, dilation: int = 1, groups: int = 1) -> Tensor:
        weight = blobs[name][0]
        return F.conv2d(x, weight, None, stride, weight.shape[2] // 2 * dilation, dilation, groups)

    def norm(name: str, x: Tensor) -> Tensor:
        values = [v.reshape(-1, 1, 1) for v in blobs[f"{name}/bn"]]
        if len(values) == 4:
            scale, bias, mean, var = values
        else:
            scale, bias = (v.reshape(-1, 1, 1) for v in blobs[f"{name}/bn/scale"])
            mean, var = values[0] / values[2], values[1] / values[2]
        return (x - mean) / torch.sqrt(var + 1e-5) * scale + bias

    x = F.max_pool2d(norm("conv1/7x7_s2", conv("conv1/7x7_s2", x, 2)).relu(), 3, 2, 0, ceil_mode=True)
    for stage, depth in enumerate(arch.depths):
        for index in range(depth):
            unit, stride = f"conv{stage + 2}_{index + 1}", arch.strides[stage] if index == 0 else 1
            y = norm(f"{unit}/1x1_reduce", conv(f"{unit}/1x1_reduce", x)).relu()
            plain = norm(f"{unit}/3x3g32", conv(f"{unit}/3x3g32", y, stride, 1, arch.groups)).relu()
            wide = norm(f"{unit}/3x3g32d2", conv(f"{unit}/3x3g32d2", y, stride, 2, arch.groups)).relu()
            z = norm(f"{unit}/B_fc1", conv(f"{unit}/B_fc1", (plain + wide).mean((2, 3), keepdim=True))).relu()
            slices = conv(f"{unit}/B_fc2", z).reshape(len(x), 2, -1, 1).softmax(1)
            y = slices[:, 0, :, :, None] * plain + slices[:, 1, :, :, None] * wide
            y = norm(f"{unit}/1x1_increase", conv(f"{unit}/1x1_increase", y))
            x = (y + (norm(f"{unit}/1x1_proj", conv(f"{unit}/1x1_proj", x, stride)) if index == 0 else x)).relu()
    return F.linear(x.mean((2, 3)), *blobs["classifier"])

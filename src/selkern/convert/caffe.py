"""The authors' Caffe weights: a `.caffemodel` (a protobuf NetParameter) to the state dict of our SKNets.

Sources: field numbers from caffe.proto of BVLC/caffe; layer names, their order and the meaning of the blobs from
sknet50.prototxt, sknet101.prototxt and cudnn_batch_norm_layer.cu of implus/SKNet. A file holds numbers and names
alone: nothing of it is run. Needs protobuf (`pip install 'selkern[convert]'`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selkern.errors import CheckpointError, UsageError
from selkern.models.registry import architecture
from selkern.models.trunk import Architecture, Trunk

MAX_BYTES = 1 << 29  # SKNet-101 is 196 MB, twice that where the gradients were saved too

# Fields 1 to 4 of a blob written before it had `shape`.
_OLD_SHAPE = ("num", "channels", "height", "width")
# Message -> fields as (name, number, type or message, repeated). All that is not here is skipped when read.
_SCHEMA: dict[str, tuple[tuple[str, int, str, bool], ...]] = {
    "BlobShape": (("dim", 1, "int64", True),),
    "BlobProto": (
        *((name, at, "int64", False) for at, name in enumerate(_OLD_SHAPE, 1)),
        ("data", 5, "float", True),
        ("shape", 7, "BlobShape", False),
        ("double_data", 8, "double", True),
    ),
    "LayerParameter": (("name", 1, "string", False), ("type", 2, "string", False), ("blobs", 7, "BlobProto", True)),
    "V1LayerParameter": (("name", 4, "string", False), ("type", 5, "int32", False), ("blobs", 6, "BlobProto", True)),
    "NetParameter": (("layers", 2, "V1LayerParameter", True), ("layer", 100, "LayerParameter", True)),
}
_V1_TYPES = {4: "Convolution", 14: "InnerProduct"}

# Layer types that may hold weights, and their possible numbers of blobs.
_BLOBS = {"Convolution": (1, 2), "InnerProduct": (1, 2), "CuDNNBatchNorm": (4,), "BatchNorm": (3,), "Scale": (2,)}
_SHORTCUT_WORDS = ("shortcut", "proj", "branch1", "downsample")
_OTHER = "the file is of another architecture (the authors' SKNet-101 is sknet101_caffe)"


@dataclass(frozen=True)
class CaffeLayer:
    """One layer of a caffemodel: its name, its type ("" where an old file has none we know), its float32 blobs."""

    name: str
    type: str
    blobs: tuple[NDArray[np.float32], ...]


@cache
def _net_parameter() -> tuple[Any, type[Exception]]:
    """The NetParameter class, in a pool where it meets no other copy of caffe.proto, and the error of its parser."""
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory
    except ImportError as error:
        raise UsageError("protobuf is not installed", "caffemodel", "pip install 'selkern[convert]'") from error
    kind = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="caffe", syntax="proto2")
    for title, fields in _SCHEMA.items():
        described = file.message_type.add(name=title)
        for name, number, of, repeated in fields:
            one = described.field.add(name=name, number=number)
            one.label = kind.LABEL_REPEATED if repeated else kind.LABEL_OPTIONAL
            if of in _SCHEMA:
                one.type, one.type_name = kind.TYPE_MESSAGE, f".caffe.{of}"
            else:
                one.type = kind.Type.Value(f"TYPE_{of.upper()}")
                one.options.packed = repeated  # an unpacked field is read as well
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    net = message_factory.GetMessageClass(pool.FindMessageTypeByName("caffe.NetParameter"))
    return net, message.DecodeError


def _array(blob: Any, layer: str) -> NDArray[np.float32]:
    """The numbers of a BlobProto in its shape. Raises ValueError where they do not fit, or are not finite."""
    with np.errstate(over="ignore"):  # a double too large for float32 is an error below
        values = np.array(blob.data or blob.double_data, dtype=np.float32)
    shape = tuple(blob.shape.dim if blob.HasField("shape") else (getattr(blob, side) for side in _OLD_SHAPE))
    if min(shape, default=1) < 0 or math.prod(shape) != values.size:
        raise ValueError(f"layer {layer}: {values.size} numbers for shape {shape}"[:200])
    if not np.isfinite(values).all():
        raise ValueError(f"layer {layer}: a weight is not finite")
    return values.reshape(shape)


def read_caffemodel(path: Path) -> list[CaffeLayer]:
    """Every layer of a caffemodel in file order, of the old format and the new, those without weights too.

    Takes memory of about twice the file's size while it reads.

    Raises:
        CheckpointError: no such file, one that is no caffemodel, a cut or damaged one, or one above `MAX_BYTES`.
        UsageError: protobuf is not installed.
    """
    if not path.is_file():
        raise CheckpointError("no such caffemodel", str(path), "check the path")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise CheckpointError(f"{size} bytes, too large for an SKNet", str(path), f"give one of at most {MAX_BYTES}")
    net_parameter, decode_error = _net_parameter()
    try:
        net = net_parameter.FromString(path.read_bytes())
        result = [(m, _V1_TYPES.get(m.type, "")) for m in net.layers] + [(m, m.type) for m in net.layer]
        # str: protobuf gives bytes for a text that is not UTF-8.
        layers = [CaffeLayer(str(m.name), str(kind), tuple(_array(b, m.name) for b in m.blobs)) for m, kind in result]
    except (decode_error, ValueError, OSError) as error:
        raise CheckpointError(f"cannot be read ({error})", str(path), "cut or damaged; take another") from error
    if not any(layer.blobs for layer in layers):
        raise CheckpointError("has no layer with weights", str(path), "give a trained .caffemodel")
    return layers


@dataclass
class _Block:
    """A convolution or linear map, and the norm on its output by our names: weight, bias, running_mean, running_var."""

    name: str
    weight: NDArray[np.float32]
    bias: NDArray[np.float32] | None = None
    norm: dict[str, NDArray[np.float32]] = field(default_factory=dict)


class _Slot(NamedTuple):
    """A place for a block in our network: modules of the weight and of its norm ("" for none), the authors' name."""

    weight: str
    norm: str
    theirs: str


def _kind(layer: CaffeLayer) -> str:
    """The type of a layer with weights; where it has none, what the number of its blobs says."""
    count = len(layer.blobs)
    if layer.type == "":
        guess = {4: "CuDNNBatchNorm", 3: "BatchNorm"}.get(count, "Convolution")
        return "Scale" if count == 2 and layer.blobs[0].size == layer.blobs[1].size else guess
    if count not in _BLOBS.get(layer.type, ()):
        raise CheckpointError(f"{count} blobs in a layer of type {layer.type}", f"layer {layer.name}", _OTHER)
    return layer.type


def _norm(layer: CaffeLayer, kind: str) -> dict[str, NDArray[np.float32]]:
    """Blobs of a norm or Scale layer by our names, each (C,)."""
    blobs = [blob.ravel() for blob in layer.blobs]
    # The authors' CuDNNBatchNorm has these four, the statistics as they are; a Scale the first two.
    result = dict(zip(("weight", "bias", "running_mean", "running_var"), blobs, strict=False))
    if kind == "BatchNorm":  # Caffe's own: sums, to be divided by a factor; 0 means that nothing was summed yet
        if blobs[2].size != 1:
            raise CheckpointError("no single factor in a BatchNorm", f"layer {layer.name}", _OTHER)
        share = np.float32(0 if blobs[2][0] == 0 else 1 / blobs[2][0])
        result = {"running_mean": blobs[0] * share, "running_var": blobs[1] * share}
    if "running_var" in result and (result["running_var"] < 0).any():
        raise CheckpointError("a negative variance: its blobs are in another order", f"layer {layer.name}", _OTHER)
    return result


def _blocks(layers: Sequence[CaffeLayer]) -> list[_Block]:
    """The convolutions and linear maps in file order, each with its norm: `X/bn` goes to `X`, others to the last."""
    blocks: list[_Block] = []
    by_norm: dict[str, _Block] = {}
    for layer in layers:
        if not layer.blobs:
            continue
        kind = _kind(layer)
        if kind in ("Convolution", "InnerProduct"):
            blocks.append(_Block(layer.name, layer.blobs[0], layer.blobs[1] if len(layer.blobs) > 1 else None))
            by_norm[f"{layer.name}/bn"] = blocks[-1]
            continue
        own = by_norm.get(layer.name, blocks[-1] if blocks else None)
        result = _norm(layer, kind)
        if own is None or own.norm.keys() & result.keys():
            raise CheckpointError("a norm with no convolution of its own", f"layer {layer.name}", _OTHER)
        own.norm.update(result)
    if not blocks:
        raise CheckpointError("no convolution with weights", "caffemodel", _OTHER)
    return blocks


def _groups(model: Trunk) -> list[list[_Slot]]:
    """The places of the stem, of each unit and of the classifier, in the authors' order within each."""
    groups = [[_Slot("stem.0", "stem.1", "conv1/7x7_s2")]]
    for stage, units in enumerate(model.stages):
        for index, unit in enumerate(units.children()):
            ours, theirs = f"stages.{stage}.{index}", f"conv{stage + 2}_{index + 1}"
            parts = [
                ("conv1", "norm1", "1x1_reduce"),
                ("mixer.branches.0.conv", "mixer.branches.0.norm", "3x3g32"),
                ("mixer.branches.1.conv", "mixer.branches.1.norm", "3x3g32d2"),
                ("mixer.gate.fc1", "mixer.gate.norm", "B_fc1"),
                ("mixer.gate.fc2", "", "B_fc2"),  # its first C outputs weigh branch 0, the prototxt's slice 0
                ("conv3", "norm3", "1x1_increase"),
                ("shortcut.0", "shortcut.1", "1x1_proj"),
            ]
            if not isinstance(unit.shortcut, torch.nn.Sequential):
                parts.pop()
            groups.append([_Slot(f"{ours}.{a}", b and f"{ours}.{b}", f"{theirs}/{c}") for a, b, c in parts])
    return [*groups, [_Slot("fc", "", "classifier")]]


def _same(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two shapes differ in ones alone: Caffe writes (1, C, 1, 1) for C and (D, C, 1, 1) for a linear map."""
    return [d for d in one if d != 1] == [d for d in other if d != 1]


def _arrange(group: list[_Slot], blocks: list[_Block], expected: dict[str, Tensor]) -> list[_Block]:
    """The blocks of one unit in the authors' order, wherever its projection stands (only files of other names)."""
    if not group[-1].weight.endswith("shortcut.0"):
        return blocks
    shapes = [expected[f"{slot.weight}.weight"].shape for slot in group]
    fitting = []
    for place in (len(group) - 1, 0, len(group) - 2):  # after the main branch, before it, before its last 1x1
        order = [*blocks[:place], *blocks[place + 1 :], blocks[place]]
        if all(_same(block.weight.shape, shape) for block, shape in zip(order, shapes, strict=True)):
            fitting.append(order)
    named = [order for order in fitting if any(word in order[-1].name.lower() for word in _SHORTCUT_WORDS)]
    choice = fitting if len(fitting) == 1 else named
    if fitting and len(choice) != 1:
        where, fix = f"layers {blocks[0].name} to {blocks[-1].name}", f"name it by one of {', '.join(_SHORTCUT_WORDS)}"
        raise CheckpointError("the shapes do not show which one is the projection shortcut", where, fix)
    return choice[0] if choice else blocks  # none: the caller names the shape that does not fit


def _pairs(groups: list[list[_Slot]], blocks: list[_Block], expected: dict[str, Tensor]) -> list[tuple[_Slot, _Block]]:
    """Each place with its block: by the authors' names, or by order and shape in a file of other names."""
    slots = [slot for group in groups for slot in group]
    by_name = {block.name: block for block in blocks}
    if slots[0].theirs in by_name:
        for name in sorted(by_name.keys() ^ {slot.theirs for slot in slots}):
            what = "belongs to no layer of ours" if name in by_name else "is missing"
            raise CheckpointError(what, f"layer {name}", _OTHER)
        if len(by_name) != len(blocks):
            raise CheckpointError("two layers of one name", "caffemodel", _OTHER)
        return [(slot, by_name[slot.theirs]) for slot in slots]
    if len(blocks) != len(slots):
        raise CheckpointError(f"{len(blocks)} layers with weights, the model has {len(slots)}", "caffemodel", _OTHER)
    ordered: list[_Block] = []
    for group in groups:
        ordered += _arrange(group, blocks[len(ordered) : len(ordered) + len(group)], expected)
    return list(zip(slots, ordered, strict=True))


def _on_meta(model: str | Architecture, blocks: list[_Block]) -> Trunk:
    """The network on shapes alone, for as many classes and image channels as the file has."""
    arch = architecture(model) if isinstance(model, str) else model
    if not isinstance(arch, Architecture) or arch.mixer != "sk" or len(arch.kernels) != 2:
        raise UsageError(f"{model} is no SKNet of two branches", "model", "give sknet50 or sknet101_caffe")
    classes = blocks[-1].weight.size // arch.outs[-1]
    channels = blocks[0].weight.size // (arch.stem * arch.stem_kernel**2)
    with torch.device("meta"):
        return arch.build(max(classes, 1), max(channels, 1))


def from_caffe(layers: Sequence[CaffeLayer], model: str | Architecture) -> dict[str, Tensor]:
    """The state dict of an SKNet from the layers of its caffemodel.

    Layers are found by the authors' names (`conv2_1/1x1_reduce`, ..., `classifier`). A file that has none of them is
    taken in network order: stem, units as 1x1, plain branch, dilated branch, gate, gate, 1x1, classifier, with the
    projection shortcut before or after. The first convolution keeps the file's order of colours.

    Args:
        layers: from `read_caffemodel`.
        model: a name of `list_models()` or its row; the authors' files are of "sknet50" and "sknet101_caffe".

    Returns:
        Every tensor of `model.state_dict()`, for the file's number of classes; they share memory with `layers`.

    Raises:
        CheckpointError: a layer is missing, left over, of another shape, or its place cannot be known.
        UsageError: an unknown name, or one of no SKNet.
    """
    blocks = _blocks(layers)
    net = _on_meta(model, blocks)
    expected = net.state_dict()
    state = {name: torch.zeros((), dtype=torch.long) for name in expected if name.endswith("num_batches_tracked")}
    for slot, block in _pairs(_groups(net), blocks, expected):
        result = {f"{slot.weight}.weight": block.weight}
        if block.bias is not None:
            result[f"{slot.weight}.bias"] = block.bias
        result |= {f"{slot.norm}.{name}": values for name, values in block.norm.items()}
        wanted = {name for name in expected if name.rpartition(".")[0] in (slot.weight, slot.norm)} - state.keys()
        for name in sorted(wanted ^ result.keys()):
            what = "has nothing for" if name in wanted else "has one tensor too many,"
            raise CheckpointError(f"{what} {name}", f"layer {block.name}", _OTHER)
        for name, values in result.items():
            shape = tuple(expected[name].shape)
            if not _same(values.shape, shape):
                raise CheckpointError(f"{values.shape} does not fit {name} {shape}", f"layer {block.name}", _OTHER)
            state[name] = torch.from_numpy(values.reshape(shape))
    return {name: state[name] for name in expected}

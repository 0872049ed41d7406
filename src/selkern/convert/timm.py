"""Weights of timm's SK networks to ours and back: tensors renamed, numbers untouched.

`from_timm` and `to_timm` read one list of pairs from its two ends, so each undoes the other exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from selkern.errors import CheckpointError, UsageError
from selkern.models.skresnet import ARCHITECTURES, SKResNetArchitecture


class Slot(NamedTuple):
    """Where a tensor goes in a state dict: its name and shape."""

    name: str
    shape: tuple[int, ...]


# Our part of a name, timm's, in the order they are replaced. timm's gate is made of 1x1 convolutions.
_UNIT = (
    (".mixer.branches.", ".mixer.paths."),
    (".mixer.gate.fc1.", ".mixer.attn.fc_reduce."),
    (".mixer.gate.fc2.", ".mixer.attn.fc_select."),
    (".mixer.gate.norm.", ".mixer.attn.bn."),
    (".norm.", ".bn."),
    (".shortcut.", ".downsample."),
)
_BOTTLENECK = (
    (".conv1.", ".conv1.conv."),
    (".norm1.", ".conv1.bn."),
    (".mixer.", ".conv2."),
    (".conv3.", ".conv3.conv."),
    (".norm3.", ".conv3.bn."),
)
_BASIC = ((".mixer.", ".conv1."), (".conv3.", ".conv2.conv."), (".norm3.", ".conv2.bn."))


def _timm_name(name: str, arch: SKResNetArchitecture) -> str:
    """timm's name for one of our tensors."""
    part, _, rest = name.partition(".")
    if part == "fc":
        return name
    index, _, rest = rest.partition(".")
    if part == "stem":
        last = 3 * (len(arch.stem) - 1)  # conv, norm, activation per convolution; the last norm has its own name
        if int(index) > last:
            return f"bn1.{rest}"
        return f"conv1.{index}.{rest}" if last else f"conv1.{rest}"
    rest = f".{rest}"
    for ours, theirs in (*_UNIT, *(_BOTTLENECK if arch.bottleneck else _BASIC)):
        rest = rest.replace(ours, theirs)
    return f"layer{int(index) + 1}{rest}"


def _pairs(name: str, classes: int, in_chans: int) -> list[tuple[Slot, Slot]]:
    """(ours, timm's) for every tensor of a network, in its order; built on shapes alone."""
    arch = ARCHITECTURES[name]
    with torch.device("meta"):
        state = arch.build(classes, in_chans).state_dict()
    pairs = []
    for key, tensor in state.items():
        shape = tuple(tensor.shape)
        timm_shape = (*shape, 1, 1) if ".gate.fc" in key else shape
        pairs.append((Slot(key, shape), Slot(_timm_name(key, arch), timm_shape)))
    return pairs


def _known(name: str) -> None:
    if name not in ARCHITECTURES:
        raise UsageError(f"{name!r} is not one of timm's SK networks", "name", f"one of {', '.join(ARCHITECTURES)}")


def _size(state: Mapping[str, Tensor], name: str, axis: int, default: int) -> int:
    """Length of one axis of a tensor; `default` where it is missing, empty or has no such axis."""
    return (state[name].shape[axis] if name in state and state[name].ndim > axis else 0) or default


def _rename(state: Mapping[str, Tensor], pairs: list[tuple[Slot, Slot]], where: str) -> dict[str, Tensor]:
    """Every tensor of `state` from its first slot to its second."""
    fix = "give the whole state dict of this very network"
    renamed = {}
    for have, want in pairs:
        if have.name not in state:
            raise CheckpointError(f"tensor {have.name} is missing", where, fix)
        tensor = state[have.name]
        if tuple(tensor.shape) != have.shape:
            shapes = f"{tuple(tensor.shape)}, the network {have.shape}"
            raise CheckpointError(f"tensor {have.name} has shape {shapes}", where, fix)
        renamed[want.name] = tensor.reshape(want.shape)
    known = {have.name for have, _ in pairs}
    if extra := next((name for name in state if name not in known), None):
        raise CheckpointError(f"tensor {extra} belongs to no layer", where, fix)
    return renamed


def from_timm(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """timm's state dict of a network to the state dict of ours.

    Args:
        state: of timm's model `name`, with any number of classes (or none) and input channels.
        name: `skresnet18`, `skresnet34`, `skresnet50`, `skresnet50d` or `skresnext50_32x4d`.

    Returns:
        Tensors under our names; they share memory with the given ones.

    Raises:
        UsageError: another name.
        CheckpointError: naming the first tensor that is missing, of another shape, or of no layer.
    """
    _known(name)
    first = "conv1.0.weight" if len(ARCHITECTURES[name].stem) > 1 else "conv1.weight"
    pairs = _pairs(name, _size(state, "fc.weight", 0, 0), _size(state, first, 1, 3))
    return _rename(state, [(theirs, ours) for ours, theirs in pairs], f"timm's {name}")


def to_timm(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The inverse of `from_timm`: our state dict of a network to timm's. Arguments and errors are the same."""
    _known(name)
    pairs = _pairs(name, _size(state, "fc.weight", 0, 0), _size(state, "stem.0.weight", 1, 3))
    return _rename(state, pairs, f"selkern's {name}")

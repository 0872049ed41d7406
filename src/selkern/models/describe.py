"""A network block by block: what `selkern models NAME` prints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from selkern.layers.parts import evaluating
from selkern.layers.selective_kernel import SelectiveKernel
from selkern.models.backbone import Backbone, GlobalAvgPool2d
from selkern.models.trunk import SqueezeExcite


@dataclass(frozen=True)
class Block:
    """One line of a network.

    Attributes:
        path: of its module.
        what: its layers in short, norms and activations left out: kernel, stride after a slash, dilation d, groups G,
            channels out; "1x1 128, SK(3x3 G32 + 3x3 d2 G32; d 32) 128, 1x1 256", d of the gate's descriptor.
        output: channels, height and width of its result.
        parameters: its own.
        macs: multiply-adds for one image.
    """

    path: str
    what: str
    output: tuple[int, ...]
    parameters: int
    macs: int


def blocks(model: Backbone, size: int) -> list[Block]:
    """Every block of a network for a (1, in_chans, size, size) image, from stem to classifier.

    Args:
        model: any network of ours; on the meta device nothing is computed.
        size: side of the image, in pixels.
    """
    parts = dict(_parts(model))
    shapes: dict[str, tuple[int, ...]] = {}

    def note(path: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda _module, _inputs, output: shapes.update({path: tuple(output.shape[1:])})

    handles = [part.register_forward_hook(note(path)) for path, part in parts.items()]
    image = torch.empty(1, model.in_chans, size, size, device=next(model.parameters()).device)
    with evaluating(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    for handle in handles:
        handle.remove()
    flops = counter.get_flop_counts()
    root = type(model).__name__
    return [
        Block(
            path,
            ", ".join(_convolutions(part)),
            shapes[path],
            sum(p.numel() for p in part.parameters()),
            sum(flops.get(f"{root}.{path}", {}).values()) // 2,
        )
        for path, part in parts.items()
    ]


def _parts(model: Backbone) -> Iterator[tuple[str, nn.Module]]:
    for path, child in model.named_children():
        if path == "stages":
            for stage, units in child.named_children():
                yield from ((f"stages.{stage}.{i}", unit) for i, unit in units.named_children())
        elif not isinstance(child, nn.Identity | GlobalAvgPool2d):  # what computes nothing that is counted
            yield path, child


def _convolutions(module: nn.Module) -> Iterator[str]:
    """A module's layers in short, in the order they stand; selective kernels as one, the shortcut marked."""
    if isinstance(module, SelectiveKernel):
        yield _kernel(module)
    elif isinstance(module, nn.Conv2d):
        yield _conv(module)
    elif isinstance(module, nn.Linear):
        yield f"linear {module.out_features}"
    elif isinstance(module, nn.MaxPool2d):
        yield f"max-pool {module.kernel_size}x{module.kernel_size}/{module.stride}"
    elif isinstance(module, nn.AvgPool2d):
        yield f"avg-pool {module.kernel_size}x{module.kernel_size}/{module.stride}"
    elif isinstance(module, SqueezeExcite):
        yield "SE"
    else:
        for name, child in module.named_children():
            for text in _convolutions(child):
                yield f"shortcut {text}" if name == "shortcut" else text


def _conv(conv: nn.Conv2d, channels: bool = True) -> str:
    stride = f"/{conv.stride[0]}" if max(conv.stride) > 1 else ""
    dilation = f" d{conv.dilation[0]}" if max(conv.dilation) > 1 else ""
    groups = f" G{conv.groups}" if conv.groups > 1 else ""
    return f"{conv.kernel_size[0]}x{conv.kernel_size[1]}{stride}{dilation}{groups}" + (
        f" {conv.out_channels}" if channels else ""
    )


def _kernel(unit: SelectiveKernel) -> str:
    convs = [module for module in unit.modules() if isinstance(module, nn.Conv2d)]
    branches = " + ".join(_conv(conv, channels=False) for conv in convs)
    if unit.gate is None:
        return f"{branches} {unit.out_channels}" if len(convs) == 1 else f"sum({branches}) {unit.out_channels}"
    return f"SK({branches}; d {unit.gate.fc1.out_features}) {unit.out_channels}"

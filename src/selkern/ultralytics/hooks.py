"""What ultralytics does otherwise for networks with selective kernels: it reads, fuses and loads them."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
import ultralytics
from torch import nn
from ultralytics.nn import tasks
from ultralytics.utils import LOGGER

from selkern.adapt.selectify import put
from selkern.adapt.unit import SelectiveConv
from selkern.errors import PackageError, SelkernError, UsageError
from selkern.ultralytics.rows import Registered, reading

TESTED = "8.4.190"
_EXPECTED = {
    "ultralytics.nn.tasks.parse_model": ("d", "ch", "verbose"),
    "ultralytics.nn.tasks.fuse_conv_and_bn": ("conv", "bn"),
    "ultralytics.nn.tasks.BaseModel.load": ("self", "weights", "verbose"),
}


def register() -> None:
    """Extend ultralytics, once.

    Raises:
        PackageError: this version lacks what is extended, or reads another network than is meant.
    """
    if hasattr(tasks.parse_model, "__wrapped__"):
        return
    for name, arguments in _EXPECTED.items():
        owner: Any = tasks
        for part in name.split(".")[3:]:
            owner = getattr(owner, part, None)
        if owner is None or tuple(inspect.signature(owner).parameters)[: len(arguments)] != arguments:
            raise _unknown(f"has no {name}({', '.join(arguments)})")
    parser = reading(tasks.parse_model, LOGGER.info, lambda name: hasattr(tasks, name))
    try:
        _check(parser)
    except SelkernError:
        raise
    except Exception as error:  # whatever another version makes of it
        raise _unknown(f"cannot read rows of ours ({type(error).__name__}: {error})") from error
    tasks.parse_model = parser
    tasks.fuse_conv_and_bn = fusing(tasks.fuse_conv_and_bn)
    tasks.BaseModel.load = loading(tasks.BaseModel.load)


def _unknown(what: str) -> PackageError:
    fix = f"pip install ultralytics=={TESTED}, which is tested"
    return PackageError(f"ultralytics {ultralytics.__version__} {what}", "selkern.ultralytics", fix)


def _check(parser: Any) -> None:
    """Read a small file: channels have to be inferred and scaled, and rows counted, as is meant."""
    rows = [
        [-1, 1, "Conv", [32, 3, 2]],
        [-1, 1, "SelectiveKernel", [64, [3, 5], 2]],
        [-1, 1, "SKAttention", [None, [1]]],
    ]
    rows += [[[-1, 1], 1, "SKFusion", []], [-1, 1, "Conv", [32, 1]]]
    d = {"nc": 1, "depth_multiple": 1.0, "width_multiple": 0.5, "backbone": rows, "head": []}
    with torch.random.fork_rng(devices=[]):
        network, kept = parser(d, 3, False)
        shape = network[2](network[1](network[0](torch.zeros(2, 3, 8, 8)))).shape
    if (len(network), kept, tuple(shape), network[4].conv.in_channels) != (5, [1], (2, 32, 2, 2), 32):
        raise _unknown("reads model files in another way")


def fusing(fuse: Callable[..., Any]) -> Callable[..., Any]:
    """The function that adds a norm to a convolution's weight, and leaves a selective kernel as it is.

    A unit's branches keep their norms: its results are the same to the bit.
    """

    @functools.wraps(fuse)
    def fuse_conv_and_bn(conv: nn.Module, bn: nn.Module) -> Any:
        if not isinstance(conv, SelectiveConv):
            return fuse(conv, bn)
        whole: nn.Module = conv if isinstance(bn, nn.Identity) else nn.Sequential(conv, bn)
        return whole.requires_grad_(False)

    return fuse_conv_and_bn


def loading(load: Callable[..., Any]) -> Callable[..., Any]:
    """`BaseModel.load`, by which a trainer gives weights to the network it has built anew from the YAML.

    The units of the weights' network are put into it first.
    """

    @functools.wraps(load)
    def load_with_units(self: Any, weights: Any, verbose: bool = True) -> Any:
        source = (weights.get("ema") or weights["model"]) if isinstance(weights, dict) else weights
        adopt(self, source)
        result = load(self, weights, verbose)
        lost = [name for name, _ in units(source) if name not in dict(units(self))]
        if lost:
            LOGGER.warning(
                f"selkern: {len(lost)} selective kernels of the weights have no place here: {', '.join(lost[:3])}"
            )
        return result

    return load_with_units


def units(network: nn.Module) -> list[tuple[str, SelectiveConv]]:
    """The units of `selectify`, with their names."""
    return [(name, module) for name, module in network.named_modules() if isinstance(module, SelectiveConv)]


def adopt(network: nn.Module, source: nn.Module) -> None:
    """Put the units of another network of the same rows into this one, where they fit; weights are copies.

    Raises:
        UsageError: the other has plain convolutions where this one has units.
    """
    here, there = dict(network.named_modules()), dict(source.named_modules())
    plain = [name for name, _ in units(network) if isinstance(there.get(name), nn.Conv2d)]
    if plain:
        fix = "train the plain network, with trainer=selkern.ultralytics.trainer(...)"
        raise UsageError(f"weights of a plain network for one with selective kernels ({plain[0]})", "load", fix)
    for name, unit in units(source):
        conv, origin = here.get(name), unit.origin
        same = isinstance(conv, nn.Conv2d) and conv.weight.shape == getattr(unit.conv, "weight", conv.weight).shape
        if not same or not name.endswith(origin.conv):
            continue
        around = name[: len(name) - len(origin.conv)]
        put(network, name, copy.deepcopy(unit).requires_grad_(True).train(network.training))
        for part in (origin.norm, origin.act):
            if part is not None:
                put(network, around + part, nn.Identity().train(network.training))
    if units(network):
        mark(network)


def mark(network: Any) -> None:
    """Let a checkpoint of the network import this package when it is loaded."""
    network.model.selkern = Registered()

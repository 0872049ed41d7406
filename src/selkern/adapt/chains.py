"""Convolution -> norm -> activation, found by the flow of tensors in one pass of a network, whatever its names."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from selkern.adapt.unit import Geometry, same_padding
from selkern.conformance.trace import Call, Node, Trace, trace_calls
from selkern.layers.parts import CONVS
from selkern.selection.record import find_units

# Operations by which a norm is known: torch's, and those of which hand-written and frozen ones consist.
# fmt: off
_NORMS = frozenset((
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
    "miopen_batch_norm", "batch_norm", "_batch_norm_with_update", "_batch_norm_no_update", "native_group_norm",
    "native_layer_norm", "_fused_rms_norm", "rsqrt", "var", "var_mean", "linalg_vector_norm",
))
_PRODUCTS = frozenset(("convolution", "mm", "addmm", "bmm", "baddbmm"))
# Operations of which activations consist.
_ELEMENTWISE = frozenset((
    "relu", "relu6", "leaky_relu", "silu", "hardswish", "hardtanh", "hardsigmoid", "gelu", "elu", "celu", "selu",
    "mish", "softplus", "sigmoid", "tanh", "clamp", "clamp_min", "clamp_max", "_prelu_kernel", "prelu", "threshold",
    "mul", "add", "div", "view", "clone", "detach", "alias",
))
# fmt: on
# Of these, what a second time changes nothing, nor a mean of results: what clamps to an interval.
_CLAMPS = frozenset(("relu", "relu6", "hardtanh", "clamp", "clamp_min"))
_PADDED = ("reflect", "replicate", "circular")


@dataclass(frozen=True)
class Chain:
    """One convolution of a network, and what becomes of it.

    Attributes:
        name: of its module.
        module: that module, in the network that was run.
        geometry: as it ran; None where it cannot be known.
        size: spatial axes of its result.
        norm: name of the module that alone reads its result and normalises it; None without one.
        act: name of the module that alone reads what follows, an activation that nobody else uses.
        clamp: the interval of an activation that others share, or that is a function: it may run twice.
        keeps_weight: whether the weight that ran is a parameter, and not computed from others in every pass.
        refusal: why it cannot be changed; empty if it can.
    """

    name: str
    module: nn.Module
    geometry: Geometry | None = None
    size: tuple[int, ...] = ()
    norm: str | None = None
    act: str | None = None
    clamp: tuple[float, float] | None = None
    keeps_weight: bool = True
    refusal: str = ""

    @property
    def positions(self) -> int:
        """Of its result, for one image."""
        return math.prod(self.size)

    @property
    def spatial(self) -> bool:
        """Whether it sees more than one position."""
        return self.geometry is not None and self.geometry.spatial

    @property
    def macs(self) -> int:
        """Its multiply-adds, for one image."""
        return self.geometry.weights() * self.positions if self.geometry else 0


@dataclass(frozen=True)
class Survey:
    """A network as one pass showed it.

    Attributes:
        chains: of every convolution, in the order they ran, those that did not run last.
        macs: multiply-adds of the pass for one image: convolutions and matrix products.
        images: of the pass.
    """

    chains: tuple[Chain, ...]
    macs: int
    images: int


def survey(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Survey:
    """Run a network in the mode that it is in, and find its convolutions and what follows each."""
    traced = trace_calls(model, args, kwargs)
    images = next((leaf.shape[0] for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and leaf.ndim), 1)
    finder = _Finder(model, traced)
    return Survey(tuple(finder.chains()), sum(map(_products, traced.nodes)) // max(images, 1), images)


def _products(node: Node) -> int:
    """Multiply-adds of one operation."""
    if node.op == "convolution":
        x, weight = node.args[:2]
        return int((x if node.args[6] else node.value).numel() * math.prod(weight.shape[1:]))
    if node.op in _PRODUCTS:
        return int(node.value.numel() * node.args[1 if node.op in ("addmm", "baddbmm") else 0].shape[-1])
    return 0


def _within(path: str, outer: str) -> bool:
    return not outer or path == outer or path.startswith(f"{outer}.")


def _common(paths: Iterable[str]) -> str:
    """The innermost module that holds all of some."""
    parts = [path.split(".") for path in paths]
    shared = 0
    while all(len(part) > shared for part in parts) and len({part[shared] for part in parts}) == 1:
        shared += 1
    return ".".join(parts[0][:shared])


class _Finder:
    """What one pass shows, sorted for questions about single modules."""

    def __init__(self, model: nn.Module, traced: Trace) -> None:
        self.modules = dict(model.named_modules())
        self.names: dict[nn.Module, list[str]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            self.names.setdefault(module, []).append(name)
        self.owners: dict[int, list[str]] = {}  # of a parameter: all of its names
        for name, p in model.named_parameters(remove_duplicate=False):
            self.owners.setdefault(id(p), []).append(name)
        self.nodes = traced.nodes
        self.parameters = {id(node.value): node for node in traced.nodes if node.op == "parameter"}
        self.calls: dict[str, list[Call]] = {}
        for call in traced.calls:
            self.calls.setdefault(call.path, []).append(call)
        self.returned = set(traced.calls[-1].outputs) if traced.calls else set()
        self.selective = list(find_units(model))

    def chains(self) -> Iterable[Chain]:
        """Of every convolution."""
        ran: dict[str, list[Node]] = {}
        for node in self.nodes:
            if node.op == "convolution":
                ran.setdefault(node.path, []).append(node)
        for name, nodes in ran.items():
            owns_weights = any(True for _ in self.modules[name].parameters(recurse=False))
            if owns_weights or self._is_conv(name):
                yield self._chain(name, nodes)
        for name, module in self.modules.items():
            if self._is_conv(name) and name not in ran:
                yield Chain(name, module, refusal=self._why_not_seen(name, module))

    def _is_conv(self, name: str) -> bool:
        """Whether a module says that it is a convolution, whether or not one ran."""
        module = self.modules[name]
        quantised = "quantized" in type(module).__module__ and hasattr(module, "kernel_size")
        scripted = str(getattr(module, "original_name", "")).startswith("Conv")
        return isinstance(module, _ConvNd) or quantised or scripted

    def _why_not_seen(self, name: str, module: nn.Module) -> str:
        if isinstance(module, torch.jit.ScriptModule):
            return "is scripted"
        if "quantized" in type(module).__module__:
            return "is quantised"
        reader = self._foreign_reader(name, module)
        return f"its weight is read by {reader} without a call" if reader else "does not run on the example"

    def _foreign_reader(self, name: str, module: nn.Module) -> str:
        """A module outside that reads a weight of this one; empty for none."""
        for p in module.parameters():
            node = self.parameters.get(id(p))
            for user in node.users if node else ():
                if not _within(user.path, name):
                    return user.path or "the model's own code"
        return ""

    def _chain(self, name: str, nodes: list[Node]) -> Chain:
        module, node = self.modules[name], nodes[0]
        bare = Chain(name, module, size=tuple(node.value.shape[2:]))
        refusal = self._refusal(name, module, nodes)
        if refusal:
            return replace(bare, refusal=refusal)
        geometry = _geometry(module, node, self.calls[name][0].inputs[0])
        if isinstance(geometry, str):
            return replace(bare, refusal=geometry)
        kept = all(source.op == "parameter" for source in node.inputs[1:])
        bare = replace(bare, geometry=geometry, keeps_weight=kept)
        if bare.positions == 1 and not bare.spatial:
            return replace(bare, refusal="its map has one position")
        return self._followed(bare, node)

    def _refusal(self, name: str, module: nn.Module, nodes: list[Node]) -> str:
        """Why the convolution of a module cannot be changed, whatever its geometry."""
        calls, names = self.calls[name], self.names[module]
        tied = [owner for p in module.parameters() for owner in self.owners[id(p)] if not _within(owner, name)]
        inside = [unit for unit in self.selective if _within(name, unit)]
        reader = self._foreign_reader(name, module)
        reasons = {
            "is the model itself; put it into a Sequential": not name,
            "is transposed": bool(nodes[0].args[6]),
            f"is shared: it is {' and '.join(names)}": len(names) > 1,
            f"runs {len(calls)} times in one pass": len(calls) > 1,
            f"shares its weight with {tied[0] if tied else ''}": bool(tied),
            "is part of a selective kernel": bool(inside),
            f"its weight is read by {reader} without a call": bool(reader),
            "reads a single image without a batch axis": _ndim(calls[0]) == nodes[0].args[1].ndim - 1,
            "computes more than one convolution": len(nodes) > 1,
            _why_other(module): calls[0].outputs != (nodes[0],),
            "is called with more than a map": not calls[0].plain or len(calls[0].inputs) != 1,
            "has no parameters": not any(True for _ in module.parameters()),
        }
        return next((reason for reason, holds in reasons.items() if holds), "")

    def _followed(self, chain: Chain, node: Node) -> Chain:
        """The chain with the norm and the activation that follow."""
        norm = self._sole_reader(node, chain.name)
        if norm is not None and self._is_norm(norm.path):
            chain, node = replace(chain, norm=norm.path), norm.outputs[0]
        act = self._sole_reader(node, chain.name)
        if act is not None and self._is_activation(act):
            return replace(chain, act=act.path)
        readers = list(dict.fromkeys(node.users))
        if len(readers) == 1 and node not in self.returned and readers[0].op in _CLAMPS:
            return replace(chain, clamp=_interval(readers[0]))
        return chain

    def _sole_reader(self, node: Node, conv: str) -> Call | None:
        """The call of a module that alone reads a map, reads nothing else, and gives a map of the same shape.

        None where the reader is a module around the convolution, or one that others use as well.
        """
        path = _common(user.path for user in node.users) if node.users else ""
        if not path or _within(conv, path) or node in self.returned:
            return None
        calls = self.calls[path]
        call = calls[0]
        alone = len(calls) == 1 and len(self.names[self.modules[path]]) == 1
        if not (alone and call.plain and call.inputs == (node,) and len(call.outputs) == 1):
            return None
        return call if call.outputs[0] is not node and call.outputs[0].value.shape == node.value.shape else None

    def _operations(self, path: str) -> Counter[str]:
        return Counter(node.op for node in self.nodes if _within(node.path, path) and node.op != "parameter")

    def _is_norm(self, path: str) -> bool:
        ops = self._operations(path)
        return bool(ops.keys() & _NORMS) and not ops.keys() & _PRODUCTS

    def _is_activation(self, call: Call) -> bool:
        inside = [node for node in self.nodes if _within(node.path, call.path) and node.op != "parameter"]
        return bool(inside) and all(node.op in _ELEMENTWISE for node in inside)


def _why_other(module: nn.Module) -> str:
    """Why a module gives something else than the result of its convolution."""
    kind = type(module)
    hooked, own = bool(module._forward_hooks), not any(kind.forward is conv.forward for conv in CONVS.values())
    if hooked and not own:
        return "has a hook, which changes its result"
    also = " with a hook" if hooked else ""
    return f"is a {kind.__name__}{also}, which computes something else than a convolution"


def _ndim(call: Call) -> int:
    """Axes of what a module was given first."""
    return call.inputs[0].value.ndim if call.inputs else 0


def _interval(node: Node) -> tuple[float, float] | None:
    """What an operation clamps to; None where that is no pair of numbers."""
    low, high = {"relu": (0.0, math.inf), "relu6": (0.0, 6.0), "hardtanh": (-1.0, 1.0)}.get(
        node.op, (-math.inf, math.inf)
    )
    bounds = node.args[1:3]
    if any(isinstance(bound, Tensor) for bound in bounds):
        return None
    low = low if len(bounds) < 1 or bounds[0] is None else float(bounds[0])
    return low, high if len(bounds) < 2 or bounds[1] is None else float(bounds[1])


def _geometry(module: nn.Module, node: Node, x: Node) -> Geometry | str:
    """A convolution as it ran in a module that was given x; or why it cannot be followed by another."""
    read, weight, _bias, stride, padding, dilation, _transposed, _output_padding, groups = node.args
    axes = weight.ndim - 2
    widths = [tuple(part) * (axes if len(part) == 1 else 1) for part in (stride, padding, dilation)]
    kernel = tuple(weight.shape[2:])
    if any(k % 2 == 0 for k in kernel):
        return f"has an even kernel, {'x'.join(map(str, kernel))}, which has no middle"
    made = Geometry(read.shape[1], weight.shape[0], groups, kernel, widths[0], widths[2], ((0, 0),) * axes, "zeros")
    before = node.inputs[0]
    if before is x:
        return replace(made, padding=tuple((p, p) for p in widths[1]))
    mode = getattr(module, "padding_mode", "zeros")
    if mode in _PADDED:
        flat = list(getattr(module, "_reversed_padding_repeated_twice", ()))
        pairs = _pairs(flat, axes)
        return replace(made, padding=pairs, mode=mode) if all(one == other for one, other in pairs) else _UNKNOWN
    if before.op == "constant_pad_nd" and before.inputs[0] is x and not any(widths[1]):
        pairs = _pairs(before.args[1], axes)
        sizes = zip(x.value.shape[2:], made.extent, made.stride, strict=True)
        needed = [same_padding(*size) for size in sizes]
        if pairs == tuple((n // 2, n - n // 2) for n in needed):
            return replace(made, mode="same")
        return replace(made, padding=pairs)
    return _UNKNOWN


_UNKNOWN = "pads or changes its input in a way that cannot be followed"


def _pairs(flat: Sequence[int], axes: int) -> tuple[tuple[int, int], ...]:
    """Zeros before and after each axis, out of the order of `F.pad`, which begins with the last axis."""
    flat = [*flat, *[0] * (2 * axes - len(flat))]
    return tuple((int(flat[2 * i]), int(flat[2 * i + 1])) for i in reversed(range(axes)))

"""Selective-kernel units found in a traced forward pass, whoever wrote the code.

A unit is where a softmax (or a sigmoid) weighs two or more feature maps that are then added: from there its branches
lie one way through the maps, its gate the other way through the descriptors. Nothing is assumed of class names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations, product

import torch
from torch import Tensor

from selkern.conformance.trace import LINEAR_COMBINATION, NAMES, SHAPE, Node

_WEIGHING = frozenset(("mul", "lerp", "addcmul", "bmm", "mm"))
_LINEAR = frozenset(("mm", "addmm", "bmm", "baddbmm", "convolution"))


@dataclass(frozen=True)
class Conv:
    """A convolution as it ran.

    Attributes:
        kernel, dilation, stride: one number per axis.
        groups: its cardinality.
        in_channels: of the map that it read.
        biased: whether it adds a bias.
        node: its place in the trace.
    """

    kernel: tuple[int, ...]
    dilation: tuple[int, ...]
    stride: tuple[int, ...]
    groups: int
    in_channels: int
    biased: bool
    node: Node

    @classmethod
    def of(cls, node: Node) -> Conv:
        """From the arguments of `aten.convolution`."""
        x, weight, bias, stride, _padding, dilation, _transposed, _output_padding, groups = node.args
        axes = weight.ndim - 2
        widths = [tuple(part) * (axes if len(part) == 1 else 1) for part in (stride, dilation)]
        return cls(tuple(weight.shape[2:]), widths[1], widths[0], groups, x.shape[1], bias is not None, node)

    def __str__(self) -> str:
        text = "x".join(map(str, self.kernel))
        dilated = f" d{self.dilation[0]}" if max(self.dilation) > 1 else ""
        return f"{text}{dilated} G{self.groups}"


@dataclass(frozen=True)
class BranchPath:
    """One branch: what ran between the unit's input and the map `u` that is weighed.

    Attributes:
        u: the map, (N, C, *).
        steps: names of convolutions, norms and activations, in order.
        convs: the convolutions among them.
    """

    u: Node
    steps: tuple[str, ...]
    convs: tuple[Conv, ...]

    @property
    def extents(self) -> tuple[int, ...]:
        """Sides of the window it sees, in the unit's input positions."""
        sides, jumps = [1] * self._axes, [1] * self._axes
        for conv in self.convs:
            for axis, (k, d, s) in enumerate(zip(conv.kernel, conv.dilation, conv.stride, strict=True)):
                sides[axis] += (k - 1) * d * jumps[axis]
                jumps[axis] *= s
        return tuple(sides)

    @property
    def _axes(self) -> int:
        return len(self.convs[0].kernel) if self.convs else self.u.value.ndim - 2


@dataclass(frozen=True)
class GateStep:
    """One operation of the gate: its name, and for a linear map the numbers in and out, and whether it adds a bias.

    Maps of the same numbers side by side, one per branch, are one step.
    """

    name: str
    wide: tuple[int, int] | None = None
    biased: bool = False

    def __str__(self) -> str:
        return f"{self.name} {self.wide[0]}-{self.wide[1]}" if self.wide else self.name


@dataclass(frozen=True)
class Anatomy:
    """A unit taken apart.

    Attributes:
        path: the innermost module that holds all of it.
        x: the map that all branches are computed from; None if there is no such map.
        branches: in the order of the selection.
        gate: its steps from the channel statistics to the weights.
        s: what enters the gate's first linear map; None without one.
        weights: the selection as it ran.
        axis: what the softmax runs over: "branches", "images", "64 numbers"; "sigmoid" where it is none.
        a_NMC: the selection; None where its shape does not give a weight per image, branch and channel.
        v: the map that is the sum over the branches of a_m * U_m; None where none is.
        v_error: the largest difference between the two, as a share of the largest value.
    """

    path: str
    x: Node | None
    branches: tuple[BranchPath, ...]
    gate: tuple[GateStep, ...]
    s: Node | None
    weights: Node
    axis: str
    a_NMC: Tensor | None
    v: Node | None
    v_error: float

    @property
    def channels(self) -> int:
        """C of the branches' maps."""
        return int(self.branches[0].u.value.shape[1])


def find_anatomies(nodes: Sequence[Node], images: int) -> list[Anatomy]:
    """Every unit in a trace of a batch of `images`, in the order they ran."""
    result = []
    for node in nodes:
        if node.op in ("_softmax", "sigmoid"):
            weighings = [user for user in _reached(node.users, _users, SHAPE) if user.op in _WEIGHING]
            maps = sorted({u for user in weighings for u in _weighed_maps(user, node)}, key=_when)
            told_apart = len(maps) in node.value.shape or node.value[0].numel() == sum(u.value.shape[1] for u in maps)
            if len(maps) > 1 and len({u.value.shape for u in maps}) == 1 and told_apart:
                result.append(_dissect(node, maps, weighings, images))
    return result


def is_map(node: Node) -> bool:
    """Whether it has positions: (N, C, *) with more than one of them."""
    return node.value.ndim > 2 and math.prod(node.value.shape[2:]) > 1


def _when(node: Node) -> int:
    return node.index


def _users(node: Node) -> Iterable[Node]:
    return node.users


def _sources(node: Node) -> Iterable[Node]:
    return node.sources


def _reached(start: Iterable[Node], step: Callable[[Node], Iterable[Node]], through: Iterable[str]) -> list[Node]:
    """The nodes at `start` and those that steps lead to, going on only from operations in `through`."""
    passable = frozenset(through)
    seen = dict.fromkeys(start)
    todo = list(seen)
    while todo:
        node = todo.pop()
        if node.op in passable:
            new = [other for other in step(node) if other not in seen]
            seen.update(dict.fromkeys(new))
            todo += new
    return list(seen)


def _weighed_maps(weighing: Node, weights: Node) -> set[Node]:
    """The maps that one multiplication weighs, seen through stacks, sums and shape operations."""
    start = [node for node in weighing.sources if weights not in node.ancestors()]
    arranging = SHAPE | LINEAR_COMBINATION
    return {node for node in _reached(start, _sources, arranging) if node.op not in arranging and is_map(node)}


def _dissect(weights: Node, maps: list[Node], weighings: list[Node], images: int) -> Anatomy:
    a, order, v, error = _selection(weights, maps, weighings, images)
    maps = [maps[i] for i in order]
    shared = set.intersection(*(u.ancestors() for u in maps))
    x = max(filter(is_map, shared), key=_when, default=None)
    branches = tuple(_branch(u, x) for u in maps)
    gate, s = _gate(weights, maps[0].value.shape[2:])
    axis = "sigmoid"
    if weights.op == "_softmax":
        size = weights.value.shape[weights.args[1]]
        axis = {len(maps): "branches", images: "images"}.get(size, f"{size} numbers")
    ran_in = [weights.path, *(conv.node.path for branch in branches for conv in branch.convs)]
    return Anatomy(_common(ran_in), x, branches, gate, s, weights, axis, a, v, error)


def _selection(
    weights: Node, maps: list[Node], weighings: list[Node], images: int
) -> tuple[Tensor | None, tuple[int, ...], Node | None, float]:
    """The selection as (N, M, C), the order of the maps it weighs, and the map that is their weighted sum.

    Axes are known by their sizes; where these or the order leave a choice, that one is taken whose weighted sum is
    among the maps that ran.
    """
    u = torch.stack([node.value for node in maps], dim=1)
    m, c = u.shape[1:3]
    after = _reached(weighings, _users, SHAPE | LINEAR_COMBINATION)
    candidates = sorted((node for node in after if node.value.shape == maps[0].value.shape), key=_when)
    value = weights.value.squeeze() if weights.value.ndim > 3 else weights.value
    layouts = [axes for axes in permutations(range(value.ndim)) if [value.shape[i] for i in axes] == [images, m, c]]
    orders = list(permutations(range(m))) if m < 6 else [tuple(range(m))]
    for layout, order in product(layouts, orders):
        a = value.permute(layout)
        expected = (a.reshape(a.shape + (1,) * (u.ndim - 3)) * u[:, list(order)]).sum(1)
        scale = expected.abs().max().item() or 1.0
        for node in candidates:
            error = (node.value - expected).abs().max().item() / scale
            if error < 1e-4:
                return a, order, node, error
    return (value.permute(layouts[0]) if layouts else None), orders[0], None, math.nan


def _branch(u: Node, x: Node | None) -> BranchPath:
    steps: list[str] = []
    convs: list[Conv] = []
    node = u
    while node is not x:
        if node.op == "convolution":
            convs.insert(0, Conv.of(node))
        if node.op not in SHAPE | {"input"}:
            steps.insert(0, NAMES.get(node.op, node.op))
        if not node.sources:
            break
        node = node.sources[0]
    return BranchPath(u, tuple(steps), tuple(convs))


def _gate(weights: Node, space: torch.Size) -> tuple[tuple[GateStep, ...], Node | None]:
    """The operations between the pooled maps and the selection, and what the first linear map reads."""
    before: set[Node] = set()
    todo = [weights]
    while todo:
        node = todo.pop()
        if node not in before and node.value.shape[-len(space) :] != space:
            before.add(node)
            todo += node.sources
    steps: list[GateStep] = []
    layers: dict[Node, set[Node]] = {}  # the numbers read -> the weights of all linear maps that read them
    places: dict[Node, int] = {}
    for node in sorted(before, key=_when):
        weights_of = [p for p in map(_parameter, node.inputs) if p is not None and p.value.ndim > 1]
        if node.op in _LINEAR and weights_of:
            read = _root(next(source for source in node.sources if _parameter(source) is None))
            layers.setdefault(read, set()).update(weights_of)
            wide_in = math.prod(read.value.shape[1:])
            wide = wide_in, sum(w.value.numel() for w in layers[read]) // wide_in
            if places.setdefault(read, len(steps)) == len(steps):
                steps.append(GateStep("linear", wide, _is_biased(node)))
            steps[places[read]] = GateStep("linear", wide, steps[places[read]].biased or _is_biased(node))
        elif node.op in NAMES:
            steps.append(GateStep(NAMES[node.op]))
    return tuple(steps), next(iter(layers), None)


def _root(node: Node) -> Node:
    """What a node was before it was only arranged."""
    while node.op in SHAPE and node.inputs:
        node = node.inputs[0]
    return node


def _parameter(node: Node) -> Node | None:
    root = _root(node)
    return root if root.op == "parameter" else None


def _is_biased(linear: Node) -> bool:
    """Whether the linear map, or an addition after it, adds a parameter of one axis."""
    adding = [user for user in _reached(linear.users, _users, SHAPE) if user.op == "add"]
    return any(p is not None and p.value.ndim == 1 for node in [linear, *adding] for p in map(_parameter, node.inputs))


def _common(paths: Sequence[str]) -> str:
    """The innermost module that holds all of some modules."""
    parts = [path.split(".") for path in paths]
    shared = 0
    while all(len(part) > shared for part in parts) and len({part[shared] for part in parts}) == 1:
        shared += 1
    return ".".join(parts[0][:shared])

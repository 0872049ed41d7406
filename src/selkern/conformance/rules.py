"""What the paper and the authors' prototxt say of a selective-kernel unit and of SKNet, each as a test with evidence.

A rule of a unit gives None where it cannot be asked, for instance of a unit that selects among maps it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from selkern.conformance.anatomy import Anatomy, Conv
from selkern.conformance.trace import NAMES, SHAPE, Node
from selkern.models.registry import architecture
from selkern.models.trunk import Architecture

TOLERANCE = 1e-3  # as a share of the largest value: float32 through a hundred layers
Verdict = tuple[bool, str] | None


@dataclass(frozen=True)
class UnitRule:
    """A rule that every unit must obey: what it asks, where it is written, its test."""

    text: str
    source: str
    judge: Callable[[Anatomy], Verdict]


@dataclass(frozen=True)
class NetworkRule:
    """A rule about a network and the units in it."""

    text: str
    source: str
    judge: Callable[[nn.Module, list[Node], list[Anatomy]], Verdict]


def _convs(unit: Anatomy) -> list[Conv]:
    return [conv for branch in unit.branches for conv in branch.convs]


def _window(sides: tuple[int, ...]) -> str:
    return "x".join(map(str, sides))


def _windows(unit: Anatomy) -> Verdict:
    sides = [branch.extents for branch in unit.branches if branch.convs]
    return (len(set(sides)) == len(unit.branches), ", ".join(map(_window, sides))) if sides else None


def _dilation(unit: Anatomy) -> Verdict:
    convs = _convs(unit)
    return (all(max(conv.kernel) <= 3 for conv in convs), ", ".join(map(str, convs))) if convs else None


def _groups(unit: Anatomy) -> Verdict:
    wide = [conv for conv in _convs(unit) if max(conv.kernel) > 1]
    seen = ", ".join(dict.fromkeys(f"G {conv.groups} of {conv.in_channels} channels" for conv in wide))
    return (all(conv.groups > 1 for conv in wide), seen) if wide else None


def _whole_input(unit: Anatomy) -> Verdict:
    firsts = [branch.convs[0] for branch in unit.branches if branch.convs]
    if unit.x is None or not firsts:
        return None
    whole = unit.x.value.shape[1]
    seen = ", ".join(f"{conv.in_channels} of {whole}" for conv in firsts)
    return all(conv.in_channels == whole for conv in firsts), f"channels read: {seen}"


def _branch_steps(unit: Anatomy) -> Verdict:
    steps = [branch.steps for branch in unit.branches if branch.convs]
    seen = " | ".join(dict.fromkeys(", ".join(step) for step in steps))
    return (set(steps) == {("conv", "BN", "ReLU")}, seen) if steps else None


def _biases(unit: Anatomy) -> Verdict:
    branches = sum(conv.biased for conv in _convs(unit))
    gate = sum(step.biased for step in unit.gate)
    return not branches + gate, f"with bias: {branches} convolutions of the branches, {gate} linear maps of the gate"


def _fuse(unit: Anatomy) -> Verdict:
    total = torch.stack([branch.u.value for branch in unit.branches]).sum(0).flatten(2).mean(2)
    if unit.s is None or unit.s.value.numel() != total.numel():
        return False, "what enters the gate has not one number per image and channel"
    error = (unit.s.value.reshape(total.shape) - total).abs().max().item() / (total.abs().max().item() or 1.0)
    return error < TOLERANCE, f"largest difference {_share(error)}"


def _gate(unit: Anatomy) -> Verdict:
    names = [step.name for step in unit.gate]
    return names[:4] == ["linear", "BN", "ReLU", "linear"] and len(names) <= 5, ", ".join(map(str, unit.gate))


def _width(unit: Anatomy) -> Verdict:
    widths = [step.wide[1] for step in unit.gate if step.wide]
    if len(widths) < 2:
        return False, "no descriptor"
    c, d = unit.channels, widths[0]
    rates = [r for r in (2, 4, 8, 16, 32, 64) if max(c // r, 32) == d]
    return bool(rates), f"C {c}: d {d}"


def _expand(unit: Anatomy) -> Verdict:
    wide = [step.wide for step in unit.gate if step.wide]
    if not wide:
        return False, "no linear map"
    m, c = len(unit.branches), unit.channels
    return wide[-1][1] == m * c, f"{wide[-1][1]} numbers for {m} branches of {c} channels"


def _softmax(unit: Anatomy) -> Verdict:
    return unit.axis == "branches", f"softmax over {unit.axis}" if unit.axis != "sigmoid" else "a sigmoid, no softmax"


def _per_channel(unit: Anatomy) -> Verdict:
    if unit.a_NMC is None:
        return False, f"selection of shape {tuple(unit.weights.value.shape)}"
    n, m, c = unit.a_NMC.shape
    return True, f"{n} images x {m} branches x {c} channels"


def _adds_up(unit: Anatomy) -> Verdict:
    if unit.a_NMC is None:
        return None
    total = unit.a_NMC.sum(1)
    least, most = total.min().item(), total.max().item()
    return abs(least - 1) < TOLERANCE and abs(most - 1) < TOLERANCE, f"sums of {least:.3f} to {most:.3f}"


def _select(unit: Anatomy) -> Verdict:
    if unit.a_NMC is None:
        return None
    return unit.v is not None, f"largest difference {_share(unit.v_error)}" if unit.v else "no such map"


def _after(unit: Anatomy) -> Verdict:
    if unit.v is None:
        return None
    steps: list[str] = []
    node = unit.v
    while len(users := [user for user in node.users if user.value.numel()]) == 1:  # BN has empty results beside
        node = users[0]
        if (node.op not in SHAPE and node.op not in NAMES) or NAMES.get(node.op) == "conv":
            break
        if node.op in NAMES:
            steps.append(NAMES[node.op])
    return not steps, ", ".join(steps) or "nothing"


def _share(error: float) -> str:
    return "below 1e-6" if error < 1e-6 else f"{error:.0e}"


UNIT_RULES = (
    UnitRule("branches see windows of different sizes", "paper 3.1, Split", _windows),
    UnitRule("windows above 3x3 are dilated 3x3 kernels", "paper 3.1; prototxt", _dilation),
    UnitRule("branches are grouped convolutions", "paper 3.1; prototxt: 32", _groups),
    UnitRule("every branch reads the whole input", "paper 3.1, Split", _whole_input),
    UnitRule("a branch is conv, BN, ReLU", "paper 3.1, Split", _branch_steps),
    UnitRule("no biases", "prototxt", _biases),
    UnitRule("the gate reads the mean of the summed branches", "Eq. 1, 2", _fuse),
    UnitRule("the gate is linear, BN, ReLU, linear", "Eq. 3, 5; prototxt", _gate),
    UnitRule("d = max(C / r, 32)", "Eq. 4", _width),
    UnitRule("the gate has weights for each branch", "Eq. 5", _expand),
    UnitRule("softmax over the branches", "Eq. 5", _softmax),
    UnitRule("a weight for every channel", "Eq. 5", _per_channel),
    UnitRule("the weights of a channel add up to 1", "Eq. 6", _adds_up),
    UnitRule("the output is the weighted sum of the branches", "Eq. 6", _select),
    UnitRule("no BN and no ReLU after the weighted sum", "prototxt", _after),
)


def _strides(_model: nn.Module, _nodes: list[Node], units: list[Anatomy]) -> Verdict:
    """Of the convolution whose map a unit reads: where it strides, the block halves in front of the unit."""
    before = []
    for unit in units:
        node = unit.x
        while node is not None and NAMES.get(node.op) in ("BN", "ReLU") and node.sources:
            node = node.sources[0]
        if node is not None and NAMES.get(node.op) == "conv":
            before.append(max(Conv.of(node).stride))
    halving = sum(max(branch.convs[0].stride) > 1 for unit in units for branch in unit.branches[:1] if branch.convs)
    seen = f"{halving} units have a stride, {sum(s > 1 for s in before)} convolutions before a unit"
    return (all(s == 1 for s in before), seen) if before else None


def _published(units: list[Anatomy]) -> str | None:
    """The network of the paper that has as many units of these channels."""
    for name in ("sknet26", "sknet50", "sknet101", "sknet29"):
        row = architecture(name)
        assert isinstance(row, Architecture)
        channels = [c for c, depth in zip(row.mids, row.depths, strict=True) for _ in range(depth)]
        if [unit.channels for unit in units] == channels:
            return name
    return None


def _max_pool(_model: nn.Module, nodes: list[Node], units: list[Anatomy]) -> Verdict:
    pools = [node for node in nodes if node.op == "max_pool2d_with_indices"]
    if _published(units) is None or not pools:
        return None
    # A call leaves out what has its usual value: kernel, stride, padding, dilation, ceil mode.
    given = list(pools[0].args[1:])
    kernel, stride, padding, _, ceil = given + [given[0], [], [0], [1], False][len(given) :]
    seen = f"{_window(tuple(kernel))}, stride {stride[0]}, padding {padding[0]}, {'ceil' if ceil else 'floor'} mode"
    return set(kernel) == {3} and set(padding) == {0} and bool(ceil), seen


def _count(model: nn.Module, _nodes: list[Node], units: list[Anatomy]) -> Verdict:
    """Without the classifier, so that the number of classes does not matter."""
    name = _published(units)
    if name is None:
        return None
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    head = {id(p) for p in linears[-1].parameters()} if linears else set()
    own = sum(p.numel() for p in model.parameters() if id(p) not in head)
    with torch.device("meta"):
        published = sum(p.numel() for p in architecture(name).build(0, 3, False).parameters())
    return own == published, f"{own:,} without the classifier, {name} has {published:,}"


NETWORK_RULES = (
    NetworkRule("a block's stride is in its selective kernel", "prototxt", _strides),
    NetworkRule("max-pool 3x3 without padding, in ceil mode", "prototxt", _max_pool),
    NetworkRule("the parameters of the published network", "Table 1, 5; prototxt", _count),
)

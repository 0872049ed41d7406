"""A unit of `selectify` for inference: norms gone into the convolutions, and fewer passes over the maps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from selkern.deploy.fused import FusedConv, can_fold
from selkern.ops.eager import is_watched
from selkern.ops.select import fuse, select

Fused = Callable[..., FusedConv]  # of a convolution, the norm behind it, and whether a ReLU follows


class FoldedBranches(nn.Module):
    """A unit each of whose branches is one convolution; (N, C_in, *) to (N, C_out, *)."""

    def __init__(self, branches: Sequence[nn.Module], gate: nn.Module, dims: int) -> None:
        super().__init__()
        self.branches, self.gate, self.dims = nn.ModuleList(branches), gate, dims

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, *) to (N, C_out, *)."""
        u = [branch(x) for branch in self.branches]
        return select(u, self.gate(fuse(u, self.dims)), self.dims)


class FoldedSum(nn.Module):
    """A unit whose further branches add to the first one's convolution; (N, C_in, *) to (N, C_out, *).

    Args:
        conv: the first convolution, without its norm.
        norm, act: what follows it in the first branch.
        further: the others' convolutions with the norm behind the sum folded into them.
        scales: that those norms give the first convolution's result, (C,) each.
        acts: what is still to be done behind each of `further`.
    """

    def __init__(
        self,
        conv: FusedConv,
        norm: nn.Module,
        act: nn.Module,
        further: Sequence[FusedConv],
        scales: Sequence[Tensor],
        acts: Sequence[nn.Module],
        gate: nn.Module,
    ) -> None:
        super().__init__()
        self.conv, self.norm, self.act, self.gate = conv, norm, act, gate
        self.further, self.acts = nn.ModuleList(further), nn.ModuleList(acts)
        shape = (-1, *[1] * conv.dims)
        self.scales = nn.ParameterList(nn.Parameter(scale.view(shape), requires_grad=False) for scale in scales)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, *) to (N, C_out, *)."""
        y = self.conv(x)
        further = zip(self.further, self.scales, self.acts, strict=True)
        u = [act(conv(x, y * scale)) for conv, scale, act in further]
        u.insert(0, self.act(self.norm(y)))  # last, as an activation may work in place
        return select(u, self.gate(fuse(u, self.conv.dims)), self.conv.dims)


def fold_branches(
    form: str,
    convs: Sequence[nn.Module],
    norms: Sequence[nn.Module],
    acts: Sequence[nn.Module],
    gate: nn.Module,
    fused: Fused,
) -> nn.Module | None:
    """A unit for inference out of its branches' parts, the first one's first; None where they cannot be folded."""
    if not all(can_fold(conv, norm) for conv, norm in zip(convs, norms, strict=True)):
        return None
    first, dims = convs[0], convs[0].get_parameter("weight").ndim - 2
    ends = [isinstance(act, nn.ReLU) and not is_watched(act) for act in acts]
    rest = [nn.Identity() if end else act for act, end in zip(acts, ends, strict=True)]
    depthwise = first.get_parameter("weight").shape[1] == 1
    if form == "residual" and depthwise:  # whose larger kernels cost little
        convs = [first, *(merged(first, conv) for conv in convs[1:])]
    elif form == "residual":
        further = [fused(*parts) for parts in zip(convs[1:], norms[1:], ends[1:], strict=True)]
        scales = [_scale(norm, first.get_parameter("weight")) for norm in norms[1:]]
        return FoldedSum(fused(first, nn.Identity(), False), norms[0], acts[0], further, scales, rest[1:], gate)
    branches = [fused(*parts) for parts in zip(convs, norms, ends, strict=True)]
    return FoldedBranches([nn.Sequential(*parts) for parts in zip(branches, rest, strict=True)], gate, dims)


def _scale(norm: nn.Module, weight: Tensor) -> Tensor:
    """What a norm in eval mode multiplies each channel by, (C,)."""
    scale = weight.new_ones(len(weight))
    if isinstance(norm, _BatchNorm):
        assert norm.running_var is not None
        scale = (norm.running_var + norm.eps).rsqrt() * (scale if norm.weight is None else norm.weight)
    return scale.detach()


@torch.no_grad()
def merged(conv: nn.Module, further: nn.Module) -> nn.Module:
    """One convolution for the sum of two of the same centres, stride and groups: the window of the second is larger."""
    result = copy.deepcopy(further)
    small, large, weight = (part.get_parameter("weight") for part in (conv, further, result))
    sides, extents = _extents(further), _extents(conv)
    weight.data = large.new_zeros(*large.shape[:2], *sides)
    for part, kernel, window in ((further, large, sides), (conv, small, extents)):
        taps = [
            slice((side - extent) // 2, (side + extent) // 2, step)
            for side, extent, step in zip(sides, window, _steps(part), strict=True)
        ]
        at: tuple[Any, ...] = (..., *taps)
        weight[at] += kernel
    result.dilation, result.kernel_size = (1,) * len(sides), tuple(sides)  # type: ignore[assignment]
    result.bias = None if conv.bias is None else nn.Parameter(conv.get_parameter("bias").clone())
    return result


def _extents(conv: nn.Module) -> list[int]:
    """Sides of the window that a convolution sees."""
    kernel = conv.get_parameter("weight").shape[2:]
    return [(k - 1) * step + 1 for k, step in zip(kernel, _steps(conv), strict=True)]


def _steps(conv: nn.Module) -> tuple[int, ...]:
    return tuple(conv.dilation)  # type: ignore[arg-type]

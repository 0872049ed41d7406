"""BatchNorm and ReLU of the branches, Fuse, Select: kept for the backward pass are the convolutions' outputs alone.

Plain autograd keeps, for every branch, the convolution's output (for BatchNorm) and the activation's output (for ReLU
and Select). The second follows from the first and two small vectors, so it is thrown away after the forward pass and
made again in the backward pass: a third less memory held, for one more elementwise pass.

The gate between Fuse and Select stays what it is, an ordinary module. `fuse` and `select` are two autograd functions on
its two sides that share a `Pass`. Between them run the convolutions' outputs themselves as stand-ins for the branches'
maps: the gradient that `select` sends back through a stand-in is that of the map, and `fuse` finishes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from selkern.ops import kernels
from selkern.ops import select as ops
from selkern.ops.norm import BatchNorm

if TYPE_CHECKING:
    from selkern.ops.triton.fuse_select import Fused


class Pass:
    """One forward pass through a unit: what `fuse` leaves for `select`, and `select`'s backward for `fuse`'s.

    Attributes:
        norms: of the branches.
        moments: mean and 1 / deviation that each branch was normalised by, (C,) each.
        maps: the branches' maps between the two halves of the forward, or of the backward pass.
    """

    def __init__(self, norms: Sequence[BatchNorm]) -> None:
        self.norms = tuple(norms)
        self.moments: list[tuple[Tensor, Tensor]] = []
        self.maps: list[Tensor] | None = None

    def take(self) -> list[Tensor] | None:
        """The maps, which are kept no longer."""
        maps, self.maps = self.maps, None
        return maps


def fuse(
    norms: Sequence[BatchNorm], y: Sequence[Tensor], statistics: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, list[Tensor], Pass | Fused]:
    """Convolutions' outputs (N, C, *) to s (N, C), stand-ins for the branches' maps, and the pass for `select`.

    Args:
        norms: of the branches.
        y: their convolutions' outputs.
        statistics: mean and biased variance of y, (M, C) float32, where our kernels have made them already.
    """
    if kernels.is_chosen("fuse_select", y[0]):
        from selkern.ops.triton import fuse_select  # loaded where Triton is there alone

        if fuse_select.is_supported(y, norms):
            s_NC, fused = fuse_select.fuse(norms, y, statistics)
            return s_NC, fused.y, fused
    state = Pass(norms)
    weights = [norm.weight for norm in norms]
    biases = [norm.bias for norm in norms]
    s_NC, *stand_ins = _Fuse.apply(state, len(y), *y, *weights, *biases)  # type: ignore[no-untyped-call]
    return s_NC, stand_ins, state


def select(state: Pass | Fused, stand_ins: Sequence[Tensor], a_NMC: Tensor) -> Tensor:
    """Stand-ins and the selection a (N, M, C) to V (N, C, *)."""
    if not isinstance(state, Pass):
        from selkern.ops.triton import fuse_select

        return fuse_select.select(state, a_NMC)
    return _Select.apply(state, a_NMC, *stand_ins)  # type: ignore[no-untyped-call]


class Remade:
    """A map that is not kept for the backward pass but made again there, once for all convolutions that read it.

    Args:
        make: gives the map.
    """

    def __init__(self, make: Callable[[], Tensor]) -> None:
        self.make = make
        self.readers, self.waiting = 0, 0
        self.map: Tensor | None = None

    def read(self) -> Tensor:
        """The map, let go when its last reader has it."""
        u = self.make() if self.map is None else self.map
        self.waiting = (self.waiting or self.readers) - 1
        self.map = u if self.waiting else None
        return u


def again(state: Pass | Fused, stand_ins: Sequence[Tensor], a_NMC: Tensor) -> Remade:
    """V once more."""
    y, a = [stand_in.detach() for stand_in in stand_ins], a_NMC.detach()
    return Remade(
        lambda: ops.select([_normalised(*each) for each in zip(y, state.norms, state.moments, strict=True)], a)
    )


def norm_relu(norm: BatchNorm, y: Tensor) -> tuple[Tensor, Remade]:
    """u = relu(BN(y)), (N, C, *), and u once more."""
    state = Pass([norm])
    u = _NormReLU.apply(state, y, norm.weight, norm.bias)  # type: ignore[no-untyped-call]
    detached, moments = y.detach(), state.moments[0]
    return u, Remade(lambda: _normalised(detached, norm, moments))


def convolve(conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor, remade: Remade | None) -> Tensor:
    """`conv(x)`, without keeping x where it can be made again."""
    if remade is None or not torch.is_grad_enabled():
        return conv(x)
    remade.readers += 1
    return _Conv.apply(conv, remade, x, conv.weight, conv.bias)  # type: ignore[no-untyped-call]


def max_pool(pool: nn.MaxPool2d, u: Tensor, alike: Tensor) -> Tensor:
    """`pool(u)`, keeping for the backward pass `alike`, a tensor of u's shape that is kept anyway, in place of u."""
    return _MaxPool.apply(pool, u, alike)  # type: ignore[no-untyped-call]


@torch.no_grad()
def _normalised(y: Tensor, norm: BatchNorm, moments: tuple[Tensor, Tensor]) -> Tensor:
    """relu(BN(y)) by known moments."""
    mean, invstd = moments
    variance = invstd.pow(-2) - norm.eps  # of which the operator makes 1 / deviation again
    return torch.batch_norm(y, norm.weight, norm.bias, mean, variance, False, 0.0, norm.eps, False).relu_()


def _normalise(y: Tensor, norm: BatchNorm, state: Pass) -> Tensor:
    """relu(BN(y)), with its moments noted and the running statistics updated."""
    u, mean, invstd = torch.native_batch_norm(
        y, norm.weight, norm.bias, norm.mean, norm.var, norm.training, norm.momentum, norm.eps
    )
    if not norm.training:  # of which the operator tells nothing
        assert norm.mean is not None
        assert norm.var is not None
        mean, invstd = norm.mean.clone(), (norm.var + norm.eps).rsqrt()
    state.moments.append((mean, invstd))
    return u.relu_()


def _norm_relu_backward(
    du: Tensor, u: Tensor, y: Tensor, norm: BatchNorm, moments: tuple[Tensor, Tensor], needs_dy: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of y, weight and bias from that of u = relu(BN(y))."""
    g = torch.ops.aten.threshold_backward(du, u, 0)  # where the ReLU let something pass
    mask = [needs_dy, norm.weight is not None, norm.bias is not None]
    return torch.ops.aten.native_batch_norm_backward(
        g, y, norm.weight, norm.mean, norm.var, *moments, norm.training, norm.eps, mask
    )


class _Fuse(torch.autograd.Function):
    """y of every branch, weights and biases of the norms to s, and each y again as a stand-in."""

    @staticmethod
    def forward(ctx: Any, state: Pass, branches: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        y = tensors[:branches]
        state.maps = [_normalise(y_m, norm, state) for y_m, norm in zip(y, state.norms, strict=True)]
        ctx.state, ctx.branches = state, branches
        ctx.save_for_backward(*tensors)
        return ops.fuse(state.maps), *(y_m.view_as(y_m) for y_m in y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, ds_NC: Tensor, *du: Tensor) -> tuple[Tensor | None, ...]:
        state, y = ctx.state, ctx.saved_tensors[: ctx.branches]
        maps = state.take()
        space = y[0].shape[2:]
        ds = (ds_NC / math.prod(space)).reshape(ds_NC.shape + (1,) * len(space))
        grads = []
        for i, (norm, moments) in enumerate(zip(state.norms, state.moments, strict=True)):
            u = _normalised(y[i], norm, moments) if maps is None else maps[i]
            total = du[i] + ds.to(u.dtype)
            grads.append(_norm_relu_backward(total, u, y[i], norm, moments, ctx.needs_input_grad[2 + i]))
        dy, dweights, dbiases = zip(*grads, strict=True)
        return None, None, *dy, *dweights, *dbiases


class _Select(torch.autograd.Function):
    """The selection and the stand-ins to V."""

    @staticmethod
    def forward(ctx: Any, state: Pass, a_NMC: Tensor, *stand_ins: Tensor) -> Tensor:
        u = state.take()
        assert u is not None
        ctx.state = state
        ctx.save_for_backward(a_NMC, *stand_ins)
        return ops.select(u, a_NMC)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dv: Tensor) -> tuple[Tensor | None, ...]:
        state = ctx.state
        a_NMC, *y = ctx.saved_tensors
        columns = a_NMC.to(dv.dtype).reshape(a_NMC.shape + (1,) * (dv.ndim - 2)).unbind(1)
        space = tuple(range(2, dv.ndim))
        u = [_normalised(*each) for each in zip(y, state.norms, state.moments, strict=True)]
        state.maps = u  # which `fuse` needs next
        da = torch.stack([(dv * u_m).sum(space, dtype=a_NMC.dtype) for u_m in u], dim=1)
        return None, da, *(dv * column for column in columns)


class _NormReLU(torch.autograd.Function):
    """relu(BN(y)) that keeps y alone."""

    @staticmethod
    def forward(ctx: Any, state: Pass, y: Tensor, *affine: Tensor) -> Tensor:
        ctx.state = state
        ctx.save_for_backward(y, *affine)
        return _normalise(y, state.norms[0], state)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, du: Tensor) -> tuple[Tensor | None, ...]:
        norm, moments, y = ctx.state.norms[0], ctx.state.moments[0], ctx.saved_tensors[0]
        u = _normalised(y, norm, moments)
        return None, *_norm_relu_backward(du, u, y, norm, moments, ctx.needs_input_grad[1])


class _Conv(torch.autograd.Function):
    """A convolution that makes its input again."""

    @staticmethod
    def forward(ctx: Any, conv: nn.Conv2d, remade: Remade, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.remade = remade
        ctx.how = (conv.stride, conv.padding, conv.dilation, False, [0] * len(conv.stride), conv.groups)
        ctx.bias = None if bias is None else list(bias.shape)
        ctx.save_for_backward(weight)
        return conv(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        # Under autocast the convolution ran in its type, which is the gradient's.
        x, w = ctx.remade.read().to(dy.dtype), weight.to(dy.dtype)
        grads = torch.ops.aten.convolution_backward(dy, x, w, ctx.bias, *ctx.how, list(ctx.needs_input_grad[2:]))
        return None, None, *grads


class _MaxPool(torch.autograd.Function):
    """A max-pool that keeps where the largest values were."""

    @staticmethod
    def forward(ctx: Any, pool: nn.MaxPool2d, u: Tensor, alike: Tensor) -> Tensor:
        sides = (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
        ctx.how = (*([side] * 2 if isinstance(side, int) else list(side) for side in sides), pool.ceil_mode)
        pooled, indices = torch.ops.aten.max_pool2d_with_indices(u, *ctx.how)
        ctx.save_for_backward(alike, indices)
        return pooled

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        alike, indices = ctx.saved_tensors  # of the first, the operator asks the shape alone
        return None, torch.ops.aten.max_pool2d_with_indices_backward(dy, alike, *ctx.how, indices), None

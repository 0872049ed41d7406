"""BatchNorm, ReLU, Fuse and Select of M branches by kernels: registered operators, their gradients, `fuse`, `select`.

The gate between Fuse and Select is an ordinary module, so they are two operators, yet the gradient of the maps y needs
both: gu = on * (a * dV + ds / HW), where dV reaches Select and ds reaches Fuse. Two *links*, outputs of Fuse and inputs
of Select that nobody reads, carry the rest from the one to the other:

- `link_v` has the shape of V and no memory behind it. Its gradient is dV itself.
- `link_a` is (3, N, M, C), without memory too. Its gradient is the stack of a, P(dV) and Q(dV) (docs/kernels.md).

Autograd runs Fuse's backward when it has ds and both of these, and there every gradient but that of a is made. As they
are no true gradients of anything, each `fuse` serves one `select`, and there are no second derivatives.

The operators take `norms` = mean, invstd, weight, bias of the branches' BatchNorms, (M, C) float32 each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, library

from selkern.ops import recompute
from selkern.ops import select as ops
from selkern.ops.norm import BatchNorm
from selkern.ops.triton import fuse_select_launch as launch
from selkern.ops.triton.fuse_select_kernels import Norms

MOST_BRANCHES = 4


@library.custom_op("selkern::branch_moments", mutates_args=())
def branch_moments(y: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of M maps over N, H and W, (M, C) float32 each."""
    return launch.moments(y)


@branch_moments.register_fake
def _(y: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    mean, variance = (y[0].new_empty((len(y), y[0].shape[1]), dtype=torch.float32) for _ in range(2))
    return mean, variance


@library.custom_op("selkern::branch_sums", mutates_args=())
def branch_sums(weights: Tensor, y: Sequence[Tensor], norms: Sequence[Tensor]) -> Tensor:
    """P and Q of docs/kernels.md for a map of weights, (2, N, M, C) float32."""
    return launch.sums(weights, y, Norms(*norms))


@branch_sums.register_fake
def _(weights: Tensor, y: Sequence[Tensor], *_: Any) -> Tensor:  # noqa: ARG001 - the op's own arguments
    return _sums_like(y)


@library.custom_op("selkern::branch_gradients", mutates_args=())
def branch_gradients(
    dv: Tensor, y: Sequence[Tensor], norms: Sequence[Tensor], a_NMC: Tensor, ds_NC: Tensor, averages_2MC: Tensor
) -> list[Tensor]:
    """dy of every branch, from dV, ds / HW and the means over N and HW of gu and gu * yhat."""
    return launch.gradients(dv, y, Norms(*norms), a_NMC, ds_NC, averages_2MC)


@branch_gradients.register_fake
def _(dv: Tensor, y: Sequence[Tensor], *_: Any) -> list[Tensor]:  # noqa: ARG001 - the op's own arguments
    return [_map_like(y) for _ in y]


@library.custom_op("selkern::fuse_branches", mutates_args=())
def fuse_branches(
    y: Sequence[Tensor], norms: Sequence[Tensor], batch_statistics: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """s (N, C) in y's dtype, P(1) and Q(1) (2, N, M, C), and the two links.

    Args:
        y: M maps.
        norms: see the file's text; their weight and bias have gradients.
        batch_statistics: mean and invstd are those of y, so that y's gradient goes through them, too.
    """
    del batch_statistics  # of use to the backward pass alone
    _mean, _invstd, weight, bias = norms
    sums = launch.sums(None, y, Norms(*norms))
    s_NC = torch.addcmul(bias * sums[0], weight, sums[1]).sum(1) / y[0].shape[2:].numel()
    return s_NC.to(y[0].dtype), sums, *_links(y)


@fuse_branches.register_fake
def _(y: Sequence[Tensor], *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return y[0].new_empty(y[0].shape[:2]), _sums_like(y), *_links(y)


def _keep_fuse(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    y, norms, ctx.batch_statistics = inputs
    ctx.save_for_backward(*norms, output[1], *y)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # a link without a gradient would become a map of zeros


def _fuse_backward(
    ctx: Any, ds_NC: Tensor | None, _dsums: None, dv: Tensor | None, dlink_a: Tensor | None
) -> tuple[Any, ...]:
    mean, invstd, weight, bias, ones, *y = ctx.saved_tensors
    batch, _channels, height, width = y[0].shape
    # Where V, or s, has not been used, it has no share.
    a, p, q = ones.new_zeros((3, *ones.shape[1:])) if dlink_a is None else dlink_a
    ds = ones.new_zeros(y[0].shape[:2]) if ds_NC is None else ds_NC.float() / (height * width)
    dbias = torch.addcmul(a * p, ds[:, None], ones[0]).sum(0)
    dweight = torch.addcmul(a * q, ds[:, None], ones[1]).sum(0)
    dy: list[Tensor | None] = [None] * len(y)
    if any(ctx.needs_input_grad[0]):
        dv = y[0].new_zeros(()).expand(y[0].shape) if dv is None else dv
        averages = torch.stack([dbias, dweight]) * (1 / (batch * height * width) if ctx.batch_statistics else 0.0)
        dy = branch_gradients(dv, y, [mean, invstd, weight, bias], a, ds, averages)
    return dy, [None, None, dweight, dbias], None


fuse_branches.register_autograd(_fuse_backward, setup_context=_keep_fuse)


@library.custom_op("selkern::select_branches", mutates_args=())
def select_branches(
    y: Sequence[Tensor], norms: Sequence[Tensor], a_NMC: Tensor, link_v: Tensor, link_a: Tensor
) -> Tensor:
    """V (N, C, H, W) in y's dtype, from M maps, their norms and the selection a (N, M, C)."""
    del link_v, link_a  # of use to the backward pass alone
    return launch.select(y, Norms(*norms), a_NMC)


@select_branches.register_fake
def _(y: Sequence[Tensor], *_: Any) -> Tensor:
    return _map_like(y)


def _keep_select(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 - torch names them
    y, norms, a_NMC, _link_v, _link_a = inputs
    ctx.save_for_backward(*norms, a_NMC, *y)


def _select_backward(ctx: Any, dv: Tensor) -> tuple[Any, ...]:
    mean, invstd, weight, bias, a_NMC, *y = ctx.saved_tensors
    p, q = branch_sums(dv, y, [mean, invstd, weight, bias])
    da = torch.addcmul(bias * p, weight, q).to(a_NMC.dtype)
    return [None] * len(y), [None] * 4, da, dv, torch.stack([a_NMC.float(), p, q])


select_branches.register_autograd(_select_backward, setup_context=_keep_select)


@dataclass(frozen=True)
class Fused:
    """What one `fuse` leaves for its `select`.

    Attributes:
        norms: of the branches.
        moments: mean and 1 / deviation that each branch was normalised by, (C,) float32 each.
        y: the maps, without their history.
        affine: mean, invstd, weight and bias, (M, C) float32 each, without history.
        links: see the file's text.
    """

    norms: tuple[BatchNorm, ...]
    moments: list[tuple[Tensor, Tensor]]
    y: list[Tensor]
    affine: list[Tensor]
    links: tuple[Tensor, Tensor]


def is_supported(y: Sequence[Tensor], norms: Sequence[BatchNorm]) -> bool:
    """Whether the kernels take these maps: 1 to 4 of one shape, two spatial axes, norms of one mode and one eps."""
    first = y[0]
    return (
        1 <= len(y) <= MOST_BRANCHES
        and first.ndim == 4
        and first.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and 0 < first.numel() < 2**31 * first.shape[0]  # an offset within a sample is int32
        and all((each.shape, each.dtype, each.device) == (first.shape, first.dtype, first.device) for each in y)
        and all((norm.training, norm.eps) == (norms[0].training, norms[0].eps) for norm in norms)
    )


def fuse(
    norms: Sequence[BatchNorm], y: Sequence[Tensor], statistics: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Fused]:
    """M convolutions' outputs (N, C, H, W) to s (N, C), and what `select` needs; updates running statistics.

    Nothing is cast: s and V have y's dtype, under autocast too, as those of BatchNorm and the mean have.

    Args:
        norms: of the branches; for `is_supported` ones.
        y: the maps.
        statistics: mean and biased variance of y over N, H and W, (M, C) float32 each, where they are known already.
    """
    detached, training = [y_m.detach() for y_m in y], norms[0].training
    with torch.no_grad():
        if not training:
            mean = torch.stack([_known(norm.mean) for norm in norms]).float()
            variance = torch.stack([_known(norm.var) for norm in norms]).float()
        else:
            mean, variance = branch_moments(detached) if statistics is None else statistics
            _update(norms, mean, variance, y[0].numel() // y[0].shape[1])
        invstd = (variance + norms[0].eps).rsqrt()
    row = mean[0]
    weight = torch.stack([torch.ones_like(row) if norm.weight is None else norm.weight.float() for norm in norms])
    bias = torch.stack([torch.zeros_like(row) if norm.bias is None else norm.bias.float() for norm in norms])
    s_NC, _sums, link_v, link_a = fuse_branches(list(y), [mean, invstd, weight, bias], training)
    affine = [mean, invstd, weight.detach(), bias.detach()]
    moments = list(zip(mean.unbind(), invstd.unbind(), strict=True))
    return s_NC, Fused(tuple(norms), moments, detached, affine, (link_v, link_a))


def select(state: Fused, a_NMC: Tensor, *, lean: bool = False) -> Tensor:
    """The selection a (N, M, C) to V (N, C, H, W), once for each `fuse`; if `lean`, with a recipe (`ops.recompute`)."""
    v = select_branches(state.y, state.affine, a_NMC, *state.links)
    if lean and recompute.is_possible(v):
        a = a_NMC.detach()

        def make() -> Tensor:
            parts = zip(state.y, state.norms, state.moments, strict=True)
            u = [recompute.normalised(y, norm.weight, norm.bias, *moments, norm.eps) for y, norm, moments in parts]
            return ops.select(u, a)

        recompute.Recipe(make).attach(v)
    return v


def _update(norms: Sequence[BatchNorm], mean: Tensor, variance: Tensor, count: int) -> None:
    """Running statistics as torch moves them: the variance without its bias."""
    unbiased = variance * (count / max(count - 1, 1))
    for norm, new_mean, new_variance in zip(norms, mean.unbind(), unbiased.unbind(), strict=True):
        for running, new in ((norm.mean, new_mean), (norm.var, new_variance)):
            if running is not None:
                running.lerp_(new.to(running.dtype), norm.momentum)


def _known(statistic: Tensor | None) -> Tensor:
    assert statistic is not None  # without running statistics a norm is always training
    return statistic


def _map_like(y: Sequence[Tensor]) -> Tensor:
    return torch.empty_like(y[0], memory_format=launch.layout(y[0]))


def _sums_like(y: Sequence[Tensor]) -> Tensor:
    batch, channels = y[0].shape[:2]
    return y[0].new_empty((2, batch, len(y), channels), dtype=torch.float32)


def _links(y: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Tensors of the links' shapes with one number behind each."""
    batch, channels = y[0].shape[:2]
    link_a = y[0].new_zeros((), dtype=torch.float32).expand(3, batch, len(y), channels)
    return y[0].new_zeros(()).expand(y[0].shape), link_a

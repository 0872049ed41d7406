"""A dilated depthwise convolution whose backward pass is about as fast as its forward pass.

On a CPU torch computes the gradients of a dilated depthwise convolution 5 to 30 times more slowly than those of a plain
one, while its forward pass has fast code for dilation (`benchmarks/selectify.py dilated`). Here the gradient of the
input is what it is by definition, a dilated convolution of the output's gradient with the turned kernel, and that of
the weight comes from interleaved maps, on which the kernel is a plain one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from selkern.ops.eager import is_eager


def depthwise_conv2d(x: Tensor, weight: Tensor, stride: int, padding: int, dilation: int) -> Tensor:
    """(N, C, H, W) to (N, C, H', W') by a kernel (C, 1, 3, 3).

    The result is `F.conv2d`'s to the bit, the gradients up to rounding.
    """
    if _is_worthwhile(x, weight, padding, dilation):
        return _Depthwise.apply(x, weight, stride, padding, dilation)  # type: ignore[no-untyped-call]
    return F.conv2d(x, weight, None, stride, padding, dilation, x.shape[1])


def _is_worthwhile(x: Tensor, weight: Tensor, padding: int, dilation: int) -> bool:
    """Whether torch's own backward pass would be slow here, and nothing else sees the operators that run."""
    return (
        is_eager(x, modes=True)
        and torch.is_grad_enabled()
        and (x.requires_grad or weight.requires_grad)
        and x.device.type == "cpu"
        and x.dtype == weight.dtype
        and x.dtype in (torch.float32, torch.float64)  # narrower ones cannot hold the sums over taps
        and not torch.is_autocast_enabled("cpu")
        and dilation > 1
        and padding in (0, dilation)
        and x.numel() > 0
    )


class _Depthwise(torch.autograd.Function):
    """Padding is none or the dilation. The backward pass is made of operators that have derivatives, so it has too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)
        ctx.geometry = stride, padding, dilation
        return F.conv2d(x, weight, None, stride, padding, dilation, x.shape[1])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        x, weight = ctx.saved_tensors
        stride, padding, dilation = ctx.geometry
        read = x
        if stride == dilation:  # every position that is read is a multiple of it: among those the kernel is a plain one
            read, padding, dilation = x[:, :, ::stride, ::stride], padding // dilation, 1
        elif stride > 1:  # as if the positions between had been computed too
            dy = _spread(dy, [size + 2 * (padding - dilation) for size in x.shape[2:]], stride)
        dx = dweight = None
        if ctx.needs_input_grad[0]:
            dx = F.conv2d(dy, weight.flip(2, 3), None, 1, 2 * dilation - padding, dilation, x.shape[1])
            dx = _spread(dx, x.shape[2:], stride) if read is not x else dx
        if ctx.needs_input_grad[1]:
            dweight = _weight_gradient(read, dy, weight, padding, dilation)
        return dx, dweight, None, None, None

    @staticmethod
    def jvp(ctx: Any, x_tangent: Tensor | None, weight_tangent: Tensor | None, *_: None) -> Tensor:
        x, weight = ctx.saved_tensors
        stride, padding, dilation = ctx.geometry
        pairs = [(a, b) for a, b in ((x_tangent, weight), (x, weight_tangent)) if a is not None and b is not None]
        terms = [F.conv2d(a, b, None, stride, padding, dilation, x.shape[1]) for a, b in pairs]
        return sum(terms[1:], start=terms[0])


def _spread(part: Tensor, size: Sequence[int], step: int) -> Tensor:
    """A map of that size with `part` at every step-th position, and zeros between."""
    n, c = part.shape[:2]
    whole = part.new_zeros(n, size[0], size[1], c).permute(0, 3, 1, 2)
    whole[:, :, ::step, ::step] = part
    return whole


def _weight_gradient(x: Tensor, dy: Tensor, weight: Tensor, padding: int, dilation: int) -> Tensor:
    """Where the stride is 1."""
    if min(x.shape[2:]) < 3 * dilation:  # so few positions that the maps below are mostly padding
        return _by_taps(x, dy, padding, dilation).view_as(weight)
    if dilation > 1:
        x, dy, padding = _interleaved(x, dilation), _interleaved(dy, dilation), padding // dilation
    ones = [1, 1]
    gradients = torch.ops.aten.convolution_backward(
        dy, x, weight, None, ones, [padding] * 2, ones, False, [0, 0], x.shape[1], [False, True, False]
    )
    return gradients[1]


def _interleaved(x: Tensor, step: int) -> Tensor:
    """(N, C, H, W) as step * step maps of every step-th position: (step * step * N, C, H / step, W / step), rounded up.

    A window of dilation `step` on x is a plain one on one of them.
    """
    n, c, height, width = x.shape
    down, right = -height % step, -width % step
    x = x.permute(0, 2, 3, 1)  # channels last, in which this is a copy of long rows
    if down or right:
        x = F.pad(x, (0, 0, 0, right, 0, down))
    rows, columns = (height + down) // step, (width + right) // step
    parts = x.reshape(n, rows, step, columns, step, c).permute(2, 4, 0, 1, 3, 5)
    return parts.reshape(step * step * n, rows, columns, c).permute(0, 3, 1, 2)


def _by_taps(x: Tensor, dy: Tensor, padding: int, dilation: int) -> Tensor:
    """(C, 9): of each tap of the kernel the sum over all that it has been multiplied with."""
    taps = [tap * dilation - padding for tap in range(3)]
    rows, columns = ([_overlap(tap, *sizes) for tap in taps] for sizes in zip(x.shape[2:], dy.shape[2:], strict=True))
    products = (x[:, :, i, j] * dy[:, :, out_i, out_j] for i, out_i in rows for j, out_j in columns)
    return torch.stack([product.sum((0, 2, 3)) for product in products], dim=1)


def _overlap(tap: int, read: int, made: int) -> tuple[slice, slice]:
    """Of an axis of `read` positions and one of `made`, those where i + tap of the first meets i of the second."""
    low, high = max(0, -tap), max(0, min(made, read - tap))
    return slice(low + tap, max(low, high) + tap), slice(low, max(low, high))

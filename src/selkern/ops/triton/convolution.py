"""Convolutions of M branches over one input, grouped and dilated: the operators, and `convolve`.

The same as M calls of `torch.nn.functional.conv2d`, from one read of x, and with the outputs' BatchNorm statistics
where wanted. Shapes, formulas, bytes: docs/kernels.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, library, nn

from selkern.ops.triton import convolution_launch as launch

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MOST_BRANCHES = 4
MOST_PIXELS = 2**30  # of a map, counted by int32 in the kernels, a tile or split past the end included


def _empty(alike: Tensor, batch: int, channels: int, height: int, width: int) -> Tensor:
    shape = (batch, channels, height, width)
    return torch.empty(shape, dtype=alike.dtype, device=alike.device, memory_format=torch.channels_last)


def _outputs(x: Tensor, weights: Sequence[Tensor], stride: int) -> list[Tensor]:
    batch, _, height, width = x.shape
    sides = ((height - 1) // stride + 1, (width - 1) // stride + 1)
    return [_empty(x, batch, weight.shape[0], *sides) for weight in weights]


def _moments(x: Tensor, weights: Sequence[Tensor], statistics: bool) -> tuple[Tensor, Tensor]:
    """Empty mean and variance (M, C), or (0, C) where none are wanted: an operator always returns as many tensors."""
    shape = (len(weights) if statistics else 0, weights[0].shape[0])
    return x.new_empty(shape, dtype=torch.float32), x.new_empty(shape, dtype=torch.float32)


@library.custom_op("selkern::convolve_branches", mutates_args=())
def convolve_branches(
    x: Tensor, weights: list[Tensor], stride: int, dilations: list[int], groups: int, statistics: bool
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Outputs of every branch; mean and biased variance of their rounded values, (M, C) float32, or (0, C)."""
    y = _outputs(x, weights, stride)
    moments = launch.forward(x, weights, y, groups, stride, dilations, statistics)
    return (y, *(moments or _moments(x, weights, False)))


@convolve_branches.register_fake
def _(
    x: Tensor, weights: list[Tensor], stride: int, _dilations: list[int], _groups: int, statistics: bool
) -> tuple[list[Tensor], Tensor, Tensor]:
    return (_outputs(x, weights, stride), *_moments(x, weights, statistics))


@library.custom_op("selkern::convolve_branches_input_gradient", mutates_args=())
def input_gradient(
    dy: list[Tensor], weights: list[Tensor], height: int, width: int, stride: int, dilations: list[int], groups: int
) -> Tensor:
    """The gradient of x (N, C_in, height, width) from those of all outputs."""
    dx = _empty(dy[0], dy[0].shape[0], weights[0].shape[1] * groups, height, width)
    launch.input_gradient(dy, weights, dx, groups, stride, dilations)
    return dx


@input_gradient.register_fake
def _(
    dy: list[Tensor], weights: list[Tensor], height: int, width: int, _stride: int, _dilations: list[int], groups: int
) -> Tensor:
    return _empty(dy[0], dy[0].shape[0], weights[0].shape[1] * groups, height, width)


@library.custom_op("selkern::convolve_branches_weight_gradients", mutates_args=())
def weight_gradients(
    x: Tensor, dy: list[Tensor], kernels: list[int], stride: int, dilations: list[int], groups: int
) -> list[Tensor]:
    """The gradients of the weights of those branches whose outputs' gradients are given."""
    shapes = [(each.shape[1], x.shape[1] // groups, kernel, kernel) for each, kernel in zip(dy, kernels, strict=True)]
    branches = zip(dy, shapes, dilations, strict=True)
    return [launch.weight_gradient(x, each, shape, groups, stride, dilation) for each, shape, dilation in branches]


@weight_gradients.register_fake
def _(
    x: Tensor, dy: list[Tensor], kernels: list[int], _stride: int, _dilations: list[int], groups: int
) -> list[Tensor]:
    shapes = [(each.shape[1], x.shape[1] // groups, kernel, kernel) for each, kernel in zip(dy, kernels, strict=True)]
    return [x.new_empty(shape) for shape in shapes]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[list[Tensor], Tensor, Tensor]) -> None:
    x, weights, ctx.stride, ctx.dilations, ctx.groups, _ = inputs
    ctx.save_for_backward(x, *weights)
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, dy: list[Tensor], *_: Tensor) -> tuple[Tensor | list[Tensor | None] | None, ...]:
    x, *weights = ctx.saved_tensors
    dx = None
    if ctx.needs_input_grad[0]:
        dx = input_gradient(dy, weights, x.shape[2], x.shape[3], ctx.stride, ctx.dilations, ctx.groups)
    wanted = [m for m, needed in enumerate(ctx.needs_input_grad[1]) if needed]
    dw: list[Tensor | None] = [None] * len(weights)
    if wanted:
        kernels = [weights[m].shape[2] for m in wanted]
        dilations = [ctx.dilations[m] for m in wanted]
        result = weight_gradients(x, [dy[m] for m in wanted], kernels, ctx.stride, dilations, ctx.groups)
        for m, gradient in zip(wanted, result, strict=True):
            dw[m] = gradient
    return dx, dw, None, None, None, None


convolve_branches.register_autograd(_backward, setup_context=_keep)


def is_supported(convs: Sequence[nn.Module], x: Tensor) -> bool:
    """Whether `convolve` computes what these modules compute of x (hooks aside): what it takes, and where it runs."""
    if not 1 <= len(convs) <= MOST_BRANCHES or x.ndim != 4 or not (x.is_cuda or launch.interpreted()):
        return False
    if not all(type(conv) is nn.Conv2d and _keeps_positions(conv) for conv in convs):
        return False
    return (
        x.shape[0] * x.shape[2] * x.shape[3] <= MOST_PIXELS
        and x.numel() > 0
        and all(_shared(conv) == _shared(convs[0]) for conv in convs)
        and x.shape[1] == convs[0].in_channels
        and _dtype(x) in DTYPES
        and all(_dtype(weight) == _dtype(x) and weight.device == x.device for weight in map(_weight, convs))
    )


def _weight(conv: nn.Module) -> Tensor:
    assert isinstance(conv.weight, Tensor)
    return conv.weight


def _shared(conv: nn.Module) -> tuple[Any, ...]:
    """What has to be the same for all branches."""
    return conv.stride, conv.groups, conv.in_channels, conv.out_channels


def _keeps_positions(conv: nn.Conv2d) -> bool:
    """Without bias, square, odd, padded by zeros so that output pixel p looks around input pixel p * stride."""
    kernel, dilation = conv.kernel_size[0], conv.dilation[0]
    return (
        conv.bias is None
        and kernel % 2 == 1
        and conv.kernel_size == (kernel, kernel)
        and conv.dilation == (dilation, dilation)
        and conv.padding == (dilation * (kernel // 2),) * 2
        and conv.padding_mode == "zeros"
        and conv.stride[0] == conv.stride[1]
    )


def _dtype(tensor: Tensor) -> torch.dtype:
    """In which autocast hands a tensor to `torch.nn.functional.conv2d`."""
    kind = tensor.device.type
    if torch.is_autocast_enabled(kind) and tensor.dtype in DTYPES:
        return torch.get_autocast_dtype(kind)
    return tensor.dtype


def convolve(
    x: Tensor,
    weights: Sequence[Tensor],
    *,
    stride: int,
    dilations: Sequence[int],
    groups: int,
    statistics: bool = False,
) -> tuple[list[Tensor], tuple[Tensor, Tensor] | None]:
    """Every branch's convolution of x, without bias, padded to keep positions.

    Args:
        x: (N, C_in, H, W), float32, float16 or bfloat16; best channels_last, else it is copied.
        weights: of the branches, (C, C_in / groups, k, k) each, with odd k.
        stride: of every branch.
        dilations: one per branch.
        groups: of every branch.
        statistics: also those of a BatchNorm over each output. No gradient flows through them.

    Returns:
        The outputs, (N, C, Ho, Wo) channels_last; with `statistics` their mean and biased variance, (M, C) float32.

    Raises:
        ValueError: weights of other shapes, or not one dilation for each of them.
    """
    for weight, _ in zip(weights, dilations, strict=True):
        shared = (weights[0].shape[0], x.shape[1] // groups)
        if weight.shape[:2] != shared or x.shape[1] % groups or weight.shape[0] % groups:
            raise ValueError(f"weights must be (C, {x.shape[1]} / {groups}, k, k), got {tuple(weight.shape)}")
        if weight.ndim != 4 or weight.shape[2] != weight.shape[3] or weight.shape[2] % 2 == 0:
            raise ValueError(f"kernels must be square with odd sides, got weights {tuple(weight.shape)}")
    x = launch.channels_last(x.to(_dtype(x)))  # here, so that it is the copy that is kept for the backward pass
    cast = [weight.to(_dtype(weight)) for weight in weights]
    y, mean, var = convolve_branches(x, cast, stride, list(dilations), groups, statistics)
    return y, (mean, var) if statistics else None

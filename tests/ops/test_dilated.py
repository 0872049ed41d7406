"""The dilated depthwise convolution against torch's own: the result to the bit, and every derivative."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

import selkern
from selkern.layers.depthwise import DepthwiseConv2d
from selkern.ops.dilated import depthwise_conv2d

# Stride, whether padded by the dilation, dilation: strides that it is, is not and is prime to.
GEOMETRIES = list(itertools.product((1, 2, 3), (False, True), (2, 3, 4)))
SIZES = [(1, 1), (2, 7), (5, 3), (8, 8), (9, 13), (16, 12)]  # few positions, and more than three times the dilation


def drawn(size: tuple[int, int], channels_last: bool = False, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    x = torch.randn(2, 3, *size, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    return [x.requires_grad_(), torch.randn(3, 1, 3, 3, dtype=dtype, requires_grad=True)]


def torchs(x: Tensor, weight: Tensor, stride: int, padding: int, dilation: int) -> Tensor:
    return F.conv2d(x, weight, None, stride, padding, dilation, x.shape[1])


@pytest.mark.parametrize(("stride", "padded", "dilation"), GEOMETRIES)
def test_equal_to_torchs(stride: int, padded: bool, dilation: int) -> None:
    padding = dilation if padded else 0
    geometry = stride, padding, dilation
    compared = 0
    for size, channels_last in itertools.product(SIZES, (False, True)):
        if min(size) + 2 * (padding - dilation) < 1:
            continue
        x, weight = drawn(size, channels_last)
        y, expected = depthwise_conv2d(x, weight, *geometry), torchs(x, weight, *geometry)
        assert "_Depthwise" in type(y.grad_fn).__name__
        assert torch.equal(y, expected)
        dy = torch.randn_like(y)
        for mine, theirs in zip(*(torch.autograd.grad(out, (x, weight), dy) for out in (y, expected)), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
        compared += 1
    assert compared


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*is deprecated:DeprecationWarning")  # torch's own, in functorch
@pytest.mark.parametrize("geometry", [(1, 2, 2), (2, 2, 2), (2, 0, 2), (2, 3, 3), (1, 0, 2)], ids=str)
def test_derivatives_of_every_order(geometry: tuple[int, int, int]) -> None:
    given = drawn((5, 7))

    def call(x: Tensor, weight: Tensor) -> Tensor:
        return depthwise_conv2d(x, weight, *geometry)

    assert torch.autograd.gradcheck(call, given, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, given)


def test_one_of_two_gradients_alone() -> None:
    x, weight = drawn((9, 9))
    expected = torch.autograd.grad(torchs(x, weight, 1, 2, 2).square().sum(), (x, weight))
    for part, (a, b) in enumerate([(x, weight.detach()), (x.detach(), weight)]):
        (got,) = torch.autograd.grad(depthwise_conv2d(a, b, 1, 2, 2).square().sum(), (a, b)[part])
        torch.testing.assert_close(got, expected[part])


def test_where_something_else_sees_the_operators_they_are_torchs() -> None:
    conv = DepthwiseConv2d(3, 3, 3, padding=2, dilation=2, groups=3, bias=False)
    x = torch.randn(4, 3, 8, 8)
    parameters = dict(conv.named_parameters())

    def loss(values: Any, one: Tensor) -> Tensor:
        return functional_call(conv, values, one[None]).square().sum()

    each = vmap(grad(loss), (None, 0))(parameters, x)["weight"]
    conv(x).square().sum().backward()
    torch.testing.assert_close(each.sum(0), conv.weight.grad, rtol=1e-4, atol=1e-4)
    operators = {str(node.target) for node in torch.export.export(conv, (x,)).graph.nodes}
    assert "aten.conv2d.default" in operators
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert conv(x).dtype == torch.bfloat16


def test_units_of_depthwise_convolutions_train_with_it() -> None:
    plain = torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, padding=1, groups=8), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
    model = selkern.selectify(plain, example=torch.randn(2, 8, 8, 8), where="0")
    conv = model.get_submodule("0.further.0.conv")
    assert isinstance(conv, DepthwiseConv2d)
    assert "_Depthwise" in type(conv(torch.randn(2, 8, 8, 8)).grad_fn).__name__
    assert conv.eval()(torch.randn(2, 8, 8, 8).requires_grad_()).shape == (2, 8, 8, 8)

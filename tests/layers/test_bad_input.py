"""What the layers refuse, with one line that names the argument, and what a batch of 1 may do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selkern.layers.article import Attention, MLPAttention, SKAttention
from selkern.layers.fusion import SKFusion
from selkern.layers.gate import Gate
from selkern.layers.selective_kernel import Branch, SelectiveKernel

# A good call of each; a bad value then replaces one argument.
GOOD: dict[Callable[..., object], dict[str, Any]] = {
    SelectiveKernel: {"in_channels": 32, "out_channels": 64},
    Branch: {"kernel_size": 3},
    SKFusion: {"channels": 32},
    Gate: {"channels": 32, "branches": 2},
    SKAttention: {"channel": 32, "kernels": (1, 3)},
    Attention: {"hidden_size": 4},
    MLPAttention: {"input_size": 2, "hidden_size": 3, "output_size": 4},
}
COUNTS = {
    SelectiveKernel: ("in_channels", "out_channels", "groups", "stride", "reduction", "min_width", "dims"),
    Branch: ("dilation", "groups"),
    SKFusion: ("channels", "reduction", "min_width"),
    Gate: ("channels", "branches", "reduction", "min_width"),
    SKAttention: ("channel", "reduction", "group", "L"),
    Attention: ("hidden_size",),
    MLPAttention: ("input_size", "hidden_size", "output_size"),
}
Refused = tuple[Callable[..., object], str, Any]
NOT_COUNTS: list[Refused] = [
    (make, name, bad) for make, names in COUNTS.items() for name in names for bad in (0, -1, True, 2.0, "3")
]
BAD_KERNELS: list[Refused] = [
    (make, "kernels", bad)
    for make in (SelectiveKernel, SKAttention)
    for bad in ((3, 4), (), [], 3, 3.0, None, (3, True), (3, -5), (0,), (3, 5.0), "35", [(3, 5)])
]
OTHERS: list[Refused] = [
    (SelectiveKernel, "kernels", Branch(3)),
    (SelectiveKernel, "in_channels", 33),
    (SelectiveKernel, "out_channels", 33),
    (SelectiveKernel, "groups", 5),
    (SelectiveKernel, "dims", 4),
    (SelectiveKernel, "fuse", "mean"),
    (SelectiveKernel, "norm", "batchnorm"),
    (SelectiveKernel, "norm", None),
    (SelectiveKernel, "gate_norm", "instance"),
    (SelectiveKernel, "activation", "swish"),
    (Branch, "kernel_size", 4),
    (Branch, "kernel_size", 0),
    (Branch, "kernel_size", True),
    (SKFusion, "branches", 0),
    (SKFusion, "branches", 1),
    (SKFusion, "branches", True),
    (SKFusion, "branches", 2.5),
    (SKFusion, "norm", "batchnorm"),
    (SKFusion, "activation", "swish"),
    (SKAttention, "group", 5),
]
# Where the message calls it otherwise: a Branch's kernel is one of the layer's, gate_norm is a norm.
SAID_AS = {"kernel_size": "kernels", "gate_norm": "norm"}


def one_line(error: pytest.ExceptionInfo[ValueError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(("make", "name", "bad"), NOT_COUNTS + BAD_KERNELS + OTHERS)
def test_a_bad_argument_is_named_in_one_line(make: Callable[..., object], name: str, bad: Any) -> None:
    make(**GOOD[make])
    with pytest.raises(ValueError) as error:
        make(**{**GOOD[make], name: bad})
    assert SAID_AS.get(name, name) in one_line(error)


def test_groups_of_one_branch_must_divide_too() -> None:
    with pytest.raises(ValueError, match="groups=5 must divide in_channels=32"):
        SelectiveKernel(32, kernels=(3, Branch(3, groups=5)))


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "SelectiveKernel": (lambda: SelectiveKernel(32), (2, 32, 5, 5)),
    "SelectiveKernel 1d": (lambda: SelectiveKernel(32, dims=1), (2, 32, 5)),
    "SelectiveKernel 3d": (lambda: SelectiveKernel(32, dims=3), (2, 32, 4, 4, 4)),
    "SelectiveKernel sum": (lambda: SelectiveKernel(32, fuse="sum"), (2, 32, 5, 5)),
    "SKAttention": (lambda: SKAttention(32, (1, 3)), (2, 32, 5, 5)),
    "Attention": (lambda: Attention(32), (2, 5, 32)),
    "MLPAttention": (lambda: MLPAttention(32, 8, 4), (2, 5, 32)),
}


@pytest.mark.parametrize(("make", "good"), LAYERS.values(), ids=LAYERS.keys())
def test_an_input_of_another_rank_is_refused(make: Callable[[], nn.Module], good: tuple[int, ...]) -> None:
    layer = make()
    layer(torch.randn(good))
    for bad in (good[1:], (1, *good)):
        with pytest.raises(ValueError, match=type(layer).__name__) as error:
            layer(torch.randn(bad))
        assert str(bad) in one_line(error)


@pytest.mark.parametrize(("make", "good"), LAYERS.values(), ids=LAYERS.keys())
def test_an_input_of_another_width_is_refused(make: Callable[[], nn.Module], good: tuple[int, ...]) -> None:
    layer = make()
    bad = tuple(31 if n == 32 else n for n in good)
    with pytest.raises(ValueError, match=type(layer).__name__) as error:
        layer(torch.randn(bad))
    assert "32" in one_line(error)
    assert str(bad) in str(error.value)


BAD_MAPS: dict[str, tuple[Any, str]] = {
    "one tensor": (torch.zeros(2, 32, 4, 4), "a list of 2 maps, got Tensor"),
    "too few": ([torch.zeros(2, 32, 4, 4)], "a list of 2 maps, got 1"),
    "too many": ([torch.zeros(2, 32, 4, 4)] * 3, "a list of 2 maps, got 3"),
    "two sizes": ([torch.zeros(2, 32, 4, 4), torch.zeros(2, 32, 4, 2)], "maps of one shape"),
    "other channels": ([torch.zeros(2, 31, 4, 4)] * 2, r"\(N, 32, \*\), got \(2, 31, 4, 4\)"),
    "no space": ([torch.zeros(2, 32)] * 2, r"\(N, 32, \*\), got \(2, 32\)"),
}


@pytest.mark.parametrize(("maps", "message"), BAD_MAPS.values(), ids=BAD_MAPS.keys())
def test_fusion_refuses_wrong_maps(maps: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        SKFusion(32)(maps)
    one_line(error)


ONE: dict[str, tuple[Callable[[], nn.Module], Tensor | Sequence[Tensor]]] = {
    "SelectiveKernel 1x1": (lambda: SelectiveKernel(32), torch.ones(1, 32, 1, 1)),
    "SKAttention 1x1": (lambda: SKAttention(32, (1, 3)), torch.ones(1, 32, 1, 1)),
    "SelectiveKernel sum 1x1": (lambda: SelectiveKernel(32, fuse="sum"), torch.ones(1, 32, 1, 1)),
}


@pytest.mark.parametrize(("make", "x"), ONE.values(), ids=ONE.keys())
def test_batch_norm_cannot_train_on_one_value_and_says_so(make: Callable[[], nn.Module], x: Any) -> None:
    layer = make()
    before = {n: b.clone() for n, b in layer.named_buffers()}
    with pytest.raises(ValueError, match="BatchNorm cannot train on a batch of 1") as error:
        layer(x)
    assert "norm='group'" in one_line(error)
    gate = {n: b for n, b in layer.named_buffers() if "norm.running" in n and "gate" in n}
    assert all(torch.equal(b, before[n]) for n, b in gate.items())
    assert torch.isfinite(layer.eval()(x)).all()


@pytest.mark.parametrize("gate_norm", ["group", "layer", "none"])
@pytest.mark.parametrize("shape", [(1, 32, 6), (1, 32, 5, 3), (1, 32, 4, 2, 3)], ids=str)
def test_another_gate_norm_trains_on_one_image(gate_norm: str, shape: tuple[int, ...]) -> None:
    layer = SelectiveKernel(32, dims=len(shape) - 2, gate_norm=gate_norm)
    y = layer(torch.randn(shape))
    (y * torch.randn(shape)).sum().backward()
    for name, p in layer.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        assert p.grad.abs().sum() > 0, name


@pytest.mark.parametrize("norm", ["group", "layer", "none"])
def test_another_norm_trains_on_one_position(norm: str) -> None:
    layer = SelectiveKernel(32, norm=norm)
    layer(torch.randn(1, 32, 1, 1)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_sk_attention_trains_on_one_image_larger_than_one_position() -> None:
    layer = SKAttention(8, (1, 3))
    layer(torch.randn(1, 8, 3, 3)).square().sum().backward()
    for name, p in layer.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name

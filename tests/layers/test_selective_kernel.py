"""`SelectiveKernel` and `SKFusion` against the paper's equations, stated once more in torch's functions."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from parity import Tensors, as_function, assert_parity, perturb, with_parameters
from torch import Tensor, nn
from torch.nn import functional as F

from selkern.layers.fusion import SKFusion
from selkern.layers.selective_kernel import Branch, SelectiveKernel

CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
SPACE = {1: (9,), 2: (7, 6), 3: (3, 5, 4)}
ACT: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda x: x.clamp(min=0),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.01),
    "silu": lambda x: x * x.sigmoid(),
    "hardswish": F.hardswish,
    "gelu": F.gelu,
    "none": lambda x: x,
}
GROUPS_OF_GROUP_NORM = {8: 1, 16: 2, 24: 3, 256: 32, 320: 32}  # at most 32, of at least 8 channels


@dataclass(frozen=True)
class Case:
    """One configuration; `taps` is what each entry of `kernels` must become: (kernel, dilation, groups)."""

    kernels: Sequence[int | Branch] = (3, 5)
    taps: tuple[tuple[int, int, int], ...] = ((3, 1, 4), (3, 2, 4))
    channels: tuple[int, int] = (8, 16)
    width: int = 8
    dims: int = 2
    stride: int = 1
    fuse: str = "select"
    norm: str = "batch"
    gate_norm: str | None = None
    activation: str = "relu"
    bias: bool = False

    def build(self) -> SelectiveKernel:
        names = ("kernels", "dims", "stride", "fuse", "norm", "gate_norm", "activation", "bias")
        options: dict[str, Any] = {name: getattr(self, name) for name in names}
        layer = SelectiveKernel(
            *self.channels, groups=4, reduction=4, min_width=self.width, dtype=torch.float64, **options
        )
        perturb(layer)
        return layer


CASES = {
    "paper": Case(),
    "1d": Case(dims=1),
    "3d": Case(dims=3),
    "one branch": Case(kernels=(3,), taps=((3, 1, 4),)),
    "three branches": Case(kernels=[3, 5, 7], taps=((3, 1, 4), (3, 2, 4), (3, 3, 4))),
    "four branches with 1x1": Case(kernels=(1, 3, 5, 7), taps=((1, 1, 4), (3, 1, 4), (3, 2, 4), (3, 3, 4))),
    "true 5x5": Case(kernels=(3, Branch(5)), taps=((3, 1, 4), (5, 1, 4))),
    "groups per branch": Case(kernels=(3, Branch(5, groups=8)), taps=((3, 1, 4), (5, 1, 8))),
    "one group, dilated": Case(kernels=(1, Branch(5, dilation=2, groups=1)), taps=((1, 1, 4), (5, 2, 1))),
    "same kernel twice": Case(kernels=(3, 3), taps=((3, 1, 4), (3, 1, 4))),
    "stride 2": Case(stride=2),
    "stride 3, 1x1": Case(stride=3, kernels=(1, 5), taps=((1, 1, 4), (3, 2, 4))),
    "stride 2, 1d, three": Case(stride=2, dims=1, kernels=(3, 5, 9), taps=((3, 1, 4), (3, 2, 4), (3, 4, 4))),
    "in = out": Case(channels=(16, 16)),
    "wide descriptor": Case(channels=(8, 96), width=8),
    "sum of two": Case(fuse="sum"),
    "sum of three, 3d": Case(fuse="sum", dims=3, kernels=(1, 3, 5), taps=((1, 1, 4), (3, 1, 4), (3, 2, 4))),
    "group norm": Case(norm="group", width=16),
    "group norm, 1d": Case(norm="group", dims=1, channels=(16, 24)),
    "group norm, wide": Case(norm="group", channels=(8, 320), width=256),
    "layer norm": Case(norm="layer"),
    "no norm": Case(norm="none"),
    "gate group norm": Case(gate_norm="group", width=16),
    "gate layer norm": Case(gate_norm="layer"),
    "gate no norm": Case(gate_norm="none"),
    "gate batch norm alone": Case(norm="none", gate_norm="batch"),
    "leaky relu": Case(activation="leaky_relu"),
    "silu": Case(activation="silu"),
    "hardswish": Case(activation="hardswish"),
    "gelu": Case(activation="gelu"),
    "no activation": Case(activation="none"),
    "bias": Case(bias=True),
    "bias, no norm, three": Case(bias=True, norm="none", kernels=(3, 5, 7), taps=((3, 1, 4), (3, 2, 4), (3, 3, 4))),
}


def normalise(t: Tensors, path: str, x: Tensor, norm: str, statistics: dict[str, Tensor], training: bool) -> Tensor:
    """The named norm, from its definition; `statistics` are updated in training as BatchNorm's are."""
    if norm == "none":
        return x
    shape = (1, -1) + (1,) * (x.ndim - 2)
    if norm == "batch":
        mean, var = statistics[f"{path}.running_mean"], statistics[f"{path}.running_var"]
        if training:
            axes = (0, *range(2, x.ndim))
            count = x.numel() // x.shape[1]
            old_mean, old_var = mean.clone(), var.clone()
            mean, var = x.mean(axes), x.var(axes, correction=0)
            statistics[f"{path}.running_mean"] = 0.95 * old_mean + 0.05 * mean.detach()
            statistics[f"{path}.running_var"] = 0.95 * old_var + 0.05 * var.detach() * count / (count - 1)
        y = (x - mean.view(shape)) / (var.view(shape) + 1e-5).sqrt()
    else:
        groups = 1 if norm == "layer" else GROUPS_OF_GROUP_NORM[x.shape[1]]
        g = x.reshape(x.shape[0], groups, -1)
        g = (g - g.mean(2, keepdim=True)) / (g.var(2, correction=0, keepdim=True) + 1e-5).sqrt()
        y = g.reshape(x.shape)
    return y * t[f"{path}.weight"].view(shape) + t[f"{path}.bias"].view(shape)


def gate(case: Case, t: Tensors, u: list[Tensor], stats: dict[str, Tensor], training: bool) -> Tensor:
    """Fuse and the softmax of Select, Eq. 1 to 5: branch maps to a, one (N, C) per branch, stacked first."""
    total = sum(u[1:], start=u[0])
    s = total.flatten(2).mean(2)
    z = F.linear(s, t["gate.fc1.weight"], t["gate.fc1.bias"] if case.bias else None)
    z = ACT[case.activation](normalise(t, "gate.norm", z, case.gate_norm or case.norm, stats, training))
    logits = F.linear(z, t["gate.fc2.weight"], t["gate.fc2.bias"] if case.bias else None)
    e = torch.stack(logits.chunk(len(u), dim=1)).exp()
    return e / e.sum(0)


def blend(u: list[Tensor], a: Tensor) -> Tensor:
    """Eq. 6: V = sum over branches of weight times map."""
    parts = [w.reshape(w.shape + (1,) * (m.ndim - 2)) * m for m, w in zip(u, a, strict=True)]
    return sum(parts[1:], start=parts[0])


def restated(case: Case, t: Tensors, stats: dict[str, Tensor], training: bool) -> Tensor:
    """The paper's unit from its equations; nothing of the package is used."""
    u = []
    for m, (k, dilation, groups) in enumerate(case.taps):
        path = f"branches.{m}"
        padding = dilation * (k - 1) // 2
        weight, bias = t[f"{path}.conv.weight"], t[f"{path}.conv.bias"] if case.bias else None
        y = CONV[case.dims](t["x"], weight, bias, case.stride, padding, dilation, groups)
        u.append(ACT[case.activation](normalise(t, f"{path}.norm", y, case.norm, stats, training)))
    if case.fuse == "sum" or len(u) == 1:
        return sum(u[1:], start=u[0])
    return blend(u, gate(case, t, u, stats, training))


def statistics_of(layer: nn.Module) -> dict[str, Tensor]:
    return {n: b.clone() for n, b in layer.named_buffers() if not n.endswith("num_batches_tracked")}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_layer_is_the_paper(case: Case, training: bool) -> None:
    layer = case.build().train(training)
    stats = statistics_of(layer)
    x = torch.randn(3, case.channels[0], *SPACE[case.dims], dtype=torch.float64)
    assert_parity(as_function(layer), lambda t: restated(case, t, stats, training), with_parameters(layer, x))
    torch.testing.assert_close(statistics_of(layer), stats)


@pytest.mark.parametrize("name", ["paper", "four branches with 1x1", "stride 2", "sum of two", "group norm", "bias"])
def test_finite_differences(name: str) -> None:
    case = CASES[name]
    layer = case.build()
    inputs = with_parameters(layer, torch.randn(2, case.channels[0], 3, 4, dtype=torch.float64))
    unit = as_function(layer)

    def call(*tensors: Tensor) -> Tensor:
        return unit(dict(zip(inputs, tensors, strict=True)))

    values = [v.clone().requires_grad_() for v in inputs.values()]
    assert torch.autograd.gradcheck(call, values, fast_mode=True)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("branches", "shape"), [(2, (3, 8, 5, 4)), (3, (2, 8, 6)), (4, (3, 8, 2, 3, 4))], ids=str)
def test_fusion_is_the_paper_without_split(branches: int, shape: tuple[int, ...], training: bool) -> None:
    layer = SKFusion(8, branches, reduction=2, min_width=3, dtype=torch.float64).train(training)
    perturb(layer)
    stats = statistics_of(layer)
    names = [f"map{m}" for m in range(branches)]
    inputs = {n: p.detach() for n, p in layer.named_parameters()}
    inputs |= {n: torch.randn(shape, dtype=torch.float64) for n in names}

    def ours(t: Tensors) -> Tensor:
        weights = {n: v for n, v in t.items() if n not in names}
        return torch.func.functional_call(layer, weights, ([t[n] for n in names],))

    def theirs(t: Tensors) -> Tensor:
        u = [t[n] for n in names]
        return blend(u, gate(Case(), t, u, stats, training))

    assert_parity(ours, theirs, inputs)
    torch.testing.assert_close(statistics_of(layer), stats)


@pytest.mark.parametrize(
    ("channels", "reduction", "min_width", "width"),
    [(128, 16, 32, 32), (512, 16, 32, 32), (1024, 16, 32, 64), (96, 5, 4, 19), (8, 16, 1, 1)],
)
def test_the_descriptor_has_max_of_c_over_r_and_l_numbers(
    channels: int, reduction: int, min_width: int, width: int
) -> None:
    layer = SKFusion(channels, reduction=reduction, min_width=min_width, device="meta")
    assert layer.gate.fc1.out_features == width


@pytest.mark.parametrize(
    ("kernels", "extents"),
    [
        ((3, 5), (3, 5)),
        ((1, 7, 9), (1, 7, 9)),
        ((Branch(5), Branch(3, dilation=3), Branch(5, dilation=2)), (5, 7, 9)),
    ],
    ids=str,
)
def test_extents_are_the_windows_that_a_branch_really_sees(
    kernels: Sequence[int | Branch], extents: tuple[int, ...]
) -> None:
    layer = SelectiveKernel(1, kernels=kernels, groups=1, norm="none", activation="none")
    assert layer.extents == extents
    for branch, extent in zip(layer.branches, extents, strict=True):
        x = torch.zeros(1, 1, 25, 25, requires_grad=True)
        branch(x)[0, 0, 12, 12].backward()
        assert x.grad is not None
        rows = x.grad[0, 0].abs().sum(1).nonzero().flatten()
        first, last = int(rows[0]), int(rows[-1])
        assert (first + last, last - first + 1) == (24, extent)  # centred, and as wide as given


def test_names_in_the_state_dict() -> None:
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = [f"branches.{m}.{n}" for m in (0, 1) for n in ("conv.weight", *(f"norm.{k}" for k in norm))]
    expected += ["gate.fc1.weight", *(f"gate.norm.{k}" for k in norm), "gate.fc2.weight"]
    assert list(SelectiveKernel(64).state_dict()) == expected


def test_a_fresh_gate_is_nearly_undecided_and_convolutions_keep_the_variance() -> None:
    layer = SelectiveKernel(256, 512, (3, 5), groups=1)
    assert layer.gate is not None
    for fc in (layer.gate.fc1, layer.gate.fc2):
        torch.testing.assert_close(fc.weight.std(), torch.tensor(0.01), rtol=0.05, atol=0.0)
    for branch in layer.branches:
        assert isinstance(branch.conv, nn.Conv2d)
        he = torch.tensor((2 / (256 * 9)) ** 0.5)
        torch.testing.assert_close(branch.conv.weight.std(), he, rtol=0.02, atol=0.0)


@pytest.mark.parametrize("kernels", [(3, 5), (3, 5, 7)], ids=str)
def test_autocast_keeps_the_maps_in_bfloat16(kernels: tuple[int, ...]) -> None:
    layer = SelectiveKernel(32, kernels=kernels)
    x = torch.randn(4, 32, 8, 8)
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact, rtol=0.05, atol=0.05)
    y.float().square().mean().backward()
    for name, p in layer.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name


@pytest.mark.parametrize("activation", [*ACT, nn.Tanh], ids=str)
def test_a_layer_can_be_copied_and_pickled(activation: Any) -> None:
    layer = SelectiveKernel(32, activation=activation).eval()
    x = torch.randn(1, 32, 5, 5)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    restored = torch.load(file, weights_only=False)
    assert torch.equal(restored(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


def test_a_function_makes_norm_and_activation() -> None:
    asked: list[int] = []

    def norm(channels: int) -> nn.Module:
        asked.append(channels)
        return nn.Identity()

    layer = SelectiveKernel(8, 16, groups=4, min_width=5, norm=norm, activation=nn.Tanh)
    assert asked == [16, 16, 5]
    assert sum(isinstance(m, nn.Tanh) for m in layer.modules()) == 3


def test_printing_tells_the_windows() -> None:
    assert "64, 64, extents=(3, 5)" in repr(SelectiveKernel(64))

"""The convolutions of all branches in one kernel, forward and backward, against `conv2d` in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, library, nn
from torch.nn import functional as F

pytest.importorskip("triton.language", reason="no kernels without Triton")
from selkern.ops.triton import convolution
from selkern.ops.triton import convolution_launch as launch

pytestmark = pytest.mark.usefixtures("interpreted")


@dataclass(frozen=True)
class Case:
    """x (N, C_in, H, W) and the kernels over it."""

    shape: tuple[int, int, int, int]
    channels: int
    groups: int
    kernels: tuple[int, ...] = (3, 3)
    dilations: tuple[int, ...] = (1, 2)
    stride: int = 1
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.channels_last  # of x and of the weights


PACKED = Case((2, 36, 11, 9), 48, 12)  # groups of 3 and 4, six to a pack: two packs, two tiles of pixels
DENSE = Case((1, 36, 5, 7), 40, 1)  # in float32 two blocks of inputs, two of outputs
CASES = {
    "packed": PACKED,
    "packed, stride 2": replace(PACKED, shape=(2, 36, 17, 18), stride=2),
    "packed, contiguous": replace(PACKED, memory_format=torch.contiguous_format),
    "packed, bfloat16": replace(PACKED, dtype=torch.bfloat16),
    "packed, float16": replace(PACKED, dtype=torch.float16, stride=2),
    "a true 1x1": Case((2, 12, 9, 11), 20, 4, kernels=(1, 3), dilations=(1, 1)),
    "a true 5x5, stride 2": Case((2, 12, 9, 11), 20, 4, kernels=(3, 5), dilations=(1, 1), stride=2),
    "three branches, stride 3": Case((3, 6, 7, 8), 6, 2, kernels=(3, 1, 3), dilations=(1, 1, 3), stride=3),
    "one branch": Case((2, 12, 7, 5), 12, 3, kernels=(5,), dilations=(2,)),
    "groups of 1": Case((1, 20, 5, 7), 20, 20),
    "groups of 8": Case((1, 64, 5, 7), 64, 8),
    "groups of 20": Case((1, 40, 5, 7), 40, 2, stride=2),
    "prime number of groups": Case((1, 40, 3, 5), 40, 5),
    "dense": DENSE,
    "dense, bfloat16": Case((1, 70, 5, 7), 66, 1, kernels=(1, 3), dilations=(1, 1), dtype=torch.bfloat16),
    "splits of the pixels": Case((3, 8, 14, 13), 8, 2),
    "one pixel": Case((3, 12, 1, 1), 12, 3, dilations=(1, 3)),
    "one pixel, stride 2": Case((3, 12, 1, 1), 12, 3, stride=2),
    "narrower than the window": Case((3, 12, 2, 3), 12, 3, dilations=(2, 4)),
}


def make(case: Case) -> tuple[Tensor, list[Tensor]]:
    """x and the weights, all wanting gradients; outputs of about 1."""
    group = case.shape[1] // case.groups
    x = torch.randn(case.shape)
    weights = [torch.randn(case.channels, group, k, k) / (k * group**0.5) for k in case.kernels]
    made = [t.to(case.dtype, memory_format=case.memory_format).requires_grad_() for t in (x, *weights)]
    return made[0], made[1:]


def ours(case: Case, x: Tensor, weights: list[Tensor], statistics: bool = False) -> Any:
    settings: dict[str, Any] = {"stride": case.stride, "dilations": case.dilations, "groups": case.groups}
    return convolution.convolve(x, weights, **settings, statistics=statistics)


def theirs(case: Case, x: Tensor, weights: list[Tensor]) -> list[Tensor]:
    y = []
    for weight, k, d in zip(weights, case.kernels, case.dilations, strict=True):
        y.append(F.conv2d(x, weight, None, case.stride, d * (k // 2), d, case.groups))
    return y


def in_float64(*tensors: Tensor) -> list[Tensor]:
    return [t.detach().double().requires_grad_(t.requires_grad) for t in tensors]


def assert_near(got: list[Tensor], want: list[Tensor]) -> None:
    """float32 sums, then one rounding, which the interpreter does for bfloat16 by cutting off: up to one epsilon."""
    for ours_, theirs_ in zip(got, want, strict=True):
        relative = 2e-6 if ours_.dtype == torch.float32 else torch.finfo(ours_.dtype).eps
        torch.testing.assert_close(ours_.double(), theirs_, rtol=relative, atol=1e-5)


def assert_parity(case: Case, x: Tensor, weights: list[Tensor]) -> None:
    """Outputs and every gradient, from two backward passes; nothing else changed."""
    before = [t.detach().clone() for t in (x, *weights)]
    y, none = ours(case, x, weights)
    assert none is None
    assert all(y_m.dtype == x.dtype and y_m.is_contiguous(memory_format=torch.channels_last) for y_m in y)
    twin, *twins = in_float64(x, *weights)
    want = theirs(case, twin, twins)
    assert_near(y, want)
    cotangents = [torch.randn_like(y_m).contiguous() for y_m in y]
    targets = [t for t in (x, *weights) if t.requires_grad]
    got = torch.autograd.grad(y, targets, cotangents, retain_graph=True)
    again = torch.autograd.grad(y, targets, cotangents)
    # One sum, since an output may be constant.
    terms = [(y_m * c.double()).sum() for y_m, c in zip(want, cotangents, strict=True)]
    loss = torch.stack(terms).sum()
    wanted = torch.autograd.grad(loss, [t for t in (twin, *twins) if t.requires_grad])
    assert_near(list(got), list(wanted))
    assert all(torch.equal(a, b) and a.dtype == x.dtype for a, b in zip(got, again, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, (x, *weights), strict=True))


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.exhaustive if number % 4 else ()) for number, name in enumerate(CASES)],
)
def test_outputs_and_gradients(name: str) -> None:
    assert_parity(CASES[name], *make(CASES[name]))


@pytest.mark.parametrize("wanted", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_the_gradients_asked_for(wanted: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(CASES["a true 5x5, stride 2"], dilations=(2, 1))
    x, weights = make(case)
    for tensor, wants in zip((x, *weights), wanted, strict=True):
        tensor.requires_grad_(wants)
    if not wanted[0]:
        monkeypatch.delattr(launch, "input_gradient")
    assert_parity(case, x, weights)


def test_a_branch_that_nothing_reads() -> None:
    case = CASES["a true 5x5, stride 2"]
    x, weights = make(case)
    got = torch.autograd.grad(ours(case, x, weights)[0][1].sum(), [x, *weights])
    twin, *twins = in_float64(x, *weights)
    wanted = torch.autograd.grad(theirs(case, twin, twins)[1].sum(), [twin, twins[1]])
    assert_near(list(got), [wanted[0], torch.zeros_like(twins[0]), wanted[1]])


@pytest.mark.parametrize(
    "name", ["packed", "packed, stride 2", "packed, bfloat16", "dense", "three branches, stride 3"]
)
def test_statistics(name: str) -> None:
    """They are those of the stored values, rounding included."""
    x, weights = make(CASES[name])
    y, (mean, var) = ours(CASES[name], x, weights, statistics=True)
    for m, y_m in enumerate(y):
        stored = y_m.detach().double()
        torch.testing.assert_close(mean[m].double(), stored.mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(var[m].double(), stored.var((0, 2, 3), unbiased=False), rtol=1e-5, atol=1e-6)
    assert mean.dtype == var.dtype == torch.float32
    assert not mean.requires_grad and not var.requires_grad


def test_statistics_far_from_zero() -> None:
    """A variance 1e-8 of the squared mean: the difference of two mean squares would have no digit of it."""
    case = Case((2, 4, 11, 9), 6, 2, kernels=(1,), dilations=(1,))
    x, weights = torch.randn(case.shape) / 100 + 100, [torch.rand(6, 2, 1, 1) + 0.5]
    (y,), (_, var) = ours(case, x, weights, statistics=True)
    torch.testing.assert_close(var[0].double(), y.double().var((0, 2, 3), unbiased=False), rtol=1e-3, atol=0)


def test_what_is_not_finite_stays_in_its_pack() -> None:
    """A pack is padded to a power of two, and the padding lies where the next pack has its channels."""
    x, weights = make(PACKED)
    dy = [torch.randn_like(y_m) for y_m in ours(PACKED, x, weights)[0]]
    with torch.no_grad():
        x[:, 18:] = torch.nan
        for dy_m in dy:
            dy_m[:, 24:] = torch.nan
    y = ours(PACKED, x, weights)[0]
    dx, *dw = torch.autograd.grad(y, [x, *weights], dy)
    for first_pack in (*(y_m[:, :24] for y_m in y), dx[:, :18], *(dw_m[:24] for dw_m in dw)):
        assert first_pack.isfinite().all()
    assert not y[0][:, 24:].isfinite().any()


def test_autocast_casts_as_for_conv2d() -> None:
    x, weights = make(PACKED)
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = ours(PACKED, x, weights)
        assert convolution.is_supported([conv_like(PACKED, m) for m in range(2)], x.bfloat16())
    assert_near(y, theirs(PACKED, x.bfloat16().double(), [w.bfloat16().double() for w in weights]))
    for gradient in torch.autograd.grad(y[0].float().sum(), [x, weights[0]]):
        assert gradient.dtype == torch.float32


@pytest.mark.parametrize("statistics", [pytest.param(False, marks=pytest.mark.exhaustive), True])
def test_the_compiler_sees_the_same_operator(statistics: bool) -> None:
    case = CASES["a true 5x5, stride 2"]

    def loss(x: Tensor, weights: list[Tensor]) -> Tensor:
        y, moments = ours(case, x * 2, weights, statistics)
        result = sum((y_m.relu() * (m + 1)).sum() for m, y_m in enumerate(y))
        return result if moments is None else result + moments[0].sum() * moments[1].sum() * y[0].mean()

    x, weights = make(case)
    want = torch.autograd.grad(loss(x, weights), [x, *weights])
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    got = torch.autograd.grad(compiled(x, weights), [x, *weights])
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.exhaustive
def test_the_operators_are_what_they_are_registered_as() -> None:
    case = Case((1, 6, 4, 3), 4, 2, kernels=(3, 1), dilations=(2, 1), stride=2)
    x, weights = make(case)
    x = x.detach().to(memory_format=torch.channels_last).requires_grad_()
    sizes = (case.stride, list(case.dilations), case.groups)
    library.opcheck(convolution.convolve_branches, (x, weights, *sizes, True))
    library.opcheck(convolution.convolve_branches, (x, weights, *sizes, False))
    dy = [y_m.detach() for y_m in ours(case, x, weights)[0]]
    plain = [w.detach() for w in weights]
    library.opcheck(convolution.input_gradient, (dy, plain, 4, 3, *sizes))
    library.opcheck(convolution.weight_gradients, (x.detach(), dy, list(case.kernels), *sizes))


def test_no_second_derivatives() -> None:
    x, weights = make(CASES["one pixel"])
    (dx,) = torch.autograd.grad(ours(CASES["one pixel"], x, weights)[0][0].sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="autograd"):
        torch.autograd.grad(dx.sum(), weights)


def test_narrow_groups_fill_a_tensor_core() -> None:
    for width in (1, 2, 4, 8, 16, 32):  # SKNet-50 has 4 to 32
        packing = launch.Packing.of((32 * width, width, 3, 3), 32, 2)
        assert packing.packs * packing.together == 32
        assert packing.together * width == packing.block_in == packing.block_out == 32
    assert launch.Packing.of((5, 1, 3, 3), 5, 2).block_in == 16


def test_float32_follows_the_setting_of_cudnn() -> None:
    for allowed, precision in ((True, "tf32"), (False, "ieee")):
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=allowed):
            assert launch.arithmetic(torch.float32)["PRECISION"] == precision


def conv_like(case: Case, m: int, **others: Any) -> nn.Conv2d:
    """Branch m as a module; `others` replace what the case says."""
    k, d = case.kernels[m], case.dilations[m]
    settings = {"stride": case.stride, "padding": d * (k // 2), "dilation": d, "groups": case.groups, "bias": False}
    return nn.Conv2d(case.shape[1], case.channels, k, **(settings | others))


@pytest.mark.parametrize(
    "others",
    [
        {"bias": True},
        {"stride": 2},
        {"padding": 1},
        {"padding_mode": "circular"},
        {"groups": 4},
        {"dtype": torch.float64},
        {"dilation": (2, 1)},
        {"stride": (1, 2)},
    ],
)
def test_modules_that_are_not_supported(others: dict[str, Any]) -> None:
    x, _ = make(PACKED)
    assert convolution.is_supported([conv_like(PACKED, 0), conv_like(PACKED, 1)], x)
    assert not convolution.is_supported([conv_like(PACKED, 0), conv_like(PACKED, 1, **others)], x)


def test_inputs_that_are_not_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = make(PACKED)
    convs = [conv_like(PACKED, 0), conv_like(PACKED, 1)]
    for other in (x[:0], x[:, :12], x[0], x.double()):
        assert not convolution.is_supported(convs, other)
    assert not convolution.is_supported([], x)
    assert not convolution.is_supported([convs[0], nn.ReLU()], x)
    assert not convolution.is_supported([nn.Conv2d(36, 48, 4, padding=2, groups=12, bias=False)], x)
    assert not convolution.is_supported([nn.Conv2d(36, 48, (3, 1), padding=(1, 0), bias=False)], x)
    assert not convolution.is_supported([convs[0]] * 5, x)
    monkeypatch.setattr(launch, "interpreted", lambda: False)
    assert not convolution.is_supported(convs, x)  # without the interpreter a CPU cannot


def test_weights_of_other_shapes_are_refused() -> None:
    x, weights = make(PACKED)
    for wrong in (weights[1][:, :1], weights[1][:24], weights[1][..., :2], weights[1][..., :2, :2]):
        with pytest.raises(ValueError, match="weights"):
            ours(PACKED, x, [weights[0], wrong])
    with pytest.raises(ValueError, match="shorter"):
        ours(PACKED, x, weights * 2)

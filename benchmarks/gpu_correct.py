"""Every kernel on fresh random inputs against float64: results and all gradients. What errs is not timed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.gpu_plan import KERNELS, Row
from benchmarks.gpu_session import Session, line
from selkern.ops import reference
from selkern.ops.norm import BatchNorm
from selkern.ops.triton import convolution, fuse_select

_EPS, _MOMENTUM = 1e-5, 0.1
_MARGIN = 1e-4  # by which inputs keep off the ReLU's corner, where rounding decides on a gradient
_TRIALS = 30
Checked = Iterator[tuple[str, Tensor, Tensor, int]]  # name, result, the same in float64, numbers added up in one of it


@dataclass(frozen=True)
class Case:
    """One set of shapes.

    Attributes:
        shape: of the input (N, C, H, W).
        dtype: of all maps.
        groups: of the convolutions.
        branches: M.
        channels_last: of the input; it may lie contiguously, too.
        stride: of the convolutions.
        training: normalise by the batch.
        tf32: let float32 products be tf32's, as torch does by default.
    """

    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    groups: int
    branches: int = 2
    channels_last: bool = True
    stride: int = 1
    training: bool = True
    tf32: bool = False

    def __str__(self) -> str:
        words = [str(self.dtype).removeprefix("torch."), f"M {self.branches}", f"G {self.groups}"]
        words += ["stride 2"] * (self.stride > 1) + ["NCHW"] * (not self.channels_last)
        words += ["eval"] * (not self.training) + ["tf32"] * self.tf32
        return f"{' x '.join(map(str, self.shape))}, {', '.join(words)}"


def check(session: Session, *, kernel: str) -> None:
    """One row for every case: the largest error, in shares of its tolerance."""
    assert kernel in KERNELS
    examine = _fuse_select if kernel == "fuse_select" else _convolution
    passed = 0
    for case in _cases(session, kernel):
        row = _judge(session, kernel, case, examine)
        session.emit(row)
        passed += not row.failed
        if row.failed:
            session.wrong.add(kernel)
        session.synchronize()
        session.clear()
    if not passed:
        session.wrong.add(kernel)


def _cases(session: Session, kernel: str) -> Iterator[Case]:
    """Few for each dtype: every new shape of a pack, number of branches or dtype is compiled anew."""
    half, whole = torch.bfloat16, torch.float32
    odd = (2, 20, 9, 7)
    if session.tiny:
        odd = (2, 12, 5, 7)
        yield Case(odd, whole, 4)
        yield Case(odd, half, 4, branches=3, channels_last=False, stride=2 if kernel == "convolution" else 1)
        return
    yield Case(odd, whole, 4, branches=3)
    yield Case(odd, half, 4, channels_last=False)
    yield Case((3, 132, 23, 17), half, 4, training=False)
    for channels, side in ((128, 56), (256, 28), (512, 14), (1024, 7)):
        yield Case((4, channels, side, side), half, 32)
    yield Case((4, 256, 28, 28), whole, 32)
    yield Case((4, 256, 28, 28), torch.float16, 32, branches=3)
    yield Case((4, 128, 56, 56), torch.float16, 32, channels_last=False)
    if kernel == "convolution":
        yield Case((3, 256, 29, 27), half, 32, stride=2)
        yield Case((3, 96, 15, 13), whole, 6, branches=3, stride=2)
        yield Case((4, 256, 28, 28), whole, 32, tf32=True)


def _judge(session: Session, kernel: str, case: Case, examine: Callable[[Session, Case], Checked]) -> Row:
    """The row of one case; an exception is a wrong result too."""
    worst, largest, bound, names, error = 0.0, 0.0, 0.0, [], ""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    try:
        # Each shape is met once: trying cuDNN's ways in float64 would take longer than the slowest of them.
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = case.tf32, False
        for name, actual, expected, terms in examine(session, case):
            distance, tolerance = _distance(actual, expected), _tolerance(case, terms)
            if not distance <= tolerance:  # NaN too
                names.append(f"{name} {distance:.1e} > {tolerance:.1e}")
            if not distance / tolerance <= worst:
                worst, largest, bound = distance / tolerance, distance, tolerance
        error = "FAIL: " + ", ".join(names) if names else ""
    except Exception as raised:  # noqa: BLE001 - a kernel that cannot run is reported as one that is wrong
        error = f"FAIL: {line(raised)}"
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before
    value = largest if math.isfinite(largest) else None  # which JSON cannot hold
    return Row(part="correct", what=kernel, case=str(case), variant="triton", value=value, bound=bound, error=error)


def _distance(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, in shares of the largest value."""
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} in place of {tuple(expected.shape)}"
    return float((actual.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def _tolerance(case: Case, terms: int) -> float:
    """Two roundings of the result, and in float32 those of a sum of so many numbers of both signs.

    tf32 rounds the numbers themselves, to 10 bits.
    """
    stored = torch.finfo(case.dtype).eps + (2**-9 if case.tf32 else 0.0)
    return 2 * stored + 4 * torch.finfo(torch.float32).eps * math.sqrt(terms)


def _map(session: Session, case: Case, shape: Sequence[int] | None = None) -> Tensor:
    layout = torch.channels_last if case.channels_last else torch.contiguous_format
    return torch.randn(shape or case.shape, device=session.device).to(case.dtype).contiguous(memory_format=layout)


def _norm(session: Session, channels: int) -> nn.BatchNorm2d:
    """With numbers that are all away from their initial values."""
    norm = nn.BatchNorm2d(channels, eps=_EPS, momentum=_MOMENTUM, device=session.device)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        norm.weight.normal_(0.3)
        norm.bias.normal_(0.3)
        norm.running_mean.normal_(0.3)
        norm.running_var.uniform_(0.5, 1.5)
    return norm


def _normalised(y: Tensor, norm: nn.BatchNorm2d, training: bool) -> Tensor:
    return F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, training, _MOMENTUM, _EPS)


@torch.no_grad()
def _off_the_corner(y: Tensor, norm: nn.BatchNorm2d, training: bool) -> Tensor:
    """y with every value moved that BatchNorm would bring next to 0."""
    twin = nn.BatchNorm2d(y.shape[1], eps=_EPS, device=y.device).double()
    twin.load_state_dict(norm.state_dict())
    for _ in range(_TRIALS):
        near = _normalised(y.double(), twin, training).abs() < _MARGIN
        if not near.any():
            break
        y = torch.where(near, y + torch.rand_like(y) - 0.5, y)
    return y


def _fuse_select(session: Session, case: Case) -> Checked:
    """BatchNorm, ReLU, Fuse, Select: s, V, running statistics, gradients of y, weights, biases and the selection."""
    norms = [_norm(session, case.shape[1]) for _ in range(case.branches)]
    y = [_off_the_corner(1.5 * _map(session, case) + 0.5, norm, case.training).requires_grad_() for norm in norms]
    logits = torch.randn(case.shape[0], case.branches, case.shape[1], device=session.device)
    a_NMC = logits.softmax(1).requires_grad_()
    twins = [nn.BatchNorm2d(case.shape[1], device=session.device).double() for _ in norms]
    for twin, norm in zip(twins, norms, strict=True):
        twin.load_state_dict(norm.state_dict())
    y64, a64 = [each.detach().double().requires_grad_() for each in y], a_NMC.detach().double().requires_grad_()
    u = [_normalised(y_m, norm, case.training).relu() for y_m, norm in zip(y64, twins, strict=True)]
    expected = [reference.fuse(u), reference.select(u, a64)]

    given = [
        BatchNorm(norm.weight, norm.bias, norm.running_mean, norm.running_var, case.training, _MOMENTUM, _EPS)
        for norm in norms
    ]
    if not fuse_select.is_supported(y, given):
        raise ValueError("not supported")
    s_NC, state = fuse_select.fuse(given, y, None)
    actual = [s_NC, fuse_select.select(state, a_NMC)]
    gradients = [torch.randn_like(each) for each in actual]
    torch.autograd.backward(actual, gradients)
    torch.autograd.backward(expected, [each.double() for each in gradients])
    count = case.shape[0] * case.shape[2] * case.shape[3]
    yield "s", actual[0].detach(), expected[0].detach(), count  # by way of the batch's statistics
    yield "V", actual[1].detach(), expected[1].detach(), count
    yield "da", _gradient(a_NMC), _gradient(a64), count
    for m, (norm, twin) in enumerate(zip(norms, twins, strict=True)):
        yield f"dy{m}", _gradient(y[m]), _gradient(y64[m]), count
        yield f"dweight{m}", _gradient(norm.weight), _gradient(twin.weight), count
        yield f"dbias{m}", _gradient(norm.bias), _gradient(twin.bias), count
        for name in ("running_mean", "running_var"):
            yield f"{name}{m}", norm.get_buffer(name), twin.get_buffer(name), count


def _convolution(session: Session, case: Case) -> Checked:
    """Outputs of all branches, their statistics, gradients of the input and of the weights."""
    batch, channels = case.shape[:2]
    x = _map(session, case).requires_grad_()
    shape = (channels, channels // case.groups, 3, 3)
    dilations = [1 + m for m in range(case.branches)]
    weights = [_map(session, case, shape).requires_grad_() for _ in dilations]
    x64, weights64 = (x.detach().double().requires_grad_(), [w.detach().double().requires_grad_() for w in weights])
    expected = [
        F.conv2d(x64, w, None, case.stride, dilation, dilation, case.groups)
        for w, dilation in zip(weights64, dilations, strict=True)
    ]
    how: dict[str, Any] = {"stride": case.stride, "dilations": dilations, "groups": case.groups}
    y, statistics = convolution.convolve(x, weights, **how, statistics=True)
    bare, none = convolution.convolve(x.detach(), [w.detach() for w in weights], **how, statistics=False)
    gradients = [_map(session, case, each.shape) for each in expected]
    torch.autograd.backward(y, gradients)
    torch.autograd.backward(expected, [each.double() for each in gradients])
    assert statistics is not None
    assert none is None
    terms = 9 * shape[1]
    pixels = batch * math.prod(expected[0].shape[2:])
    yield "dx", _gradient(x), _gradient(x64), terms * case.branches
    for m in range(case.branches):
        yield f"y{m}", y[m].detach(), expected[m].detach(), terms
        yield f"y{m} without statistics", bare[m], expected[m].detach(), terms
        yield f"dw{m}", _gradient(weights[m]), _gradient(weights64[m]), pixels
        variance, mean = torch.var_mean(y[m].detach().double(), (0, 2, 3), correction=0)  # of the rounded values
        near = (statistics[0][m] - mean) / variance.sqrt()
        yield f"mean{m}", near.float() + 1, torch.ones_like(near), pixels  # in shares of the deviation
        yield f"variance{m}", statistics[1][m], variance, pixels


def _gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None, "no gradient"
    return tensor.grad

"""Times of the single kernels on SKNet-50's shapes, beside the same work by PyTorch's operators, eager and compiled.

Ours are called as their registered operators, without autograd. "whole" rows go through autograd, forward and backward,
and decide what `auto` takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.gpu_plan import BRANCHES, COMPILED, WHOLE, Stage
from benchmarks.gpu_session import Session, timed
from selkern.ops import select as ops
from selkern.ops.norm import BatchNorm
from selkern.ops.triton import convolution, fuse_select

_EPS = 1e-5
DILATIONS = tuple(range(1, BRANCHES + 1))
_LAYOUTS = {"eager": torch.channels_last, "eager, NCHW": torch.contiguous_format}


@dataclass(frozen=True)
class Task:
    """The same work by two hands.

    Attributes:
        what: its name.
        ours: takes `arguments`.
        plain: takes `arguments`; with PyTorch's operators, fit to be compiled.
        given: for `ours`.
        taken: for `plain`.
        maps: read and written, each once.
        tflop: useful ones.
        gradients: of the first results; where there are some, the backward pass belongs to the work.
    """

    what: str
    ours: Callable[..., Any]
    plain: Callable[..., Any]
    given: tuple[Any, ...]
    taken: tuple[Any, ...]
    maps: float = 0.0
    tflop: float | None = None
    gradients: tuple[Tensor, ...] = ()

    def job(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Callable[[], object]:
        """The work, by a function with the same results as `ours` or `plain`."""
        if not self.gradients:
            return lambda: function(*arguments)
        leaves = [tensor for tensor in _flat(arguments) if tensor.requires_grad]
        gradients = self.gradients
        return lambda: torch.autograd.grad(_flat(function(*arguments))[: len(gradients)], leaves, gradients)


def time_kernel(session: Session, *, kernel: str, number: int, dtype: str, compiled: bool) -> None:
    """Rows of one kernel file at one stage: ours and eager, or only what torch.compile makes."""
    stage = session.stage(number)
    case, kind = stage.case(dtype), getattr(torch, dtype)
    if kernel in session.wrong:
        return
    map_gbyte = stage.elements * torch.finfo(kind).bits / 8 / 1e9
    tasks = (_fuse_select if kernel == "fuse_select" else _convolution)(session, stage, kind)
    for task in sorted(tasks, key=lambda task: task.what != WHOLE):  # those first that decide
        figures = {"gbyte": task.maps * map_gbyte or None, "tflop": task.tflop}
        name = f"{kernel}: {task.what}"
        if compiled:
            with session.row("kernel", name, case, COMPILED) as fields:
                fields |= timed(session.measure(task.job(session.compiled(task.plain), task.taken)), **figures)
            continue
        with session.row("kernel", name, case, "triton") as fields:
            fields |= timed(session.measure(task.job(task.ours, task.given)), **figures)
        for variant, layout in _LAYOUTS.items():
            if kernel == "convolution" or layout == torch.channels_last:  # what passes over memory cares little
                with session.row("kernel", name, case, variant) as fields:
                    taken = tuple(_in_layout(each, layout) for each in task.taken)
                    fields |= timed(session.measure(task.job(task.plain, taken)), **figures)


def _flat(value: Any) -> list[Tensor]:
    """All tensors of nested lists and tuples."""
    if isinstance(value, Tensor):
        return [value]
    return [tensor for each in value for tensor in _flat(each)] if isinstance(value, (list, tuple)) else []


def _in_layout(value: Any, layout: torch.memory_format) -> Any:
    """Maps and weights in a layout, alone or in lists; the rest as it is."""
    if isinstance(value, Tensor):
        if value.ndim != 4:
            return value
        return value.detach().contiguous(memory_format=layout).requires_grad_(value.requires_grad)
    return [_in_layout(each, layout) for each in value] if isinstance(value, list) else value


# PyTorch's way. Maps are lists of one tensor per branch; norms are mean, invstd, weight, bias, (M, C) each.


def _plain_moments(y: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [torch.var_mean(y_m, (0, 2, 3), correction=0) for y_m in y]


def _plain_maps(y: list[Tensor], norms: list[Tensor]) -> list[Tensor]:
    """relu(BN(y)) by known moments."""
    mean, invstd, weight, bias = norms
    variance = invstd.pow(-2) - _EPS
    return [
        torch.batch_norm(y_m, weight[m], bias[m], mean[m], variance[m], False, 0.0, _EPS, True).relu_()
        for m, y_m in enumerate(y)
    ]


def _plain_fuse(y: list[Tensor], norms: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    u = _plain_maps(y, norms)
    return u, ops.fuse(u)


def _plain_select_backward(dv: Tensor, u: list[Tensor], a_NMC: Tensor) -> tuple[Tensor, list[Tensor]]:
    columns = a_NMC.to(dv.dtype)[..., None, None].unbind(1)
    da = torch.stack([(dv * u_m).sum((2, 3), dtype=torch.float32) for u_m in u], 1)
    return da, [dv * column for column in columns]


def _plain_fuse_backward(
    du: list[Tensor], u: list[Tensor], y: list[Tensor], norms: list[Tensor], ds_NC: Tensor
) -> list[Any]:
    mean, invstd, weight, _bias = norms
    result = []
    for m, (du_m, u_m, y_m) in enumerate(zip(du, u, y, strict=True)):
        g = torch.ops.aten.threshold_backward(du_m + ds_NC.to(u_m.dtype)[..., None, None], u_m, 0)
        moments = (None, None, mean[m], invstd[m], True, _EPS, [True] * 3)
        result.append(torch.ops.aten.native_batch_norm_backward(g, y_m, weight[m], *moments))
    return result


def _plain_whole(y: list[Tensor], weights: list[Tensor], biases: list[Tensor], a_NMC: Tensor) -> tuple[Tensor, Tensor]:
    u = [
        F.batch_norm(y_m, None, None, weight, bias, True, 0.1, _EPS).relu_()
        for y_m, weight, bias in zip(y, weights, biases, strict=True)
    ]
    return ops.fuse(u), ops.select(u, a_NMC)


def _our_whole(y: list[Tensor], weights: list[Tensor], biases: list[Tensor], a_NMC: Tensor) -> tuple[Tensor, Tensor]:
    norms = [BatchNorm(w, b, None, None, True, 0.1, _EPS) for w, b in zip(weights, biases, strict=True)]
    s_NC, state = fuse_select.fuse(norms, y, None)
    return s_NC, fuse_select.select(state, a_NMC)


def _fuse_select(session: Session, stage: Stage, dtype: torch.dtype) -> list[Task]:
    shape, M = (stage.batch, stage.channels, stage.side, stage.side), BRANCHES
    y, du = ([_map(session, shape, dtype) for _ in range(M)] for _ in range(2))
    dv, device = _map(session, shape, dtype), session.device
    columns = (M, stage.channels)
    weight, bias = torch.rand(columns, device=device) + 0.5, torch.randn(columns, device=device) / 2
    norms = [torch.zeros(columns, device=device), torch.ones(columns, device=device), weight, bias]
    a_NMC = torch.randn(stage.batch, *columns, device=device).softmax(1)
    ds_NC = torch.randn(stage.batch, stage.channels, device=device).to(dtype)
    averages = torch.randn(2, *columns, device=device) / 1e3
    u = _plain_maps(y, norms)
    links = fuse_select.fuse_branches(y, norms, True)[2:]
    leaves = (_leaves(y), _leaves(weight.unbind()), _leaves(bias.unbind()), a_NMC.clone().requires_grad_())
    fused, ds = fuse_select.fuse_branches, ds_NC.float()
    gradients = fuse_select.branch_gradients
    return [
        Task("moments", fuse_select.branch_moments, _plain_moments, (y,), (y,), M),
        Task("Fuse", fused, _plain_fuse, (y, norms, True), (y, norms), M),
        Task("Select", fuse_select.select_branches, ops.select, (y, norms, a_NMC, *links), (u, a_NMC), M + 1),
        Task("backward 1", fuse_select.branch_sums, _plain_select_backward, (dv, y, norms), (dv, u, a_NMC), M + 1),
        Task(
            "backward 2",
            gradients,
            _plain_fuse_backward,
            (dv, y, norms, a_NMC, ds, averages),
            (du, u, y, norms, ds_NC),
            2 * M + 1,
        ),
        # moments, Fuse, Select and the two backward passes
        Task(WHOLE, _our_whole, _plain_whole, leaves, leaves, 2 * M + 2 * (M + 1) + 2 * M + 1, None, (ds_NC, dv)),
    ]


def _plain_convolutions(x: Tensor, weights: list[Tensor], groups: int) -> list[Tensor]:
    return [F.conv2d(x, w, None, 1, d, d, groups) for w, d in zip(weights, DILATIONS, strict=True)]


def _plain_with_statistics(x: Tensor, weights: list[Tensor], groups: int) -> tuple[list[Tensor], list[Any]]:
    y = _plain_convolutions(x, weights, groups)
    return y, _plain_moments([y_m.detach() for y_m in y])


def _plain_gradient(x: Tensor, weights: list[Tensor], groups: int, dy: list[Tensor], of_input: bool) -> list[Any]:
    mask = [of_input, not of_input, False]
    backward = torch.ops.aten.convolution_backward
    result = [
        backward(g, x, w, None, [1, 1], [d, d], [d, d], False, [0, 0], groups, mask)
        for g, w, d in zip(dy, weights, DILATIONS, strict=True)
    ]
    return [sum((each[0] for each in result[1:]), start=result[0][0])] if of_input else [each[1] for each in result]


def _our_convolutions(x: Tensor, weights: list[Tensor], groups: int) -> Any:
    return convolution.convolve(x, weights, stride=1, dilations=DILATIONS, groups=groups, statistics=True)


def _convolution(session: Session, stage: Stage, dtype: torch.dtype) -> list[Task]:
    shape, groups = (stage.batch, stage.channels, stage.side, stage.side), stage.groups
    x = _map(session, shape, dtype)
    dy = [_map(session, shape, dtype) for _ in DILATIONS]
    kernel = (stage.channels, stage.channels // groups, 3, 3)
    weights = [_map(session, kernel, dtype) for _ in DILATIONS]
    how, M = (1, list(DILATIONS), groups), BRANCHES
    tflop = 2 * M * stage.elements * kernel[1] * 9 / 1e12
    ours, taken = convolution.convolve_branches, (x, weights, groups)
    back = (dy, weights, stage.side, stage.side, *how)
    leaves = (x.detach().requires_grad_(), _leaves(weights), groups)
    of_x, of_w = convolution.input_gradient, convolution.weight_gradients
    return [
        Task("forward", ours, _plain_convolutions, (x, weights, *how, False), taken, M + 1, tflop),
        Task("forward, statistics", ours, _plain_with_statistics, (x, weights, *how, True), taken, M + 1, tflop),
        Task("input gradient", of_x, _plain_gradient, back, (*taken, dy, True), M + 1, tflop),
        Task("weight gradients", of_w, _plain_gradient, (x, dy, [3] * M, *how), (*taken, dy, False), 2 * M, tflop),
        Task(WHOLE, _our_convolutions, _plain_with_statistics, leaves, leaves, 4 * M + 2, 3 * tflop, tuple(dy)),
    ]


def _map(session: Session, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    made = torch.empty(shape, dtype=dtype, device=session.device, memory_format=torch.channels_last)
    return made.normal_()


def _leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone().requires_grad_() for tensor in tensors]

"""A unit made of a convolution, restated: explicit padding, moments, Eq. 1 to 6 as they are written."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Tensors = Mapping[str, Tensor]
CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class SameConv(nn.Conv2d):
    """Pads as TensorFlow does: L positions become ceil(L / stride)."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for size, k, s, d in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], self.dilation[::-1]):  # noqa: B905
            total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class FrozenBatchNorm(nn.Module):
    """Detection's: four buffers."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale: Tensor = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


class NormAct(nn.BatchNorm2d):
    """A norm and its activation in one module."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(super().forward(x))


class LayerNorm2d(nn.LayerNorm):
    """Over the channels of a map."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Behind(nn.Module):
    """A function without a module, in a network of `conv` and `norm`."""

    def __init__(self, conv: nn.Module, norm: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.function = conv, norm, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.norm(self.conv(x)))


@dataclass(frozen=True)
class Window:
    """What a branch's convolution does beside its weight."""

    pads: tuple[int, ...]  # as F.pad takes them: the last axis first
    dilation: int | tuple[int, ...] = 1
    groups: int = 1


@dataclass(frozen=True)
class Case:
    """A network of a convolution `conv`, perhaps `norm` and `act`, and how its branches look, written by hand."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    windows: tuple[Window, ...]
    stride: int = 1
    mode: str = "constant"
    norm: str = "none"  # or batch, group, layer, frozen
    act: Callable[[Tensor], Tensor] = lambda x: x  # of the unit
    behind: Callable[[Tensor], Tensor] = lambda x: x
    before: Callable[[Tensor], Tensor] = lambda x: x
    form: str = "residual"
    options: dict[str, Any] = field(default_factory=dict)


def normalised(case: Case, model: nn.Module, t: Tensors, prefix: str, y: Tensor) -> Tensor:
    """The norm of a branch, by its moments."""
    if case.norm == "none":
        return y
    state = {**dict(model.named_buffers()), **t}
    weight, bias = state[f"{prefix}.weight"], state[f"{prefix}.bias"]
    if case.norm == "frozen" or (case.norm == "batch" and not model.training):
        mean, var = state[f"{prefix}.running_mean"], state[f"{prefix}.running_var"]
        mean, var = (v.reshape(1, -1, *[1] * (y.ndim - 2)) for v in (mean, var))
    elif case.norm == "batch":
        axes = (0, *range(2, y.ndim))
        mean, var = y.mean(axes, keepdim=True), y.var(axes, correction=0, keepdim=True)
    elif case.norm == "group":  # of two groups
        parts = y.reshape(len(y), 2, -1)
        mean, var = parts.mean(2), parts.var(2, correction=0)
        mean, var = (v.repeat_interleave(y.shape[1] // 2, 1).reshape(*y.shape[:2], 1, 1) for v in (mean, var))
    else:
        mean, var = y.mean(1, keepdim=True), y.var(1, correction=0, keepdim=True)
    wide = (1, -1, *[1] * (y.ndim - 2))
    return (y - mean) / (var + 1e-5).sqrt() * weight.reshape(wide) + bias.reshape(wide)


def restated(case: Case, model: nn.Module) -> Callable[[Tensors], Tensor]:
    """The changed network as a function of its parameters and `x`."""

    def function(t: Tensors) -> Tensor:
        x = case.before(t["x"])
        dims = x.ndim - 2
        maps: list[Tensor] = []
        u: list[Tensor] = []
        for m, window in enumerate(case.windows):
            place = "conv.conv" if m == 0 else f"conv.further.{m - 1}.conv"
            place = place if f"{place}.weight" in t else f"{place}.1"
            padded = F.pad(x, window.pads, mode=case.mode)
            weight, bias = t[f"{place}.weight"], t.get(f"{place}.bias")
            y = CONVOLVE[dims](padded, weight, bias, case.stride, 0, window.dilation, window.groups)
            maps.append(y if m == 0 or case.form == "widened" else maps[0] + y)
            place = "conv.norm" if m == 0 else f"conv.further.{m - 1}.norm"
            u.append(case.act(normalised(case, model, t, place, maps[m])))
        s = torch.stack(u).sum(0).flatten(2).mean(2)
        z = s @ t["conv.gate.fc1.weight"].T
        z = (z - z.mean(1, keepdim=True)) / (z.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        z = (z * t["conv.gate.norm.weight"] + t["conv.gate.norm.bias"]).clamp(min=0)
        logits = (z @ t["conv.gate.fc2.weight"].T).reshape(len(x), len(u), -1).exp()
        a = logits / logits.sum(1, keepdim=True)
        return case.behind(sum(a[:, m].reshape(*a[:, m].shape, *[1] * dims) * u[m] for m in range(len(u))))  # type: ignore[arg-type]

    return function

"""`SelectiveConv`: a convolution that is there already, with further branches that are equal to it at first."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from selkern.adapt.folded import Fused, fold_branches
from selkern.layers.depthwise import DepthwiseConv2d
from selkern.layers.gate import Gate
from selkern.layers.memory import HasMemory, Memory
from selkern.layers.parts import CONVS, Norm, are_replaceable, norm_relu
from selkern.ops import recompute
from selkern.ops.select import fuse

Form = Literal["residual", "widened"]
_OWNER = "a branch of a selective kernel"  # in messages


@dataclass(frozen=True)
class Design:
    """How units are built; the arguments of `selectify` that do not choose where."""

    branches: int = 2
    form: Form = "residual"
    groups: int = 32
    reduction: int = 16
    min_width: int = 32
    gate_norm: Norm = "layer"


@dataclass(frozen=True)
class Geometry:
    """A convolution as it runs; a number for each spatial axis.

    Attributes:
        kernel, stride, dilation: of its weight.
        padding: before and after, of each axis.
        mode: of the padding: "zeros", "reflect", "replicate" or "circular"; "same" where it follows from the size of
            the map, so that a map of L positions becomes ceil(L / stride) (TensorFlow's).
    """

    in_channels: int
    out_channels: int
    groups: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    mode: str

    @property
    def extent(self) -> tuple[int, ...]:
        """Sides of the window it sees."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def spatial(self) -> bool:
        """Whether it sees more than one position."""
        return max(self.kernel) > 1

    @property
    def depthwise(self) -> bool:
        """Whether every input channel has filters of its own."""
        return self.groups == self.in_channels > 1

    def __str__(self) -> str:
        stride = f"/{max(self.stride)}" if max(self.stride) > 1 else ""
        dilation = f" d{max(self.dilation)}" if max(self.dilation) > 1 else ""
        groups = " depthwise" if self.depthwise else f" G{self.groups}" if self.groups > 1 else ""
        return f"{'x'.join(map(str, self.kernel))}{stride}{dilation}{groups}"

    def further(self, m: int, design: Design) -> Geometry:
        """The convolution of branch m + 1, m >= 1: its window reaches m positions further on every side.

        Its centres are those of this one: the padding grows by as much as the window does.
        """
        grown = tuple((before + m * step, after + m * step) for (before, after), step in self._steps(design.form))
        shared: dict[str, Any] = {"stride": self.stride, "padding": grown, "mode": self.mode}
        channels = (self.in_channels, self.out_channels)
        if design.form == "widened":
            wide = tuple(k + 2 * m for k in self.kernel)
            return Geometry(*channels, self.groups, wide, dilation=self.dilation, **shared)
        dilation = tuple((extent + 2 * m - 1) // 2 for extent in self.extent)
        return Geometry(*channels, self._cheap(design.groups), (3,) * len(dilation), dilation=dilation, **shared)

    def _steps(self, form: Form) -> list[tuple[tuple[int, int], int]]:
        steps = self.dilation if form == "widened" else (1,) * len(self.kernel)
        return list(zip(self.padding, steps, strict=True))

    def _cheap(self, groups: int) -> int:
        """A cardinality of at most `groups`, or as large as this one's; of a depthwise convolution depthwise."""
        if self.depthwise:
            return self.groups
        common = gcd(self.in_channels, self.out_channels)
        return max(self.groups, *(g for g in range(1, min(common, groups) + 1) if common % g == 0))

    def weights(self) -> int:
        """How many numbers its kernel has; times the positions of its result they are its multiply-adds."""
        return self.out_channels * (self.in_channels // self.groups) * torch.Size(self.kernel).numel()

    def build(self, *, bias: bool, device: Any, dtype: Any) -> nn.Module:
        """A convolution of this geometry, all zero."""
        symmetric = self.mode != "same" and all(before == after for before, after in self.padding)
        kind: Any = DepthwiseConv2d if self.depthwise and self.kernel == (3, 3) else CONVS[len(self.kernel)]
        conv: nn.Module = kind(
            self.in_channels,
            self.out_channels,
            self.kernel,
            stride=self.stride,
            padding=tuple(before for before, _ in self.padding) if symmetric else 0,
            dilation=self.dilation,
            groups=self.groups,
            bias=bias,
            padding_mode=self.mode if symmetric else "zeros",
            device=device,
            dtype=dtype,
        )
        with torch.no_grad():
            for p in conv.parameters():
                p.zero_()
        return conv if symmetric else nn.Sequential(Pad(self), conv)


class Pad(nn.Module):
    """Zeros around a map (N, C, *): as many as a geometry says, or by the size of the map where its mode is "same".

    There `padding` is what a window of another size needs besides: see `Geometry.further`.
    """

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.padding, self.same = geometry.padding, geometry.mode == "same"
        # The padding has grown with the window: what the first branch needs follows from the first branch's window.
        self.extent = tuple(
            extent - before - after for extent, (before, after) in zip(geometry.extent, self.padding, strict=True)
        )
        self.stride = geometry.stride

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *) to (N, C, *)."""
        pads: list[int] = []
        for axis in reversed(range(len(self.padding))):
            before, after = self.padding[axis]
            if self.same:
                size, stride = x.shape[2 + axis], self.stride[axis]
                needed = same_padding(size, self.extent[axis], stride)
                before, after = before + needed // 2, after + needed - needed // 2
            pads += [before, after]
        return F.pad(x, pads)


def same_padding(size: int, extent: int, stride: int) -> int:
    """Zeros on both sides together, so that `size` positions become ceil(size / stride)."""
    needed: Any = ((size + stride - 1) // stride - 1) * stride + extent - size
    if isinstance(needed, Tensor):  # a size of torch.jit.trace
        return needed.clamp(min=0)  # type: ignore[return-value]
    return torch.sym_max(needed, 0)  # type: ignore[no-untyped-call]


class Further(nn.Module):
    """A further branch: its convolution, and its own copies of the norm and the activation."""

    def __init__(self, conv: nn.Module, norm: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.act = conv, norm, act


@dataclass(frozen=True)
class Origin:
    """Where the parts of a unit were in the network: what `deselectify` puts back.

    Attributes:
        conv: the module's name, which is the unit's.
        norm: None where there is none in the unit.
        act: None where there is none, or where it has stayed behind the unit.
    """

    conv: str
    norm: str | None
    act: str | None


class SelectiveConv(nn.Module, HasMemory):
    """Several kernels in place of one convolution: (N, C_in, *) to (N, C_out, *), Split, Fuse, Select.

    V = U_1 + sum over m > 1 of a_m (U_m - U_1), which is Eq. 6 for weights that add up to 1. U_1 is what the
    convolution that was there, its norm and its activation give. At first every U_m equals it, so V does, whatever the
    gate says. The further branches have a gradient from the first step on, the gate as soon as they differ.

    Args:
        conv: the convolution that was there.
        norm: what follows it; `nn.Identity()` for nothing.
        act: what follows that.
        geometry: of the convolution.
        design: how the further branches and the gate are made.
        origin: where the three were.

    Attributes:
        extents: side of the window that each branch sees, in input positions.
        memory: as in `SelectiveKernel`, but "plain" by default: on a GPU other kernels than the original's norm and
            activation run in the other modes, so that results are equal up to rounding.

    State-dict keys: `conv.*`, `norm.*` and `act.*` as they were, `further.{i}.{conv,norm,act}.*`, `gate.*`.
    """

    def __init__(
        self, conv: nn.Module, norm: nn.Module, act: nn.Module, geometry: Geometry, design: Design, origin: Origin
    ) -> None:
        super().__init__()
        self.conv, self.norm, self.act = conv, norm, act
        self.dims, self.form, self.origin = len(geometry.kernel), design.form, origin
        self.memory: Memory = "plain"
        weight = next(conv.parameters())
        shared: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        shapes = [geometry.further(m, design) for m in range(1, design.branches)]
        self.extents = tuple(max(shape.extent) for shape in (geometry, *shapes))
        biased = design.form == "widened" and getattr(conv, "bias", None) is not None
        self.further = nn.ModuleList(
            Further(shape.build(bias=biased, **shared), copy.deepcopy(norm), copy.deepcopy(act)) for shape in shapes
        )
        if design.form == "widened":
            for branch in self.further:
                widen(conv, branch.get_submodule("conv"))
        shared |= {"reduction": design.reduction, "min_width": design.min_width, "norm": design.gate_norm}
        self.gate = Gate(geometry.out_channels, design.branches, **shared)
        for part in (self.gate, *(branch.get_submodule("conv") for branch in self.further)):
            part.train(conv.training)
        for part in (self, self.further, *self.further):  # not their norms, which may be frozen
            part.training = conv.training

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, *) to (N, C_out, *)."""
        y = self.conv(x)
        further = [branch for branch in self.further if isinstance(branch, Further)]  # which all of them are
        # All before any activation, which may work in place.
        maps = [y + branch.conv(x) if self.form == "residual" else branch.conv(x) for branch in further]
        u = [self._finished(self.norm, self.act, y)]
        u += [self._finished(branch.norm, branch.act, y_m) for branch, y_m in zip(further, maps, strict=True)]
        return self._selected(u, self.gate(fuse(u, self.dims)))

    def fold_for_inference(self, fused: Fused) -> nn.Module:
        """What `selkern.fold` makes of a unit in eval mode, which is not used afterwards; itself where it stays.

        Args:
            fused: makes one of a convolution, the norm behind it, and a ReLU.
        """
        branches = [self, *self.further]
        convs, norms, acts = ([branch.get_submodule(name) for branch in branches] for name in ("conv", "norm", "act"))
        return fold_branches(self.form, convs, norms, acts, self.gate, fused) or self

    def _finished(self, norm: nn.Module, act: nn.Module, y: Tensor) -> Tensor:
        """A branch's map out of its convolution's, which is not saved where `memory` says so."""
        if self.memory != "plain" and are_replaceable(norm, act) and recompute.is_possible(y):
            return norm_relu(norm, act, y, _OWNER)
        return act(norm(y))

    def _selected(self, u: Sequence[Tensor], a_NMC: Tensor) -> Tensor:
        """V, to the bit U_1 where all branches are equal."""
        if len(u) == 2:
            return recompute.select_unsaved(u, a_NMC, self.dims)
        spatial: tuple[Any, ...] = (..., *[None] * self.dims)
        a = a_NMC.to(u[0].dtype)[spatial]
        v = u[0]
        for m, u_m in enumerate(u[1:], start=1):
            v = torch.addcmul(v, a[:, m], u_m - u[0])
        return v

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """As every module's, with a message for weights of the network without selective kernels."""
        old = [key for key in self.conv.state_dict() if prefix + key in state_dict]
        if old and not any(key.startswith(f"{prefix}conv.") for key in state_dict):
            error_msgs.append(
                f"{prefix}{old[0]} belongs to the network as it was before selectify: load these weights into that one "
                "(deselectify gives it back), and call selectify on it afterwards"
            )
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    @property
    def in_channels(self) -> Any:
        """Of the convolution, for code that asks it."""
        return self.conv.in_channels

    @property
    def out_channels(self) -> Any:
        """Of the convolution, for code that asks it."""
        return self.conv.out_channels

    @property
    def kernel_size(self) -> Any:
        """Of the convolution, for code that asks it."""
        return self.conv.kernel_size

    @property
    def stride(self) -> Any:
        """Of the convolution, for code that asks it."""
        return self.conv.stride

    def extra_repr(self) -> str:
        """What `print(unit)` adds: the form, and the window of each branch."""
        return f"{self.form}, extents={self.extents}"


@torch.no_grad()
def widen(conv: nn.Module, wide: nn.Module) -> None:
    """Put a convolution's kernel into the middle of a larger one, zeros around it, and its bias."""
    target = wide if isinstance(wide, tuple(CONVS.values())) else wide.get_submodule("1")
    weight, kernel = target.get_parameter("weight"), conv.get_parameter("weight")
    middle = tuple(slice((w - k) // 2, (w + k) // 2) for w, k in zip(weight.shape[2:], kernel.shape[2:], strict=True))
    everything: tuple[Any, ...] = (slice(None), slice(None), *middle)
    weight.zero_()
    weight[everything] = kernel
    if getattr(target, "bias", None) is not None:
        target.get_parameter("bias").copy_(conv.get_parameter("bias"))


def is_untouched(unit: SelectiveConv) -> bool:
    """Whether all branches are equal still, so that the unit computes what its first branch does."""
    for branch in unit.further:
        parts = [(branch.get_submodule(name), unit.get_submodule(name)) for name in ("norm", "act")]
        if not all(same_state(one, other) for one, other in parts):
            return False
        conv = branch.get_submodule("conv")
        if unit.form == "widened":
            expected = copy.deepcopy(conv)
            widen(unit.conv, expected)
            if not same_state(conv, expected):
                return False
        elif any(p.detach().count_nonzero() for p in conv.parameters()):
            return False
    return True


def same_state(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules of one kind hold the same numbers."""
    first, second = one.state_dict(), other.state_dict()
    return all(
        torch.equal(value, second[key]) if isinstance(value, Tensor) else value == second[key]
        for key, value in first.items()
    )

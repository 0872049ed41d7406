"""The selective-kernel unit: several kernels over one input, and a choice among them for every channel.

Paper: Selective Kernel Networks, CVPR 2019, arXiv 1903.06586, section 3.1; details that the text leaves out
(no bias, no norm after the weighted sum, gate's initialisation) follow the authors' sknet50.prototxt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from selkern.layers.gate import Gate
from selkern.layers.memory import HasMemory, Memory, check_memory
from selkern.layers.parts import (
    CONVS,
    Activation,
    Norm,
    apply_norm,
    are_replaceable,
    batch_norm_of,
    check_input,
    divides,
    he_normal,
    make_activation,
    make_norm,
    odd_kernels,
    positive,
)
from selkern.ops import kernels, recompute
from selkern.ops.convolve import convolve
from selkern.ops.eager import is_eager, is_watched
from selkern.ops.select import fuse

Path = Literal["autograd", "recompute", "triton"]
_BRANCH = "a branch of a selective kernel"  # in messages


@dataclass(frozen=True)
class Branch:
    """One kernel of a selective-kernel unit.

    Attributes:
        kernel_size: odd; 1 is allowed.
        dilation: step between the kernel's taps.
        groups: cardinality of this branch; None takes the unit's.
    """

    kernel_size: int
    dilation: int = 1
    groups: int | None = None

    def __post_init__(self) -> None:
        odd_kernels([self.kernel_size])
        positive("dilation", self.dilation)
        if self.groups is not None:
            positive("groups", self.groups)

    @property
    def extent(self) -> int:
        """Side of the window it sees, in input positions: 5 for a 3x3 of dilation 2."""
        return (self.kernel_size - 1) * self.dilation + 1

    @classmethod
    def of(cls, kernel: int | Branch) -> Branch:
        """A `Branch` as it is; a number k as the paper builds it: a 3x3 whose dilation makes it see k x k."""
        if isinstance(kernel, Branch):
            return kernel
        odd_kernels([kernel])
        return cls(1) if kernel == 1 else cls(3, dilation=(kernel - 1) // 2)


class ConvNormAct(nn.Module):
    """One branch: conv -> norm -> activation, (N, C_in, *) to (N, C_out, *), padded to keep positions."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        branch: Branch,
        *,
        groups: int = 1,
        stride: int = 1,
        dims: int = 2,
        norm: Norm = "batch",
        activation: Activation = "relu",
        bias: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        groups = branch.groups or groups
        divides("groups", groups, in_channels=in_channels, out_channels=out_channels)
        self.conv = CONVS[dims](
            in_channels,
            out_channels,
            branch.kernel_size,
            stride=stride,
            padding=branch.extent // 2,
            dilation=branch.dilation,
            groups=groups,
            bias=bias,
            device=device,
            dtype=dtype,
        )
        self.norm = make_norm(norm, out_channels, dims, device, dtype)
        self.act = make_activation(activation)
        he_normal(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, *) to (N, C_out, *)."""
        return self.act(apply_norm(self.norm, recompute.through(self.conv, x), _BRANCH))


class SelectiveKernel(nn.Module, HasMemory):
    """SK[M, G, r]: Split, Fuse, Select. (N, C_in, H, W) to (N, C_out, H / stride, W / stride).

    Args:
        in_channels: C_in.
        out_channels: C_out; None keeps C_in.
        kernels: one entry per branch. A number k is the paper's form, a 3x3 dilated to see k x k
            (`(3, 5)`: 3x3 and 3x3 with dilation 2; 1 is a true 1x1); `Branch(5)` is a true 5x5, and
            `Branch(3, dilation=3, groups=8)` sets everything.
        groups: G, the cardinality of branches that do not set their own (32 as in SKNet-50).
        reduction: r, and `min_width` L: the gate's descriptor has D = max(C_out // r, L) numbers.
        stride: of every branch.
        dims: 1, 2 or 3 spatial axes.
        fuse: "select" is the paper's unit; "sum" adds the branches without a gate (the paper's Table 7 control).
            A single branch has nothing to select (its softmax is 1) and gets no gate.
        norm: "batch", "group", "layer", "none", or a function from a channel count to a module.
        activation: "relu" and others by name, or a function that makes a module; used in the gate too.
        gate_norm: norm of the gate's descriptor; None takes `norm`.
        bias: of every convolution and linear map; False, as a norm follows each.
        memory: what training keeps for the backward pass. "default" keeps each convolution's output and
            computes BatchNorm and ReLU again: about half the memory. "lean" is the same for a layer by itself; in our
            networks it also computes the maps between the layers of a unit again. "plain" keeps all that autograd
            saves; so does every unit of other norms and activations, and any pass that is compiled, traced or
            transformed by torch.func.

    Raises:
        ValueError: an argument outside its range, or an input of another rank or channel count.

    Example:
        >>> import torch, selkern
        >>> layer = selkern.SelectiveKernel(64, 128, kernels=(3, 5), groups=32, reduction=16, stride=2)
        >>> layer(torch.randn(2, 64, 56, 56)).shape
        torch.Size([2, 128, 28, 28])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        kernels: Sequence[int | Branch] = (3, 5),
        *,
        groups: int = 32,
        reduction: int = 16,
        min_width: int = 32,
        stride: int = 1,
        dims: int = 2,
        fuse: Literal["select", "sum"] = "select",
        norm: Norm = "batch",
        activation: Activation = "relu",
        gate_norm: Norm | None = None,
        bias: bool = False,
        memory: Memory = "default",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        for name, value in (("in_channels", in_channels), ("out_channels", out_channels), ("groups", groups)):
            positive(name, value)
        positive("stride", stride)
        if positive("dims", dims) not in CONVS:
            raise ValueError(f"dims must be 1, 2 or 3, got {dims!r}")
        check_memory(memory)
        if fuse not in ("select", "sum"):
            raise ValueError(f"fuse must be 'select' or 'sum', got {fuse!r}")
        if not isinstance(kernels, Sequence) or not kernels:
            raise ValueError(f"kernels must be a list with one entry per branch, such as (3, 5), got {kernels!r}")
        self.in_channels, self.out_channels, self.dims = in_channels, out_channels, dims
        self.kernels = tuple(Branch.of(k) for k in kernels)
        self.memory = memory
        self.in_unit = False  # a unit of our networks reads V at once, and nothing else does
        shared: dict[str, Any] = {
            "norm": norm,
            "activation": activation,
            "bias": bias,
            "device": device,
            "dtype": dtype,
        }
        self.branches = nn.ModuleList(
            ConvNormAct(in_channels, out_channels, branch, groups=groups, stride=stride, dims=dims, **shared)
            for branch in self.kernels
        )
        self.gate: Gate | None = None
        if fuse == "select" and len(self.kernels) > 1:
            shared["norm"] = norm if gate_norm is None else gate_norm
            self.gate = Gate(out_channels, len(self.kernels), reduction=reduction, min_width=min_width, **shared)

    @property
    def extents(self) -> tuple[int, ...]:
        """Side of the window that each branch sees, in input positions: (3, 5) for the paper's unit."""
        return tuple(branch.extent for branch in self.kernels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, *) to (N, C_out, *)."""
        inputs, path = self.inputs_of(x), self.path(x)
        if path == "autograd":
            u = [branch(each) for branch, each in zip(self.branches, inputs, strict=True)]
            return sum(u[1:], start=u[0]) if self.gate is None else self._fuse_and_select(u)
        branches = [branch for branch in self.branches if isinstance(branch, ConvNormAct)]  # which all of them are
        training = all(branch.norm.training for branch in branches)
        y, statistics = convolve([branch.conv for branch in branches], inputs, statistics=training)
        norms = [batch_norm_of(branch.norm, y_m, _BRANCH) for branch, y_m in zip(branches, y, strict=True)]
        if path == "triton":
            from selkern.ops.triton import fuse_select  # loaded where Triton is there alone

            if self.gate is not None and fuse_select.is_supported(y, norms):
                s_NC, fused = fuse_select.fuse(norms, y, statistics)
                return fuse_select.select(fused, self.gate(s_NC), lean=self._lean())
        return self._fuse_and_select([recompute.norm_relu(norm, y_m) for norm, y_m in zip(norms, y, strict=True)])

    def _fuse_and_select(self, u: Sequence[Tensor]) -> Tensor:
        """The branches' maps (N, C_out, *) to V (N, C_out, *)."""
        assert self.gate is not None
        a_NMC = self.gate(fuse(u, self.dims))
        return recompute.select_unsaved(u, a_NMC, self.dims, lean=self._lean())

    def inputs_of(self, x: Tensor) -> Sequence[Tensor]:
        """What each branch reads of x: all of it."""
        check_input("SelectiveKernel", x, self._taken(), self.dims)
        return [x] * len(self.branches)

    def _lean(self) -> bool:
        """Whether what reads V may compute it again: a unit's next convolution, where no hook can change V before."""
        return self.memory == "lean" and self.in_unit and not is_watched(self)

    def _taken(self, shares: int = 1) -> int:
        """Channels that x has: C_in, unless the convolutions were narrowed in place, as pruning does.

        Each convolution reads one of `shares` equal parts of x. A folded branch has no convolution to ask.
        """
        width = getattr(getattr(self.branches[0], "conv", None), "in_channels", None)
        return self.in_channels if width is None else shares * int(width)

    def path(self, x: Tensor) -> Path:
        """How a pass over x computes what follows the convolutions.

        Returns:
            "autograd": module by module, as it stands. "recompute": by PyTorch's operators too, but the branches' maps
            are not saved. "triton": by our kernels.
        """
        known = self.gate is not None and all(
            type(branch) is ConvNormAct and not is_watched(branch) and are_replaceable(branch.norm, branch.act)
            for branch in self.branches
        )
        if not known or self.memory == "plain":
            return "autograd"
        operators = torch.compiler.is_compiling() or is_eager(x, modes=True)
        if self.dims == 2 and operators and kernels.is_chosen("fuse_select", x):
            return "triton"
        return "recompute" if recompute.is_possible(x) else "autograd"

    def extra_repr(self) -> str:
        """What `print(layer)` adds: the window of each branch."""
        return f"{self.in_channels}, {self.out_channels}, extents={self.extents}"

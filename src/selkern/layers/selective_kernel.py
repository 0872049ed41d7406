"""The selective-kernel unit: several kernels over one input, and a choice among them for every channel.

Paper: Selective Kernel Networks, CVPR 2019, arXiv 1903.06586, section 3.1; details that the text leaves out
(no bias, no norm after the weighted sum, gate's initialisation) follow the authors' sknet50.prototxt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from selkern.layers.gate import Gate
from selkern.layers.memory import Memory, check_memory
from selkern.layers.parts import (
    CONVS,
    Activation,
    Norm,
    apply_norm,
    are_plain,
    check_input,
    divides,
    forgets,
    he_normal,
    is_hooked,
    lean_norm,
    make_activation,
    make_norm,
    odd_kernels,
    positive,
)
from selkern.ops import kernels, lean
from selkern.ops import select as ops
from selkern.ops.convolve import convolve

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
        return self.act(apply_norm(self.norm, self.conv(x), _BRANCH))


class SelectiveKernel(nn.Module):
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
        memory: what training keeps for the backward pass. "default" (and "lean") keeps each convolution's output and
            computes BatchNorm, ReLU and the selection again: about half the memory, and no second derivatives. "plain"
            is autograd's own way; so is every unit of other norms and activations.

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
        self.memory: Memory = memory
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
        return self.mix(self.inputs_of(x))[0]

    def inputs_of(self, x: Tensor) -> Sequence[Tensor]:
        """What each branch reads of x: all of it."""
        check_input("SelectiveKernel", x, self.in_channels, self.dims)
        return [x] * len(self.branches)

    def mix(self, inputs: Sequence[Tensor], remade: lean.Remade | None = None) -> tuple[Tensor, lean.Remade | None]:
        """The branches, each on its input, then Fuse and Select, or the plain sum.

        Args:
            inputs: one map per branch.
            remade: the one map that all branches read, where it can be made again and so need not be kept.

        Returns:
            V (N, C_out, *), and V as it can be made again, where this pass keeps little.
        """
        if self.gate is None:
            u = [branch(x) for branch, x in zip(self.branches, inputs, strict=True)]
            return sum(u[1:], start=u[0]), None
        if not (self.forgets() or self._has_kernels(inputs[0])):
            u = [branch(x) for branch, x in zip(self.branches, inputs, strict=True)]
            return ops.select(u, self.gate(ops.fuse(u))), None
        branches = [branch for branch in self.branches if isinstance(branch, ConvNormAct)]  # all are, if it forgets
        training = all(branch.norm.training for branch in branches)
        convs = [branch.conv for branch in branches]
        y, statistics = convolve(convs, inputs, remade, statistics=training, watched=any(map(is_hooked, convs)))
        norms = [lean_norm(branch.norm, y_m, _BRANCH) for branch, y_m in zip(branches, y, strict=True)]
        s_NC, stand_ins, state = lean.fuse(norms, y, statistics)
        a_NMC = self.gate(s_NC)
        return lean.select(state, stand_ins, a_NMC), lean.again(state, stand_ins, a_NMC)

    def forgets(self) -> bool:
        """Whether this pass keeps only what `ops.lean` keeps."""
        return self._is_known() and forgets()

    def _has_kernels(self, x: Tensor) -> bool:
        """Whether kernels of ours compute this pass, also where no gradient is wanted and under torch.compile."""
        return self.dims == 2 and kernels.is_chosen("fuse_select", x) and self._is_known()

    def _is_known(self) -> bool:
        """Whether the branches are what operators of ours can compute, and may."""
        return self.memory != "plain" and all(
            type(branch) is ConvNormAct and not is_hooked(branch) and are_plain(branch.norm, branch.act)
            for branch in self.branches
        )

    def extra_repr(self) -> str:
        """What `print(layer)` adds: the window of each branch."""
        return f"{self.in_channels}, {self.out_channels}, extents={self.extents}"

"""`SKFusion`: Select among feature maps that are already there, with no convolutions of its own.

The use is that of SKFF in MIRNet and of the fusions of segmentation decoders: where maps are added, let every
channel choose among them instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, fx, nn

from selkern.layers.gate import Gate
from selkern.layers.parts import Activation, Norm, is_symbolic
from selkern.ops import select as ops


class SKFusion(nn.Module):
    """M maps of one shape (N, C, *) to their selection (N, C, *): paper Eq. 1 to 6 without Split.

    Args:
        channels: C of every map.
        branches: M, at least 2.
        reduction: r, and `min_width` L: the descriptor has D = max(C // r, L) numbers.
        norm: of the descriptor; `activation` and `bias` likewise. Defaults are the paper's.

    Raises:
        ValueError: an argument outside its range; another number of maps than `branches`; maps of different
            shapes or of another channel count.

    Example:
        >>> import torch, selkern
        >>> maps = [torch.randn(2, 256, 8, 8) for _ in range(3)]
        >>> selkern.SKFusion(256, branches=3)(maps).shape
        torch.Size([2, 256, 8, 8])
    """

    def __init__(
        self,
        channels: int,
        branches: int = 2,
        *,
        reduction: int = 16,
        min_width: int = 32,
        norm: Norm = "batch",
        activation: Activation = "relu",
        bias: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if branches < 2:
            raise ValueError(f"branches must be at least 2, there is nothing to select among {branches}")
        self.channels = channels
        self.gate = Gate(
            channels,
            branches,
            reduction=reduction,
            min_width=min_width,
            norm=norm,
            activation=activation,
            bias=bias,
            device=device,
            dtype=dtype,
        )

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """M maps (N, C, *) to (N, C, *)."""
        maps = self._checked(maps)
        return ops.select(maps, self.gate(ops.fuse(maps)))

    def _checked(self, maps: Any) -> Sequence[Tensor]:
        """The maps; ValueError unless they are M of one shape (N, channels, *), as far as a shape is known."""
        if isinstance(maps, fx.Proxy):  # which stands for the list
            return [maps[m] for m in range(self.gate.branches)]  # type: ignore[index]
        if not isinstance(maps, (list, tuple)) or len(maps) != self.gate.branches:  # a stacked tensor is neither
            got = len(maps) if isinstance(maps, (list, tuple)) else type(maps).__name__
            raise ValueError(f"SKFusion takes a list of {self.gate.branches} maps, got {got}")
        if any(map(is_symbolic, maps)):
            return maps
        shapes = [tuple(u.shape) for u in maps]
        if any(shape != shapes[0] for shape in shapes):  # no set: sizes that torch.export leaves free have no hash
            raise ValueError(f"SKFusion takes maps of one shape, got {shapes}")
        channels = getattr(self.gate.fc1, "in_features", self.channels)  # fewer, where pruning has narrowed the gate
        if maps[0].ndim < 3 or maps[0].shape[1] != channels:
            raise ValueError(f"SKFusion was built for maps (N, {channels}, *), got {shapes[0]}")
        return maps

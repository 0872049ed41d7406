"""A convolution with everything that follows it in one call: bias, residual sum, ReLU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_KEPT = 2  # layouts of the weights: of a batch, and of the rest at its end
_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class FusedConv(nn.Module):
    """conv(x) [+ other], then ReLU if asked for; (N, C_in, *) to (N, C_out, *). For inference only.

    On a CPU the weights are kept once more in oneDNN's own layout, which saves rearranging them in every call, and
    the sum and the ReLU are done by the convolution while its result is in the cache. torch.compile does both
    itself, so `packed` is off there. Source of the operators: those that torch's own inductor calls.

    Args:
        conv: with zero padding; its weights are copied.
        relu: whether a ReLU follows.
        packed: use oneDNN's layout where it can be: two axes, on a CPU.

    Attributes:
        gives: dtype of the result; None for that of the weights.
    """

    def __init__(self, conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, *, relu: bool, packed: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(conv.weight.detach().clone(), requires_grad=False)
        bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().clone()
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation
        self.groups, self.relu, self.packed = conv.groups, relu, packed
        self.gives: torch.dtype | None = None
        self._weights_of_onednn: dict[torch.Size, Tensor] = {}  # by shape of the input, on which the layout depends

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> FusedConv:
        self._weights_of_onednn = {}  # of another device or dtype
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _load_from_state_dict(self, *args: Any) -> None:
        self._weights_of_onednn = {}
        super()._load_from_state_dict(*args)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """(N, C_in, *), and what is added to the result, to (N, C_out, *)."""
        y = (
            self._by_onednn(x, other)
            if self.packed and x.ndim == 4 and x.device.type == "cpu"
            else self._plain(x, other)
        )
        return y if self.gives is None else y.to(self.gives)

    def _plain(self, x: Tensor, other: Tensor | None) -> Tensor:
        y = _CONV[x.ndim - 2](x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        if other is not None:
            y = y.add_(other)
        return y.relu_() if self.relu else y

    def _by_onednn(self, x: Tensor, other: Tensor | None) -> Tensor:
        how: tuple[Any, ...] = (list(self.padding), list(self.stride), list(self.dilation), self.groups)
        weight, operator = self._weights_of_onednn.get(x.shape), torch.ops.mkldnn._convolution_pointwise
        if weight is None:
            while len(self._weights_of_onednn) >= _KEPT:
                del self._weights_of_onednn[next(iter(self._weights_of_onednn))]
            reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
            weight = self._weights_of_onednn[x.shape] = reorder(self.weight.to_mkldnn(), *how, list(x.shape))
        after = "relu" if self.relu else "none"
        if other is None:
            return operator(x, weight, self.bias, *how, after, [], "")
        return operator(x, other, weight, self.bias, *how, "add", 1.0, after if self.relu else None, [], "")

    def extra_repr(self) -> str:
        """What `print` adds."""
        return f"{tuple(self.weight.shape)}, stride={self.stride}, groups={self.groups}, relu={self.relu}"

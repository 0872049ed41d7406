"""A convolution with everything that follows it in one call: bias, residual sum, ReLU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from selkern.layers.depthwise import DepthwiseConv2d
from selkern.ops.eager import is_eager, is_watched

Key = TypeVar("Key")
Made = TypeVar("Made")

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class Cache(Generic[Key, Made]):
    """What has been made of weights for the last few keys; it is made again once the weights have changed.

    Weights change in place, by `load_state_dict`, by `.to`, and where other tensors take their place, as in
    `torch.func.functional_call`. Copies of a cache, and what is pickled of it, are empty. Threads may share one: each
    reads one state of it, and at worst makes again what another has just made.

    Args:
        size: number of keys to keep.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        # (key, stamp of the weights, aliases of them that keep their memory from being taken by others, what was made)
        self._entries: tuple[tuple[Key, list[tuple[int, int]], list[Tensor], Made], ...] = ()

    def get(self, key: Key, weights: Sequence[Tensor], make: Callable[[Key, Sequence[Tensor]], Made]) -> Made:
        """What `make(key, weights)` returned for the key and these very weights; calls it if there is none."""
        stamp, entries = [_stamp(w) for w in weights], self._entries
        for at, of, _, made in entries:
            if at == key and of == stamp:
                return made
        aliases = [w.detach() for w in weights]
        made = make(key, aliases)
        others = [entry for entry in entries if entry[0] != key]
        self._entries = ((key, stamp, aliases, made), *others)[: self.size]
        return made

    def __len__(self) -> int:
        return len(self._entries)

    def __reduce__(self) -> tuple[type[Cache[Key, Made]], tuple[int]]:
        return Cache, (self.size,)


def _stamp(weight: Tensor) -> tuple[int, int]:
    """What changes whenever a tensor's numbers do."""
    try:
        return weight.data_ptr(), weight._version
    except RuntimeError:  # a tensor of inference mode, which counts no changes
        return weight.data_ptr(), 0


@cache
def _onednn_takes(dtype: torch.dtype) -> bool:
    """Whether oneDNN convolves in a dtype on this CPU."""
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype == torch.float32


class FusedConv(nn.Module):
    """conv(x) [+ other], then ReLU if asked for; (N, C_in, *) to (N, C_out, *). For inference only.

    On a CPU the weights are kept once more in oneDNN's own layout, which saves rearranging them in every call, and
    the sum and the ReLU are done by the convolution while its result is in the cache. That layout is made at the first
    call for a shape, and is no part of copies and files. Source of the operators: those that torch's own inductor
    calls. torch.compile does all this itself, and tracers and exporters do not know it: they see plain operators.

    Args:
        conv: with zero padding; its weights are copied.
        relu: whether a ReLU follows.
        packed: use oneDNN's layout where it can be: two axes, on a CPU.
    """

    def __init__(self, conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, *, relu: bool, packed: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(conv.weight.detach().clone(), requires_grad=False)
        bias = conv.weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().clone()
        self.bias = nn.Parameter(bias, requires_grad=False)
        self.how = list(conv.padding), list(conv.stride), list(conv.dilation), conv.groups  # as oneDNN takes them
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation
        self.groups, self.relu, self.dims = conv.groups, relu, conv.weight.ndim - 2
        self.packed = packed and self.dims == 2 and not isinstance(conv.padding, str)
        # By shape of the input, on which the layout depends: that of a batch, and that of the rest at its end.
        self._of_onednn: Cache[Sequence[int], Tensor] = Cache(2)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> FusedConv:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._of_onednn = Cache(self._of_onednn.size)  # let the memory go now
        return self

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """(N, C_in, *), and what is added to the result, to (N, C_out, *)."""
        if self.packed and is_eager(x) and x.is_cpu and x.ndim == 4 and _onednn_takes(x.dtype):
            return self._by_onednn(x, other)
        return self._plain(x, other)

    def _plain(self, x: Tensor, other: Tensor | None) -> Tensor:
        y = _CONV[self.dims](x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        if other is not None:
            y = y.add_(other)
        return y.relu_() if self.relu else y

    def _by_onednn(self, x: Tensor, other: Tensor | None) -> Tensor:
        weight = self._of_onednn.get(x.shape, (self.weight,), self._pack)
        operator, after = torch.ops.mkldnn._convolution_pointwise, "relu" if self.relu else "none"
        if other is None:
            return operator.default(x, weight, self.bias, *self.how, after, [], "")
        after_sum = "relu" if self.relu else None
        return operator.binary(x, other, weight, self.bias, *self.how, "add", 1.0, after_sum, [], "")

    def _pack(self, shape: Sequence[int], weights: Sequence[Tensor]) -> Tensor:
        """The weights in oneDNN's layout for inputs of a shape."""
        reorder: Callable[..., Tensor] = torch._C._nn.mkldnn_reorder_conv2d_weight
        return reorder(weights[0].to_mkldnn(), *self.how, list(shape))

    def extra_repr(self) -> str:
        """What `print` adds."""
        return f"{tuple(self.weight.shape)}, stride={self.stride}, groups={self.groups}, relu={self.relu}"


_FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)


def can_fold(layer: nn.Module, norm: nn.Module) -> bool:
    """Whether both are torch's own and no hook waits for them: parametrised and adapted layers stay as they are.

    A BatchNorm without running statistics takes those of each batch, and one with an activation in it (timm's) does
    more than a BatchNorm: they stay too.
    """
    if isinstance(norm, _BatchNorm) and (norm.running_mean is None or type(norm).forward not in _FORWARDS):
        return False
    own = type(layer) in (*CONVS, DepthwiseConv2d, nn.Linear) and getattr(layer, "padding_mode", "zeros") == "zeros"
    return own and isinstance(norm, (_BatchNorm, nn.Identity)) and not (is_watched(layer) or is_watched(norm))

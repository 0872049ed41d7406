"""Split as the layers call it: the convolutions of all branches, together where our kernel does them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from selkern.ops import kernels, lean


def convolve(
    convs: Sequence[Any], inputs: Sequence[Tensor], remade: lean.Remade | None, *, statistics: bool, watched: bool
) -> tuple[list[Tensor], tuple[Tensor, Tensor] | None]:
    """Every branch's convolution of its input.

    Args:
        convs: convolution modules, one per branch.
        inputs: one map (N, C_in, *) per branch.
        remade: the one map that all of them read, where it can be made again and so need not be kept.
        statistics: those of a BatchNorm over each output are wanted as well, if they cost no further pass.
        watched: hooks wait for the modules to be called.

    Returns:
        The outputs (N, C, *), and where our kernel made them and was asked, their mean and biased variance, (M, C).
    """
    x = inputs[0]
    apart = watched or remade is not None or any(each is not x for each in inputs)
    if not apart and kernels.is_chosen("convolution", x):
        from selkern.ops.triton import convolution  # loaded where Triton is there alone

        if convolution.is_supported(convs, x):
            return convolution.convolve(
                x,
                [conv.weight for conv in convs],
                stride=convs[0].stride[0],
                dilations=[conv.dilation[0] for conv in convs],
                groups=convs[0].groups,
                statistics=statistics,
            )
    return [lean.convolve(conv, each, remade) for conv, each in zip(convs, inputs, strict=True)], None

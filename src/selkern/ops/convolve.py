"""Split as the layers call it: the convolutions of all branches, together where our kernel does them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from selkern.ops import kernels, recompute
from selkern.ops.eager import is_watched


def convolve(
    convs: Sequence[Any], inputs: Sequence[Tensor], *, statistics: bool
) -> tuple[list[Tensor], tuple[Tensor, Tensor] | None]:
    """Every branch's convolution of its input, which is not saved where it carries a recipe.

    Args:
        convs: modules, one per branch: torch's convolutions, or whatever has been put in their place.
        inputs: one map (N, C_in, *) per branch.
        statistics: those of a BatchNorm over each output are wanted as well, if they cost no further pass.

    Returns:
        The outputs (N, C, *), and where our kernel made them and was asked, their mean and biased variance, (M, C).
    """
    x = inputs[0]
    apart = any(each is not x for each in inputs) or any(map(is_watched, convs))
    if not apart and recompute.recipe_of(x) is None and kernels.is_chosen("convolution", x):
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
    return [recompute.through(conv, each) for conv, each in zip(convs, inputs, strict=True)], None

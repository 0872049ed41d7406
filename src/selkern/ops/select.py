"""Fuse and Select as the layers call them: equal to `reference`, without its (N, M, C, *) stack.

Stacking all branches, multiplying and summing costs two extra tensors of M times the output; none is made here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from selkern.ops.eager import is_eager, is_tracing


def fuse(branches: Sequence[Tensor], dims: int | None = None) -> Tensor:
    """Fuse (Eq. 1 and 2): M maps (N, C, *) to s (N, C), the mean over space of their sum.

    The sum of the branches' means equals the mean of their sum, so U itself is never built. In training the gradient of
    a sum which is divided afterwards is divided once, that of a mean at every position; narrower dtypes cannot hold the
    sum.

    Args:
        branches: M maps.
        dims: spatial axes; None reads it from the maps.
    """
    if dims is None and _is_symbolic(branches[0]):
        return fuse([u.flatten(2) for u in branches], 1)
    first = branches[0]
    space = tuple(range(2, 2 + (first.ndim - 2 if dims is None else dims)))
    training = is_eager(first, modes=True) and torch.is_grad_enabled()
    if training and first.dtype in (torch.float32, torch.float64):
        positions = first.shape[2:].numel()
        means = [u.sum(space) / positions for u in branches]
    else:
        means = [u.mean(dim=space) for u in branches]
    return sum(means[1:], start=means[0])


def select(branches: Sequence[Tensor], a_NMC: Tensor, dims: int | None = None) -> Tensor:
    """Select (Eq. 6): V = sum over m of a_m * U_m, (N, C, *), in the branches' dtype.

    The weights of a channel must add up to 1, as a softmax makes them: with two branches V is then one
    interpolation, U_0 + a_1 (U_1 - U_0).

    Args:
        branches: M maps (N, C, *).
        a_NMC: the selection (N, M, C).
        dims: spatial axes, as for `fuse`.
    """
    first = branches[0]
    if dims is None and _is_symbolic(first):
        return select([u.flatten(2) for u in branches], a_NMC, 1).view_as(first)
    # (N, M, C, 1, ...), without reading a size: a traced graph takes any batch. Under autocast the softmax is float32
    # and the maps are not.
    spatial: tuple[Any, ...] = (..., *[None] * (first.ndim - 2 if dims is None else dims))
    a = a_NMC.to(first.dtype)[spatial]
    if len(branches) == 2:
        # One pass where it runs at once. In a graph that others compute, `lerp` is a comparison and two forms of it.
        return first + a[:, 1] * (branches[1] - first) if is_tracing() else torch.lerp(first, branches[1], a[:, 1])
    v = first * a[:, 0]
    for m, u in enumerate(branches[1:], start=1):
        v = torch.addcmul(v, u, a[:, m])
    return v


def _is_symbolic(x: object) -> bool:
    """Whether x is a proxy of torch.fx, which stands for maps of any rank."""
    return not isinstance(x, Tensor)

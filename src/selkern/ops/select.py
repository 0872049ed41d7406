"""Fuse and Select as the layers call them: equal to `reference`, without its (N, M, C, *) stack.

Stacking all branches, multiplying and summing costs two extra tensors of M times the output; none is made here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def fuse(branches: Sequence[Tensor]) -> Tensor:
    """Fuse (Eq. 1 and 2): M maps (N, C, *) to s (N, C), the mean over space of their sum.

    The sum of the branches' means equals the mean of their sum, so U itself is never built.
    """
    space = tuple(range(2, branches[0].ndim))
    s_NC = branches[0].mean(dim=space)
    for u in branches[1:]:
        s_NC = s_NC + u.mean(dim=space)
    return s_NC


def select(branches: Sequence[Tensor], a_NMC: Tensor) -> Tensor:
    """Select (Eq. 6): V = sum over m of a_m * U_m, (N, C, *), in the branches' dtype.

    The weights of a channel must add up to 1, as a softmax makes them: with two branches V is then one
    interpolation, U_0 + a_1 (U_1 - U_0), read and written once.
    """
    first = branches[0]
    # One column per branch, (N, C, 1, ...). Under autocast the softmax is float32 and the maps are not.
    columns = a_NMC.to(first.dtype).reshape(a_NMC.shape + (1,) * (first.ndim - 2)).unbind(dim=1)
    if len(branches) == 2:
        return torch.lerp(first, branches[1], columns[1])
    v = first * columns[0]
    for u, a in zip(branches[1:], columns[1:], strict=True):
        v = torch.addcmul(v, u, a)
    return v

"""The selective-kernel operator, equation by equation, in plain PyTorch.

Source: Selective Kernel Networks (X. Li, W. Wang, X. Hu, J. Yang, CVPR 2019, arXiv 1903.06586), section 3.1.
This file is the oracle that every faster form is tested against, so it is written to be read and never
tuned. Shape letters: N batch, M branches, C channels, D descriptor width, `*` one to three spatial axes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Map = Callable[[Tensor], Tensor]


def split(x: Tensor, branches: Sequence[Map]) -> list[Tensor]:
    """Split: the same input through M branches, each conv -> norm -> ReLU with a kernel of its own."""
    return [branch(x) for branch in branches]


def fuse(branches: Sequence[Tensor]) -> Tensor:
    """Fuse, Eq. 1 and 2: M maps (N, C, *) to channel statistics s (N, C)."""
    u = torch.stack(list(branches)).sum(dim=0)  # Eq. 1: U = U_1 + ... + U_M
    return u.flatten(start_dim=2).mean(dim=2)  # Eq. 2: s_c = mean of U_c over space


def describe(s: Tensor, weight_DC: Tensor, norm: Map, activation: Map) -> Tensor:
    """Fuse, Eq. 3 and 4: s (N, C) to the descriptor z = activation(norm(W s)), (N, D)."""
    return activation(norm(s @ weight_DC.T))


def selection(z: Tensor, weight_MCD: Tensor) -> Tensor:
    """Select, Eq. 5: softmax over the M branches, for every channel; (N, D) to a (N, M, C)."""
    logits_NMC = torch.einsum("nd,mcd->nmc", z, weight_MCD)
    return logits_NMC.softmax(dim=1)


def select(branches: Sequence[Tensor], a_NMC: Tensor) -> Tensor:
    """Select, Eq. 6: V = sum over m of a_m * U_m, (N, C, *)."""
    u_NMC = torch.stack(list(branches), dim=1)
    a = a_NMC.reshape(a_NMC.shape + (1,) * (u_NMC.ndim - 3))
    return (a * u_NMC).sum(dim=1)


def selective_kernel(
    x: Tensor, branches: Sequence[Map], weight_DC: Tensor, norm: Map, activation: Map, weight_MCD: Tensor
) -> tuple[Tensor, Tensor]:
    """The whole unit: x (N, C_in, *) to (V (N, C, *), a (N, M, C))."""
    u = split(x, branches)
    a_NMC = selection(describe(fuse(u), weight_DC, norm, activation), weight_MCD)
    return select(u, a_NMC), a_NMC

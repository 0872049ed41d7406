"""The article's `SKAttention` for inference: BatchNorm in its convolutions, and those by Fourier coefficients."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from selkern.deploy.fused import Cache, FusedConv
from selkern.layers.sk_attention import SKAttention
from selkern.ops import reference, spectral
from selkern.ops import select as ops
from selkern.ops.eager import is_eager
from selkern.ops.spectral_plan import Plan, worthwhile


class FoldedSKAttention(nn.Module):
    """The article's module with folded branches; (N, C, H, W) to (N, C, H, W).

    Where it is measured to be faster, large kernels are products of Fourier coefficients (`ops/spectral.py`). Those of
    the weights are made at the first image of a size and kept: up to `limit` MiB beside the weights, for one size.

    Args:
        module: in eval mode, its norms folded into `convs`.
        convs: its branches, each a convolution with ReLU.
        limit: MiB; 0 convolves directly.
    """

    def __init__(self, module: SKAttention, convs: Iterable[nn.Module], limit: float) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.fc, self.fcs, self.selection = module.fc, module.fcs, module.selection
        self.softmax_over, self.limit = module.softmax_over, limit
        self.extents = module.extents
        self._spectra: Cache[Plan, list[Tensor]] = Cache(1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        u = self._branches(x)
        z_ND = self.fc(ops.fuse(u, 2))
        logits_NMC = torch.stack([fc(z_ND) for fc in self.fcs], dim=1)
        if self.softmax_over == "batch":
            return reference.select(u, logits_NMC.softmax(dim=0))
        return ops.select(u, self.selection(logits_NMC), 2)

    def _branches(self, x: Tensor) -> list[Tensor]:
        convs = [conv for conv in self.convs if isinstance(conv, FusedConv)]
        plan = self._plan(x, convs[0].groups)
        if plan is None:
            return [conv(x) for conv in convs]
        weights = [conv.weight for conv in convs]
        made = self._spectra.get(plan, weights, lambda plan, weights: spectral.spectra(weights, plan))
        return [u.relu_() for u in spectral.convolve(x, made, [conv.bias for conv in convs], plan)]

    def _plan(self, x: Tensor, groups: int) -> Plan | None:
        """Which branches to compute by Fourier coefficients; None for none."""
        if not (self.limit and is_eager(x) and spectral.suits(x)):
            return None
        shape = (x.shape[0], x.shape[1], x.shape[2], x.shape[3])
        return worthwhile(
            shape, x.shape[1], self.extents, training=False, groups=groups, itemsize=x.element_size(), limit=self.limit
        )

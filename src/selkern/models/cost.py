"""What a network costs: parameters and multiply-adds, counted on shapes alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from selkern.layers.parts import evaluating


@dataclass(frozen=True)
class Cost:
    """Parameters, and multiply-adds (MACs) of one forward pass on one image."""

    parameters: int
    macs: int


def count(model: nn.Module, size: int, in_chans: int = 3) -> Cost:
    """Cost of a model on a (1, in_chans, size, size) image; convolutions and matrix products count.

    On a model made on the meta device nothing is computed or allocated.
    """
    device = next(model.parameters()).device
    with evaluating(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.empty(1, in_chans, size, size, device=device))
    return Cost(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)

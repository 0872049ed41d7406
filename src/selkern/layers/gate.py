"""The gate: from the channel statistics of the summed branches to one weight per branch and channel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from selkern.layers.parts import Activation, Norm, make_activation, make_norm, norm_descriptor, positive

# Norms that take maps alone: what `norm=` makes for the branches need not fit the gate.
_OF_MAPS = (nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


class Selection(nn.Module):
    """Softmax over the branches, per channel (paper Eq. 5): logits (N, M, C) to the selection a (N, M, C).

    A module of its own, without parameters, so that a hook on it sees every selection a network makes:
    `selkern.record` needs nothing else.
    """

    def forward(self, logits_NMC: Tensor) -> Tensor:
        """(N, M, C) to (N, M, C); the M weights of a channel add up to 1."""
        return logits_NMC.softmax(dim=1)


class Gate(nn.Module):
    """s (N, C) to the selection a (N, M, C): Linear -> norm -> activation -> Linear -> softmax over M.

    Args:
        channels: C.
        branches: M.
        reduction: r; the descriptor has D = max(C // r, min_width) numbers (paper Eq. 4; 16 as in SKNet-50).
        min_width: L, the least D (32 as in the paper).
        norm: of the descriptor; "batch" as in the paper, which in training on one image takes its running statistics
            and warns once. "group", "layer" and "none" learn from one image as from many.
        activation: of the descriptor.
        bias: of the two linear maps; False as in the authors' prototxt.

    Raises:
        ValueError: a count below 1, an unknown norm or activation, or a norm of maps.

    Weights start gaussian with std 0.01 (prototxt), so every branch starts with nearly the same share.
    """

    def __init__(
        self,
        channels: int,
        branches: int,
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
        self.branches = positive("branches", branches)
        width = max(
            positive("channels", channels) // positive("reduction", reduction),
            positive("min_width", min_width),
        )
        self.fc1 = nn.Linear(channels, width, bias=bias, device=device, dtype=dtype)
        self.norm = make_norm(norm, width, 1, device, dtype)
        if isinstance(self.norm, _OF_MAPS):
            made = type(self.norm).__name__
            raise ValueError(
                f"{made} does not take a gate's descriptor (N, D); give gate_norm='batch' or another for it"
            )
        self.act = make_activation(activation)
        self.fc2 = nn.Linear(width, branches * channels, bias=bias, device=device, dtype=dtype)
        self.selection = Selection()
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights anew: gaussian, std 0.01; biases 0."""
        for fc in (self.fc1, self.fc2):
            nn.init.normal_(fc.weight, std=0.01)
            if fc.bias is not None:
                fc.bias.zero_()

    def forward(self, s_NC: Tensor) -> Tensor:
        """(N, C) to (N, M, C)."""
        z_ND = self.act(norm_descriptor(self.norm, self.fc1(s_NC)))
        return self.selection(self.fc2(z_ND).unflatten(1, (self.branches, -1)))

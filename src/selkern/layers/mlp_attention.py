"""The article's second example: attention inside a multi-layer perceptron.

Its `Attention` is scaled dot-product attention with scale 1, queries and values the hidden states themselves
and keys a linear map of them. Without gradients it runs on torch's fused kernel and never builds the (N, T, T) scores.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from selkern.layers.parts import is_symbolic, positive
from selkern.ops.eager import is_transformed


def _check(owner: str, x: Tensor, width: int) -> None:
    if is_symbolic(x):
        return
    if x.ndim != 3 or x.shape[2] != width:
        raise ValueError(f"{owner} takes (N, T, {width}), got a tensor of shape {tuple(x.shape)}")


def _fused_suffices() -> bool:
    """Whether torch's fused kernels can compute this pass: they have neither second nor forward-mode derivatives.

    Not in transforms of `torch.func`, most of which they lack, nor in torch.jit.trace, which compares the graph of a
    second pass, without gradients, with that of the first.
    """
    traced = torch.jit.is_tracing()  # type: ignore[no-untyped-call]
    return not (torch.is_grad_enabled() or traced or forward_ad._current_level >= 0 or is_transformed())


class Attention(nn.Module):
    """softmax(H attn(H)^T) H over the T tokens; (N, T, hidden) to (N, T, hidden). Keys: `attn.*`.

    Raises:
        ValueError: a width below 1, or an input that is not (N, T, hidden).
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.attn = nn.Linear(positive("hidden_size", hidden_size), hidden_size)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(N, T, hidden) to (N, T, hidden)."""
        _check("Attention", hidden_states, self.attn.in_features)
        keys = self.attn(hidden_states)
        if not _fused_suffices():
            return (hidden_states @ keys.transpose(1, 2)).softmax(dim=2) @ hidden_states
        # With an axis for one head: torch has fused kernels for four axes alone, and so have exporters.
        queries = hidden_states.unsqueeze(1)
        return F.scaled_dot_product_attention(queries, keys.unsqueeze(1), queries, scale=1.0).squeeze(1)


class MLPAttention(nn.Module):
    """linear -> ReLU -> Attention -> linear -> ReLU; (N, T, input) to (N, T, output).

    The ReLU on the output is the article's. Keys: `linear1.*`, `linear2.*`, `attention.attn.*`.

    Raises:
        ValueError: a width below 1, or an input that is not (N, T, input).

    Example:
        >>> import torch, selkern
        >>> selkern.MLPAttention(64, 128, 10)(torch.randn(2, 5, 64)).shape
        torch.Size([2, 5, 10])
    """

    def __init__(self, input_size: int, hidden_size: int, output_size: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(positive("input_size", input_size), positive("hidden_size", hidden_size))
        self.linear2 = nn.Linear(hidden_size, positive("output_size", output_size))
        self.attention = Attention(hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(N, T, input) to (N, T, output)."""
        _check("MLPAttention", x, self.linear1.in_features)
        return F.relu(self.linear2(self.attention(F.relu(self.linear1(x)))))

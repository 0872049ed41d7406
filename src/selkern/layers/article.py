"""`SKAttention`, the module of the article on SK attention, whose checkpoints people have.

Its arguments, state-dict keys and numbers are a contract, so it keeps what differs from the paper: dense
kernels without dilation, biases in front of BatchNorm, and neither norm nor activation between the gate's two
linear maps. For the paper's unit take `SelectiveKernel`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from selkern.layers.gate import Selection
from selkern.layers.memory import HasMemory, Memory, check_memory
from selkern.layers.parts import (
    check_batch,
    check_input,
    divides,
    is_symbolic,
    norm_relu,
    odd_kernels,
    positive,
)
from selkern.ops import recompute, reference
from selkern.ops.eager import is_transformed, is_watched
from selkern.ops.select import fuse
from selkern.ops.spectral import convolution as spectral
from selkern.ops.spectral.plan import worthwhile


class SKAttention(nn.Module, HasMemory):
    """The article's SK attention: (N, C, H, W) to (N, C, H, W).

    Args:
        channel: C (512 as in the article).
        kernels: one true, undilated k x k convolution per entry; odd.
        reduction: r; the descriptor has d = max(L, C // r) numbers.
        group: groups of every convolution. With the article's default of 1 the four kernels hold
            84 C^2 weights: 22 M at C = 512.
        L: the least d.
        softmax_over: "branches" as it is meant; "batch" for weights of those old copies, where what an image gets
            depends on the others in its batch, and alone it gets the plain sum of the branches.
        spectral: in training on a CPU, convolve by Fourier coefficients where that is faster (`ops/spectral.py`); for
            inference `selkern.fold` does so.
        memory: what training keeps for the backward pass, as in `SelectiveKernel`; "plain" also takes PyTorch's own
            convolutions.

    State-dict keys: `convs.{i}.conv.{weight,bias}`, `convs.{i}.bn.*`, `fc.*`, `fcs.{i}.*`.

    Copies of this module from before July 2021 took the softmax over the images of a batch instead of the branches.
    Their weights load here, but were trained for that other function, and nothing in a file shows it.

    Raises:
        ValueError: an argument outside its range, or an input of another rank or channel count.

    Example:
        >>> import torch, selkern
        >>> selkern.SKAttention(channel=64, reduction=8)(torch.randn(2, 64, 7, 7)).shape
        torch.Size([2, 64, 7, 7])
    """

    def __init__(
        self,
        channel: int = 512,
        kernels: Sequence[int] = (1, 3, 5, 7),
        reduction: int = 16,
        group: int = 1,
        L: int = 32,
        *,
        softmax_over: Literal["branches", "batch"] = "branches",
        spectral: bool = True,
        memory: Memory = "default",
    ) -> None:
        super().__init__()
        odd_kernels(kernels)
        if softmax_over not in ("branches", "batch"):
            raise ValueError(f"softmax_over must be 'branches' or 'batch', got {softmax_over!r}")
        self.channel = positive("channel", channel)
        divides("group", positive("group", group), channel=channel)
        self.d = max(positive("L", L), channel // positive("reduction", reduction))
        self.extents, self.group = tuple(kernels), group
        self.convs = nn.ModuleList(
            nn.Sequential(
                OrderedDict(
                    conv=nn.Conv2d(channel, channel, k, padding=k // 2, groups=group),
                    bn=nn.BatchNorm2d(channel),
                    relu=nn.ReLU(),
                )
            )
            for k in kernels
        )
        self.fc = nn.Linear(channel, self.d)
        self.fcs = nn.ModuleList(nn.Linear(self.d, channel) for _ in kernels)
        self.selection = Selection()
        self.softmax_over, self.spectral = softmax_over, spectral
        check_memory(memory)
        self.memory = memory

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H, W)."""
        # Not `channel`, where the convolutions have been narrowed in place, as pruning does.
        check_input("SKAttention", x, getattr(self.convs[0].get_submodule("conv"), "in_channels", self.channel), 2)
        u = self._maps(x)
        logits_NMC = self._logits(fuse(u, 2))
        if self.softmax_over == "batch":  # weights that do not add up to 1 over the branches
            return reference.select(u, logits_NMC.softmax(dim=0))
        return recompute.select_unsaved(u, self.selection(logits_NMC), 2)

    def _maps(self, x: Tensor) -> list[Tensor]:
        """The branches' maps, M of (N, C, H, W)."""
        for branch in self.convs:
            check_batch(branch.get_submodule("bn"), x, "SKAttention")
        if self.memory == "plain" or any(map(is_watched, self.convs)) or not recompute.is_possible(x):
            return [branch(x) for branch in self.convs]
        convs, norms, relus = ([branch.get_submodule(name) for branch in self.convs] for name in ("conv", "bn", "relu"))
        y = self._convolved(convs, x)
        return [norm_relu(norm, relu, y_m, "SKAttention") for norm, relu, y_m in zip(norms, relus, y, strict=True)]

    def _convolved(self, convs: Sequence[nn.Module], x: Tensor) -> list[Tensor]:
        """The convolutions' outputs, M of (N, C, H, W), by Fourier coefficients where that is faster."""
        plan = None
        own = all(type(conv) is nn.Conv2d and not is_watched(conv) for conv in convs)
        if self.spectral and own and spectral.suits(x):
            shape = (x.shape[0], x.shape[1], x.shape[2], x.shape[3])
            plan = worthwhile(shape, x.shape[1], self.extents, training=True, groups=self.group)
        if plan is None:
            return [recompute.through(conv, x) for conv in convs]
        weights, biases = [[getattr(conv, name) for conv in convs] for name in ("weight", "bias")]
        return spectral.spectral_convolutions(x, weights, biases, plan)

    def _logits(self, s_NC: Tensor) -> Tensor:
        """(N, C) to (N, M, C)."""
        z_ND = self.fc(s_NC)
        return torch.stack([fc(z_ND) for fc in self.fcs], dim=1)


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

"""Norms and activations by name, and the checks that every layer shares."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from selkern.ops import recompute
from selkern.ops.eager import is_watched
from selkern.ops.norm import BatchNorm

Norm = str | Callable[[int], nn.Module]
Activation = str | Callable[[], nn.Module]

CONVS: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}
_BATCH_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(0.01, inplace=True),
    "silu": lambda: nn.SiLU(inplace=True),
    "hardswish": lambda: nn.Hardswish(inplace=True),
    "gelu": nn.GELU,
    "none": nn.Identity,
}
NORMS = ("batch", "group", "layer", "none")
ACTIVATIONS = tuple(_ACTIVATIONS)


def make_norm(norm: Norm, channels: int, dims: int, device: Any = None, dtype: Any = None) -> nn.Module:
    """A normalisation over (N, channels, ...) with `dims` spatial axes (a descriptor (N, D) counts as 1).

    Args:
        norm: "batch" (momentum 0.05, eps 1e-5: the authors' prototxt), "group" (at most 32 groups of at least
            8 channels, so that a group still has a spread where there is no space to average over), "layer"
            (one group), "none", or a function from a channel count to a module.

    Raises:
        ValueError: for an unknown name.
    """
    if callable(norm):
        return norm(channels).to(device=device, dtype=dtype)
    if norm == "batch":
        return _BATCH_NORMS[dims](channels, eps=1e-5, momentum=0.05, device=device, dtype=dtype)
    if norm == "group":
        groups = max(g for g in range(1, 33) if channels % g == 0 and (g == 1 or channels // g >= 8))
        return nn.GroupNorm(groups, channels, device=device, dtype=dtype)
    if norm == "layer":
        return nn.GroupNorm(1, channels, device=device, dtype=dtype)
    if norm == "none":
        return nn.Identity()
    raise ValueError(f"norm must be one of {', '.join(NORMS)} or a function of the channel count, got {norm!r}")


def make_activation(activation: Activation) -> nn.Module:
    """An activation by name, or from a function without arguments. Raises ValueError for an unknown name."""
    if callable(activation):
        return activation()
    if activation not in _ACTIVATIONS:
        names = ", ".join(ACTIVATIONS)
        raise ValueError(f"activation must be one of {names} or a function that makes one, got {activation!r}")
    return _ACTIVATIONS[activation]()


def is_symbolic(x: object) -> bool:
    """Whether x stands for any tensor (a Proxy of torch.fx), or its shape is being traced: no check may ask for it."""
    return isinstance(x, fx.Proxy) or torch.jit.is_tracing()  # type: ignore[no-untyped-call]


def apply_norm(norm: nn.Module, x: Tensor, owner: str) -> Tensor:
    """`norm(x)`; raises as `check_batch` does."""
    check_batch(norm, x, owner)
    return norm(x)


def check_batch(norm: nn.Module, x: Tensor, owner: str) -> None:
    """One clear message where BatchNorm has a single value per channel to learn from.

    Raises:
        ValueError: BatchNorm in training on one sample of one position (its variance does not exist).
    """
    if _has_one_value(norm, x):
        raise ValueError(
            f"{owner}: BatchNorm cannot train on a batch of 1 here, it has one value per channel; "
            "use a larger batch, norm='group' or 'layer' (gate_norm=... for the gate alone), or .eval()"
        )


def norm_descriptor(norm: nn.Module, z_ND: Tensor) -> Tensor:
    """`norm(z)` of a gate's descriptor (N, D), with N = 1 in training as well.

    Where BatchNorm has one descriptor to learn from, it computes with its running statistics, as in eval mode, and
    leaves them as they are; a warning says so once. Measured in docs/log.md: what one image a batch costs comes from
    the norms of the branches, which learn from it as in any other network; the gate's adds nothing to that.

    Raises:
        ValueError: BatchNorm that keeps no running statistics, as `check_batch` says.
    """
    if not _has_one_value(norm, z_ND):
        return norm(z_ND)
    if getattr(norm, "running_mean", None) is None:
        check_batch(norm, z_ND, "the gate of a selective kernel")
    _warn_of_one_image()
    with evaluating(norm):
        return norm(z_ND)


def _has_one_value(norm: nn.Module, x: Tensor) -> bool:
    """Whether a BatchNorm in training gets one value per channel, whose variance does not exist."""
    if not (isinstance(x, Tensor) and isinstance(norm, _BatchNorm) and norm.training):
        return False
    if isinstance(norm, nn.SyncBatchNorm) and torch.distributed.is_available() and torch.distributed.is_initialized():
        return False  # other processes have more
    if not torch.jit.is_tracing():  # type: ignore[no-untyped-call]
        return x.numel() == x.shape[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a trace fixes the answer, as it fixes the training mode
        return bool(x.numel() == x.shape[1])


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=1)


def _warn_of_one_image() -> None:
    _warn_once(
        "a batch of 1 image in training: the BatchNorm of a selective kernel's gate used its running statistics; where "
        "such batches are the rule, use norm='group' (gate_norm='group' for the gate alone)"
    )


# What torch.compiler.assume_constant_result sets, without its import of the compiler: called while one is traced.
_warn_of_one_image._dynamo_marked_constant = True  # type: ignore[attr-defined]


def are_replaceable(norm: nn.Module, act: nn.Module | None = None) -> bool:
    """Whether a norm is torch's own BatchNorm, and what follows its ReLU, and nothing waits for their calls.

    Operators of ours may then compute what they compute.
    """
    if type(norm) not in _BATCH_NORMS.values() or is_watched(norm):
        return False
    return act is None or (type(act) is nn.ReLU and not is_watched(act))


def norm_relu(norm: nn.Module, relu: nn.Module | None, y: Tensor, owner: str, *, unsaved: bool = True) -> Tensor:
    """relu(norm(y)), (N, C, *), of which autograd keeps y alone where that is possible.

    Args:
        norm: any module.
        relu: what follows it; None is a ReLU without a module of its own.
        y: a convolution's output.
        owner: whose they are, for errors.
        unsaved: whether the result may be computed again in the backward pass.

    Raises:
        ValueError: as `check_batch` says.
    """
    check_batch(norm, y, owner)
    if unsaved and are_replaceable(norm, relu) and recompute.is_possible(y):
        return recompute.norm_relu(batch_norm_of(norm, y, owner), y)
    u: Tensor = norm(y)
    return u.relu_() if relu is None else relu(u)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module of a model in eval mode within the block, and afterwards each as it was."""
    was = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in was.items():
            module.training = training


def batch_norm_of(norm: nn.Module, x: Tensor, owner: str) -> BatchNorm:
    """What a BatchNorm is about to do with x, for `ops.recompute`; counts the batch as its own forward would.

    Raises:
        ValueError: as `check_batch` says.
    """
    assert isinstance(norm, _BatchNorm)
    check_batch(norm, x, owner)
    momentum = 0.0 if norm.momentum is None else norm.momentum
    if norm.training and norm.track_running_stats and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:  # a mean over all batches
            momentum = 1.0 / float(norm.num_batches_tracked)
    tracked = not norm.training or norm.track_running_stats
    return BatchNorm(
        weight=norm.weight,
        bias=norm.bias,
        mean=norm.running_mean if tracked else None,
        var=norm.running_var if tracked else None,
        training=norm.training or norm.running_mean is None,
        momentum=momentum,
        eps=norm.eps,
    )


def positive(name: str, value: int) -> int:
    """`value` if it is a whole number of at least 1; else ValueError naming the argument."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return value


def divides(name: str, groups: int, **channels: int) -> None:
    """Raise ValueError unless `groups` divides each of the named channel counts."""
    for what, count in channels.items():
        if count % groups:
            raise ValueError(f"{name}={groups} must divide {what}={count}")


def odd_kernels(kernels: Sequence[Any]) -> None:
    """Raise ValueError for an empty kernel list or one that holds anything but odd whole numbers."""
    if not isinstance(kernels, Sequence) or not kernels:
        raise ValueError(f"kernels must be a list with one entry per branch, such as (3, 5), got {kernels!r}")
    for k in kernels:
        if isinstance(k, bool) or not isinstance(k, int) or k < 1 or k % 2 == 0:
            raise ValueError(f"kernels must be odd whole numbers (an even one shifts the map), got {k!r}")


def check_input(owner: str, x: Tensor, channels: int, dims: int) -> None:
    """Raise ValueError unless x is (N, channels, *) with `dims` spatial axes, as far as a shape is known."""
    if is_symbolic(x):
        return
    if x.ndim != dims + 2:
        axes = ", ".join(["N", "C", *("D", "H", "W")[3 - dims :]])
        raise ValueError(f"{owner} takes ({axes}), got a tensor of shape {tuple(x.shape)}")
    if x.shape[1] != channels:
        raise ValueError(f"{owner} was built for {channels} channels, got {x.shape[1]} in {tuple(x.shape)}")


@torch.no_grad()
def he_normal(conv: nn.Module) -> None:
    """He initialisation as the authors' Caffe `msra` filler does it: gaussian, std sqrt(2 / fan_in); bias 0."""
    if isinstance(conv, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="relu")
        if conv.bias is not None:
            conv.bias.zero_()

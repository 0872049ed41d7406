"""Which code computes a selective kernel: PyTorch's operators, or our own kernels in Triton (`ops/triton`).

Ours are taken where they are asked for by `set_kernels("triton")` or SELKERN_KERNELS=triton, and under "auto", the
default, where `benchmarks/gpu.py` has measured that they win. Whatever they cannot do, PyTorch's operators do.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Literal, get_args

import torch
from torch import Tensor

Kernels = Literal["auto", "plain", "triton"]
Kernel = Literal["fuse_select", "convolution"]

# (kernel, card, dtype) that won against PyTorch's operators, eager and compiled. None has been measured yet.
MEASURED: frozenset[tuple[Kernel, str, torch.dtype]] = frozenset()

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_LEAST = (8, 0)  # compute capability: bfloat16 on tensor cores
_asked: Kernels | None = None  # None: as the environment says


def set_kernels(kernels: Kernels) -> None:
    """Say for this process which code computes selective kernels; it stands above SELKERN_KERNELS.

    Args:
        kernels: "plain" takes PyTorch's operators; "triton" our kernels wherever they can run, on CUDA devices; "auto"
            these where they were measured to win.

    Raises:
        ValueError: another word.

    Example:
        >>> import selkern
        >>> selkern.set_kernels("auto")
    """
    global _asked
    _asked = _checked(kernels, "kernels")


def kernels_asked() -> Kernels:
    """What was asked for.

    Raises:
        ValueError: SELKERN_KERNELS holds another word.
    """
    return _asked or _checked(os.environ.get("SELKERN_KERNELS", "auto"), "SELKERN_KERNELS")


def is_chosen(kernel: Kernel, x: Tensor) -> bool:
    """Whether our kernel is to compute something of x, as far as the choice, the device and the dtype go."""
    return _is_chosen(kernel, x.device.type, x.device.index, x.dtype)


def _is_chosen(kernel: Kernel, device: str, index: int | None, dtype: torch.dtype) -> bool:
    """So that torch.compile asks once, and keeps in the compiled code what was chosen then."""
    asked = kernels_asked()
    if asked == "plain" or (asked == "auto" and not MEASURED) or dtype not in _DTYPES or find_spec("triton") is None:
        return False
    if device != "cuda":  # Triton's interpreter, which is for tests, takes tensors of the CPU
        return asked == "triton" and device == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if torch.version.hip is not None or torch.cuda.get_device_capability(index) < _LEAST:
        return False
    return asked == "triton" or (kernel, torch.cuda.get_device_name(index), dtype) in MEASURED


# What torch.compiler.assume_constant_result does; it would import the compiler, which takes longer than all of selkern.
_is_chosen._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _checked(word: str, where: str) -> Kernels:
    for known in get_args(Kernels):
        if word == known:
            return known
    raise ValueError(f"{where} must be one of {', '.join(get_args(Kernels))}, got {word!r}")

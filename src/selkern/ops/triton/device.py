"""Where kernels are launched."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def on(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current GPU, which need not be the tensors'. (The interpreter has no GPU.)"""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()

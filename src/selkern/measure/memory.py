"""Memory: what autograd keeps for the backward pass, and how far the process grows."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

MIB = 1024 * 1024


class _Held:
    """A tensor that autograd keeps. Gone with the node of the graph that holds it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def held_for_backward(model: nn.Module, run: Callable[[], Tensor]) -> float:
    """MiB that autograd holds after a forward pass: every storage once, without the model's parameters and buffers.

    Args:
        model: whose own tensors do not count.
        run: the forward pass; what it returns keeps the graph alive until it is counted.
    """
    kept: weakref.WeakSet[_Held] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Held:
        held = _Held(tensor.detach())  # with its history, an output would hold the node that holds it, for ever
        kept.add(held)
        return held

    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        output = run()
    storages = {held.tensor.untyped_storage().data_ptr(): held.tensor.untyped_storage().nbytes() for held in kept}
    del output
    return sum(size for address, size in storages.items() if address not in own) / MIB


def peak_of_process() -> float:
    """MiB that this process ever had in memory at once."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except (OSError, ValueError):
        pass
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MIB if sys.platform == "darwin" else 1024)


def now_in_process() -> float:
    """MiB that this process has in memory now; the peak where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB
    except (OSError, ValueError, IndexError):
        return peak_of_process()


def growth(job: Callable[[], object]) -> float | None:
    """MiB by which the process grows at most while a job runs; None where the system cannot say (not Linux).

    What was freed before is given back first, so that it is not used again unseen.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    except (OSError, AttributeError, TypeError):
        return None
    before = now_in_process()
    job()
    return max(0.0, peak_of_process() - before)

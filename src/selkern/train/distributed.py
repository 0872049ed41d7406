"""One process or many, the same code: what a rank needs to know and to exchange.

`torchrun` starts the ranks and sets the environment; without it there is one rank and nothing is exchanged.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed as dist
from torch import nn

from selkern.errors import ResourceError, UsageError

T = TypeVar("T")
_LOST = ("gloo", "Gloo", "NCCL", "Connection closed", "Connection reset")  # in the messages of torch.distributed
_PATIENCE = timedelta(minutes=10)  # for a rank that does not come; no save or validation of one rank takes longer
_KEPT: list[object] = []  # groups that were left
_LET_GO = 0.2  # seconds in which a group's threads end what they do


@dataclass(frozen=True)
class Ranks:
    """This process among `world` processes, and the device it computes on."""

    rank: int
    world: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this rank is the one that writes and speaks."""
        return self.rank == 0

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of ranks, on every rank."""
        if self.world == 1:
            return [value]
        values: list[T] = [value] * self.world
        dist.all_gather_object(values, value)
        return values

    def maximum(self, value: int) -> int:
        """The largest of every rank's value, on every rank; cheap enough for every step."""
        if self.world == 1:
            return value
        shared = torch.tensor(value, device=self.device)
        dist.all_reduce(shared, dist.ReduceOp.MAX)
        return int(shared)

    def share_buffers(self, module: nn.Module) -> None:
        """Give every rank the main rank's buffers: BatchNorm's statistics, which each has of its own images only."""
        if self.world > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What the ranks do together; where one of them is gone, the others end with one line.

        Raises:
            ResourceError: the connection to another rank is lost.
        """
        try:
            yield
        except RuntimeError as error:
            lost = isinstance(error, dist.DistError) or any(word in str(error) for word in _LOST)
            if self.world == 1 or not lost:
                raise
            what = f"another process of this run is gone ({str(error).splitlines()[0][:120]})"
            fix = "torchrun --max-restarts goes on by itself; else continue with --resume"
            raise ResourceError(what, f"process {self.rank} of {self.world}", fix) from error

    def from_main(self, value: T) -> T:
        """Rank 0's value, on every rank."""
        return self.gather(value)[0]


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of a name: "auto" takes this rank's GPU if there is one, else the CPU.

    Raises:
        UsageError: a device that is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{local_rank}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # the meta device has no numbers
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"no device {name!r} ({reason})", "--device", "give auto, cpu or cuda") from error
    return device


@contextmanager
def join(device: str) -> Iterator[Ranks]:
    """Join the ranks that torchrun started (nccl on GPUs, gloo on CPUs) and leave them at the end.

    Raises:
        ResourceError: the connection to another rank was lost within the block.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    picked = pick_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if picked.type == "cuda":
        torch.cuda.set_device(picked)
    if world == 1:
        yield Ranks(0, 1, picked)
        return
    store, rank, _ = next(dist.rendezvous("env://"))
    # torchrun's ranks exchange addresses in one store for all its restarts: without a name of its own for each, a
    # restarted rank may read where another one was before, and wait for it half an hour.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    named = dist.PrefixStore(f"selkern-{attempt}", store)
    backend = "nccl" if picked.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=named, rank=rank, world_size=world, timeout=_PATIENCE)
    try:
        ranks = Ranks(rank, world, picked)
        with ranks.together():
            yield ranks
    finally:
        # torch frees a group while it holds Python's lock, and waits for a thread of the group that may need the lock
        # to let go of the last exchange: about one run of two ranks in ten never ended. Kept, a group is never freed.
        # Where Python ends before that thread had the lock, the process is aborted: so it gets the lock here.
        _KEPT.append(dist.group.WORLD)
        dist.destroy_process_group()
        time.sleep(_LET_GO)

"""One process or many, the same code: what a rank needs to know and to exchange.

`torchrun` starts the ranks and sets the environment; without it there is one rank and nothing is exchanged.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed as dist
from torch import nn

from selkern.errors import ResourceError, SelkernError, UsageError
from selkern.train.options import PATIENCE

T = TypeVar("T")
_LOST = ("gloo", "Gloo", "NCCL", "Connection closed", "Connection reset")  # in the messages of torch.distributed
_KEPT: list[object] = []  # groups that were left
_LOOK = 0.02  # seconds between two looks at who has come
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

    def of_main(self, make: Callable[[], T]) -> T:
        """What rank 0 makes, on every rank; so is a `SelkernError` that it raises."""
        made: list[T] = []
        error: SelkernError | None = None
        try:
            made = [make()] if self.main else []
        except SelkernError as raised:
            if self.world == 1:
                raise
            error = raised.bare()
        made, error = self.from_main((made, error))
        if error is not None:
            raise error
        return made[0]


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
def join(device: str, patience: float = PATIENCE) -> Iterator[Ranks]:
    """Join the ranks that torchrun started (nccl on GPUs, gloo on CPUs) and leave them at the end.

    Args:
        device: as `pick_device` takes it.
        patience: minutes to wait for another rank, at the start and in every exchange.

    Raises:
        ResourceError: another rank does not come, or the connection to it is lost within the block.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    picked = pick_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if picked.type == "cuda":
        torch.cuda.set_device(picked)
    if world == 1:
        yield Ranks(0, 1, picked)
        return
    ranks = Ranks(int(os.environ.get("RANK", "0")), world, picked)
    with ranks.together():
        _start(ranks, timedelta(minutes=patience))
        try:
            yield ranks
        finally:
            # torch frees a group while it holds Python's lock, and waits for a thread of the group that may need it to
            # let go of the last exchange: about one run of two ranks in ten never ended. Kept, a group is never freed.
            # Where Python ends before that thread had the lock, the process is aborted: so it gets the lock here.
            _KEPT.append(dist.group.WORLD)
            dist.destroy_process_group()
            time.sleep(_LET_GO)


def _start(ranks: Ranks, patience: timedelta) -> None:
    store, rank, world = next(dist.rendezvous("env://", timeout=patience))
    backend = "nccl" if ranks.device.type == "cuda" else "gloo"
    named = dist.PrefixStore(_meet(store, rank, world, patience), store)
    dist.init_process_group(backend, store=named, rank=rank, world_size=world, timeout=patience)


def _meet(store: dist.Store, rank: int, world: int, patience: timedelta) -> str:
    """A name for this meeting of the ranks, the same on all, and another one after every restart.

    torchrun's ranks may exchange addresses in one store for all its restarts: without such a name, a restarted rank
    may read where another one was before, and wait for it until its patience ends. How often it was restarted, each
    machine counts for itself. So each rank says that it came, by a word that only it knows, until rank 0 has answered
    all that are there now.
    """
    if rank:
        word = uuid.uuid4().hex
        store.set(f"selkern-came-{rank}", word)
        name = store.get(f"selkern-answer-{word}").decode()
        store.set(f"{name}-{rank}", "here")
        return name
    name, end = f"selkern-{uuid.uuid4().hex}", time.monotonic() + patience.total_seconds()
    missing = set(range(1, world))
    while missing:
        for other in sorted(missing):
            if store.check([came := f"selkern-came-{other}"]):
                store.set(f"selkern-answer-{store.get(came).decode()}", name)
            if store.check([f"{name}-{other}"]):
                missing.remove(other)
        if missing and time.monotonic() > end:
            what = f"process {min(missing)} of {world} has not come within {patience}"
            raise ResourceError(
                what, "process 0", "see what that process says; --timeout-minutes sets how long to wait"
            )
        time.sleep(_LOOK)
    return name

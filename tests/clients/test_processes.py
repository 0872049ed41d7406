"""Two processes on this machine (gloo): what they compute together is what one computes with both halves.

One of them: `.venv-clients/bin/python -m pytest -m exhaustive tests/clients/test_processes.py -k fsdp2`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from clients import client
from subjects import FEW, Subject, assert_close, cases, images, loss_of, plain_copy
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn as torch_spawn

spawn: Any = torch_spawn  # which has no types
Step = Callable[[nn.Module], tuple[nn.Module, Callable[[], dict[str, Tensor]]]]
CASES = cases((*FEW, "sk_shufflenet_v2_x05"))


def by_ddp(model: nn.Module) -> tuple[nn.Module, Callable[[], dict[str, Tensor]]]:
    """Wrapped, and how to read its parameters."""
    from torch.nn.parallel import DistributedDataParallel

    wrapped = DistributedDataParallel(model)
    return wrapped, lambda: {n: p.detach() for n, p in wrapped.module.named_parameters()}


def whole(sharded: Any) -> Tensor:
    """All of a parameter of which each process holds a part."""
    return sharded.full_tensor().detach()


def by_fsdp2(model: nn.Module) -> tuple[nn.Module, Callable[[], dict[str, Tensor]]]:
    """Each part that has parameters sharded on its own, then the rest."""
    from torch.distributed.fsdp import fully_shard

    for child in model.children():
        if any(True for _ in child.parameters()):
            fully_shard(child)
    fully_shard(model)
    return model, lambda: {n: whole(p) for n, p in model.named_parameters()}


WAYS: dict[str, Step] = {"ddp": by_ddp, "fsdp2": by_fsdp2}


def settled(subject: Subject) -> Any:
    """In eval mode, so that an image's gradient does not depend on its batch."""
    model = subject()
    model(images(6, seed=5)[0])
    return model.eval()


def work(rank: int, way: str, folder: str) -> None:
    """One of the two processes: two steps of every case, whose weights the first saves."""
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/{way}", rank=rank, world_size=2)
    result: dict[str, Any] = {}
    for case in CASES:
        try:
            result[str(case)] = two_steps(case, way, rank)
        except Exception as error:  # noqa: BLE001 - the other cases go on; the test shows it
            result[str(case)] = repr(error)
    if rank == 0:
        torch.save(result, f"{folder}/{way}.pt")
    dist.destroy_process_group()


def two_steps(case: Subject, way: str, rank: int) -> dict[str, Tensor]:
    """The parameters after two steps, each process with its half of the images."""
    model, read = WAYS[way](settled(case))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    x, y = (half.chunk(2)[rank] for half in images(8))
    for _ in range(2):
        optimizer.zero_grad()
        torch.autograd.backward(loss_of(model, x, y))
        optimizer.step()
    return read()


def alone(case: Subject) -> dict[str, Tensor]:
    """The same by one process, in plain autograd."""
    model = plain_copy(settled(case))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    for _ in range(2):
        optimizer.zero_grad()
        torch.autograd.backward(loss_of(model, *images(8)))
        optimizer.step()
    return {n: p.detach() for n, p in model.named_parameters()}


def assert_same_by(way: str, folder: Path) -> None:
    spawn(work, (way, str(folder)), nprocs=2)
    result = torch.load(folder / f"{way}.pt")
    assert result
    wrong = {case: error for case, error in result.items() if isinstance(error, str)}
    assert not wrong, wrong
    for case in CASES:
        for name, want in alone(case).items():
            assert_close(result[str(case)][name], want, 1e-4)


@client("DistributedDataParallel", "torch", "two processes (gloo), each half of the images: the weights of one process")
def test_ddp(tmp_path: Path) -> None:
    assert_same_by("ddp", tmp_path)


@client("FSDP2", "torch", "fully_shard on each part, two processes (gloo): the weights of one process")
def test_fsdp2(tmp_path: Path) -> None:
    assert_same_by("fsdp2", tmp_path)

"""One job of a benchmark in a process of its own: `python -m selkern.bench.child JOB SETTINGS`, JSON in and out."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from torch import distributed as dist
from torch import nn
from torch.nn import functional as F

from selkern.measure.memory import now_in_process, peak_of_process
from selkern.tuning import tune


def memory(settings: dict[str, Any]) -> dict[str, Any]:
    """MiB per image by which a training step makes this process grow, over a network that has its gradients."""
    from selkern.bench.networks import build
    from selkern.bench.session import Session

    session, batch = Session(trial=settings["trial"]), settings["batch"]
    model = build(settings["variant"], session).train()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)  # that gradients take memory is no variant's doing
    x, labels = torch.randn(batch, 3, session.side, session.side), torch.zeros(batch, dtype=torch.long)
    before = max(now_in_process(), 1.0)
    F.cross_entropy(model(x), labels).backward()  # type: ignore[no-untyped-call]
    return {"grown": max(0.0, peak_of_process() - before) / batch}


def ddp(settings: dict[str, Any]) -> dict[str, Any]:
    """Steps per second of this rank among its peers."""
    from selkern.models.registry import create_model

    rank, world = settings["rank"], settings["world"]
    torch.manual_seed(0)
    model: nn.Module = create_model("sknet_mini", num_classes=10).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if world > 1:
        dist.init_process_group("gloo", init_method=settings["meeting"], rank=rank, world_size=world)
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    share = settings["batch"] // world
    x = torch.randn(share, 3, 48, 48).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(share) % 10
    begin = 0.0
    for number in range(-2, settings["steps"]):
        if number == 0:
            begin = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    seconds = time.perf_counter() - begin
    if world > 1:
        dist.destroy_process_group()
    return {"steps_per_s": settings["steps"] / seconds}


def main(job: str, settings: dict[str, Any]) -> None:
    """Run a job and print what it found as one JSON object."""
    tune()
    torch.set_num_threads(settings["threads"])
    print(json.dumps({"memory": memory, "ddp": ddp}[job](settings)))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))

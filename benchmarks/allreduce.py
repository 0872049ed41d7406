"""What one exchange of all gradients takes between the processes of a torchrun, on one machine or several.

    torchrun --nproc-per-node 2 -m benchmarks.allreduce [--parameters 27500000] [--rounds 10] [--device cpu]

Of SKNet-50's 27.5 million float32 gradients; nccl on GPUs, gloo on CPUs, as in training.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch
from torch import distributed as dist

from selkern.train.distributed import join


def main() -> None:
    """Measure, and print one line on rank 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=int, default=27_500_000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="auto")
    asked = parser.parse_args()
    with join(asked.device) as ranks:
        if ranks.world == 1:
            print("one process exchanges nothing: start it by torchrun")
            return
        gradients = torch.ones(asked.parameters, device=ranks.device)
        seconds = []
        for _ in range(asked.rounds + 1):
            ranks.gather(None)
            started = time.perf_counter()
            dist.all_reduce(gradients)
            gradients[0].item()  # waits for a GPU
            seconds.append(time.perf_counter() - started)
        slowest = [max(each) for each in zip(*ranks.gather(seconds[1:]), strict=True)]  # the first one connects
        # Each process sends and receives this much in a ring.
        moved = 2 * (ranks.world - 1) / ranks.world * gradients.nbytes
        if ranks.main:
            middle = median(slowest)
            print(
                f"{dist.get_backend()}, {ranks.world} processes, {gradients.nbytes / 1e6:.0f} MB of gradients: "
                f"median {middle * 1e3:.0f} ms ({min(slowest) * 1e3:.0f} to {max(slowest) * 1e3:.0f}), "
                f"{moved / middle / 1e9:.2f} GB/s each way"
            )


if __name__ == "__main__":
    main()

"""Cost of a selective-kernel unit beside its bare convolutions and beside the form that stacks its branches.

    python benchmarks/units.py [--shape 16 128 28 28] [--rounds 15]

All variants run in turn in one process (A B C A B C ...), and the medians' ratios are what counts: absolute
times on a shared machine are not comparable between runs. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

import selkern
from selkern.ops import reference


class Bare(nn.Module):
    """The branches' convolutions alone, summed: what no implementation can undercut with these kernels."""

    def __init__(self, unit: selkern.SelectiveKernel) -> None:
        super().__init__()
        self.convs = nn.ModuleList(branch.get_submodule("conv") for branch in unit.branches)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        first, *rest = (conv(x) for conv in self.convs)
        return sum(rest, start=first)


class Stacked(nn.Module):
    """The same unit as other implementations write it: stack all branches, multiply, sum."""

    def __init__(self, unit: selkern.SelectiveKernel) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        u = [branch(x) for branch in self.unit.branches]
        assert self.unit.gate is not None
        return reference.select(u, self.unit.gate(reference.fuse(u)))


def time_in_turn(jobs: Mapping[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median ms of every job, run in turn; the first round is warm-up."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values[1:]) for name, values in times.items()}


def main() -> None:
    """Measure forward in eval mode and a training step (forward, backward) of each variant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=4, default=(16, 128, 28, 28), metavar=("N", "C", "H", "W"))
    parser.add_argument("--groups", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.manual_seed(0)
    unit = selkern.SelectiveKernel(args.shape[1], groups=args.groups)
    variants = {"bare convolutions": Bare(unit), "selkern": unit, "stacked": Stacked(unit)}
    x = torch.randn(args.shape).contiguous(memory_format=torch.channels_last)
    result: dict[str, dict[str, float]] = {}

    def forward(model: nn.Module) -> None:
        with torch.inference_mode():
            model(x)

    def step(model: nn.Module) -> None:
        model(x.requires_grad_()).sum().backward()

    for mode, job in (("eval forward", forward), ("train step", step)):
        for model in variants.values():
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            model.train(mode == "train step")
        jobs = {name: partial(job, model) for name, model in variants.items()}
        result[mode] = time_in_turn(jobs, args.rounds)
        base = result[mode]["bare convolutions"]
        for name, ms in result[mode].items():
            print(f"{mode:13} {name:18} {ms:8.2f} ms   {ms / base:5.2f}x the bare convolutions")
    setting = {"shape": list(args.shape), "groups": args.groups, "threads": torch.get_num_threads()}
    print(json.dumps({**setting, "torch": torch.__version__, "median_ms": result}))


if __name__ == "__main__":
    main()

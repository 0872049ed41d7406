"""How the widths, groups and strides of `sknet_mini` were chosen: training steps per second of its candidates.

    python benchmarks/mini.py [--rounds 8]

A step is forward and backward of 64 images of 48 x 48 px, channels_last; all candidates run in turn in one process.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from functools import partial

import torch
from torch.nn import functional as F

from selkern.measure.timing import in_turn
from selkern.models.cost import count
from selkern.models.trunk import Trunk
from selkern.models.zoo import ARCHITECTURES

CHOSEN = ARCHITECTURES["sknet_mini"]
FULL_SIZE = replace(CHOSEN, stem=16, stem_stride=1)
CANDIDATES = {
    "chosen": CHOSEN,
    "dense branches": replace(CHOSEN, groups=1, mids=(16, 32, 64), outs=(48, 96, 192)),
    "8 groups": replace(CHOSEN, groups=8),
    "16 groups": replace(CHOSEN, groups=16),
    "stem at full size": replace(FULL_SIZE, strides=(2, 2, 2)),
    "first stage at full size": replace(FULL_SIZE, mids=(16, 32, 64), outs=(32, 64, 128)),
}


def main() -> None:
    """Print size and speed of every candidate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    rounds = parser.parse_args().rounds
    images = torch.randn(64, 3, 48, 48).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (64,))
    models = {name: Trunk(arch, 10).to(memory_format=torch.channels_last) for name, arch in CANDIDATES.items()}  # type: ignore[call-overload]

    def step(model: Trunk) -> None:
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]

    jobs = {name: partial(step, model) for name, model in models.items()}
    seconds = in_turn(jobs, budget=0, rounds=rounds, warm_up=1)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), median of {rounds} rounds")
    for name, model in models.items():
        cost = count(model, 48)
        speed = 64 / statistics.median(seconds[name])
        print(f"{name:26}{cost.parameters / 1e6:7.3f} M{cost.macs / 1e6:8.1f} MMACs{speed:7.0f} images/s")


if __name__ == "__main__":
    main()

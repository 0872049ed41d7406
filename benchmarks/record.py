"""What `record` adds to a forward pass: the same network with and without it, in turn.

python benchmarks/record.py [--model sknet50] [--batch 8] [--size 224] [--budget 120]
"""

from __future__ import annotations

import argparse

import torch

import selkern
from selkern.measure.timing import Spread, in_turn


def main() -> None:
    """Print the ratio of the two."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="sknet50")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--budget", type=float, default=120, help="seconds")
    options = parser.parse_args()
    model = selkern.create_model(options.model).eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(options.batch, 3, options.size, options.size).contiguous(memory_format=torch.channels_last)

    @torch.inference_mode()
    def plain() -> object:
        return model(x)

    @torch.inference_mode()
    def recorded() -> object:
        with selkern.record(model) as selection:
            model(x)
        return dict(selection)

    seconds = in_turn({"plain": plain, "recorded": recorded}, budget=options.budget)
    ratio = Spread.of([b / a for a, b in zip(seconds["plain"], seconds["recorded"], strict=True)])
    each = Spread.of(seconds["plain"]).median / options.batch * 1000
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {options.model}, batch {options.batch}, "
        f"{options.size} px: {each:.1f} ms per image; recorded / plain {ratio.median:.3f} "
        f"(quartiles {ratio.low:.3f} to {ratio.high:.3f}, {len(seconds['plain'])} rounds)"
    )


if __name__ == "__main__":
    main()

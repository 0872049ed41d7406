"""The article's SK attention with its branches by products of Fourier coefficients, beside its direct convolutions.

    OMP_NUM_THREADS=1 python benchmarks/spectral.py [--shape 50 512 7 7] [--rounds 7] [--eval] [--train]

All variants run in turn in one process (A B C A B C ...), and the medians' ratios are what counts. The spectral
variant folds BatchNorm into the weights for the forward; in the training step it takes plain BatchNorm and ReLU, so its
gain is that of the convolutions alone. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # run as a file: the package `benchmarks` is beside src

import torch
from torch import Tensor, nn

from benchmarks.peers import article_module
from selkern.layers.article import SKAttention
from selkern.measure.timing import in_turn
from selkern.ops import select as ops
from selkern.ops.spectral.convolution import convolve, spectra, spectral_convolutions
from selkern.ops.spectral.plan import Plan, worthwhile


class Bare(nn.Module):
    """The branches' convolutions alone."""

    def __init__(self, module: SKAttention) -> None:
        super().__init__()
        self.convs = nn.ModuleList(branch.get_submodule("conv") for branch in module.convs)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, C, H, W) to M of the same."""
        return [conv(x) for conv in self.convs]


class Spectral(nn.Module):
    """The same with the convolutions of `plan`; for the forward their coefficients are made once."""

    def __init__(self, module: SKAttention, plan: Plan, folded: bool) -> None:
        super().__init__()
        self.module, self.plan, self.folded = module, plan, folded
        self.weights: list[Tensor] = []
        self.biases: list[Tensor] = []
        with torch.no_grad():
            for branch in module.convs if folded else ():
                conv, bn = branch.get_submodule("conv"), branch.get_submodule("bn")
                assert isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d)
                assert bn.running_mean is not None and bn.running_var is not None
                w, b = nn.utils.fuse_conv_bn_weights(
                    conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
                )
                self.weights.append(w)
                self.biases.append(b)
        self.spectra = spectra(self.weights, plan) if folded else []

    def convolutions(self, x: Tensor) -> list[Tensor]:
        """(N, C, H, W) to M of the same."""
        if self.folded:
            return convolve(x, self.spectra, self.biases, self.plan)
        convs = [branch.get_submodule("conv") for branch in self.module.convs]
        return spectral_convolutions(x, [c.weight for c in convs], [c.bias for c in convs], self.plan)  # type: ignore[misc]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same."""
        u = self.convolutions(x)
        if self.folded:
            u = [t.relu_() for t in u]
        else:
            norms = [branch.get_submodule("bn") for branch in self.module.convs]
            u = [norm(t).relu_() for norm, t in zip(norms, u, strict=True)]
        z = self.module.fc(ops.fuse(u))
        return ops.select(u, torch.stack([fc(z) for fc in self.module.fcs], dim=1).softmax(dim=1))


def forward(function: Callable[[Tensor], object], x: Tensor) -> None:
    """One forward, without gradients."""
    with torch.inference_mode():
        function(x)


def step(function: Callable[[Tensor], Tensor | list[Tensor]], x: Tensor, parameters: list[nn.Parameter]) -> None:
    """Forward and backward."""
    x = x.detach().requires_grad_()
    for p in parameters:
        p.grad = None
    out = function(x)
    torch.autograd.backward(out, [torch.ones_like(t) for t in ([out] if isinstance(out, Tensor) else out)])


def main() -> None:
    """Measure forward in eval mode and a training step (forward, backward) of each variant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=4, default=(50, 512, 7, 7), metavar=("N", "C", "H", "W"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--eval", action="store_true", help="the forward only")
    parser.add_argument("--train", action="store_true", help="the training step only")
    args = parser.parse_args()
    torch.manual_seed(0)
    module, x, shape = SKAttention(args.shape[1]), torch.randn(args.shape), tuple(args.shape)
    result: dict[str, object] = {}
    for mode in ["eval forward"] * (not args.train) + ["train step"] * (not args.eval):
        training = mode == "train step"
        module.train(training)
        plan = worthwhile(shape, shape[1], module.extents, training=training)
        article = article_module(module)
        variants: dict[str, Callable[[Tensor], object]] = {
            "bare convolutions": Bare(module),
            "article": article,
        }
        if plan is not None:
            spectral = Spectral(module, plan, folded=not training)
            variants |= {"spectral convolutions": spectral.convolutions, "spectral module": spectral}
            print(f"{mode}: {plan.weights(shape[1], shape[1]) * 4 / 2**20:.0f} MiB of coefficients of the weights")
            for k, tile in zip(plan.kernels, plan.tiles, strict=True):
                print(f"  {k} x {k}", "direct" if tile is None else f"{tile.count} tiles, P {tile.rows.period}")
        job = partial(step, parameters=[*module.parameters(), *article.parameters()]) if training else forward
        jobs = {name: partial(job, variant, x) for name, variant in variants.items()}
        seconds = in_turn(jobs, budget=0, rounds=args.rounds, warm_up=1)
        times = result[mode] = {name: statistics.median(values) * 1e3 for name, values in seconds.items()}
        for name, ms in times.items():
            print(f"{mode:13} {name:22} {ms:9.2f} ms   article / this {times['article'] / ms:5.2f}", flush=True)
    setting = {"shape": list(shape), "threads": torch.get_num_threads(), "torch": torch.__version__}
    print(json.dumps({**setting, "median_ms": result}))


if __name__ == "__main__":
    main()

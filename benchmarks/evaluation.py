"""An evaluation of many classes: seconds and memory of the forward passes, the figures, the files and the page's part.

    python -m benchmarks.evaluation [--images 50000] [--classes 1000 10000]

A tiny network on images drawn in memory; each step in a fresh process, whose peak above what it had before is printed.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from selkern.data.decode import Header
from selkern.data.levels import PLAIN, Reading, Used
from selkern.data.preprocess import Preprocess
from selkern.evaluation import MATRIX, Evaluation, evaluate
from selkern.inference.predict import write_evaluation
from selkern.report import figures
from selkern.selection.plots import to_svg

_SIDE = 8  # px


class _Drawn:
    """Images in memory, each of one colour."""

    name = "drawn"

    def __init__(self, n: int, classes: int) -> None:
        self.labels: NDArray[np.int64] = np.random.default_rng(0).integers(0, classes, n)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int, epoch: int = 0, reading: Reading = PLAIN) -> Image.Image:  # noqa: ARG002
        """The image."""
        colour = tuple(int(value) for value in np.random.default_rng(index).integers(0, 256, 3))
        return Image.new("RGB", (_SIDE, _SIDE), colour)

    def used(self, index: int) -> Used | None:  # noqa: ARG002
        """None: of 8 bits."""
        return None

    def header(self, index: int) -> Header:  # noqa: ARG002
        """Of the image."""
        return Header(width=_SIDE, height=_SIDE, format="", mode="RGB")

    def where(self, index: int) -> str:
        """Its number."""
        return str(index)


class _Tiny(nn.Module):
    """Mean colour to logits."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(3, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


def _passes(n: int, classes: int) -> Callable[[], object]:
    model, split = _Tiny(classes), _Drawn(n, classes)
    names = tuple(map(str, range(classes)))
    return lambda: evaluate(model, split, names, Preprocess(size=_SIDE))


def _result(n: int, classes: int) -> Evaluation:
    """Predictions as of a network that is right for three of four images."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, n)
    top = (labels[:, None] + np.arange(5)[None] + (rng.random(n) < 0.25)[:, None]) % classes
    losses, top_p = rng.random(n).astype(np.float32), rng.random((n, 5)).astype(np.float32)
    return Evaluation(tuple(f"class {number}" for number in range(classes)), np.arange(n), labels, losses, top, top_p)


def _figures(n: int, classes: int) -> Callable[[], object]:
    result = _result(n, classes)
    return lambda: json.dumps(result.to_dict())


def _files(n: int, classes: int) -> Callable[[], object]:
    result, split = _result(n, classes), _Drawn(n, classes)

    def write() -> None:
        with TemporaryDirectory() as folder:
            write_evaluation(result, split, Path(folder))

    return write


def _picture(n: int, classes: int) -> Callable[[], object]:
    """What the report draws, which is nothing for more classes than a picture has pixels."""
    result = _result(n, classes)
    to_svg(figures.confusion(_result(100, 10)))  # matplotlib's own start
    return lambda: to_svg(figures.confusion(result)) if classes <= MATRIX else result.mistaken(20)


_STEPS = {"forward passes": _passes, "figures as JSON": _figures, "files": _files, "confusion matrix": _picture}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _measure(step: str, n: int, classes: int) -> None:
    torch.set_num_threads(1)
    work = _STEPS[step](n, classes)
    before, started = _peak(), time.perf_counter()
    work()
    print(json.dumps([time.perf_counter() - started, _peak() - before]))


def main() -> None:
    """Measure every step, or one in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--classes", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--step", choices=_STEPS)
    asked = parser.parse_args()
    if asked.step is not None:
        _measure(asked.step, asked.images, asked.classes[0])
        return
    print(f"{asked.images:,} images, one thread\n{'classes':>8}  {'step':18} {'seconds':>8} {'MiB':>7}")
    for classes in asked.classes:
        for step in _STEPS:
            words = [sys.executable, "-m", "benchmarks.evaluation", "--step", step]
            words += ["--images", str(asked.images), "--classes", str(classes)]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode:
                print(
                    f"{classes:8,}  {step:18} failed: {(done.stderr.strip() or str(done.returncode)).splitlines()[-1]}"
                )
                continue
            seconds, mib = json.loads(done.stdout.splitlines()[-1])
            print(f"{classes:8,}  {step:18} {seconds:8.2f} {mib:7.0f}", flush=True)


if __name__ == "__main__":
    main()

"""The smallest data and runs that the training, analysis and command line tests need."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from guarantees.small import SMALL
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

from selkern.data.augment import Augment
from selkern.data.decode import Header
from selkern.data.levels import PLAIN, Reading, Used
from selkern.models import registry
from selkern.report.analyze import report_run
from selkern.train import run as job
from selkern.train.loop import Training
from selkern.train.options import TrainOptions
from selkern.train.recipe import Recipe
from selkern.train.run_folder import RunFolder
from selkern.train.state import pointed_to


class DecodedHeaders:
    """What makes a split of a test whole: other ways to its images, from their pixels."""

    def read(self, index: int, epoch: int = 0, reading: Reading = PLAIN) -> Image.Image:
        """The image."""
        raise NotImplementedError

    def used(self, index: int) -> Used | None:  # noqa: ARG002
        """None: of 8 bits."""
        return None

    def header(self, index: int) -> Header:
        """Of the image."""
        image = self.read(index)
        return Header(width=image.width, height=image.height, format="", mode=image.mode)


# A network of two SK units: three times as fast as sknet_mini. It has a name only within `tiny_model`.
TINY = SMALL
CHANGING = ("images_per_s", "seconds")  # columns of metrics.csv that no two runs share
SOURCE = Path(__file__).parents[1] / "src"
# Of a program that a test starts: one thread, as in the tests themselves, so that sums are added up alike.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE), "CUDA_VISIBLE_DEVICES": ""}
PROGRAM = (sys.executable, "-m", "selkern.cli")
# Everything that keeps a state or draws random numbers, at once.
BUSY_SGD = Recipe(
    epochs=2,
    batch_size=8,
    accumulate=2,
    image_size=16,
    optimizer="sgd",
    lr=0.05,
    weight_decay=1e-3,
    bias_lr=2.0,
    schedule="steps",
    milestones=(0.5, 1),
    clip=1.0,
    ema=0.8,
    augment=Augment(crop="pad", pad=2, flip=0.5, mixup=0.4),
)
BUSY_ADAMW = Recipe(
    epochs=2,
    batch_size=8,
    image_size=16,
    lr=2e-3,
    warmup=0.5,
    label_smoothing=0.1,
    ema=0.8,
    augment=Augment(crop="resized", colour=0.2, erase=0.5, cutmix=1.0, mixup=0.3),
)


@contextmanager
def tiny_model() -> Iterator[None]:
    """Within the block there are the models `sk_tiny` and, without selective kernels, `plain_tiny`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.ARCHITECTURES, "sk_tiny", TINY)
        patch.setitem(registry.ARCHITECTURES, "plain_tiny", TINY.twin("plain"))
        yield


def draw(path: Path, colour: int, number: int, size: int = 20) -> Path:
    """One image: noise, with one of the three colours much the brightest."""
    pixels = np.random.default_rng([colour, number]).integers(0, 80, (size, size + 2, 3))
    pixels[..., colour % 3] += 150
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def make_folder(root: Path, images: int = 18, classes: Sequence[str] = ("cat", "dog")) -> Path:
    """A folder of class folders whose classes differ in colour: with two, 28 images to train on, 4 and 4."""
    for colour, name in enumerate(classes):
        for number in range(images):
            draw(root / name / f"{number:03}.{'jpg' if number % 2 else 'png'}", colour, number)
    return root


def make_options(data: Path | str, output: Path, recipe: Recipe | None = None, **given: Any) -> TrainOptions:
    """Options of a run without a report; `given` are fields of the run or of its recipe."""
    known = {field.name for field in fields(Recipe)}
    values = {key: value for key, value in given.items() if key in known}
    if recipe is None:
        recipe = Recipe(**{"epochs": 2, "batch_size": 8, "image_size": 16, "lr": 4e-3, **values})
    run = {key: value for key, value in given.items() if key not in known}
    return TrainOptions(
        **{"report": False, "device": "cpu", **run, "data": str(data), "output": str(output)}, training=recipe
    )


def train(options: TrainOptions) -> RunFolder:
    run = job.train(options)
    assert run is not None
    report_run(run, "cpu")
    return run


def resume(run: RunFolder, workers: int | None = None) -> RunFolder:
    resumed = job.resume(run, "cpu", workers)
    assert resumed is not None
    assert resumed.path == run.path
    report_run(resumed, "cpu")
    return resumed


def signal_at(monkeypatch: pytest.MonkeyPatch, steps: Sequence[int], signum: int = signal.SIGINT) -> None:
    """Send this process a signal in the middle of each of these optimizer steps, counted from 1 over the run."""
    original, pending = Training._train_step, list(steps)

    def step(self: Training, batch: Any) -> None:
        original(self, batch)
        if self.epoch * self.order.steps_per_epoch + self.step + 1 in pending:
            pending.pop(0)
            os.kill(os.getpid(), signum)

    monkeypatch.setattr(Training, "_train_step", step)


def bits(file: Path) -> dict[str, tuple[str, bytes]]:
    """Every tensor of a safetensors file by name: its type and its very bytes."""
    return {name: (str(value.dtype), value.numpy().tobytes()) for name, value in load_file(file).items()}


def rows(run: RunFolder) -> list[dict[str, float]]:
    """The metrics without what the clock decides."""
    return [{key: value for key, value in row.items() if key not in CHANGING} for row in run.read_metrics()]


def everything(run: RunFolder) -> dict[str, Any]:
    """All that a run computed: kept weights, the whole state, metrics."""
    last = run.state / pointed_to(run.state)
    files = [run.best, run.last, *sorted(last.glob("*.safetensors"))]
    return {"rows": rows(run), **{file.name: bits(file) for file in files}}


def assert_same(one: RunFolder, other: RunFolder) -> None:
    """Fail unless two runs computed the same, bit for bit."""
    left, right = everything(one), everything(other)
    assert left["rows"] == right["rows"]
    assert left.keys() == right.keys()
    for name in left:
        differing = [key for key in left[name] if left[name][key] != right[name][key]] if name != "rows" else []
        assert not differing, f"{name}: {len(differing)} of {len(left[name])} tensors differ, {differing[:3]}"


def tree(root: Path) -> dict[str, tuple[str, int]]:
    """Every file below a folder: its SHA-256 and when it was changed."""
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {str(f.relative_to(root)): (hashlib.sha256(f.read_bytes()).hexdigest(), f.stat().st_mtime_ns) for f in files}


def order_of(file: Path) -> NDArray[np.int64]:
    """(k, 3) epoch, step and sample number of every row of an order.rank*.csv."""
    return np.loadtxt(file, delimiter=",", dtype=np.int64, ndmin=2)


def draw_boxes(root: Path) -> None:
    """Nine images (so that the last batch has one) of a bright square, with its box, for training and validation."""
    for part in ("train", "val"):
        for kind in ("images", "labels"):
            (root / kind / part).mkdir(parents=True)
        for number in range(9):
            pixels = np.random.default_rng(number).integers(0, 80, (64, 64, 3))
            left = 4 * number
            pixels[16:40, left : left + 24, number % 3] = 250
            Image.fromarray(pixels.astype(np.uint8)).save(root / "images" / part / f"{number}.png")
            box = f"{number % 3} {(left + 12) / 64} {28 / 64} {24 / 64} {24 / 64}\n"
            (root / "labels" / part / f"{number}.txt").write_text(box)
    (root / "data.yaml").write_text(f"path: {root}\ntrain: images/train\nval: images/val\nnames: [red, green, blue]\n")

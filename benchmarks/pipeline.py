"""The workload of the data pipeline: images per second that arrive as batches, with workers and without."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from benchmarks.results import Row
from benchmarks.session import FAILURES, Session
from selkern.data.augment import Augment
from selkern.data.loader import Samples, make_loader
from selkern.data.order import TrainOrder
from selkern.data.preprocess import Preprocess
from selkern.data.scenes import CANVAS, SceneSplit
from selkern.data.sources import open_source
from selkern.data.split import Split
from selkern.measure.timing import Job, in_turn

WORKERS = (0, 1, 2)
_WIDTH, _HEIGHT = 500, 375  # px: a usual image of ImageNet


def data(session: Session) -> None:
    """Digit scenes, and a folder of JPEGs that is made for this and removed again."""
    scenes, files = (64, 16) if session.trial else (1024, 200)
    try:
        split: Split = SceneSplit("train", scenes, 0)
        _measure(session, f"digit scenes, {CANVAS} px", split, Augment(), CANVAS, 16 if session.trial else 64)
    except FAILURES as error:  # scikit-learn may be absent
        session.results.lacks("data", "digit scenes", error)
    side = 32 if session.trial else 224
    with TemporaryDirectory() as folder:
        write_jpegs(Path(folder), files)
        case = f"JPEGs, {_WIDTH} x {_HEIGHT} to {side} px"
        augment = Augment(crop="resized", flip=0.5, colour=0.4)
        _measure(session, case, open_source(folder).train, augment, side, 4 if session.trial else 32)


def _measure(session: Session, case: str, split: Split, augment: Augment, side: int, batch: int) -> None:
    session.say(f"data: {case}")
    samples = Samples(split, Preprocess(size=side), augment, 0)
    jobs: dict[str, Job] = {}
    for workers in WORKERS:
        order = TrainOrder(len(split), batch, 0)
        jobs[f"{workers} worker{'' if workers == 1 else 's'}"] = partial(
            _epoch, order, make_loader(samples, order, workers)
        )
    epochs = in_turn(jobs, budget=session.budget, rounds=session.rounds, warm_up=1)
    images = len(split) // batch * batch
    for variant, seconds in epochs.items():
        row = Row(
            workload="data",
            case=case,
            quantity="training images",
            variant=variant,
            unit="images/s",
            samples=tuple(images / value for value in seconds),
            against="0 workers" if variant != "0 workers" else "",
            more_is_better=True,
        )
        session.results.rows.append(row)


def _epoch(order: TrainOrder, loader: object) -> None:
    """Read one epoch, each time another one."""
    order.seek(order.epoch + 1)
    for batch in loader:  # type: ignore[attr-defined]
        assert not batch.bad


def write_jpegs(root: Path, count: int) -> None:
    """Two class folders of JPEGs with the detail of photographs: smooth colours, and noise over them."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = root / "train" / "ab"[number % 2] / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = (smooth + rng.integers(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(path, quality=90)
    for name in "ab":  # the rest of what a source needs
        folder = root / "val" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (_WIDTH, _HEIGHT)).save(folder / "0.jpg")

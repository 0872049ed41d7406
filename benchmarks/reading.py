"""`python benchmarks/reading.py`: training images read, cut, resized and changed, a second; ours beside others in turn.

Each ratio is the median of the rounds' ratios, with quartiles. Every reader gets the same files, does the same: bicubic
crops of 8 to 100 % of the area, mirror images, where it says so colour jitter of 0.4; what comes are uint8 batches on
the CPU. timm's loader is taken without its normalisation, which happens in the main process; torchvision's
`ImageFolder` once as its documentation has it, with Pillow, and once with its own decoder and transforms of tensors.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks.pipeline import write_jpegs  # noqa: E402
from selkern.data.augment import Augment, _jitter, _random_region, _resized  # noqa: E402
from selkern.data.decode import MAX_BYTES, decode  # noqa: E402
from selkern.data.jpeg import open_plain  # noqa: E402
from selkern.data.levels import Reading  # noqa: E402
from selkern.data.loader import Collate, Sample  # noqa: E402
from selkern.data.order import sample_rng  # noqa: E402
from selkern.data.preprocess import Preprocess  # noqa: E402
from selkern.measure.timing import Job, Spread, in_turn  # noqa: E402
from selkern.train.recipe import RECIPES  # noqa: E402

_SIZE, _BATCH, _COLOUR = 224, 32, 0.4
_OLD = "selkern_before"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", default="3122405", help="commit to compare with; empty for none")
    parser.add_argument("--images", type=Path, help="folder train/CLASS/*.jpg, instead of files that are made")
    parser.add_argument("--count", type=int, default=192, help="files that are made")
    parser.add_argument("--workers", type=int, default=2, help="worker processes of every loader")
    parser.add_argument("--stages", action="store_true", help="what each stage takes, instead")
    parser.add_argument("--budget", type=float, default=45.0, help="seconds for each of the four comparisons")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        if options.against:
            _unpack(options.against, Path(folder) / "before")
        images = options.images
        if images is None:
            images = Path(folder) / "images"
            write_jpegs(images, options.count)
        files = sorted((images / "train").glob("*/*.jpg"))
        mean = sum(file.stat().st_size for file in files) / len(files)
        print(f"{len(files)} JPEGs of {mean / 1000:.0f} KB, to {_SIZE} px; load {_load()}")
        if options.stages:
            _stages(files[: options.count])
            return
        goals = [line for colour in (0.0, _COLOUR) for line in _compare(images, colour, options)]
    print(f"load at the end {_load()}\n", *goals, sep="\n")


def _compare(images: Path, colour: float, options: argparse.Namespace) -> list[str]:
    """Measure one augmentation, and return a line for each goal."""
    what = f"imagenet-paper{f' with --colour {colour}' if colour else ''}"
    versions = {"selkern": "selkern"} | ({options.against: _OLD} if options.against else {})
    jobs: dict[str, Job] = {
        name: partial(_in_process, _samples(images, colour, module)) for name, module in versions.items()
    }
    alone = _report(f"{what}, one core, no worker", jobs, _images(images), options.budget)
    jobs = {name: _epochs(*_loader(images, colour, module, options.workers)) for name, module in versions.items()}
    jobs |= _others(images, colour, options.workers)
    beside = _report(f"{what}, {options.workers} workers", jobs, _images(images), options.budget)
    lines = [f"1. {what}, one core, against {name}: {ratio:.2f}x (goal 1.8)" for name, ratio in alone.items()]
    others = {name: ratio for name, ratio in beside.items() if name != options.against}
    return lines + [f"2. {what}, workers, against {name}: {ratio:.2f}x (goal 1.3)" for name, ratio in others.items()]


def _images(images: Path) -> int:
    count = sum(1 for _ in (images / "train").glob("*/*.jpg"))
    return count // _BATCH * _BATCH


def _report(title: str, jobs: dict[str, Job], images: int, budget: float) -> dict[str, float]:
    """Print images a second of every job, and how many times as many ours reads; the latter is returned."""
    seconds = in_turn(jobs, budget=budget, warm_up=1)
    ours = seconds["selkern"]
    ratios = {}
    print(f"\n{title}: {len(ours)} rounds of {images} images")
    for name, values in seconds.items():
        rate = Spread.of([images / value for value in values])
        line = f"  {name:34} {rate.median:6.0f} images/s"
        if name != "selkern":
            ratio = Spread.of([value / mine for value, mine in zip(values, ours, strict=True)])
            ratios[name] = ratio.median
            line += f"   selkern reads {ratio.median:.2f} times as many ({ratio.low:.2f} to {ratio.high:.2f})"
        print(line, flush=True)
    return ratios


def _stages(files: Sequence[Path]) -> None:
    """Print what each stage takes, ms an image, and what was or could be in its place."""
    import simplejpeg

    data = [file.read_bytes() for file in files]
    spec, preprocess = Augment(crop="resized", flip=0.5, colour=_COLOUR), Preprocess(size=_SIZE)
    whole = [decode(one) for one in data]
    boxes = [_random_region(*image.size, spec, "crop", sample_rng(0, 0, i)) for i, image in enumerate(whole)]
    plain = [decode(one, reading=Reading(rows=lambda _wide, high: high)) for one in data]
    crops = [np.ascontiguousarray(_resized(image, box, preprocess)) for image, box in zip(whole, boxes, strict=True)]
    samples = [Sample(crop, 0, 0, 1.0, 0) for crop in crops]
    rng, collate = sample_rng(0, 0, 0), Collate(_SIZE)

    def rows(i: int) -> object:
        return decode(data[i], reading=Reading(rows=lambda _wide, _high: int(boxes[i][3])))

    stages: dict[str, Callable[[int], object]] = {
        "open and read the file": lambda i: files[i].read_bytes(),
        "the sample's random numbers": lambda i: sample_rng(0, 1, i),
        "draw the crop, before and after": lambda _i: [_random_region(500, 375, spec, "crop", rng) for _ in range(2)],
        "header: Pillow": lambda i: Image.open(io.BytesIO(data[i])),
        "header: ours": lambda i: open_plain(data[i], MAX_BYTES),
        "decode: Pillow": lambda i: decode(data[i]),
        "decode: Pillow, to an array": lambda i: np.asarray(decode(data[i])),
        "decode: Pillow, at half the size": lambda i: decode(data[i], reading=Reading(least=min(whole[i].size) // 2)),
        "decode: simplejpeg": lambda i: simplejpeg.decode_jpeg(data[i]),
        "decode: simplejpeg, rows needed": rows,
        "resize: Pillow, in place": lambda i: preprocess.show(whole[i], boxes[i]),
        "resize: torch, cut first": lambda i: _resized(plain[i], boxes[i], preprocess),
        "flip and to planes": lambda i: np.ascontiguousarray(crops[i][:, :, ::-1]),
        "colour jitter": lambda i: _jitter(crops[i], _COLOUR, rng),
        "collate (a 32nd of a batch)": lambda i: collate(samples[i : i + _BATCH]) if i % _BATCH == 0 else None,
    }
    jobs: dict[str, Job] = {name: partial(_each, stage, len(files)) for name, stage in stages.items()}
    for name, seconds in in_turn(jobs, budget=60).items():
        spread = Spread.of([1000 * value / len(files) for value in seconds])
        print(f"  {name:34} {spread.median:6.3f} ms ({spread.low:.3f} to {spread.high:.3f})")


def _each(stage: Callable[[int], object], count: int) -> None:
    for index in range(count):
        stage(index)


def _samples(images: Path, colour: float, module: str) -> Any:
    """Training samples of one version of selkern."""
    part = partial(importlib.import_module, package=module)
    recipe = RECIPES["imagenet-paper"]
    augment = part(".data.augment").Augment(crop="resized", flip=recipe.augment.flip, colour=colour)
    preprocess = part(".data.preprocess").Preprocess(size=_SIZE, crop=recipe.eval_crop)
    split = part(".data.sources").open_source(str(images)).train
    return part(".data.loader").Samples(split, preprocess, augment, 0)


def _in_process(samples: Any) -> None:
    """One epoch of batches in this process."""
    loader = sys.modules[type(samples).__module__]
    collate = loader.Collate(_SIZE)
    for start in range(0, len(samples) - _BATCH + 1, _BATCH):
        batch = collate([samples[(0, index)] for index in range(start, start + _BATCH)])
        assert not batch.bad


def _loader(images: Path, colour: float, module: str, workers: int) -> tuple[Any, Any]:
    samples = _samples(images, colour, module)
    order = importlib.import_module(f"{module}.data.order").TrainOrder(len(samples), _BATCH, 0)
    return importlib.import_module(f"{module}.data.loader").make_loader(samples, order, workers), order


def _epochs(loader: Iterable[Any], order: Any = None) -> Job:
    """What reads one epoch, each time another."""

    def read() -> None:
        if order is not None:
            order.seek(order.epoch + 1)
        for _ in loader:
            pass

    return read


def _others(images: Path, colour: float, workers: int) -> dict[str, Job]:
    """The loaders of timm and torchvision, where they are installed."""
    try:
        timm_data: Any = importlib.import_module("timm.data")
        from torch.utils.data import DataLoader
        from torchvision.datasets import ImageFolder
        from torchvision.io import decode_image
        from torchvision.transforms import v2

        decode_image(str(next((images / "train").glob("*/*.jpg"))))
    except (ImportError, RuntimeError, AttributeError) as error:
        print(f"not compared with timm and torchvision: {error}")
        return {}
    bicubic = v2.InterpolationMode.BICUBIC
    changes = [v2.RandomResizedCrop(_SIZE, interpolation=bicubic, antialias=True), v2.RandomHorizontalFlip()]
    if colour:
        changes.append(v2.ColorJitter(colour, colour, colour))
    shared: dict[str, Any] = {"batch_size": _BATCH, "num_workers": workers, "persistent_workers": workers > 0}
    usual = ImageFolder(str(images / "train"), v2.Compose([*changes, v2.PILToTensor()]))
    own = ImageFolder(str(images / "train"), v2.Compose(changes), loader=partial(decode_image, mode="RGB"))
    timms = timm_data.create_loader(
        timm_data.create_dataset("", root=str(images / "train")),
        input_size=(3, _SIZE, _SIZE),
        is_training=True,
        color_jitter=colour or None,
        interpolation="bicubic",
        device=torch.device("cpu"),
        **shared,
    )
    return {
        "timm": _epochs(timms.loader),
        "torchvision, Pillow": _epochs(DataLoader(usual, shuffle=True, drop_last=True, **shared)),
        "torchvision, tensors": _epochs(DataLoader(own, shuffle=True, drop_last=True, **shared)),
    }


def _unpack(commit: str, folder: Path) -> None:
    """The package as it was at a commit, under a name of its own, so that both can be imported."""
    packed = subprocess.run(["git", "archive", commit, "src/selkern"], cwd=ROOT, capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")
    (folder / "src" / "selkern").rename(folder / "src" / _OLD)
    for path in (folder / "src" / _OLD).rglob("*.py"):
        path.write_text(re.sub(r"\b(from|import) selkern\b", rf"\1 {_OLD}", path.read_text()))
    sys.path.insert(0, str(folder / "src"))


def _load() -> str:
    return " ".join(f"{value:.2f}" for value in os.getloadavg())


if __name__ == "__main__":
    main()

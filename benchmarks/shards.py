"""Reading tar shards against reading the same images from folders: images/s of both, in turns, and their ratio.

python benchmarks/shards.py                          # 1,000 JPEGs of 500 x 375 px, shards of 16 MB
python benchmarks/shards.py --members 1281167        # how long the index of as many samples takes, and what it holds

Each round reads every image once from either, first the one and then the other, with the files in the page cache. A
ratio above 1 says that shards are faster; that of CPU time is of reading in this process.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import torch

from benchmarks.pipeline import write_jpegs
from selkern.data.augment import Augment
from selkern.data.loader import Samples, make_loader
from selkern.data.order import TrainOrder, eval_shards
from selkern.data.pack import pack_shards
from selkern.data.preprocess import Preprocess
from selkern.data.sources import open_source
from selkern.data.split import Split, whole

CASES = [(augmented, workers) for augmented in (False, True) for workers in (0, 2)]


def seconds(split: Split, augmented: bool, workers: int) -> tuple[float, float]:
    """Of an image, by the clock and of this process's CPU, in the order of a training or of an evaluation."""
    samples = Samples(split, Preprocess(size=224), Augment(crop="resized", flip=0.5) if augmented else None, 0)
    order = TrainOrder(len(split), 50, 0) if augmented else eval_shards(len(split), 50)
    loader = make_loader(samples, order, workers)
    batches = iter(loader)
    next(batches)  # the workers have started
    started, computed = time.perf_counter(), time.process_time()
    read = sum(len(batch.labels) for batch in batches)
    passed = time.perf_counter() - started, time.process_time() - computed
    loader._iterator = None
    return passed[0] / read, passed[1] / read


def compare(folder: Path, shards: Path, rounds: int) -> Iterator[dict[str, float | int | bool]]:
    """One row for each case: images/s of both, and the median of the rounds' ratios."""
    both = [whole(open_source(str(data), cut=False)) for data in (folder, shards)]
    for augmented, workers in CASES:
        times: list[tuple[float, float]] = []
        computed: list[float] = []
        for number in range(rounds):
            turn = both if number % 2 else both[::-1]
            measured = {id(split): seconds(split, augmented, workers) for split in turn}
            (one, busy), (other, busy_other) = (measured[id(split)] for split in both)
            times.append((one, other))
            computed.append(busy / busy_other)
        row: dict[str, float | int | bool] = {
            "augmented": augmented,
            "workers": workers,
            "folder_images_per_s": round(1 / median(one for one, _ in times), 1),
            "shards_images_per_s": round(1 / median(other for _, other in times), 1),
            "ratio": round(median(one / other for one, other in times), 3),
        }
        if not workers:  # of the clock other programs take their share, of this not
            row["cpu_ratio"] = round(median(computed), 3)
        yield row


def write_members(folder: Path, count: int, each: int = 10_000) -> None:
    """Shards of so many samples whose images are a few bytes: their index is as large as that of real ones."""
    folder.mkdir()
    for first in range(0, count, each):
        with tarfile.open(folder / f"train-{first // each:06}.tar", "w") as shard:
            for number in range(first, min(first + each, count)):
                label = number % 1000
                name = f"n{1440764 + 7919 * label:08}"
                for suffix, data in (("jpg", b"\xff\xd8" + bytes(98)), ("cls", str(label).encode())):
                    member = tarfile.TarInfo(f"{name}/{name}_{number}.{suffix}")
                    member.size = len(data)
                    shard.addfile(member, io.BytesIO(data))
            shard.members.clear()  # type: ignore[attr-defined]  # it keeps every one


def index(folder: Path) -> dict[str, float | int]:
    """How long the first and the second opening take."""
    times = []
    for _ in range(2):
        started = time.perf_counter()
        source = open_source(str(folder), cut=False)
        times.append(time.perf_counter() - started)
    kept = sum(file.stat().st_size for file in Path(os.environ["SELKERN_CACHE"]).rglob("*.npy"))
    return {
        "samples": sum(map(len, source.parts)),
        "first_s": round(times[0], 1),
        "second_s": round(times[1], 1),
        "index_MB": round(kept / 1e6, 1),
    }


def main() -> None:
    """Print a row for each case, and all of them as JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--members", type=int, default=0, help="measure the index of so many samples instead")
    words = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        os.environ["SELKERN_CACHE"] = str(place / "cache")
        if words.members:
            write_members(place / "shards", words.members)
            print(json.dumps(index(place / "shards")))
            return
        (place / "photos").mkdir()
        write_jpegs(place / "photos", words.images)
        pack_shards(open_source(str(place / "photos"), cut=False), place / "shards", 16 << 20, seed=None)
        rows = []
        for row in compare(place / "photos", place / "shards", words.rounds):
            rows.append(row)
            print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
        print(json.dumps(rows))


if __name__ == "__main__":
    main()

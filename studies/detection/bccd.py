"""YOLOv8n with random weights on blood cells: as it is, and with selective kernels, each from the same seeds.

    python studies/detection/bccd.py BCCD FOLDER [--epochs 10] [--seeds 3] [--selectify "last 2 stages"]

BCCD is the data set's folder (VOC layout, its own train, val and test pictures); into FOLDER go the pictures in YOLO's
layout, a run of ultralytics for each network and seed, `results.json` and `results.md`. A run that is done is not
repeated. Figures are of the last epoch's weights on the test pictures. The classes are of clearly different size, so
the average precision by class is that by size.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import ultralytics
from PIL import Image

import selkern.ultralytics
from selkern.data.detection.annotations import Annotations
from selkern.data.detection.voc import read_voc
from selkern.measure.machine import describe, summary
from selkern.selection.statistics import Estimate
from selkern.study.results import paired

ARMS = ("plain", "selective")
MEAN = "all, mAP50-95"


def write_yolo(data: Annotations, folder: Path) -> tuple[Path, dict[str, float]]:
    """The pictures in YOLO's layout; returns the file that names them, and each class's median side in px."""
    classes = sorted({box.label for picture in data.pictures for box in picture.boxes})
    sides: dict[str, list[float]] = {name: [] for name in classes}
    for picture in data.pictures:
        images, labels = (folder / kind / (picture.split or "train") for kind in ("images", "labels"))
        for made in (images, labels):
            made.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture.file, images)
        with Image.open(picture.file) as image:
            width, height = image.size
        lines = []
        for box in picture.boxes:
            x0, y0, x1, y1 = box.corners
            sides[box.label].append(max(x1 - x0, y1 - y0))
            place = ((x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height)
            lines.append(" ".join([str(classes.index(box.label)), *(f"{number:.6f}" for number in place)]))
        (labels / f"{picture.file.stem}.txt").write_text("\n".join(lines) + "\n")
    splits = {name: f"images/{name}" for name in ("train", "val", "test")}
    file = folder / "data.yaml"  # JSON is YAML
    file.write_text(json.dumps({"path": str(folder.resolve()), **splits, "names": dict(enumerate(classes))}))
    return file, {name: statistics.median(found) for name, found in sides.items()}


def run(arm: str, seed: int, data: Path, folder: Path, epochs: int, where: str) -> dict[str, float]:
    """Train one network and measure it on the test pictures; {class: AP50-95}, and the mean of all."""
    kept = folder / f"{arm}-seed{seed}" / "result.json"
    if kept.exists():
        result: dict[str, float] = json.loads(kept.read_text())
        return result
    quiet: dict[str, Any] = {"plots": False, "verbose": False, "project": str(folder.resolve())}
    quiet |= {"device": "cpu", "workers": 0, "imgsz": 320, "batch": 8, "data": str(data)}
    trainer = selkern.ultralytics.trainer(where) if arm == "selective" else None
    model = ultralytics.YOLO("yolov8n.yaml")
    model.train(
        **quiet, name=kept.parent.name, exist_ok=True, trainer=trainer, epochs=epochs, seed=seed, val=False, amp=False
    )
    trained = ultralytics.YOLO(kept.parent / "weights" / "last.pt")
    box = trained.val(**quiet, split="test", name=f"{kept.parent.name}-test", exist_ok=True).box
    names = [trained.names[int(number)] for number in box.ap_class_index]
    result = {MEAN: float(box.map), **dict(zip(names, map(float, box.ap), strict=True))}
    kept.write_text(json.dumps(result, indent=1))
    return result


def shown(estimate: Estimate | None) -> str:
    """Points, with the 95 % interval over seeds."""
    if estimate is None:
        return "one seed"
    return f"{100 * estimate.value:+.2f} [{100 * estimate.low:+.2f}, {100 * estimate.high:+.2f}]"


def table(results: dict[str, list[dict[str, float]]], sides: dict[str, float]) -> Iterator[str]:
    """The rows of results.md."""
    yield "| average precision of | median side, px | plain, % | selective, % | selective minus plain, points |"
    yield "|---|---|---|---|---|"
    for name in (MEAN, *sorted(sides, key=sides.__getitem__)):
        plain, selective = ([figures.get(name, 0.0) for figures in results[arm]] for arm in ARMS)
        pair = paired(selective, plain)
        means = (f"{100 * statistics.mean(plain):.2f}", f"{100 * statistics.mean(selective):.2f}")
        side = f"{sides[name]:.0f}" if name in sides else ""
        yield f"| {name} | {side} | {' | '.join(means)} | {shown(pair)} |"


def main() -> None:
    """Train what is not trained yet, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bccd", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--selectify", default="last 2 stages", help="which convolutions, as in selkern.selectify")
    options = parser.parse_args()
    data, sides = write_yolo(read_voc(options.bccd), options.folder / "data")
    results: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for seed in range(options.seeds):
        for arm in ARMS:
            results[arm].append(run(arm, seed, data, options.folder, options.epochs, options.selectify))
    lines = list(table(results, sides))
    print(*lines, sep="\n")
    about = f"{options.epochs} epochs, {options.seeds} seeds, selectify={options.selectify!r}; ultralytics "
    about += f"{ultralytics.__version__}, torch {torch.__version__}, {summary(describe())}"
    (options.folder / "results.md").write_text("\n".join([*lines, "", about, ""]))
    (options.folder / "results.json").write_text(
        json.dumps({"about": about, "sides": sides, "runs": results}, indent=1)
    )


if __name__ == "__main__":
    main()

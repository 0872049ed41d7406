"""``import_boxes``: a data set with boxes to a data set of crops, one object each, with a table of their boxes."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from selkern.data.decode import decode, show
from selkern.data.detection.annotations import Annotations
from selkern.data.detection.coco import read_coco
from selkern.data.detection.objects import Corners, Plan, Scene, Wanted, plan
from selkern.data.detection.voc import read_voc
from selkern.data.detection.yolo import read_yolo
from selkern.data.files import FileSplit
from selkern.data.levels import Reading, parse_levels
from selkern.data.split import SPLITS, LeftOut
from selkern.data.survey import settle_levels
from selkern.errors import DataError, ResourceError, UsageError
from selkern.io import write_csv

Format = Literal["voc", "yolo", "coco"]
Row = tuple[str, float, float, float, float, str, str]
_HEADER = ("path", "x0", "y0", "x1", "y1", "label", "group")
_UNFINISHED = ".unfinished"  # where crops lie until all are written; a data set's dot folders are no classes


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What became of a data set with boxes."""

    target: Path
    """The folder of the crops."""
    size: int | None
    """Side of the window, px; None for tight crops."""
    pictures: int
    """Those with crops."""
    counts: dict[str, dict[str, int]]
    """Crops of each split and class."""
    left_out: tuple[LeftOut, ...]
    """Boxes and pictures that could not be used, or were not to be."""
    notes: tuple[str, ...]
    """What was assumed."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        reasons = dict(Counter(each.reason for each in self.left_out).most_common())
        return {
            "target": show(self.target),
            "size": self.size,
            "pictures": self.pictures,
            "crops": self.counts,
            "left_out": reasons,
            "notes": list(self.notes),
        }


def import_boxes(
    kind: Format,
    root: Path,
    target: Path,
    wanted: Wanted,
    *,
    stage: Callable[[str, int | None], object] = lambda _text, _total: None,
    progress: Callable[[int], object] = lambda _: None,
) -> Imported:
    """Cut every object out of its picture.

    Writes target/SPLIT/CLASS/PICTURE_NN.png, target/boxes.csv (each object's box in px of its crop, and its picture
    or group), and target/left_out.csv where something was left out. Until all is written it lies in
    target/.unfinished; where the program ends early there are no splits.

    Args:
        kind: the format of the annotations.
        root: the data set's folder, which is only read.
        target: a new or empty folder outside of it.
        wanted: which objects, and how.
        stage: called with words, and a number of pictures or None, when a stage begins.
        progress: called with a number of pictures whenever so many more are looked at or cut.

    Raises:
        UsageError: the target is not a new or empty folder.
        DataError: there is nothing to cut out.
        ResourceError: the disk is full.
    """
    _check(root, target)
    stage("reading annotations", None)
    data: Annotations = {"voc": read_voc, "yolo": read_yolo, "coco": read_coco}[kind](root)
    stage("looking at pictures", len(data.pictures))
    todo = plan(data, root, wanted, progress)
    reading = _reading(todo, wanted)
    stage(f"cutting out {todo.boxes:,} objects", len(todo.scenes))
    rows: list[Row] = []
    pictures, padded = 0, 0
    with _staged(target) as folder:
        for scene in todo.scenes:
            try:
                image = decode(scene.file, show(scene.file), reading)
            except DataError as error:
                todo.left_out.append(LeftOut(error.where, f"{error.what}: {len(scene.objects)} objects"))
                continue
            finally:
                progress(1)
            pictures += 1
            mine, outside = _cut(image, scene, todo.size, wanted.margin, folder)
            rows += mine
            padded += outside
        if not rows:
            raise DataError("no picture can be read", show(root), todo.left_out[-1].reason)
        write_csv(folder / "boxes.csv", _HEADER, rows)
        if todo.left_out:
            write_csv(folder / "left_out.csv", ("where", "reason"), [astuple(each) for each in todo.left_out])
    if padded:
        todo.notes.append(f"{padded:,} windows reach past the picture's border: filled with its mean colour there")
    return Imported(
        target=target,
        size=todo.size,
        pictures=pictures,
        counts=_counts(rows),
        left_out=tuple(todo.left_out),
        notes=tuple(todo.notes),
    )


def _check(root: Path, target: Path) -> None:
    if not root.is_dir():
        what = "not a folder" if root.exists() else "no such folder"
        raise DataError(what, show(root), "give the folder that holds pictures and annotations")
    if target.exists() or target.is_symlink():
        left = [path.name for path in target.iterdir()] if target.is_dir() else [""]
        if left == [_UNFINISHED]:
            raise UsageError("an import ended early here", f"--to {show(target)}", "remove it, or give a new one")
        if left:
            raise UsageError("exists already", f"--to {show(target)}", "give a new or empty folder")
    elif not target.absolute().parent.is_dir():
        raise UsageError("no such folder", f"--to {show(target.absolute().parent)}", "make it first, or choose another")
    if root.resolve() in (target.resolve(), *target.resolve().parents):
        raise UsageError("lies in the data set itself", f"--to {show(target)}", "give a folder beside it")


def _reading(todo: Plan, wanted: Wanted) -> Reading:
    """How pictures are decoded: deep pixels of all of them alike."""
    files = tuple(str(scene.file) for scene in todo.scenes)
    number = np.arange(len(files))
    split = FileSplit(name="train", labels=np.zeros_like(number), files=files, rows=number)
    levels, notes = settle_levels(split, parse_levels(wanted.white_level))
    todo.notes += notes
    return Reading(levels=levels)


@contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """A folder whose content moves into the target when all is written, and goes when anything fails."""
    new = not target.exists()
    folder = target / _UNFINISHED
    try:
        folder.mkdir(parents=True)
        yield folder
        for path in sorted(folder.iterdir(), key=lambda path: (path.name == "train", path.name)):
            path.rename(target / path.name)  # train comes last: without it the folder is no data set
        folder.rmdir()
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if new:
            shutil.rmtree(target, ignore_errors=True)
        if isinstance(error, OSError):
            fix = "free space or choose another folder"
            raise ResourceError(f"cannot write ({error.strerror})", show(target), fix) from error
        raise


def _cut(image: Image.Image, scene: Scene, size: int | None, margin: float, folder: Path) -> tuple[list[Row], int]:
    """Write the crops of a picture; their rows, and how many reach past its border."""
    rows: list[Row] = []
    fill = tuple(np.asarray(image).mean((0, 1)).round().astype(int).tolist())
    padded = 0
    for each in scene.objects:
        area = _tight(each.corners, margin, image.size) if size is None else _centred(each.corners, size)
        left, top, right, bottom = area
        inside = max(left, 0), max(top, 0), min(right, image.width), min(bottom, image.height)
        crop = image.crop(inside)
        if inside != area:
            padded += 1
            crop = Image.new("RGB", (right - left, bottom - top), fill)
            crop.paste(image.crop(inside), (inside[0] - left, inside[1] - top))
        name = f"{scene.split}/{each.label}/{scene.name}_{each.number:02d}.png"
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        crop.save(path, "PNG", compress_level=4)  # half the time of 6, for 1 % more bytes
        x0, y0, x1, y1 = each.corners
        # Of a window, the whole box, though the object may be larger: its true size is what a study asks for.
        corners = (round(x0 - left, 2), round(y0 - top, 2), round(x1 - left, 2), round(y1 - top, 2))
        rows.append((name, *corners, each.label, scene.group))
    return rows, padded


def _centred(corners: Corners, size: int) -> tuple[int, int, int, int]:
    """A window around the middle of a box, px."""
    left, top = (math.floor((low + high - size) / 2 + 0.5) for low, high in zip(corners[:2], corners[2:], strict=True))
    return left, top, left + size, top + size


def _tight(corners: Corners, margin: float, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The whole pixels of a box with its margin, within the picture."""
    x0, y0, x1, y1 = corners
    wide, high = margin * (x1 - x0), margin * (y1 - y0)
    return (
        max(math.floor(x0 - wide), 0),
        max(math.floor(y0 - high), 0),
        min(math.ceil(x1 + wide), size[0]),
        min(math.ceil(y1 + high), size[1]),
    )


def _counts(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for path, *_ in rows:
        split, label, _ = path.split("/")
        counts[split][label] += 1
    return {split: dict(sorted(result.items())) for split, result in counts.items() if result}

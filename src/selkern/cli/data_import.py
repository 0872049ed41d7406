"""``selkern data import``: from pictures with boxes to images of single objects."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional

from selkern.cli.parse import parse
from selkern.progress import Progress, aligned

if TYPE_CHECKING:
    from selkern.data.detection.crops import Imported


@dataclass(frozen=True, kw_only=True)
class DataImportOptions:
    """Cut the objects out of pictures with boxes: one image each, in class folders that `train` takes, and boxes.csv.

    A window shows all objects at the scale of their picture, so that a network sees their true size. A tight crop
    fills the image with its object: once resized, it shows no size. All crops of a picture are in one split. Boxes and
    pictures that cannot be used are counted, and listed in left_out.csv.
    """

    format: Annotated[Positional[Literal["voc", "yolo", "coco"]], tyro.conf.arg(metavar="voc|yolo|coco")]
    """Pascal VOC (XML), YOLO (text files, data.yaml) or COCO (JSON); Roboflow's exports of each, too."""
    folder: Annotated[Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """The data set; it is only read."""
    to: Path
    """A new or empty folder for the crops."""
    crop: Literal["window", "tight"] = "window"
    """window: one size around each box's centre, keeps true size; tight: the box itself, shows no size."""
    size: int | None = None
    """Side of the window, px; by default what holds 95 % of the boxes of the average class."""
    margin: float = 0.0
    """Added to each side of a tight crop, as a share of the box's side."""
    least: float = 4.0
    """Boxes with a side below this many px are left out."""
    most: int | None = None
    """At most so many boxes of a class in a picture, drawn by the seed."""
    leave_out: tuple[Literal["difficult", "truncated", "border"], ...] = ()
    """Boxes marked difficult or truncated (VOC), and those that touch the picture's border."""
    splits: Literal["own", "new"] = "own"
    """The data set's own splits, completed where val (or all) is missing; or new ones, 80/10/10."""
    group: str | None = None
    """Regular expression on paths, such as '(patient[0-9]+)': pictures of one match share a split; by default none."""
    seed: int = 0
    """Seed of new splits and of the boxes that --most draws."""
    white_level: str = "auto"
    """White of deep pixels (over 8 bits): a value, BLACK:WHITE, full, percentile (by picture), auto (by data set)."""
    json: bool = False
    """Print one JSON object instead of text."""


_SHOWN = 20  # classes in the table, and reasons below it; --json has all
_LONGEST = 40  # characters of a class name in it


def main(argv: list[str]) -> int:
    """`selkern data import`; 3 where nothing can be imported."""
    from selkern.data.detection.crops import import_boxes
    from selkern.data.detection.objects import Wanted

    options = parse(DataImportOptions, argv, "data import")
    wanted = Wanted(
        crop=options.crop,
        size=options.size,
        margin=options.margin,
        least=options.least,
        most=options.most,
        leave_out=options.leave_out,
        splits=options.splits,
        group=options.group,
        seed=options.seed,
        white_level=options.white_level,
    )
    with Progress("reading annotations", unit="pictures") as line:
        done = import_boxes(
            options.format,
            options.folder.expanduser(),
            options.to.expanduser(),
            wanted,
            stage=line.show,
            progress=line.advance,
        )
    print(json.dumps(done.to_dict(), ensure_ascii=False) if options.json else "\n".join(_text(done)))
    return 0


def _text(done: Imported) -> Iterator[str]:
    crops = sum(sum(counts.values()) for counts in done.counts.values())
    kind = "cut tightly: true size is lost" if done.size is None else f"windows of {done.size} px: true size is kept"
    yield f"{done.target}: {crops:,} crops of {done.pictures:,} pictures, {kind}"
    yield ""
    yield from _table(done.counts)
    if done.left_out:
        yield f"\nleft out: {len(done.left_out):,}, listed in {done.target / 'left_out.csv'}"
        reasons = Counter(each.reason for each in done.left_out).most_common()
        first = {each.reason: each.where for each in reversed(done.left_out)}
        for reason, count in reasons[:_SHOWN]:
            yield f"{count:>8,}  {reason}, such as {first[reason]}"
        if len(reasons) > _SHOWN:
            yield f"{'':8}  and {len(reasons) - _SHOWN:,} more reasons"
    yield ""
    yield from (f"note: {note}" for note in done.notes)
    target = shlex.quote(str(done.target))
    # Random parts of an image, enlarged, would take away the size that a window keeps.
    shown = "" if done.size is None else f" --image-size {done.size} --eval-crop 1"
    crop = "" if done.size is None else " --crop pad"
    yield "\nnext:"
    yield f"  selkern data check {target} --sheet sheet.png{shown}"
    yield f"  selkern train --data {target}{shown}{crop}"
    if done.size is not None:
        yield f"  selkern analyze latest --boxes {shlex.quote(str(done.target / 'boxes.csv'))}"


def _table(counts: dict[str, dict[str, int]]) -> Iterator[str]:
    """Crops of each class and split."""
    classes = Counter[str]()
    for count in counts.values():
        classes.update(count)
    shown = sorted(name for name, _ in classes.most_common(_SHOWN))
    rows = [["class", *counts]]
    for name in shown:
        short = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 3]}..."
        rows.append([short, *(f"{count.get(name, 0):,}" for count in counts.values())])
    if len(classes) > len(shown):
        others = classes.keys() - set(shown)
        rest = (f"{sum(count.get(name, 0) for name in others):,}" for count in counts.values())
        rows.append([f"{len(others):,} more", *rest])
    rows.append(["all", *(f"{sum(count.values()):,}" for count in counts.values())])
    yield from aligned(rows)

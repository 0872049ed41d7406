"""Sizes of the objects in images, as a network is shown them, from a table of boxes: for a study of true size.

A box is in px of the image as viewers show it, upright. What counts is its size in px of the network's input, after
resizing and cropping: two pictures of one cell, one stored three times as large, show the network the same.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from selkern.data.decode import Header, show
from selkern.data.listed import Lookup, find_lookup
from selkern.data.listing import is_file
from selkern.data.preprocess import Box as Corners
from selkern.data.preprocess import Preprocess
from selkern.data.split import OnBad, Split
from selkern.data.tables import BadRows, read_table
from selkern.errors import DataError

_CORNERS = ("x0", "y0", "x1", "y1")
_OTHERS = {"xmin": "x0", "ymin": "y0", "xmax": "x1", "ymax": "y1", "class": "label"}  # names that mean the same
_LISTED = 10  # lines in a message
_STRAY = 0.25  # share of boxes outside of their images from which on they are those of other images
_FIX = "give a UTF-8 CSV with the header path,size or path,x0,y0,x1,y1 (px of the image file), or path,size_input"


@dataclass(frozen=True, kw_only=True)
class Box:
    """One object, as a row of the table has it."""

    image: str
    """The image's path, resolved."""
    corners: Corners | None = None
    """x0, y0, x1, y1, px of the upright image."""
    size: float = 0.0
    """Where there are no corners."""
    scaled: bool = True
    """Whether `size` is in px of the image file; else it stands as it is."""
    label: str = ""
    """Class of the object, where the table has it."""
    group: str = ""
    """What images that are not independent have in common, such as the picture that they were cut from."""


@dataclass(frozen=True, kw_only=True)
class Objects:
    """The objects of n images of a split."""

    indices: NDArray[np.int64]
    """(n,) the images' numbers in the split, rising."""
    sizes: NDArray[np.float64]
    """(n,) px of the network's input."""
    groups: NDArray[np.int64] | None
    """(n,) which images belong together; None where the table does not say."""
    notes: tuple[str, ...]
    """What was assumed and what was left out, a line each."""


def objects_of(
    table: Path,
    split: Split,
    preprocess: Preprocess,
    classes: Sequence[str] = (),
    indices: Sequence[int] | None = None,
    on_bad: OnBad = "error",
) -> Objects:
    """The object in each image of a split that a table knows.

    Of an image's several boxes the largest counts, among those of the image's own class where the table has labels.

    Args:
        table: a CSV with a column path (relative to the table's folder) and one of: x0, y0, x1, y1, or size, in px of
            the image file; size_input, in px of the network's input or any other unit that is taken as it stands.
            The columns label and group are optional.
        preprocess: how images become the network's input.
        classes: names of the split's classes.
        indices: the images that can be read, rising; None for all.
        on_bad: "skip" leaves out rows that say no size, with a note.

    Raises:
        DataError: no such table, another header, a number that is none, or no image of the split in it.
    """
    boxes: dict[str, dict[Box, None]] = {}  # of each image those that differ
    rows, notes = _boxes(table, on_bad)
    for box in rows:
        boxes.setdefault(box.image, {})[box] = None
    if not boxes:
        raise DataError("no rows below the header", show(table), "give a row for each object")
    _check_units([box for some in boxes.values() for box in some], table)
    readable = range(len(split)) if indices is None else indices
    known = {int(i): list(boxes[w]) for i in readable if (w := _resolved(Path(split.where(i)))) in boxes}
    if not known:
        named = f"it names {show(next(iter(boxes)))}, the split has {split.where(0)}"
        fix = f"paths are relative to the table's folder; or choose another --split ({named})"
        raise DataError(f"none of its images is in the {split.name} split", show(table), fix)
    chosen: dict[int, tuple[Box, float]] = {}
    cut = unseen = outside = 0
    for index, some in known.items():
        header = split.header(index)
        shown = [(box, *_shown(box, header, preprocess)) for box in some]
        cut += sum(part < 0.99 for _, size, part in shown if size)
        unseen += sum(not size for _, size, _ in shown)
        outside += sum(_is_outside(box, header) for box in some)
        own = classes[split.labels[index]] if classes else ""
        box, size, _ = max(shown, key=lambda each: (each[1] > 0, each[0].label == own, each[1]))
        if size:
            chosen[index] = box, size
    if outside > _STRAY * (total := sum(map(len, known.values()))):
        what = f"{outside:,} of {total:,} boxes lie outside of their own images"
        raise DataError(what, show(table), "give px of these files as they are shown upright, not of other copies")
    if not chosen:
        what = "every object lies outside of what the network is shown of its image"
        raise DataError(what, show(table), f"the network is shown the images by --resize {preprocess.resize}")
    some_boxes = [box for box, _ in chosen.values()]
    labelled = any(box.label in classes for box in some_boxes)  # and not by numbers, or in another language
    return Objects(
        indices=np.array(list(chosen), dtype=np.int64),
        sizes=np.array([size for _, size in chosen.values()]),
        groups=_groups(some_boxes),
        notes=(
            *notes,
            *_notes(table.name, split, chosen, known, cut, unseen, labelled),
            *_unknown_labels(table.name, known, classes),
        ),
    )


def _boxes(table: Path, on_bad: OnBad) -> tuple[list[Box], tuple[str, ...]]:
    """The rows of a table that can be used, and notes."""
    content = read_table(table, None, lambda columns: _has_sizes(_header(columns)))
    header = _header(content.columns)
    if not _has_sizes(header):
        raise DataError("no columns of sizes in the header", content.where(content.header_line), _FIX)
    at = header.index("path")
    lookup = find_lookup(table, [cells[at].strip() for _, cells in content.rows if len(cells) > at])
    bad = BadRows()
    bad.rows = len(content.rows)
    boxes: list[Box] = []
    for line, cells in content.rows:
        try:
            row = dict(itertools.zip_longest(header, map(str.strip, cells[: len(header)]), fillvalue=""))
            boxes.append(_box(row, lookup, content.where(line)))
        except DataError as error:
            bad.add(error.where, error.what)
    lines = ", ".join(row.where.rpartition(" ")[2] for row in bad.left_out[:_LISTED])
    more = f" and {len(bad.left_out) - _LISTED:,} more" if len(bad.left_out) > _LISTED else ""
    notes = bad.settle(on_bad, f"correct lines {lines}{more}; or --on-bad-image skip leaves them out")
    return boxes, (*content.notes, *filter(None, [lookup.note]), *notes, *_absent(boxes))


def _absent(boxes: Sequence[Box]) -> tuple[str, ...]:
    """A note on images that are not there; those in Parquet files are no files."""
    names = dict.fromkeys(box.image for box in boxes if ".parquet row " not in box.image)
    gone = [name for name in names if not is_file(name)]
    return (
        (f"images of the table of boxes that are not there: {len(gone):,}, the first {show(gone[0])}",) if gone else ()
    )


def _header(columns: Sequence[str]) -> list[str]:
    names = [column.lower() for column in columns]
    return [_OTHERS.get(name, name) for name in names]


def _has_sizes(header: Sequence[str]) -> bool:
    sized = {"size", "size_input"} & set(header) or set(_CORNERS) <= set(header)
    return "path" in header and bool(sized)


def _box(row: dict[str, str], lookup: Lookup, where: str) -> Box:
    """A row: its corners where it has them, else its size."""
    image = _resolved(Path(lookup(row["path"])[0]))
    label, group = (row.get(name, "") for name in ("label", "group"))
    try:
        if "size_input" not in row and set(_CORNERS) <= row.keys():
            x0, y0, x1, y1 = (float(row[name]) for name in _CORNERS)
            size = math.sqrt(_area((x0, y0, x1, y1)))
            box = Box(image=image, corners=(x0, y0, x1, y1), label=label, group=group)
        else:
            name = "size_input" if "size_input" in row else "size"
            size = float(row[name])
            box = Box(image=image, size=size, scaled=name == "size", label=label, group=group)
    except ValueError as error:
        if comma := next((cell for cell in row.values() if re.fullmatch(r"-?\d+,\d+", cell)), ""):
            what = f"{comma} has a decimal comma, where {comma.replace(',', '.')} is read"
            raise DataError(what, where, _FIX) from error
        raise DataError(f"not a number ({error})", where, _FIX) from error
    if not (math.isfinite(size) and size > 0):
        raise DataError(f"the object's size is {size}", where, "give sizes above 0, and x1 > x0, y1 > y0")
    return box


def _check_units(boxes: Sequence[Box], table: Path) -> None:
    """Refuse shares of the picture, as YOLO's tables have them, where px are asked for."""
    numbers = [number for box in boxes if box.scaled for number in box.corners or (box.size,)]
    if numbers and max(numbers) <= 1:
        what = "every number lies within 0..1: shares of the picture, where px of the image file are asked for"
        fix = "multiply x by the image's width and y by its height, or name a column size_input of sizes as they stand"
        raise DataError(what, show(table), fix)


def _shown(box: Box, header: Header, preprocess: Preprocess) -> tuple[float, float]:
    """Size of an object in the network's input, px, and the share of its box that the input shows."""
    if not box.scaled:
        return box.size, 1.0
    width, height = header.width, header.height
    if box.corners is None:  # its place is not known: taken as seen whole, but no larger than all that is seen
        all_seen = _area(_seen((0, 0, width, height), header, preprocess))
        square = box.size**2 * _area(preprocess.to_input((0, 0, width, height), width, height)) / (width * height)
        return math.sqrt(min(square, all_seen)), min(all_seen / square, 1.0)
    seen = _area(_seen(box.corners, header, preprocess))
    return math.sqrt(seen), seen / _area(preprocess.to_input(box.corners, width, height))


def _is_outside(box: Box, header: Header) -> bool:
    """Whether the centre of a box lies outside of its image; one that reaches out may be cut off by the picture."""
    if box.corners is None:
        return False
    x0, y0, x1, y1 = box.corners
    return not (0 <= (x0 + x1) / 2 <= header.width and 0 <= (y0 + y1) / 2 <= header.height)


def _seen(corners: Corners, header: Header, preprocess: Preprocess) -> Corners:
    """The part of a box that is in the image and in what the network is shown of it, px of the network's input."""
    x0, y0, x1, y1 = corners
    inside = max(x0, 0), max(y0, 0), min(x1, header.width), min(y1, header.height)
    left, top, right, bottom = preprocess.to_input(inside, header.width, header.height)
    side = preprocess.size
    return max(left, 0), max(top, 0), min(right, side), min(bottom, side)


def _area(corners: Corners) -> float:
    x0, y0, x1, y1 = corners
    return max(x1 - x0, 0) * max(y1 - y0, 0)


def _groups(boxes: Sequence[Box]) -> NDArray[np.int64] | None:
    """Numbers of the boxes' groups; an image without one is a group of its own."""
    if not any(box.group for box in boxes):
        return None
    names = [("group", box.group) if box.group else ("image", box.image) for box in boxes]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], dtype=np.int64)


def _unknown_labels(table: str, known: dict[int, list[Box]], classes: Sequence[str]) -> Iterator[str]:
    """A note on labels that are no class of the network."""
    labels = sorted({box.label for some in known.values() for box in some if box.label} - set(classes))
    if classes and labels:
        more = f" and {len(labels) - _LISTED:,} more" if len(labels) > _LISTED else ""
        yield (
            f"labels of {table} that are no class of the network: {', '.join(labels[:_LISTED])}{more}; an object of "
            "the image's own class goes before theirs"
        )


def _notes(
    table: str,
    split: Split,
    chosen: dict[int, tuple[Box, float]],
    known: dict[int, list[Box]],
    cut: int,
    unseen: int,
    labelled: bool,
) -> Iterator[str]:
    """What a reader of the study has to know of the table."""
    if len(chosen) < len(split):
        rest = f"{table} gives a size to {len(chosen):,} of the {len(split):,} images of the {split.name} split"
        yield f"{rest}; the study of size is of these"
    if several := sum(len(some) > 1 for some in known.values()):
        own = " of its own class" if labelled else ""
        yield f"{several:,} images have several boxes: of each the largest{own} counts"
    if unseen:
        yield f"{unseen:,} objects lie outside of what the network is shown of their images, and do not count"
    if cut:
        yield f"{cut:,} objects reach out of what the network is shown of their images: the part inside counts"
    if not any(box.group for box, _ in chosen.values()):
        yield (
            f"{table} has no column group: images count as independent of each other; where several were cut from "
            "one picture, name the picture in that column"
        )


def _resolved(path: Path) -> str:
    return str(path.expanduser().absolute().resolve())

"""Sizes of the objects in images, from a table of boxes: what a study of true scale needs."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path

from selkern.data.decode import show
from selkern.data.split import Split
from selkern.errors import DataError

_CORNERS = ("x0", "y0", "x1", "y1")
_FIX = "give a UTF-8 CSV with the header path,size or path,x0,y0,x1,y1"


def sizes_of(table: Path, split: Split) -> dict[int, float]:
    """Size of the object in the images of a split that a table knows: image number to size.

    Args:
        table: a CSV with the columns path and size (any unit), or path, x0, y0, x1, y1 (px: the size of a box is the
            square root of its area; of an image's several boxes the largest counts). Paths are relative to its folder.

    Raises:
        DataError: no such table, another header, a number that is none, or no image of the split in it.
    """
    known: dict[str, float] = {}
    for where, size in _rows(table):
        known[where] = max(size, known.get(where, 0.0))
    found = {i: known[w] for i in range(len(split)) if (w := _resolved(Path(split.where(i)))) in known}
    if not found:
        raise DataError("none of its images is in the split that is studied", show(table), "name images of that split")
    return found


def _rows(table: Path) -> Iterator[tuple[str, float]]:
    """(image, size of one object) of every row."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True)
            header = reader.fieldnames or []
            if "path" not in header or not ("size" in header or set(_CORNERS) <= set(header)):
                raise DataError("no columns of sizes in the header", f"{show(table)} line 1", _FIX)
            for row in reader:
                yield _resolved(table.parent / (row["path"] or "")), _size(row, f"{show(table)} line {reader.line_num}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read the table ({error})", show(table), _FIX) from error


def _size(row: dict[str, str | None], where: str) -> float:
    try:
        if "size" in row:
            size = float(row["size"] or "")
        else:
            x0, y0, x1, y1 = (float(row[name] or "") for name in _CORNERS)
            size = math.sqrt(max(x1 - x0, 0) * max(y1 - y0, 0))
    except ValueError as error:
        raise DataError(f"not a number ({error})", where, _FIX) from error
    if not (math.isfinite(size) and size > 0):
        raise DataError(f"the object's size is {size}", where, "give sizes above 0, and x1 > x0, y1 > y0")
    return size


def _resolved(path: Path) -> str:
    return str(path.expanduser().absolute().resolve())

"""The split that an earlier run saved: which image was in which part, and in which order."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from selkern.data.bad_rows import NEARLY_ALL
from selkern.data.labels import same_text, unknown_labels
from selkern.data.listing import is_file
from selkern.data.split import SPLITS, Listing, OnBad, Options, relative
from selkern.errors import DataError

Parts = dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]  # {part: (n,) entries of a listing, (n,) labels}
NOTHING = (np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
UNKNOWN = -1  # in place of a class
_NAMED = 3  # images that a note names


def labels_of(
    names: Sequence[str], wheres: Sequence[str], classes: Sequence[str], on_bad: OnBad = "error"
) -> NDArray[np.int64]:
    """(n,) classes of n images by their names; ``UNKNOWN`` for a name that is not in ``classes``.

    Raises:
        DataError: names that are not in `classes`; with "skip" only where nearly all are such.
    """
    ids = {same_text(name): index for index, name in enumerate(classes)}
    ids |= {name: index for index, name in enumerate(classes)}
    ids |= {name: ids[same_text(name)] for name in set(names) - ids.keys() if same_text(name) in ids}
    labels = np.array([ids.get(name, UNKNOWN) for name in names], dtype=np.int64)
    unknown = np.flatnonzero(labels == UNKNOWN).tolist()
    nearly_all = len(unknown) >= NEARLY_ALL * len(names)
    if unknown and (on_bad == "error" or nearly_all):
        known = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
        skip = "" if nearly_all else ", or leave these images out by --on-bad-image skip"
        fix = f"the model knows {len(classes)} classes ({known}): correct the labels{skip}"
        raise DataError(unknown_labels([names[at] for at in unknown], classes), wheres[unknown[0]], fix)
    return labels


def read_split(path: Path) -> list[tuple[str, str, str]]:
    """split.csv -> (where, class name, split name) of every image; a header line is welcome."""
    fix = "give the split.csv of an earlier run"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read the saved split ({error})", str(path), fix) from error
    saved: dict[str, tuple[str, str, str]] = {}
    for line, row in enumerate(rows, start=1):
        if len(row) == 3 and row[2] in SPLITS:
            saved[row[0]] = (row[0], row[1], row[2])
        elif line > 1 and row:
            raise DataError(f"line {line} is not: where, class, split", str(path), fix)
    return list(saved.values())


def digest(rows: Iterable[tuple[str, str, str]]) -> str:
    """A hash of a split: equal where every image is in the same part and place."""
    text = "\0".join(cell for row in rows for cell in row)
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def names_some(names: Sequence[str]) -> str:
    """The first of some images, for a note."""
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def restore(
    listing: Listing, classes: Sequence[str], options: Options, files: list[str] | None
) -> tuple[Parts, tuple[str, ...]]:
    """Each part as an earlier run had it, in its order; images that it did not know are left out.

    Images that are gone are left out, or keep their place as ones that cannot be read (``options.keep_gone``).

    Args:
        files: of each entry of the listing; images that are not in it are added. None: an image has no file of its own.

    Raises:
        DataError: no such split.csv, or a label that is not among the classes; or, where images are to keep their
            place, one has another label now, or is gone and has no file of its own.
    """
    assert options.split_csv is not None
    rows = read_split(options.split_csv)
    entry_of = {relative(where, listing.root): entry for entry, where in enumerate(listing.wheres)}
    parts: dict[str, list[int]] = {part: [] for _, _, part in rows}
    names, gone, changed, moved = list(listing.names), [], [], []
    for name, label, part in rows:
        entry, there = _find(name, entry_of.pop(name, None), listing, files)
        if not there:
            gone.append(name)
            if not options.keep_gone:
                continue
        if entry is None:
            if files is None:
                fix = "restore the file, or give --data where it is now"
                raise DataError(f"an image of the saved split {options.split_csv} is gone", name, fix)
            files.append(str(Path(listing.root) / name))
            names.append(label)
            entry = len(files) - 1
        elif listing.splits[entry] not in ("", "train", part):
            moved.append(name)
        if same_text(names[entry]) != same_text(label):
            changed.append(name)
            if options.keep_gone:
                what = f"the label was {label!r} in the earlier run and is {names[entry]!r} now"
                raise DataError(what, listing.wheres[entry], "undo the change, or start a new run")
        parts[part].append(entry)
    wheres = [*listing.wheres, *(files or [])[len(listing.wheres) :]]
    arrays = {part: np.array(entries, dtype=np.int64) for part, entries in parts.items()}
    what = "keep their place as unreadable" if options.keep_gone else "are left out"
    remarks = (
        (list(entry_of), "images are newer than the saved split and are left out"),
        (gone, f"images of the saved split are gone and {what}"),
        (changed, "labels are not those of the saved split but the data's"),
        (moved, "images are in another split in the data now; the saved one holds"),
    )
    notes = [f"{len(some):,} {remark}: {names_some(some)}" for some, remark in remarks if some]
    told: Parts = {}
    for part, at in arrays.items():
        told[part] = at, labels_of([names[entry] for entry in at], [wheres[entry] for entry in at], classes)
    return told, tuple(notes)


def _find(name: str, entry: int | None, listing: Listing, files: list[str] | None) -> tuple[int | None, bool]:
    """(entry of an image in the listing, if it has one; whether the image is there)."""
    if files is None:
        return entry, entry is not None
    return entry, is_file(Path(listing.root) / name if entry is None else files[entry])

"""Which image belongs to which split: as the source says, by seed, or as an earlier run saved it."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from selkern.data.labels import doubtful, same_text, unify
from selkern.data.order import CUT, sample_rng
from selkern.data.split import SPLITS, Listing, Options, Source, Split, relative
from selkern.errors import DataError

Names = NDArray[np.str_]  # (n,) train, val or test; "" for an image that is left out


def assemble(
    name: str,
    kind: str,
    listing: Listing,
    options: Options,
    make: Callable[[str, NDArray[np.int64], NDArray[np.int64]], Split],
) -> Source:
    """A listing -> the source.

    Args:
        name: what the user called the source.
        kind: folder | csv | parquet.
        listing: all its images.
        options: seed, fraction, class list and saved split.
        make: (split name, (n,) entries of the listing, (n,) labels) -> the split.
    """
    if not listing.wheres:
        raise DataError("no images found", name, "give a folder, CSV or Parquet file with labelled images")
    if options.classes is None:  # a checkpoint's are as they are
        listing = _sane(listing, kind)
    classes = options.classes or listing.classes or tuple(sorted(set(listing.names)))
    labels = _labels(listing, classes)
    if len(set(listing.names)) < 2 and options.classes is None:
        only = f"only class {listing.names[0]!r} has images"
        raise DataError(only, name, "give images of at least 2 classes")
    names, notes = _membership(name, listing, labels, options)
    splits: dict[str, Split] = {}
    for part in SPLITS:
        entries = np.flatnonzero(names == part)
        splits[part] = make(part, entries, labels[entries])
    if options.classes is None:
        notes += _check_train(name, classes, splits["train"].labels)
    test = splits["test"] if len(splits["test"]) else splits["val"]
    val = splits["val"] if len(splits["val"]) else test
    if test is splits["val"]:
        notes += ("no test split: the test figures are those of val",)
    return Source(
        name=name,
        kind=kind,
        classes=classes,
        train=splits["train"],
        val=val,
        test=test,
        notes=listing.notes + notes,
        root=listing.root,
        left_out=listing.left_out,
    )


def _sane(listing: Listing, kind: str) -> Listing:
    """The listing with one name for each class, and a note on every one that may be a slip."""
    names, classes, notes = unify(listing.names, listing.classes or ())
    notes += doubtful(Counter(names), folders=kind == "folder")
    return replace(listing, names=names, classes=classes or None, notes=listing.notes + notes)


def _labels(listing: Listing, classes: tuple[str, ...]) -> NDArray[np.int64]:
    ids = {same_text(name): index for index, name in enumerate(classes)}
    ids |= {name: index for index, name in enumerate(classes)}
    ids |= {name: ids[same_text(name)] for name in set(listing.names) - ids.keys() if same_text(name) in ids}
    try:
        return np.array([ids[name] for name in listing.names], dtype=np.int64)
    except KeyError:
        where, label = next((w, n) for w, n in zip(listing.wheres, listing.names, strict=True) if n not in ids)
        known = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
        fix = f"the model knows {len(classes)} classes ({known}): correct the label or leave the image out"
        raise DataError(f"unknown label {label!r}", where, fix) from None


def _check_train(name: str, classes: tuple[str, ...], labels: NDArray[np.int64]) -> tuple[str, ...]:
    counts = np.bincount(labels, minlength=len(classes))
    if not counts.any():
        raise DataError("no training images", name, "give a train split, or one folder of class folders")
    return tuple(f"class {classes[i]!r} has no training image" for i in np.flatnonzero(counts == 0)[:5])


def _membership(
    name: str, listing: Listing, labels: NDArray[np.int64], options: Options
) -> tuple[Names, tuple[str, ...]]:
    names = np.array(listing.splits, dtype="<U5")
    declared = set(listing.splits)
    if declared == {""}:
        names[:] = "train"
        missing: tuple[str, ...] = ("val", "test")
    elif "train" in declared and "val" not in declared:
        missing = ("val",)
    else:
        return names, ()
    if options.split_csv is not None:
        return _restore(names, missing, listing, options.split_csv)
    pool = np.flatnonzero(names == "train")
    notes = []
    for part, chosen in zip(missing, _stratified(labels[pool], len(missing), options), strict=True):
        if not chosen.size:
            fix = f"give a {part} split, or more images of each class"
            what = f"too few images to cut off a {part} split ({len(set(labels))} classes, {len(labels)} images)"
            raise DataError(what, name, fix)
        names[pool[chosen]] = part
        share = f"{100 * options.val_fraction:.4g} % of train ({chosen.size} images)"
        notes.append(f"no {part} split: {share} cut off by seed {options.seed}")
    return names, tuple(notes)


def _stratified(labels: NDArray[np.int64], parts: int, options: Options) -> list[NDArray[np.int64]]:
    """``parts`` disjoint samples of the positions, each ``val_fraction`` of every class.

    A class gives each part one image at least as long as one is left to train on.
    """
    chosen: list[list[NDArray[np.int64]]] = [[] for _ in range(parts)]
    for label in np.unique(labels):
        rng = sample_rng(options.seed, 0, int(label), CUT)
        members = np.flatnonzero(labels == label)
        members = members[np.argsort(rng.bit_generator.random_raw(members.size), kind="stable")]
        count = max(1, round(members.size * options.val_fraction))
        for part in range(parts):
            if members.size > count:
                chosen[part].append(members[:count])
                members = members[count:]
    return [np.concatenate(part) if part else np.empty(0, dtype=np.int64) for part in chosen]


def _restore(names: Names, missing: tuple[str, ...], listing: Listing, path: Path) -> tuple[Names, tuple[str, ...]]:
    """The membership that an earlier run saved; images that it did not know are left out."""
    saved = _read_split(path)
    new = 0
    for index in np.flatnonzero(names == "train").tolist():
        key = relative(listing.wheres[index], listing.root)
        label, names[index] = saved.pop(key, ("", ""))
        if not names[index]:
            new += 1
        elif same_text(label) != same_text(listing.names[index]):
            fix = f"undo the change, or start a new run without {path.name}"
            what = f"the label was {label!r} in the earlier run and is {listing.names[index]!r} now"
            raise DataError(what, listing.wheres[index], fix)
    gone = next((key for key, (_, part) in saved.items() if part in ("train", *missing)), None)
    if gone is not None:
        fix = "restore the image, or start a new run with a new split"
        raise DataError(f"an image of the saved split {path} is gone", gone, fix)
    notes = [f"split restored from {path}"]
    if new:
        notes.append(f"{new} images are newer than the saved split and are left out")
    return names, tuple(notes)


def _read_split(path: Path) -> dict[str, tuple[str, str]]:
    """split.csv -> {where: (class name, split name)}; a header line is welcome."""
    fix = "give the split.csv of an earlier run"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read the saved split ({error})", str(path), fix) from error
    saved: dict[str, tuple[str, str]] = {}
    for line, row in enumerate(rows, start=1):
        if len(row) == 3 and row[2] in SPLITS:
            saved[row[0]] = (row[1], row[2])
        elif line > 1 and row:
            raise DataError(f"line {line} is not: where, class, split", str(path), fix)
    return saved

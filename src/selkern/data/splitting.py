"""Which image belongs to which split: as the source says, or by seed."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from selkern.data.labels import doubtful, same_text, unify, unknown_labels
from selkern.data.listing import is_file
from selkern.data.order import CUT, sample_rng
from selkern.data.split import SPLITS, WHOLE, LeftOut, Listing, Note, OnBad, Options, Source, Split, relative
from selkern.data.tables import NEARLY_ALL
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
    restored: Parts = {}
    for part, at in arrays.items():
        restored[part] = at, labels_of([names[entry] for entry in at], [wheres[entry] for entry in at], classes)
    return restored, tuple(notes)


def _find(name: str, entry: int | None, listing: Listing, files: list[str] | None) -> tuple[int | None, bool]:
    """(entry of an image in the listing, if it has one; whether the image is there)."""
    if files is None:
        return entry, entry is not None
    return entry, is_file(Path(listing.root) / name if entry is None else files[entry])


_NOWHERE = "none"  # split of an image that is left out


class TooFewError(DataError):
    """There are too few images to cut a split off."""


def assemble(
    name: str,
    kind: str,
    listing: Listing,
    options: Options,
    make: Callable[[str, NDArray[np.int64], NDArray[np.int64]], Split],
    files: list[str] | None = None,
) -> Source:
    """A listing -> the source.

    Args:
        name: what the user called the source.
        kind: folder | csv | parquet.
        listing: all its images.
        options: seed, fraction, class list and saved split.
        make: (split name, (n,) entries of the listing, (n,) labels) -> the split.
        files: of each entry, where ``make`` takes them from this list; those of a saved split that are not in the
            listing are added to it.
    """
    if not listing.wheres:
        raise DataError("no images found", name, "give a folder, CSV or Parquet file with labelled images")
    if options.classes is None:  # a checkpoint's are as they are
        listing = _sane(listing, kind)
    classes = options.classes or listing.classes or tuple(sorted(set(listing.names)))
    if len(set(listing.names)) < 2 and options.classes is None:
        only = f"only class {listing.names[0]!r} has images"
        raise DataError(only, name, "give images of at least 2 classes")
    cut_off: tuple[str, ...] = ()
    if options.split_csv is not None:
        parts, notes = restore(listing, classes, options, files)
    else:
        labels = labels_of(listing.names, listing.wheres, classes, options.on_bad)
        parts, notes, cut_off = _parts(name, listing, labels, options)
        listing = _without_unknown(listing, labels, classes)
    splits = {part: make(part, *parts.get(part, NOTHING)) for part in SPLITS}
    if options.classes is None and options.cut:
        notes += _check_train(name, classes, splits["train"].labels)
    if WHOLE in parts:
        test = val = make(WHOLE, *parts[WHOLE])
    else:
        test = splits["test"] if "test" in parts else splits["val"]
        val = splits["val"] if len(splits["val"]) else test
        if test is splits["val"] and len(val):
            notes += ("no test split: the test figures are those of val",)
    return Source(
        name=name,
        kind=kind,
        classes=classes,
        train=splits["train"],
        val=val,
        test=test,
        notes=listing.notes + notes,
        cut_off=cut_off,
        root=listing.root,
        left_out=listing.left_out,
    )


def _sane(listing: Listing, kind: str) -> Listing:
    """The listing with one name for each class, and a note on every one that may be a slip."""
    names, classes, notes = unify(listing.names, listing.classes or ())
    notes += doubtful(Counter(names), folders=kind == "folder")
    return replace(listing, names=names, classes=classes or None, notes=listing.notes + notes)


def _without_unknown(listing: Listing, labels: NDArray[np.int64], classes: tuple[str, ...]) -> Listing:
    """The listing with a word on images whose label is unknown, which are in no split."""
    unknown = np.flatnonzero(labels == UNKNOWN).tolist()
    if not unknown:
        return listing
    left_out = tuple(LeftOut(listing.wheres[at], f"unknown label {listing.names[at]!r}") for at in unknown)
    what = unknown_labels([listing.names[at] for at in unknown], classes)
    note = f"{len(unknown):,} of {len(labels):,} images are left out: {what}"
    return replace(listing, notes=(*listing.notes, note), left_out=(*listing.left_out, *left_out))


def _check_train(name: str, classes: tuple[str, ...], labels: NDArray[np.int64]) -> tuple[str, ...]:
    counts = np.bincount(labels, minlength=len(classes))
    if not counts.any():
        raise DataError("no training images", name, "give a train split, or one folder of class folders")
    missing = np.flatnonzero(counts == 0)[:5]
    return tuple(Note(f"class {classes[i]!r} has no training image", "empty class") for i in missing)


def _parts(
    name: str, listing: Listing, labels: NDArray[np.int64], options: Options
) -> tuple[Parts, tuple[str, ...], tuple[str, ...]]:
    """(each part's entries and labels, as the source says or by a cut; notes; the parts that were cut off)."""
    names = np.array(listing.splits, dtype="<U5")
    declared = set(listing.splits)
    notes: list[str] = []
    cut_off: list[str] = []
    if declared == {""}:
        names[:] = "train" if options.cut else WHOLE
    names[labels == UNKNOWN] = _NOWHERE
    if options.cut and (declared == {""} or ("train" in declared and "val" not in declared)):
        missing = ("val", "test") if declared == {""} else ("val",)
        kept = _kept(listing, names, missing, options)
        if kept:
            notes.append(f"{len(kept):,} of {len(names):,} images keep the split of the run that the weights are of")
        pool = np.setdiff1d(np.flatnonzero(names == "train"), list(kept))
        names[list(kept)] = list(kept.values())
        for part, chosen in zip(missing, _stratified(labels[pool], len(missing), options), strict=True):
            names[pool[chosen]] = part
            if not (names == part).any():
                fix = f"give a {part} split, or more images of each class"
                what = f"too few images to cut off a {part} split ({len(set(labels))} classes, {len(labels)} images)"
                raise TooFewError(what, name, fix)
            if not chosen.size:  # the earlier run had one, and there are no new images
                continue
            share = f"{100 * options.val_fraction:.4g} % of {'new' if kept else 'train'} ({chosen.size} images)"
            cut_off.append(part)
            notes.append(f"no {part} split: {share} cut off by seed {options.seed}")
    entries = {part: np.flatnonzero(names == part) for part in sorted(set(names.tolist()) - {_NOWHERE})}
    return {part: (at, labels[at]) for part, at in entries.items()}, tuple(notes), tuple(cut_off)


def _kept(listing: Listing, names: NDArray[np.str_], missing: Sequence[str], options: Options) -> dict[int, str]:
    """{entry: its part in an earlier run} of those images that are to be cut."""
    if not options.parts:
        return {}
    before = {entry: options.parts.get(relative(where, listing.root)) for entry, where in enumerate(listing.wheres)}
    return {entry: part for entry, part in before.items() if names[entry] == "train" and part in ("train", *missing)}


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

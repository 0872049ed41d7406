"""Which image belongs to which split: as the source says, or by seed."""

from __future__ import annotations

import csv
import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from selkern.data.columns import Coded, FileList, each, rows_of
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
_CHUNK = 1 << 14  # rows that are hashed at once
_LARGE = 10_000  # images from which on it is faster to compare a saved split as a whole


def labels_of(
    names: Coded, wheres: Sequence[str], classes: Sequence[str], on_bad: OnBad = "error"
) -> NDArray[np.int64]:
    """(n,) classes of n images by their names; ``UNKNOWN`` for a name that is not in ``classes``.

    Raises:
        DataError: names that are not in `classes`; with "skip" only where nearly all are such.
    """
    ids = {same_text(name): index for index, name in enumerate(classes)}
    ids |= {name: index for index, name in enumerate(classes)}
    table = [ids.get(name, ids.get(same_text(name), UNKNOWN)) for name in names.values]
    labels = np.array(table, dtype=np.int64)[names.codes]
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
    return list({row[0]: row for row in saved_rows(path)}.values())


def saved_rows(path: Path) -> Iterator[tuple[str, str, str]]:
    """The same one after the other; an image that is there twice comes twice."""
    fix = "give the split.csv of an earlier run"
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for line, row in enumerate(csv.reader(file), start=1):
                if len(row) == 3 and row[2] in SPLITS:
                    yield row[0], row[1], row[2]
                elif line > 1 and row:
                    raise DataError(f"line {line} is not: where, class, split", str(path), fix)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read the saved split ({error})", str(path), fix) from error


class Digest:
    """A hash of a split: equal where every image is in the same part and place."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def over(self, rows: Iterable[tuple[str, str, str]]) -> Iterator[tuple[str, str, str]]:
        """The rows as they are, each taken into the hash on its way."""
        source, separator = iter(rows), ""
        while some := list(itertools.islice(source, _CHUNK)):
            text = separator + "\0".join(map("\0".join, some))
            self._hash.update(text.encode("utf-8", "surrogateescape"))
            separator = "\0"
            yield from some

    @property
    def text(self) -> str:
        """Of all rows so far."""
        return self._hash.hexdigest()


def digest(rows: Iterable[tuple[str, str, str]]) -> str:
    """The hash of rows that nobody else wants."""
    total = Digest()
    deque(total.over(rows), maxlen=0)
    return total.text


def names_some(names: Sequence[str]) -> str:
    """The first of some images, for a note."""
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def restore(
    listing: Listing, classes: Sequence[str], options: Options, files: FileList | None
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
    names, splits = list(listing.names), list(listing.splits)
    gone, changed, moved = [], [], []
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
            files.added.append(str(Path(listing.root) / name))
            names.append(label)
            entry = len(files) - 1
        elif splits[entry] not in ("", "train", part):
            moved.append(name)
        if same_text(names[entry]) != same_text(label):
            changed.append(name)
            if options.keep_gone:
                what = f"the label was {label!r} in the earlier run and is {names[entry]!r} now"
                raise DataError(what, listing.wheres[entry], "undo the change, or start a new run")
        parts[part].append(entry)
    wheres = [*listing.wheres, *(files.added if files else ())]
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
        labels = labels_of(Coded.of(names[entry] for entry in at), [wheres[entry] for entry in at], classes)
        restored[part] = at, labels
    return restored, tuple(notes)


def _find(name: str, entry: int | None, listing: Listing, files: FileList | None) -> tuple[int | None, bool]:
    """(entry of an image in the listing, if it has one; whether the image is there)."""
    if files is None:
        return entry, entry is not None
    return entry, is_file(Path(listing.root) / name if entry is None else files[entry])


_NOWHERE = "none"  # split of an image that is left out
_PARTS = (*SPLITS, WHOLE, _NOWHERE)


class TooFewError(DataError):
    """There are too few images to cut a split off."""


def assemble(
    name: str,
    kind: str,
    listing: Listing,
    options: Options,
    make: Callable[[str, NDArray[np.int64], NDArray[np.int64]], Split],
    files: FileList | None = None,
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
    counts = listing.names.counts
    classes = options.classes or listing.classes or tuple(sorted(counts))
    if len(counts) < 2 and options.classes is None:
        only = f"only class {listing.names[0]!r} has images"
        raise DataError(only, name, "give images of at least 2 classes")
    cut_off: tuple[str, ...] = ()
    if options.split_csv is not None:
        same = _as_saved(name, kind, listing, classes, options)
        parts, notes = (same, ()) if same else restore(listing, classes, options, files)
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


def _as_saved(name: str, kind: str, listing: Listing, classes: Sequence[str], options: Options) -> Parts | None:
    """The parts that a large source has by itself, if they are those of the saved split; None where they differ.

    Of a million images this takes some seconds less than to look every one up.
    """
    assert options.split_csv is not None
    if kind == "csv" or len(listing.wheres) < _LARGE:  # the files of a table may not be there
        return None
    try:
        labels = labels_of(listing.names, listing.wheres, classes, options.on_bad)
        parts, _, _ = _parts(name, listing, labels, options)
    except DataError:
        return None
    rows = (
        (relative(where, listing.root), classes[label], part)
        for part in SPLITS
        if part in parts
        for where, label in zip(rows_of(listing.wheres, parts[part][0]), each(parts[part][1]), strict=True)
    )
    return parts if digest(rows) == digest(saved_rows(options.split_csv)) else None


def _sane(listing: Listing, kind: str) -> Listing:
    """The listing with one name for each class, and a note on every one that may be a slip."""
    names, classes, notes = unify(listing.names, listing.classes or ())
    notes += doubtful(names.counts, folders=kind == "folder")
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
    declared = set(listing.splits.counts)
    notes: list[str] = []
    cut_off: list[str] = []
    words = [word or ("train" if options.cut else WHOLE) for word in listing.splits.values]
    part_of = np.array(list(map(_PARTS.index, words)), dtype=np.int8)[listing.splits.codes]  # places in _PARTS
    part_of[labels == UNKNOWN] = _PARTS.index(_NOWHERE)
    if options.cut and (declared == {""} or ("train" in declared and "val" not in declared)):
        missing = ("val", "test") if declared == {""} else ("val",)
        kept = _kept(listing, part_of == _PARTS.index("train"), missing, options)
        if kept:
            notes.append(f"{len(kept):,} of {len(labels):,} images keep the split of the run that the weights are of")
        pool = np.setdiff1d(np.flatnonzero(part_of == _PARTS.index("train")), list(kept))
        part_of[list(kept)] = list(map(_PARTS.index, kept.values()))
        for part, chosen in zip(missing, _stratified(labels[pool], len(missing), options), strict=True):
            part_of[pool[chosen]] = _PARTS.index(part)
            if not (part_of == _PARTS.index(part)).any():
                fix = f"give a {part} split, or more images of each class"
                what = (
                    f"too few images to cut off a {part} split ({len(np.unique(labels))} classes, {len(labels)} images)"
                )
                raise TooFewError(what, name, fix)
            if not chosen.size:  # the earlier run had one, and there are no new images
                continue
            share = f"{100 * options.val_fraction:.4g} % of {'new' if kept else 'train'} ({chosen.size} images)"
            cut_off.append(part)
            notes.append(f"no {part} split: {share} cut off by seed {options.seed}")
    parts: Parts = {}
    for place in sorted(np.unique(part_of).tolist(), key=_PARTS.__getitem__):
        if _PARTS[place] != _NOWHERE:
            entries = np.flatnonzero(part_of == place)
            parts[_PARTS[place]] = entries, labels[entries]
    return parts, tuple(notes), tuple(cut_off)


def _kept(listing: Listing, train: NDArray[np.bool_], missing: Sequence[str], options: Options) -> dict[int, str]:
    """{entry: its part in an earlier run} of those images that are to be cut."""
    if not options.parts:
        return {}
    before = {entry: options.parts.get(relative(where, listing.root)) for entry, where in enumerate(listing.wheres)}
    return {entry: part for entry, part in before.items() if train[entry] and part in ("train", *missing)}


def _stratified(labels: NDArray[np.int64], parts: int, options: Options) -> list[NDArray[np.int64]]:
    """``parts`` disjoint samples of the positions, each ``val_fraction`` of every class.

    A class gives each part one image at least as long as one is left to train on.
    """
    chosen: list[list[NDArray[np.int64]]] = [[] for _ in range(parts)]
    by_label = np.argsort(labels, kind="stable")
    there, starts = np.unique(labels[by_label], return_index=True)
    for label, members in zip(there.tolist(), np.split(by_label, starts[1:]), strict=False):  # of no labels, one part
        rng = sample_rng(options.seed, 0, label, CUT)
        members = members[np.argsort(rng.bit_generator.random_raw(members.size), kind="stable")]
        count = max(1, round(members.size * options.val_fraction))
        for part in range(parts):
            if members.size > count:
                chosen[part].append(members[:count])
                members = members[count:]
    return [np.concatenate(part) if part else np.empty(0, dtype=np.int64) for part in chosen]

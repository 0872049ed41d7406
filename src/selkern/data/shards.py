"""The source of tar shards, WebDataset's convention: images and labels as members, any of them in reach at once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from selkern.data.columns import Coded, Rows
from selkern.data.decode import Header, decode, read_header, read_used, show
from selkern.data.identity import of_bytes
from selkern.data.levels import PLAIN, Reading, Used
from selkern.data.listing import some
from selkern.data.local_copy import LocalCopies
from selkern.data.shard_index import ShardIndex, open_index
from selkern.data.shard_names import Shards, local_shards, stored_shards
from selkern.data.split import Listing, Options, Source, relative
from selkern.data.splitting import assemble
from selkern.data.stores import Files as Place
from selkern.data.stores import LocalFiles, Range, RefusedError, Stamp, Store, is_address
from selkern.data.tables import BadRows
from selkern.data.tar_members import LABEL_KEYS
from selkern.errors import DataError, printable

CLASSES = "classes.json"  # beside shards: the names of the classes 0, 1, ...
_LARGEST = 1 << 24  # bytes of it
_WIDE = 1 << 28  # bytes that are fetched at once, at most


class ShardSplit:
    """Images in tar shards.

    Args:
        name: train, val or test.
        labels: (n,) int64.
        entries: (n,) place of each image in the index.
        index: of the shards.
        place: where they lie.
    """

    def __init__(
        self, name: str, labels: NDArray[np.int64], entries: NDArray[np.int64], index: ShardIndex, place: Place
    ) -> None:
        self.name, self.labels = name, labels
        self._entries, self._index, self._place = entries, index, place
        self._fetched: dict[int, bytes] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fetched": {}}

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def groups(self) -> NDArray[np.int32]:
        """(n,) the shard of every image."""
        return self._index.shard[self._entries]

    @property
    def far(self) -> bool:
        """Whether the shards lie on a store."""
        return not isinstance(self._place, LocalFiles)

    def read(self, index: int, epoch: int = 0, reading: Reading = PLAIN) -> Image.Image:  # noqa: ARG002  members stay
        """The decoded member."""
        return decode(self.encoded(index), self.where(index), reading)

    def used(self, index: int) -> Used | None:
        """Of the member."""
        return read_used(self.encoded(index), self.where(index))

    def header(self, index: int) -> Header:
        """Of the member."""
        return read_header(self.encoded(index), self.where(index))

    def fingerprint(self, index: int) -> str:
        """Of the member's bytes."""
        try:
            return of_bytes(self.encoded(index))
        except DataError:
            return ""

    def where(self, index: int) -> str:
        """``train-000012.tar member n01440764/x.jpg``."""
        return self._index.wheres[int(self._entries[index])]

    def names_in(self, root: str) -> Iterator[str]:
        """``relative`` of every image, in order."""
        return (relative(where, root) for where in self._index.wheres.at(self._entries))

    def encoded(self, index: int) -> bytes:
        """The member's bytes. Raises DataError, and ResourceError where the store does not answer."""
        if (data := self._fetched.pop(index, None)) is not None:
            return data
        stamp, (file, start, length) = self._range(index)
        return self._place.read(file, stamp, start, length, self.where(index))

    def prefetch(self, indices: Sequence[int]) -> None:
        """Fetch the bytes of some images at once, and keep them until they are read."""
        wanted = {index: self._range(index) for index in dict.fromkeys(indices)}
        self._fetched.clear()
        if sum(one[1][2] for one in wanted.values()) <= _WIDE:
            listed = self._place.read_some(list(wanted.values()))
            self._fetched = {index: data for index, data in zip(wanted, listed, strict=True) if data is not None}

    def _range(self, index: int) -> tuple[Stamp, Range]:
        at, entry = self._index, int(self._entries[index])
        shard = int(at.shard[entry])
        return at.stamps[shard], (at.files[shard], int(at.offset[entry]), int(at.length[entry]))


def open_shards(data: str, options: Options, listed: Sequence[str] = ()) -> Source:
    """Images and labels of tar shards; splits by their names.

    Args:
        data: a tar file, a folder, a pattern, or an address of any of these.
        options: how they are read.
        listed: the shards in the folder.

    Raises:
        DataError: as `open_source` says.
        ResourceError: a store does not answer, or refuses.
    """
    place: Place
    if is_address(data):
        place = store = Store(data.partition("://")[0].lower())
        shards = stored_shards(data, store)
        if options.table.local_cache is not None:
            place = LocalCopies(store, options.table.local_cache)
    else:
        place, shards = LocalFiles(), local_shards(data, listed)
    index, notes = open_index(shards.files, place)
    _require_some(data, shards, index)
    bad = BadRows()
    bad.rows = len(index) + len(index.bad)
    for shard, member, reason in index.bad:
        bad.add(show(shards.files[shard]) + (f" member {member}" if member else ""), reason)
    codes, classes, remarks = _classes(index, _class_list(shards, place), bad)
    notes = (*shards.notes, *notes, *bad.settle(options.on_bad, noun="images"), *remarks, *_others(index))
    kept = np.flatnonzero(codes >= 0)
    listing = Listing(
        wheres=Rows(index.wheres, kept),
        names=Coded(codes[kept], classes),
        splits=_splits(shards, index.shard[kept]),
        classes=classes,
        root=show(shards.root),
        notes=notes,
        left_out=tuple(bad.left_out),
    )

    def make(split: str, entries: NDArray[np.int64], labels: NDArray[np.int64]) -> ShardSplit:
        return ShardSplit(split, labels, kept[entries], index, place)

    return assemble(printable(data), "shards", listing, options, make)


def _splits(shards: Shards, shard: NDArray[np.int32]) -> Coded:
    """train, val, test or "" of every image, by its shard."""
    splits = Coded.of(shards.splits)
    return Coded(splits.codes[shard], splits.values)


def _require_some(data: str, shards: Shards, index: ShardIndex) -> None:
    """Raise DataError where no image has a label, with what the shards may be instead."""
    if len(index):
        return
    where, first = printable(data), index.bad[0] if index.bad else (0, "", "")
    if index.bad and not any(member for _, member, _ in index.bad):
        shown, reason = show(shards.files[first[0]]), first[2]
        packed = reason.startswith("a compressed tar")
        fix = "uncompress it: gzip -dc FILE > train-000000.tar" if packed else "fetch or pack it again"
        raise DataError(reason, shown, fix)
    if all(reason.startswith("no label") for _, _, reason in index.bad) and index.bad:
        what = f"{len(index.bad):,} images, none of which has a label (a .cls, or a .json with {LABEL_KEYS[0]})"
        fix = "if folders in it are the classes, unpack it and give the folder; `selkern data pack FOLDER --to shards` "
        raise DataError(what, where, f"{fix}makes shards of it")
    if not index.bad:
        inside = some(f"{count:,} {suffix}" for suffix, count in index.others.most_common())
        what = f"no images with labels in it{f', but {inside}' if inside else ''}"
        raise DataError(what, where, "give shards of .jpg, .png or .webp, each with a .cls or .json of the same name")
    what = f"none of {len(index.bad):,} images can be used: {first[2]}"
    raise DataError(what, f"{show(shards.files[first[0]])} member {first[1]}", "correct them")


def _class_list(shards: Shards, place: Place) -> tuple[str, ...] | None:
    """The names of the classes by number, where a classes.json lies beside the shards."""
    file = shards.beside(CLASSES)
    fix = 'give a list of different names: ["cat", "dog"]'
    try:
        stamp = place.stamp(file)
    except (DataError, RefusedError):  # some stores refuse what is not there
        return None
    if stamp.size > _LARGEST:
        raise DataError(f"larger than {_LARGEST:,} bytes", show(file), fix)
    try:
        names = json.loads(place.read(file, stamp, 0, stamp.size, show(file)))
    except (ValueError, RecursionError) as error:
        raise DataError("no JSON", show(file), fix) from error
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise DataError("not a list of names", show(file), fix)
    if len(set(names)) < len(names):
        raise DataError("a name twice in the list of classes", show(file), fix)
    return tuple(map(printable, names))


def _classes(
    index: ShardIndex, known: tuple[str, ...] | None, bad: BadRows
) -> tuple[NDArray[np.int32], tuple[str, ...], tuple[str, ...]]:
    """((n,) class of every image, -1 for one that is not among the classes; the classes; notes)."""
    numbers = all(label.lstrip("+-").isdecimal() for label in index.labels)
    if known is None:
        classes = tuple(sorted(index.labels, key=int) if numbers else sorted(map(printable, index.labels)))
        note = f"the labels are numbers: a {CLASSES} beside the shards, a list of names, would name the classes"
        place_of = {name: at for at, name in enumerate(classes)}
        table = [place_of[printable(label)] for label in index.labels]
        return np.array(table, dtype=np.int32)[index.label], classes, (note,) if numbers else ()
    count = len(known)
    if numbers:
        table = [int(label) if 0 <= int(label) < count else -1 for label in index.labels]
    else:
        place_of = {name: at for at, name in enumerate(known)}
        table = [place_of.get(printable(label), -1) for label in index.labels]
    codes = np.array(table, dtype=np.int32)[index.label]
    for at in np.flatnonzero(codes < 0).tolist():
        label = printable(index.labels[index.label[at]])
        bad.add(index.wheres[at], f"label {label!r}, which is none of the {count:,} classes of {CLASSES}")
    return codes, known, ()


def _others(index: ShardIndex) -> tuple[str, ...]:
    """A note on members that are neither images nor labels."""
    if not index.others:
        return ()
    shown = some(f"{count:,} {suffix}" for suffix, count in index.others.most_common())
    return (f"left out: {shown} (members that are neither images nor labels)",)

"""What a data source is: a class list and three splits of labelled images, which can be joined to one."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from selkern.data.columns import Coded, each
from selkern.data.decode import Header
from selkern.data.levels import PLAIN, Reading, Used
from selkern.data.table_options import TableOptions
from selkern.errors import UsageError

if TYPE_CHECKING:
    from typing_extensions import Self

SPLITS = ("train", "val", "test")
OnBad = Literal["error", "skip"]
WHOLE = "all"  # the one split of a source that has none and is not to be cut


class Split(Protocol):
    """One part of a data source. Picklable, so that worker processes can have it."""

    @property
    def name(self) -> str:
        """train, val or test."""

    @property
    def labels(self) -> NDArray[np.int64]:
        """(n,) the class of every image."""

    def __len__(self) -> int: ...

    def read(self, index: int, epoch: int = 0, reading: Reading = PLAIN) -> Image.Image:
        """The image as RGB; DataError naming the file if broken.

        Args:
            index: its number in the split.
            epoch: matters to drawn images only.
            reading: how it is decoded, such as ``Preprocess.reading``; a drawn image is always whole.
        """

    def used(self, index: int) -> Used | None:
        """The values of an image of more than 8 bits; None for others."""

    def header(self, index: int) -> Header:
        """Size and kind of the image, read without its pixels; DataError naming the file if broken."""

    def where(self, index: int) -> str:
        """Where the image is: a file path, ``file.parquet row 12`` or ``digit scene 12``."""


@runtime_checkable
class Stored(Protocol):
    """A split whose images lie in bytes, which those that are drawn do not."""

    def fingerprint(self, index: int) -> str:
        """Of the bytes of one image; empty where they cannot be read."""

    def encoded(self, index: int) -> bytes:
        """The bytes of one image, as they are stored. Raises DataError."""


@runtime_checkable
class Fetched(Protocol):
    """A split whose images come from far away: several are fetched in the time of one."""

    def prefetch(self, indices: Sequence[int]) -> None:
        """Fetch the bytes of some images, which are read next; what cannot be had is said when it is read."""


@runtime_checkable
class Grouped(Protocol):
    """A split whose images lie in groups, each best read as a whole."""

    @property
    def groups(self) -> NDArray[np.int32]:
        """(n,) the group of every image."""

    @property
    def far(self) -> bool:
        """Whether a group is slow to reach."""


def fingerprint(split: Split, index: int) -> str:
    """Of one image of a split; empty for one that is drawn or cannot be read."""
    return split.fingerprint(index) if isinstance(split, Stored) else ""


@runtime_checkable
class ManyFiles(Protocol):
    """A split that names all its images faster than one after the other."""

    def names_in(self, root: str) -> Iterator[str]:
        """``relative`` of every image, in order."""


def names_in(split: Split, root: str) -> Iterator[str]:
    """The names of a split's images in split.csv, in order."""
    if isinstance(split, ManyFiles):
        return split.names_in(root)
    return (relative(split.where(index), root) for index in range(len(split)))


def prefetch(split: Split, indices: Sequence[int]) -> None:
    """Fetch the bytes of some images of a split together, where it can."""
    if indices and isinstance(split, Fetched):
        split.prefetch(indices)


_AHEAD = 64  # images that `ahead` fetches at once


def ahead(split: Split, indices: Sequence[int]) -> Iterator[int]:
    """The numbers of images in turn, of which some are fetched together before each is to be read."""
    for first in range(0, len(indices), _AHEAD):
        some = indices[first : first + _AHEAD]
        prefetch(split, some)
        yield from some


NoteKind = Literal["", "missing files", "rows left out", "dead links", "empty folder", "empty class"]


class Note(str):
    """A remark for the user: one line, and of which kind it is, so that nobody has to read its wording.

    Args:
        text: the line.
        kind: "" for a remark that no other figure of the source repeats.
    """

    kind: NoteKind

    def __new__(cls, text: str, kind: NoteKind = "") -> Self:
        """A line that is of a kind."""
        note = super().__new__(cls, text)
        note.kind = kind
        return note


def kind_of(note: str) -> NoteKind:
    """The kind of a note; "" for plain text."""
    return note.kind if isinstance(note, Note) else ""


@dataclass(frozen=True)
class LeftOut:
    """A row or file of the user's data that could not be listed as an image of a split."""

    where: str
    """The file, or the line or row of the table."""
    reason: str
    """Why, in a few words."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Images with labels, in three splits."""

    name: str
    """What the user called it."""
    kind: str
    """digits | folder | csv | parquet | shards."""
    classes: tuple[str, ...]
    """Class names; a label is a position in it."""
    train: Split
    """To learn from."""
    val: Split
    """To choose by."""
    test: Split
    """To report; the same object as ``val`` where the source has no test images of its own."""
    notes: tuple[str, ...] = ()
    """One-line remarks for the user, some of them a ``Note``."""
    cut_off: tuple[str, ...] = ()
    """Which of val and test were cut off the training images by seed."""
    root: str = ""
    """The folder whose name ``split_rows`` leaves out, so that a moved data set keeps its saved split."""
    left_out: tuple[LeftOut, ...] = ()
    """What of the user's data is in no split."""

    @property
    def parts(self) -> tuple[Split, ...]:
        """Its splits, each once."""
        return tuple({id(split): split for split in (self.train, self.val, self.test)}.values())

    def split_rows(self) -> Iterator[tuple[str, str, str]]:
        """(where, class name, split name) of every image, to be saved as split.csv; nothing for digits."""
        if self.kind == "digits":
            return
        for part in self.parts:
            labels = map(self.classes.__getitem__, each(part.labels))
            yield from zip(names_in(part, self.root), labels, itertools.repeat(part.name, len(part)), strict=True)


@dataclass(frozen=True, kw_only=True)
class Options:
    """How ``open_source`` was asked to open."""

    seed: int = 0
    """Cuts off the splits that the source lacks."""
    val_fraction: float = 0.1
    """Share of the training images that a missing val (and test) split takes, in (0, 0.5)."""
    classes: tuple[str, ...] | None = None
    """The class list of a checkpoint; None takes the source's own."""
    split_csv: Path | None = None
    """The saved split of an earlier run, which then says what is in each part, and in which order."""
    on_bad: OnBad = "error"
    """Rows and files that cannot be images of a split: a DataError, or leave them out."""
    table: TableOptions = field(default_factory=TableOptions)
    """How to read a table."""
    keep_gone: bool = False
    """Images of the saved split that are gone keep their place, as ones that cannot be read; else they are left out."""
    cut: bool = True
    """Whether a missing val or test split is cut off; where not, a source without splits is one split, "all"."""

    parts: Mapping[str, str] = field(default_factory=dict)
    """{image, by its name in split.csv: train, val or test} of an earlier run, which a cut keeps to."""

    def __post_init__(self) -> None:
        if not 0 < self.val_fraction < 0.5:
            fix = "give a share between 0 and 0.5"
            raise UsageError(f"val_fraction {self.val_fraction}", "--val-fraction", fix)
        if self.classes is not None and len(set(self.classes)) != len(self.classes):
            raise UsageError("the class list names a class twice", "classes", "give every class one name")


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Every image of a source before it is cut: entry i of each sequence is image i."""

    wheres: Sequence[str]
    """Where the image is, for messages and split.csv."""
    names: Coded
    """Its class name."""
    splits: Coded
    """train, val or test as the source says; "" for all where it says nothing."""
    classes: tuple[str, ...] | None = None
    """The source's own class order; None is lexical."""
    root: str = ""
    """See ``Source.root``."""
    notes: tuple[str, ...] = ()
    """Remarks made while listing."""
    left_out: tuple[LeftOut, ...] = ()
    """See ``Source.left_out``."""


def relative(where: str, root: str) -> str:
    """``where`` without the folder ``root`` in front, with forward slashes on every system."""
    return where.removeprefix(root + os.sep).replace(os.sep, "/")


class Joined:
    """Some splits one after the other.

    Args:
        name: of the whole.
        parts: the splits, which share no image.
    """

    def __init__(self, name: str, parts: Sequence[Split]) -> None:
        self.name, self.parts = name, tuple(parts)
        self.ends = np.cumsum([len(part) for part in self.parts])
        self.labels: NDArray[np.int64] = np.concatenate([part.labels for part in self.parts])

    def __len__(self) -> int:
        return len(self.labels)

    def find(self, index: int) -> tuple[Split, int]:
        """The part that an image is of, and its number there."""
        at = int(np.searchsorted(self.ends, index, side="right"))
        return self.parts[at], index - int(self.ends[at]) + len(self.parts[at])

    def read(self, index: int, epoch: int = 0, reading: Reading = PLAIN) -> Image.Image:
        """As its part reads it."""
        part, at = self.find(index)
        return part.read(at, epoch, reading)

    def used(self, index: int) -> Used | None:
        """As its part has it."""
        part, at = self.find(index)
        return part.used(at)

    def header(self, index: int) -> Header:
        """As its part reads it."""
        part, at = self.find(index)
        return part.header(at)

    def fingerprint(self, index: int) -> str:
        """As its part has it."""
        return fingerprint(*self.find(index))

    def prefetch(self, indices: Sequence[int]) -> None:
        """As each part does, where one can."""
        places = [self.find(index) for index in indices]
        for part in self.parts:
            prefetch(part, [at for of, at in places if of is part])

    def where(self, index: int) -> str:
        """As its part has it."""
        part, at = self.find(index)
        return part.where(at)


def whole(source: Source) -> Split:
    """Every image of a source as one split, called "all"."""
    parts = [part for part in source.parts if len(part)]
    return parts[0] if len(parts) == 1 and parts[0].name == WHOLE else Joined(WHOLE, parts or [source.train])

"""``check_data``: every image of a source decoded once, and what would spoil a training with it.

Two images are the same picture where size and decoded, upright RGB pixels are equal, whatever their names and formats;
a copy that lost something (JPEG) is another picture here. Only a digest and the size of each image are kept.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from selkern.data.labels import doubtful
from selkern.data.levels import LOST, Levels, Reading
from selkern.data.split import WHOLE, Joined, LeftOut, Source, Split, prefetch, relative
from selkern.data.survey import WIDE, settle_levels
from selkern.errors import DataError, ResourceError

SMALL = 32  # px; an image with a shorter side is remarked upon,
LONG = 4  # as is one whose sides have a larger ratio,
UNEVEN = 10  # and a set to train on whose largest class has so many times the images of its smallest


@dataclass(frozen=True)
class Place:
    """One image of the source."""

    file: str
    """As ``Split.where`` has it."""
    split: str
    """As ``Part.name``."""
    label: str
    """Its class."""


@dataclass(frozen=True)
class Unreadable(Place):
    """An image that cannot be decoded."""

    reason: str


@dataclass(frozen=True)
class Part:
    """Images that the source keeps together."""

    name: str
    """train (with the val that training would cut off it), val, test; all where the source has no splits."""
    counts: tuple[int, ...]
    """Images of each class, unreadable ones too."""

    @property
    def images(self) -> int:
        """All of them."""
        return sum(self.counts)

    @property
    def extremes(self) -> tuple[int, int]:
        """Positions of the smallest class that has images, and of the largest."""
        there = [c for c, count in enumerate(self.counts) if count]
        return min(there, key=self.counts.__getitem__), max(there, key=self.counts.__getitem__)

    @property
    def ratio(self) -> float:
        """Images of the largest class over those of the smallest that has any."""
        smallest, largest = self.extremes
        return self.counts[largest] / self.counts[smallest]


@dataclass(frozen=True)
class Size:
    """Of one image, in px."""

    file: str
    width: int
    height: int


@dataclass(frozen=True)
class Sizes:
    """Of all images that can be read."""

    smallest: Size
    """The shortest side."""
    largest: Size
    """The most pixels."""
    longest: Size
    """The largest ratio of its sides."""
    small: int
    """How many have a side below ``SMALL``."""
    long: int
    """How many have sides in a ratio above ``LONG``."""
    wide: int
    """How many have sides in a ratio from 4:3 on, so that a centre crop leaves out a quarter and more."""


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    """The findings of ``check_data``. A picture in several places is the tuple of these; most copies come first."""

    name: str
    """What the user called the source."""
    kind: str
    """digits | folder | csv | parquet."""
    root: str
    """The folder that the files' names begin with."""
    classes: tuple[str, ...]
    """Class names."""
    parts: tuple[Part, ...]
    """As the source has them itself."""
    cut_off: tuple[str, ...]
    """Splits that training would cut off at random, since the source lacks them."""
    notes: tuple[str, ...]
    """The source's own remarks."""
    left_out: tuple[LeftOut, ...]
    """Rows and files that are in no split: serious."""
    doubtful: tuple[str, ...]
    """Remarks on class names that may be a slip."""
    unreadable: tuple[Unreadable, ...]
    """Serious."""
    lost: tuple[Place, ...]
    """Of deep pixels, half of which and more lie beyond black or white."""
    leaks: tuple[tuple[Place, ...], ...]
    """The same picture in several parts: serious."""
    conflicts: tuple[tuple[Place, ...], ...]
    """The same picture under several labels: serious."""
    repeats: tuple[tuple[Place, ...], ...]
    """The same picture several times in one class of one part."""
    sizes: Sizes | None
    """None where no image can be read."""
    uncut: str = ""
    """Why training would refuse to cut splits off; "" where it would not."""

    @property
    def images(self) -> int:
        """All of them, unreadable ones too."""
        return sum(part.images for part in self.parts)

    @property
    def serious(self) -> int:
        """Kinds of serious findings: 0 to 4."""
        return sum(map(bool, (self.left_out, self.unreadable, self.leaks, self.conflicts)))

    @property
    def empty_classes(self) -> tuple[str, ...]:
        """Classes without any image."""
        return tuple(name for name, *counts in self._columns() if not any(counts))

    @property
    def missing_classes(self) -> dict[str, tuple[str, ...]]:
        """{part: classes that other parts have and it has not}, only parts that lack some."""
        there = [(name, counts) for name, *counts in self._columns() if any(counts)]
        lacking = {
            part.name: tuple(name for name, counts in there if not counts[i]) for i, part in enumerate(self.parts)
        }
        return {name: classes for name, classes in lacking.items() if classes}

    @property
    def uneven(self) -> bool:
        """Whether the classes to train on differ much in size."""
        return self.parts[0].ratio >= UNEVEN

    @property
    def remarks(self) -> int:
        """Kinds of findings that are not serious."""
        small, long = (self.sizes.small, self.sizes.long) if self.sizes else (0, 0)
        kinds = (self.uncut, self.lost, self.repeats, self.empty_classes, self.uneven, small, long)
        return sum(map(bool, kinds)) + len(self.missing_classes) + len(self.doubtful)

    def short(self, file: str) -> str:
        """A file's name without ``root``."""
        return relative(file, self.root)

    def to_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        parts = []
        for part in self.parts:
            smallest, largest = part.extremes
            parts.append(
                {
                    "name": part.name,
                    "images": part.images,
                    "counts": dict(zip(self.classes, part.counts, strict=True)),
                    "smallest_class": self.classes[smallest],
                    "largest_class": self.classes[largest],
                    "ratio": part.ratio,
                }
            )
        derived = {
            "images": self.images,
            "empty_classes": self.empty_classes,
            "missing_classes": self.missing_classes,
            "uneven": self.uneven,
            "serious": self.serious,
            "remarks": self.remarks,
        }
        return {**asdict(self), "parts": parts, **derived}

    def to_rows(self) -> Iterator[tuple[str, int, str, str, str, str]]:
        """(finding, number, file, split, label, reason) of every image with a fault, for CSV.

        Rows of one finding that share a number are the same picture.
        """
        for number, row in enumerate(self.left_out, start=1):
            yield "left out", number, row.where, "", "", row.reason
        for number, bad in enumerate(self.unreadable, start=1):
            yield "unreadable", number, bad.file, bad.split, bad.label, bad.reason
        for number, place in enumerate(self.lost, start=1):
            yield "beyond black or white", number, place.file, place.split, place.label, ""
        for finding, groups in (("leak", self.leaks), ("two labels", self.conflicts), ("repeat", self.repeats)):
            for number, group in enumerate(groups, start=1):
                for place in group:
                    yield finding, number, place.file, place.split, place.label, ""

    def _columns(self) -> Iterator[tuple[Any, ...]]:
        """(class, its images in each part)."""
        return zip(self.classes, *(part.counts for part in self.parts), strict=True)


_BATCH = 32  # images that a worker decodes before it answers


@dataclass(frozen=True)
class _Look:
    """What one image leaves behind."""

    width: int = 0
    height: int = 0
    digest: bytes = bytes(16)
    reason: str = ""
    lost: bool = False
    gone: ResourceError | None = None


class _Images(Dataset[_Look]):
    """What is looked at of the images of some splits."""

    def __init__(self, images: Joined, reading: Reading) -> None:
        self.images, self.reading = images, reading

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, positions: Sequence[int]) -> list[_Look]:
        """A batch, as the DataLoader asks for it: what lies far away is fetched at once."""
        prefetch(self.images, positions)
        return [self[position] for position in positions]

    def __getitem__(self, position: int) -> _Look:
        try:
            image = self.images.read(position, reading=self.reading)
            digest = hashlib.blake2b(f"{image.width} {image.height} ".encode(), digest_size=16)
            digest.update(image.tobytes())
        except DataError as error:
            return _Look(reason=error.what)
        except ResourceError as error:  # of a store, which gives no more
            return _Look(gone=error.bare())
        except MemoryError:
            return _Look(reason="it takes more memory than there is")
        return _Look(image.width, image.height, digest.digest(), lost=LOST in image.info)


def check_data(
    source: Source,
    *,
    workers: int = 0,
    white: Levels | Literal["auto"] = "auto",
    progress: Callable[[int], object] | None = None,
) -> DataCheck:
    """Decode every image once, and list what is wrong with them. Writes nothing.

    Args:
        source: of ``open_source``.
        workers: processes that decode; 0 decodes in this one. They change no result.
        white: the levels of deep pixels, as training is asked for.
        progress: called with a number of images whenever so many more are done.

    Raises:
        DataError: a file that holds many images cannot be read at all.
        ResourceError: a worker was killed.
    """
    splits = [split for split in source.parts if len(split)]
    levels, notes = settled_levels(source, white)
    images = Joined(WHOLE, splits)
    # What is cut off at random is one with what it is cut from: only splits of the source's own can leak.
    whole = WHOLE if "test" in source.cut_off else "train"
    names = {split.name: whole if split.name in ("train", *source.cut_off) else split.name for split in splits}

    def place(position: int) -> Place:
        split, index = images.find(position)
        return Place(split.where(index), names[split.name], source.classes[int(split.labels[index])])

    looked_at = _Images(images, Reading(levels=levels))
    sizes = np.zeros((len(images), 2), dtype=np.int32)
    digests = np.zeros((len(images), 2), dtype=np.uint64)
    unreadable: list[Unreadable] = []
    lost: list[Place] = []
    for position, look in enumerate(_looks(source.name, looked_at, workers, progress or (lambda _: None))):
        sizes[position] = look.width, look.height
        digests[position] = np.frombuffer(look.digest, dtype=np.uint64)
        if look.reason:
            unreadable.append(Unreadable(**asdict(place(position)), reason=look.reason))
        if look.lost:
            lost.append(place(position))
    parts = _parts(splits, names, len(source.classes))
    doubts = _doubtful(source, parts)
    rank = {part.name: number for number, part in enumerate(parts)}

    def order(at: Place) -> tuple[int, list[str | int]]:
        return rank[at.split], _natural(at.file)

    same = _same(digests, np.flatnonzero(sizes[:, 0]))
    groups = [tuple(sorted(map(place, group), key=order)) for group in same]
    groups.sort(key=lambda group: (-len(group), order(group[0])))
    leaks = tuple(group for group in groups if len({at.split for at in group}) > 1)
    conflicts = tuple(group for group in groups if len({at.label for at in group}) > 1)
    return DataCheck(
        name=source.name,
        kind=source.kind,
        root=source.root,
        classes=source.classes,
        parts=parts,
        cut_off=source.cut_off,
        notes=(*(note for note in source.notes if note not in doubts), *notes),
        left_out=source.left_out,
        doubtful=doubts,
        unreadable=tuple(sorted(unreadable, key=order)),
        lost=tuple(sorted(lost, key=order)),
        leaks=leaks,
        conflicts=conflicts,
        repeats=tuple(group for group in groups if len({(at.split, at.label) for at in group}) == 1),
        sizes=_measure(sizes, lambda position: place(position).file),
    )


def _doubtful(source: Source, parts: Sequence[Part]) -> tuple[str, ...]:
    counts = {name: sum(part.counts[at] for part in parts) for at, name in enumerate(source.classes)}
    return doubtful({name: count for name, count in counts.items() if count}, folders=source.kind == "folder")


def settled_levels(source: Source, asked: Levels | Literal["auto"] = "auto") -> tuple[Levels, tuple[str, ...]]:
    """The levels that training would take, and remarks; where it would take none, those of each image."""
    try:
        return settle_levels(source.train if len(source.train) else source.test, asked)
    except DataError as error:  # training would end with it
        return "percentile", (f"{error.what}: {error.fix}",)


def _looks(name: str, images: _Images, workers: int, progress: Callable[[int], object]) -> Iterator[_Look]:
    """A look at every image, in order."""
    for split in images.images.parts:
        try:
            # What the split keeps in memory is loaded here once, and shared by forked workers.
            split.read(0, reading=images.reading)
        except DataError as error:
            if error.where != split.where(0):  # not this image is broken but the file that holds them all
                raise
        except MemoryError:  # reported when it is this image's turn
            pass
    # A generator of its own: the loader draws a seed, which must not advance the caller's random numbers.
    loader: DataLoader[_Look] = DataLoader(
        images, batch_size=_BATCH, num_workers=workers, collate_fn=list, generator=torch.Generator()
    )
    try:
        for looks in loader:
            if gone := next((look.gone for look in looks if look.gone is not None), None):
                raise gone
            yield from looks
            progress(len(looks))
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        fix = "the system may have run out of memory: use fewer --workers"
        raise ResourceError("a process that decodes images was killed", name, fix) from error


def _same(digests: NDArray[np.uint64], positions: NDArray[np.int64]) -> list[list[int]]:
    """Positions of equal digests, in groups of two or more."""
    order = positions[np.lexsort(digests[positions].T)]
    steps = (digests[order][1:] != digests[order][:-1]).any(axis=1)
    numbers = np.concatenate([np.zeros(min(1, len(order)), dtype=np.int64), np.cumsum(steps)])
    repeated = np.bincount(numbers)[numbers] > 1
    groups: dict[int, list[int]] = {}
    for position, number in zip(order[repeated].tolist(), numbers[repeated].tolist(), strict=True):
        groups.setdefault(number, []).append(position)
    return list(groups.values())


def _natural(file: str) -> list[str | int]:
    """What sorts `row 9` before `row 10`: texts and whole numbers in turn."""
    return [int(piece) if number % 2 else piece for number, piece in enumerate(re.split(r"(\d+)", file))]


def _parts(splits: Sequence[Split], names: dict[str, str], classes: int) -> tuple[Part, ...]:
    labels: dict[str, list[NDArray[np.int64]]] = {}
    for split in splits:
        labels.setdefault(names[split.name], []).append(split.labels)
    counts = {name: np.bincount(np.concatenate(part), minlength=classes) for name, part in labels.items()}
    return tuple(Part(name, tuple(count.tolist())) for name, count in counts.items())


def _measure(sizes: NDArray[np.int32], file: Callable[[int], str]) -> Sizes | None:
    """(n, 2) width and height of every image, 0 for one that cannot be read."""
    there = np.flatnonzero(sizes[:, 0])
    if not there.size:
        return None
    short, long = sizes[there].min(axis=1), sizes[there].max(axis=1)
    pixels, ratios = short.astype(np.int64) * long, long / short

    def size(at: np.intp) -> Size:
        position = int(there[at])
        return Size(file(position), *sizes[position].tolist())

    return Sizes(
        smallest=size(np.lexsort((pixels, short))[0]),
        largest=size(pixels.argmax()),
        longest=size(ratios.argmax()),
        small=int((short < SMALL).sum()),
        long=int((ratios > LONG).sum()),
        wide=int((ratios > WIDE).sum()),
    )

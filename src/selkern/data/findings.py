"""What ``check_data`` found, apart from how it is told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from selkern.data.split import LeftOut, relative

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
    """What ``check_data`` found. A picture in several places is the tuple of these; most copies come first."""

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
        """(finding, number, file, split, label, reason) of every image found fault with, for CSV.

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

"""Pictures with boxes, whatever the format that lists them: VOC, YOLO and COCO are read into these."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from selkern.data.decode import show
from selkern.data.listing import assign_splits, find_images, split_word
from selkern.data.split import SPLITS, LeftOut
from selkern.errors import DataError

PICTURES = frozenset({"jpegimages", "images", "img", "imgs"})  # folders that hold photos
# Pictures of the same names as the photos, with a class for each pixel.
_MASKS = re.compile(r"segmentation(class|object)(raw|aug)?|(seg)?masks?|labels_?masks?", re.IGNORECASE)
_LARGEST = 64 << 20  # bytes of a file that lists the boxes of one picture, or names pictures


@dataclass(frozen=True, kw_only=True)
class Box:
    """One object, as an annotation has it."""

    label: str
    """Its class."""
    corners: tuple[float, float, float, float]
    """x0, y0, x1, y1 of its edges: px of the picture, or shares of its sides where the picture says so."""
    where: str
    """For messages."""
    number: int
    """Among the objects of its picture, from 0."""
    flags: frozenset[str] = frozenset()
    """Of "difficult", "truncated"."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture and its objects."""

    file: Path
    """The image file."""
    split: str
    """train, val or test as the data set says; "" where it says nothing."""
    boxes: tuple[Box, ...]
    """Its objects; none is a picture of the background."""
    where: str
    """The annotation, for messages."""
    size: tuple[int, int] | None = None
    """Width and height as the annotation has them, px."""
    shares: bool = False
    """Whether corners are shares of the picture's sides."""


@dataclass(kw_only=True)
class Annotations:
    """What a data set says of its pictures. It grows while the data set is read."""

    pictures: list[Picture] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def leave(self, where: str, reason: str) -> None:
        """Keep account of something that cannot be used."""
        self.left_out.append(LeftOut(where, reason))

    def drop_doubles(self) -> None:
        """Keep each picture once: in train rather than val, in val rather than test, in a split rather than none.

        A picture in two splits would be learned and tested.
        """
        ranks = {split: rank for rank, split in enumerate((*SPLITS, ""))}
        best: dict[Path, Picture] = {}
        for picture in sorted(self.pictures, key=lambda each: ranks[each.split]):
            first = best.setdefault(picture.file, picture)
            if first is not picture:
                also = f"in {first.split} too" if first.split != picture.split else "already"
                self.leave(f"{picture.where} ({show(picture.file)})", f"a picture that is listed {also}")
        self.pictures = [picture for picture in self.pictures if best[picture.file] is picture]

    def without_splits(self) -> None:
        """Forget which split a picture is in."""
        self.pictures = [replace(picture, split="") for picture in self.pictures]


class PictureIndex:
    """The images below a folder, to be looked up by what an annotation calls them.

    A name may come from another machine, or lead out of the folder: what counts is how much of its end fits.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files = [file for file in find_images(root) if not any(map(_MASKS.fullmatch, self._parts(file)))]
        self._stems: dict[str, list[Path]] = defaultdict(list)
        for file in self.files:
            self._stems[file.stem.casefold()].append(file)

    def find(self, name: str, near: Path) -> Path | None:
        """The image that a name means; None where there is none.

        Args:
            name: a path or file name, with a suffix (another one will do) or without.
            near: the file that names it.

        Raises:
            LookupError: several fit equally.
        """
        wanted = PurePosixPath(name.replace("\\", "/"))
        same = list(self._stems[wanted.name.casefold()])  # without a suffix, though it may have dots
        same += self._stems[wanted.stem.casefold()]
        ranked = sorted(dict.fromkeys(same), key=lambda file: self._rank(file, wanted, near), reverse=True)
        if len(ranked) > 1 and self._rank(ranked[0], wanted, near) == self._rank(ranked[1], wanted, near):
            raise LookupError("several pictures fit its name")
        return ranked[0] if ranked else None

    def split(self, path: Path) -> str:
        """The split that the folders of a file below the root say it is in."""
        return next(filter(None, map(split_named, self._parts(path))), "")

    def _parts(self, path: Path) -> tuple[str, ...]:
        return path.relative_to(self.root).parts[:-1]

    def _rank(self, file: Path, wanted: PurePosixPath, near: Path) -> tuple[object, ...]:
        """How well a file fits."""
        name = wanted.name
        stems = file.stem == name, file.stem == wanted.stem
        alike = file.name == name, file.name.casefold() == name.casefold(), *stems
        tail = 0
        for mine, theirs in zip(reversed(file.parts[:-1]), reversed(wanted.parts[:-1]), strict=False):
            if mine != theirs:
                break
            tail += 1
        shared = len(os.path.commonpath([file.parent, near.parent]))
        photos = any(part.lower() in PICTURES for part in self._parts(file))
        splits = self.split(file) == self.split(near)
        return tail, file.parent == near.parent, splits, shared, photos, alike


def split_named(name: str) -> str:
    """train, val or test, where a folder's or file's name says it (Train, val2017, test_images); else "" ."""
    word = split_word(name)
    return assign_splits([word])[word] if word else ""


def files_below(root: Path, *suffixes: str) -> Iterator[Path]:
    """Files below a folder with one of these suffixes, in lexical order; names that start with a dot are skipped."""
    for folder, inside, names in os.walk(root):
        inside[:] = sorted(name for name in inside if not name.startswith(".") and name != "__MACOSX")
        for name in sorted(names):
            if name.lower().endswith(suffixes) and not name.startswith("."):
                yield Path(folder, name)


def read_small(path: Path) -> bytes:
    """The bytes of a small file. Raises DataError where it cannot be read, or is none of these."""
    try:
        if path.stat().st_size > _LARGEST:
            raise DataError(f"over {_LARGEST:,} bytes", show(path), "no list of boxes is so long")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", show(path), "check the rights") from error


def read_lines(path: Path) -> list[str]:
    """The lines of a small text file. Raises DataError where it cannot be read."""
    try:
        return read_small(path).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError("not UTF-8", show(path), "save it as UTF-8") from error

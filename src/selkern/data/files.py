"""The folder source, and splits whose images are files of their own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from selkern.data.advice import one_class
from selkern.data.cut import assemble
from selkern.data.decode import Header, decode, read_header, read_used, show
from selkern.data.identity import of_file
from selkern.data.layout import find_parts
from selkern.data.levels import PLAIN, Reading, Used
from selkern.data.listing import Search
from selkern.data.split import Listing, Options, Source
from selkern.errors import DataError

_MASK = re.compile(r"[ _.-](?:masks?|seg|segmentation|gt)(?:[ _.-]?\d+)?(?=\.[^./]*$)", flags=re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, eq=False)
class FileSplit:
    """Images in files of their own."""

    name: str
    labels: NDArray[np.int64]
    files: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.files)

    def read(self, index: int, epoch: int = 0) -> Image.Image:  # noqa: ARG002  files do not change by epoch
        """The decoded file."""
        return self.read_as(index, PLAIN)

    def read_as(self, index: int, reading: Reading, epoch: int = 0) -> Image.Image:  # noqa: ARG002  as above
        """The file decoded in a given way."""
        return decode(Path(self.files[index]), self.where(index), reading)

    def used(self, index: int) -> Used | None:
        """Of the file."""
        return read_used(Path(self.files[index]), self.where(index))

    def header(self, index: int) -> Header:
        """Of the file."""
        return read_header(Path(self.files[index]), self.where(index))

    def fingerprint(self, index: int) -> str:
        """Of the file's bytes."""
        return of_file(self.files[index])

    def where(self, index: int) -> str:
        """The file's path."""
        return show(self.files[index])


def open_folder(root: Path, options: Options) -> Source:
    """train/ [val/] [test/] of class folders, or one folder of class folders; ``data.layout`` knows their forms."""
    files: list[str] = []
    names: list[str] = []
    splits: list[str] = []
    search = Search()
    parts, notes = find_parts(root, search, options.classes or ())
    for part in parts:
        images = search.images(part.folder, root)
        if not images:
            notes.append(f"no image in {show(part.folder)}")
        files += images
        names += [part.name] * len(images)
        splits += [part.split] * len(images)
    if not files:
        raise DataError("no images found", show(root), "; ".join(search.notes()) or "put images into the class folders")
    if options.classes is None and len(set(names)) < 2:
        raise DataError(
            f"only class {names[0]!r} has images", show(root), one_class(Path(parts[0].folder).parent, search)
        )
    listing = Listing(
        wheres=[show(file) for file in files],
        names=names,
        splits=splits,
        classes=tuple(sorted({part.name for part in parts})),
        root=show(root),
        notes=(*notes, *search.notes(), *_masks(files)),
        left_out=tuple(search.dead_links()),
    )
    return file_source(show(root), "folder", listing, options, files)


def _masks(files: Sequence[str]) -> list[str]:
    """A note where images have a mask beside them, which would be learned from as an image of the class."""
    hits = [(file, hit) for file in files if (hit := _MASK.search(file))]
    pictures = {file.rpartition(".")[0] for file in files} if hits else set()
    masks = [file for file, hit in hits if file[: hit.start()] in pictures]
    if not masks:
        return []
    return [f"{len(masks):,} images are named as masks of others (such as {show(masks[0])}): if so, move them away"]


def file_source(name: str, kind: str, listing: Listing, options: Options, files: list[str]) -> Source:
    """A source whose image i lies in ``files[i]``."""

    def make(split: str, entries: NDArray[np.int64], labels: NDArray[np.int64]) -> FileSplit:
        return FileSplit(name=split, labels=labels, files=tuple(files[entry] for entry in entries))

    return assemble(name, kind, listing, options, make, files)

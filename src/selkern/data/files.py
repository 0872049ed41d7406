"""The folder source, and splits whose images are files of their own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from selkern.data.cut import assemble
from selkern.data.decode import Header, decode, read_header, show
from selkern.data.layout import find_parts, one_class
from selkern.data.listing import Search
from selkern.data.split import Listing, Options, Source
from selkern.errors import DataError


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
        return decode(Path(self.files[index]), self.where(index))

    def header(self, index: int) -> Header:
        """Of the file."""
        return read_header(Path(self.files[index]), self.where(index))

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
        images = search.images(part.folder)
        if not images:
            notes.append(f"no image in {show(part.folder)}")
        files += images
        names += [part.name] * len(images)
        splits += [part.split] * len(images)
    if not files:
        raise DataError("no images found", show(root), "; ".join(search.notes()) or "put images into the class folders")
    if options.classes is None and len(set(names)) < 2:
        raise DataError(f"only class {names[0]!r} has images", show(root), one_class(root, search))
    listing = Listing(
        wheres=[show(file) for file in files],
        names=names,
        splits=splits,
        classes=tuple(sorted({part.name for part in parts})),
        root=show(root),
        notes=(*notes, *search.notes()),
        left_out=tuple(search.dead_links()),
    )
    return file_source(show(root), "folder", listing, options, files)


def file_source(name: str, kind: str, listing: Listing, options: Options, files: list[str]) -> Source:
    """A source whose image i lies in ``files[i]``."""

    def make(split: str, entries: NDArray[np.int64], labels: NDArray[np.int64]) -> FileSplit:
        return FileSplit(name=split, labels=labels, files=tuple(files[entry] for entry in entries))

    return assemble(name, kind, listing, options, make)

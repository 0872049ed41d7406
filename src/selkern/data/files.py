"""Images in files of their own, listed by folders or by a table."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from selkern.data.advice import one_class
from selkern.data.columns import Coded, Column, FileList, Files, Texts, each, rows_of
from selkern.data.decode import Header, decode, read_file, read_header, read_used, show
from selkern.data.folder_index import FolderImages, find_kept, keep
from selkern.data.folders import find_parts
from selkern.data.identity import of_file
from selkern.data.levels import PLAIN, Reading, Used
from selkern.data.listing import Search
from selkern.data.split import Listing, Note, Options, Source, relative
from selkern.data.splitting import assemble
from selkern.errors import DataError

_MASK = re.compile(r"[ _.-](?:masks?|seg|segmentation|gt)(?:[ _.-]?\d+)?(?=\.[^./]*$)", flags=re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, eq=False)
class FileSplit:
    """Images in files of their own."""

    name: str
    labels: NDArray[np.int64]
    files: Sequence[str]
    rows: NDArray[np.int64]
    """(n,) the place of each image in ``files``, which the splits share."""

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, index: int, epoch: int = 0, reading: Reading = PLAIN) -> Image.Image:  # noqa: ARG002  files stay
        """The decoded file."""
        return decode(self._file(index), self.where(index), reading)

    def used(self, index: int) -> Used | None:
        """Of the file."""
        return read_used(self._file(index), self.where(index))

    def header(self, index: int) -> Header:
        """Of the file."""
        return read_header(self._file(index), self.where(index))

    def fingerprint(self, index: int) -> str:
        """Of the file's bytes."""
        return of_file(self._file(index))

    def encoded(self, index: int) -> bytes:
        """The file's bytes."""
        return read_file(self._file(index), self.where(index))

    def where(self, index: int) -> str:
        """The file's path."""
        return show(self.files[int(self.rows[index])])

    def names_in(self, root: str) -> Iterator[str]:
        """``relative`` of every image, in order."""
        files = self.files.files if isinstance(self.files, FileList) and not self.files.added else self.files
        if isinstance(files, Files) and files.names.plain:
            before = [relative(f"{show(folder)}/", root) for folder in files.folders]
            folders = map(before.__getitem__, each(files.within[self.rows]))
            return map(operator.add, folders, files.names.at(self.rows))
        return (relative(show(file), root) for file in rows_of(self.files, self.rows))

    def _file(self, index: int) -> Path:
        return Path(self.files[int(self.rows[index])])


def open_folder(root: Path, options: Options) -> Source:
    """train/ [val/] [test/] of class folders, or one folder of class folders; ``data.folders`` knows their forms."""
    images = find_kept(root, options.classes) or _look(root, options)
    splits = Coded(images.of_part, [part.split for part in images.parts])
    names = Coded(images.of_part, [part.name for part in images.parts])
    listing = Listing(
        wheres=_Shown(images.files),
        names=names.renamed(names.values),
        splits=splits.renamed(splits.values),
        classes=tuple(sorted({part.name for part in images.parts})),
        root=show(root),
        notes=images.notes,
        left_out=images.left_out,
    )
    return file_source(show(root), "folder", listing, options, images.files)


def _look(root: Path, options: Options) -> FolderImages:
    """Search a folder for images; a large one's are kept for the next start."""
    search = Search()
    parts, notes = find_parts(root, search, options.classes or ())
    places: list[tuple[str, int]] = []  # folders that hold images, and the part that each is of
    within: list[NDArray[np.int32]] = []
    held: list[Texts] = []
    for number, part in enumerate(parts):
        before = len(within)
        for folder, found_names in search.runs(part.folder, root):
            within.append(np.full(len(found_names), len(places), dtype=np.int32))
            places.append((folder, number))
            held.append(Texts.of(found_names))
        if len(within) == before:
            notes.append(Note(f"no image in {show(part.folder)}", "empty folder"))
    if not held:
        raise DataError("no images found", show(root), "; ".join(search.notes()) or "put images into the class folders")
    only = {parts[number].name for _, number in places}
    if options.classes is None and len(only) < 2:
        what = f"only class {only.pop()!r} has images"
        raise DataError(what, show(root), one_class(Path(parts[0].folder).parent, search))
    images = FolderImages(
        parts=tuple(parts),
        folders=tuple(folder for folder, _ in places),
        part_of_folder=np.array([number for _, number in places], dtype=np.int32),
        within=np.concatenate(within),
        names=Texts.joined(held),
        notes=(*notes, *search.notes()),
        left_out=tuple(search.dead_links()),
    )
    images = images.noting(_masks(images.files))
    return images if options.classes is not None else keep(root, images, search.visited)


class _Shown(Column):
    """Paths as text for messages and split.csv."""

    def __init__(self, files: Sequence[str]) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def row(self, index: int) -> str:
        """The path of one image."""
        return show(self.files[index])

    def at(self, rows: NDArray[np.int64]) -> Iterator[str]:
        """Those of some images."""
        return map(show, rows_of(self.files, rows))


def _masks(files: Sequence[str]) -> list[str]:
    """A note where images have a mask beside them, which would be learned from as an image of the class."""
    hits = [(file, hit) for file in files if (hit := _MASK.search(file))]
    pictures = {file.rpartition(".")[0] for file in files} if hits else set()
    masks = [file for file, hit in hits if file[: hit.start()] in pictures]
    if not masks:
        return []
    return [
        f"{len(masks):,} images are named as masks of other images (such as {show(masks[0])}): if so, move them away"
    ]


def file_source(name: str, kind: str, listing: Listing, options: Options, files: Sequence[str]) -> Source:
    """A source whose image i lies in ``files[i]``."""
    listed = FileList(files)

    def make(split: str, entries: NDArray[np.int64], labels: NDArray[np.int64]) -> FileSplit:
        return FileSplit(name=split, labels=labels, files=listed, rows=entries)

    return assemble(name, kind, listing, options, make, listed)

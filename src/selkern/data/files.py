"""The folder source, and splits whose images are files of their own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from selkern.data.cut import assemble
from selkern.data.decode import Header, decode, read_header, show
from selkern.data.listing import find_images, is_folder, list_folder
from selkern.data.split import Listing, Options, Source, split_name
from selkern.errors import DataError, printable


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
    """train/ [val|valid|validation/] [test/] of class folders, or one folder of class folders."""
    files: list[str] = []
    names: list[str] = []
    splits: list[str] = []
    layout, notes = _layout(root)
    folders: set[str] = set()
    for split, folder in layout:
        found = _class_folders(folder)
        dots = sorted(entry.name for entry in folder.iterdir() if entry.name[0] == "." and entry.is_dir())
        notes += [f"ignored: {show(folder / name)}/" for name in dots]
        if not found:
            raise DataError("no class folders in it", show(folder), "make one folder per class and put the images in")
        for entry in found:
            name = _class_name(entry)
            folders.add(name)
            images = find_images(Path(entry.path))
            if not images:
                notes.append(f"no image in {show(entry.path)}")
            files += map(str, images)
            names += [name] * len(images)
            splits += [split] * len(images)
    listing = Listing(
        wheres=[show(file) for file in files],
        names=names,
        splits=splits,
        classes=tuple(sorted(folders)),
        root=show(root),
        notes=tuple(notes),
    )
    return file_source(show(root), "folder", listing, options, files)


def file_source(name: str, kind: str, listing: Listing, options: Options, files: list[str]) -> Source:
    """A source whose image i lies in ``files[i]``."""

    def make(split: str, entries: NDArray[np.int64], labels: NDArray[np.int64]) -> FileSplit:
        return FileSplit(name=split, labels=labels, files=tuple(files[entry] for entry in entries))

    return assemble(name, kind, listing, options, make)


def _layout(root: Path) -> tuple[list[tuple[str, Path]], list[str]]:
    """[(split name, folder of class folders)] and notes; the split name is "" for one folder of classes."""
    entries = _class_folders(root)
    # A split folder holds folders; a class that happens to be called "train" holds images.
    parts = [e for e in entries if split_name(e.name) and _class_folders(e.path)]
    if not parts:
        return [("", root)], []
    layout: dict[str, Path] = {}
    for entry in parts:
        split = split_name(entry.name) or ""
        if split in layout:
            fix = "keep one of them"
            raise DataError(f"two {split} folders: {layout[split].name}/ and {entry.name}/", show(root), fix)
        layout[split] = Path(entry.path)
    notes = [f"ignored: {show(entry.name)}/ (not a split)" for entry in entries if entry not in parts]
    return list(layout.items()), notes


def _class_folders(folder: str | Path) -> list[os.DirEntry[str]]:
    return [entry for entry in list_folder(folder) if is_folder(entry)]


def _class_name(folder: os.DirEntry[str]) -> str:
    """A folder's name as that of its class. Raises DataError where it is no text: two such could not be told apart."""
    try:
        folder.name.encode()
    except UnicodeEncodeError as error:
        raise DataError("the name of the class folder is not UTF-8", show(folder.path), "rename it") from error
    return printable(folder.name)

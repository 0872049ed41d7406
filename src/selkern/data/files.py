"""The folder and CSV sources: one image per file."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from selkern.data.cut import assemble
from selkern.data.decode import Header, decode, read_header, show
from selkern.data.listing import find_images, is_file, is_folder, list_folder
from selkern.data.split import Listing, Options, Source
from selkern.errors import DataError, printable

_LONGEST = 1 << 20  # characters of a line of a table; the csv module itself allows 131,072 in a cell
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


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
    return _source(show(root), "folder", listing, options, files)


def open_csv(path: Path, options: Options) -> Source:
    """A table with the columns path, label and, if it likes, split; paths relative to the table's folder."""
    files: list[str] = []
    names: list[str] = []
    splits: list[str] = []
    seen: dict[str, int] = {}
    for line, row in _table(path):
        where = f"{show(path)} line {line}"
        file = str(path.parent / row["path"])
        if not row["path"] or not is_file(file):
            raise DataError(f"no such image file: {row['path'][:200]!r}", where, "correct the path or remove the line")
        if not row["label"]:
            raise DataError("the label is empty", where, "give a class name or remove the line")
        if file in seen:
            raise DataError(f"{row['path']} is listed in line {seen[file]} already", where, "keep one of the two")
        if "split" in row and row["split"].lower() not in SPLIT_NAMES:
            raise DataError(f"unknown split {row['split']!r}", where, "use train, val or test in every line")
        seen[file] = line
        files.append(file)
        names.append(printable(row["label"]))
        splits.append(SPLIT_NAMES[row["split"].lower()] if "split" in row else "")
    wheres = [show(file) for file in files]
    listing = Listing(wheres=wheres, names=names, splits=splits, root=show(path.parent))
    return _source(show(path), "csv", listing, options, files)


def _source(name: str, kind: str, listing: Listing, options: Options, files: list[str]) -> Source:
    def make(split: str, entries: NDArray[np.int64], labels: NDArray[np.int64]) -> FileSplit:
        return FileSplit(name=split, labels=labels, files=tuple(files[entry] for entry in entries))

    return assemble(name, kind, listing, options, make)


def _layout(root: Path) -> tuple[list[tuple[str, Path]], list[str]]:
    """[(split name, folder of class folders)] and notes; the split name is "" for one folder of classes."""
    entries = _class_folders(root)
    # A split folder holds folders; a class that happens to be called "train" holds images.
    parts = [e for e in entries if e.name.lower() in SPLIT_NAMES and _class_folders(e.path)]
    if not parts:
        return [("", root)], []
    layout: dict[str, Path] = {}
    for entry in parts:
        split = SPLIT_NAMES[entry.name.lower()]
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


def _lines(file: io.TextIOBase, path: Path) -> Iterator[str]:
    """The lines of a table, none of which can take all memory."""
    while line := file.readline(_LONGEST):
        if len(line) == _LONGEST:
            raise DataError(f"a line of over {_LONGEST:,} characters", show(path), "give one line for each image")
        yield line


def _table(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, {column: text}) of every row that is not blank."""
    fix = "give a UTF-8 CSV with the header path,label or path,label,split"
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(_lines(file, path))
            header = [column.strip().lower() for column in next(reader, [])]
            lacking = [column for column in ("path", "label") if column not in header]
            if lacking:
                raise DataError(f"no column {' or '.join(lacking)} in the header", f"{show(path)} line 1", fix)
            double = [column for column in ("path", "label", "split") if header.count(column) > 1]
            if double:
                raise DataError(f"two columns named {double[0]}", f"{show(path)} line 1", "keep one of them")
            for row in reader:
                if len(row) != len(header) and row:
                    what = f"{len(row)} columns where the header has {len(header)}"
                    raise DataError(what, f"{show(path)} line {reader.line_num}", "quote texts that hold a comma")
                if any(cell.strip() for cell in row):
                    yield reader.line_num, dict(zip(header, map(str.strip, row), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot read the table ({error})", show(path), fix) from error

"""The Parquet source: which files make a data set, and their encoded images and labels, as on the Hugging Face Hub."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from selkern.data.columns import Coded
from selkern.data.decode import IMAGE_SUFFIXES, Header, decode, read_header, read_used, show
from selkern.data.identity import of_bytes
from selkern.data.levels import PLAIN, Reading, Used
from selkern.data.listing import Search, assign_splits, is_file, split_word, vague_notes
from selkern.data.parquet_columns import Columns, broken, find_columns, may_hold_images, read_column
from selkern.data.split import SPLITS, Listing, Options, Source
from selkern.data.splitting import assemble
from selkern.data.tables import BadRows
from selkern.errors import DataError

PARQUET = (".parquet", ".parq", ".pq")
_MAX_DEPTH = 3  # folders below the one that is given
_ENTRIES, _FOLDERS = 1000, 30  # of a folder that are looked at: class folders of many images are none of ours


def find_parquet(root: Path) -> list[Path]:
    """The Parquet files in a folder; where it has none, those in folders below, if these hold no images.

    Tables of something else beside folders do not count.
    """
    search = Search()
    files = [Path(entry.path) for entry in search.files(root) if entry.name.lower().endswith(PARQUET)]
    if files and (not search.folders(root) or any(map(may_hold_images, files[:_FOLDERS]))):
        return files
    below: list[Path] = []
    for path in _walk(root, _MAX_DEPTH):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            return []
        if path.suffix.lower() in PARQUET:
            below.append(path)
    return sorted(below)


def _by_split(root: Path, files: list[Path]) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """({split, "" where none is named: the files}, notes).

    Raises:
        DataError: they are of several data sets.
    """
    _require_one_set(root, files)
    notes = _beside(root, files)
    words = {file: _word_of(file.relative_to(root)) for file in files}
    meant = {"": "", **assign_splits(set(words.values()))}
    groups = {split: [str(file) for file in files if meant[words[file]] == split] for split in (*SPLITS, "")}
    notes += vague_notes(meant)
    groups = {split: group for split, group in groups.items() if group}
    plain = groups.get("", [])
    if len(groups) > 1 and plain:
        del groups[""]
        more = f" and {len(plain) - 1:,} more" if len(plain) > 1 else ""
        return groups, (*notes, f"ignored: {Path(plain[0]).name}{more} (no split in the name)")
    if len(plain) > 1:
        return groups, (*notes, f"{len(plain):,} Parquet files without a split in their names are one set")
    return groups, notes


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    """Some of the files in a folder and below."""
    try:
        with os.scandir(folder) as entries:
            some = [e for e in itertools.islice(entries, _ENTRIES) if not e.name.startswith(".")]
    except OSError:
        return
    folders = sorted(e.path for e in some if e.is_dir(follow_symlinks=False))
    yield from (Path(entry.path) for entry in some if is_file(entry))
    if depth:
        for path in folders[:_FOLDERS]:
            yield from _walk(Path(path), depth - 1)


def _word_of(file: Path) -> str:
    """The word for a split in a file's name ("train-00000-of-00003", "cifar10_test"), else in its folders."""
    for part in (file.stem, *reversed(file.parent.parts)):
        words = {word for piece in re.split(r"[\W_\d]+", part.lower()) if (word := split_word(piece))}
        if len(words) == 1:
            return words.pop()
        if starts := next((split for split in SPLITS if part.lower().startswith(split)), None):
            return starts
    return ""


def _require_one_set(root: Path, files: list[Path]) -> None:
    """Raise DataError where folders hold data sets beside each other, as the Hub's configurations do."""
    sets = {
        "/".join(part for part in file.relative_to(root).parent.parts if part != "data" and not split_word(part))
        for file in files
    }
    if len(sets) > 1:
        names = ", ".join(f"{name or '.'}/" for name in sorted(sets)[:5])
        raise DataError(f"several data sets: {names}", show(root), "give one of these folders")


def _beside(root: Path, files: list[Path]) -> tuple[str, ...]:
    """A note on folders beside Parquet files, which might hold images too."""
    if any(file.parent != root for file in files):
        return ()
    folders = [entry.name for entry in Search().folders(root)]
    more = f" and {len(folders) - 1:,} more folders" if len(folders) > 1 else ""
    return (f"ignored: {show(folders[0])}/{more} beside the Parquet files",) if folders else ()


class Encoded:
    """The encoded images of some Parquet files, kept in memory as Arrow buffers.

    Shared by processes that are forked after `load`; a pickled copy loads for itself.

    Args:
        files: their paths.
        column: the image column.
        counts: number of rows of each file.
    """

    def __init__(self, files: Sequence[str], column: str, counts: Sequence[int]) -> None:
        self.files, self.column = tuple(files), column
        self.starts: NDArray[np.int64] = np.cumsum([0, *counts], dtype=np.int64)
        self._images: dict[int, Any] = {}  # by number of the file

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_images": {}}

    def __getitem__(self, row: int) -> bytes | None:
        """The bytes of one image, rows counted over all files; None where the row has none."""
        file, row = self._place(row)
        value: bytes | None = self._images[file][row].as_py()
        return value

    def load(self, rows: NDArray[np.int64]) -> None:
        """Load the files that hold these rows."""
        for file in np.unique(np.searchsorted(self.starts, rows, side="right") - 1).tolist():
            if file not in self._images:
                self._images[file] = self._load(self.files[file])

    def where(self, row: int) -> str:
        """``file.parquet row 12``, rows counted from 0 in each file."""
        file, row = self._place(row)
        return f"{show(self.files[file])} row {row}"

    def _place(self, row: int) -> tuple[int, int]:
        file = int(np.searchsorted(self.starts, row, side="right")) - 1
        return file, row - int(self.starts[file])

    def _load(self, file: str) -> Any:
        import pyarrow as pa
        import pyarrow.compute as pc

        values = read_column(file, self.column)
        if pa.types.is_struct(values.type):
            values = pc.struct_field(values, "bytes")
        try:
            return values.cast(pa.large_binary())
        except pa.ArrowException as error:
            raise broken(file, error) from error


class ParquetSplit:
    """Images in the rows of Parquet files.

    Args:
        name: train, val or test.
        labels: (n,) int64.
        rows: (n,) row of each image in ``encoded``.
        encoded: the images.
    """

    def __init__(self, name: str, labels: NDArray[np.int64], rows: NDArray[np.int64], encoded: Encoded) -> None:
        self.name, self.labels = name, labels
        self._rows, self._encoded = rows, encoded
        self._loaded = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": False}

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int, epoch: int = 0, reading: Reading = PLAIN) -> Image.Image:  # noqa: ARG002  rows stay
        """The decoded image of one row."""
        return decode(self.encoded(index), self.where(index), reading)

    def used(self, index: int) -> Used | None:
        """Of the image of one row."""
        return read_used(self.encoded(index), self.where(index))

    def header(self, index: int) -> Header:
        """Of the image of one row."""
        return read_header(self.encoded(index), self.where(index))

    def fingerprint(self, index: int) -> str:
        """Of the row's bytes."""
        try:
            return of_bytes(self.encoded(index))
        except DataError:
            return ""

    def where(self, index: int) -> str:
        """``file.parquet row 12``."""
        return self._encoded.where(int(self._rows[index]))

    def encoded(self, index: int) -> bytes:
        """The row's bytes."""
        if not self._loaded:  # all the split needs at the first use, which processes forked later share
            self._encoded.load(self._rows)
            self._loaded = True
        data = self._encoded[int(self._rows[index])]
        if data is None:
            raise DataError("the row holds no image bytes", self.where(index), "store the images in the file")
        return data


def open_parquet(path: Path, files: Sequence[Path], options: Options) -> Source:
    """Images and labels of Parquet files; splits by a column, else by the names of files and folders.

    Args:
        path: what the user gave, a file or a folder.
        files: the Parquet files there.
        options: how they are read.
    """
    groups, notes = _by_split(path, list(files)) if path.is_dir() else ({"": [str(path)]}, ())
    columns = [find_columns(file, options.table) for group in groups.values() for file in group]
    first = columns[0]
    for other in columns[1:]:
        if (other.image, other.label, other.classes) != (first.image, first.label, first.classes):
            what = f"columns or class names differ from those of {Path(first.file).name}"
            raise DataError(what, show(other.file), "give files that agree")
    files_of = [split for split, group in groups.items() for _ in group]
    encoded = Encoded([column.file for column in columns], first.image, [column.rows for column in columns])
    rows = _Rows()
    for column, split, start in zip(columns, files_of, encoded.starts.tolist(), strict=False):
        rows.read(column, split, start)
    notes = (*notes, *first.notes, *rows.bad.settle(options.on_bad))
    if rows.unlabelled:
        some = f"{len(rows.unlabelled):,} rows without a label, the first {encoded.where(rows.unlabelled[0])}"
        if not rows.kept:
            raise DataError(some, show(path), "give rows with labels")
        notes += (f"left out: {some}",)
    kept = np.array(rows.kept, dtype=np.int64)
    used = set(rows.names)
    listing = Listing(
        wheres=rows.wheres,
        names=Coded.of(rows.names),
        splits=Coded.of(rows.splits),
        classes=first.classes or (tuple(sorted(used, key=int)) if first.integer else None),
        root=show(path if path.is_dir() else path.parent),
        notes=notes,
        left_out=tuple(rows.bad.left_out),
    )

    def make(split: str, entries: NDArray[np.int64], labels: NDArray[np.int64]) -> ParquetSplit:
        return ParquetSplit(split, labels, kept[entries], encoded)

    return assemble(show(path), "parquet", listing, options, make)


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """The rows that have a class."""

    kept: list[int] = field(default_factory=list)
    """Their numbers over all files."""
    wheres: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    unlabelled: list[int] = field(default_factory=list)
    """Numbers of those that have none by intention."""
    bad: BadRows = field(default_factory=BadRows)

    def read(self, columns: Columns, split: str, start: int) -> None:
        """Take in a file, whose first row has the number `start`; `split` is what its name says, "" for nothing."""
        labels, words = columns.read_labels(), columns.read_splits()
        meant = assign_splits(set(map(split_word, words or ())))
        self.bad.rows += columns.rows
        shown = show(columns.file)
        for row, label in enumerate(labels):
            said = split if words is None else meant.get(split_word(words[row]))
            if label is None:
                self.unlabelled.append(start + row)
            elif isinstance(label, DataError):
                self.bad.add(f"{shown} row {row}", label.what)
            elif said is None:
                self.bad.add(f"{shown} row {row}", f"unknown split {words[row] if words else ''!r}")
            else:
                self.kept.append(start + row)
                self.wheres.append(f"{shown} row {row}")
                self.names.append(label)
                self.splits.append(said)

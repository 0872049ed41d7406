"""The source whose images are listed in tables: path, label and, if they like, split."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from selkern.data.columns import Coded
from selkern.data.decode import show
from selkern.data.files import file_source
from selkern.data.listing import Search, assign_splits, is_file, some, split_word, vague_notes
from selkern.data.split import Listing, Options, Source
from selkern.data.table_options import TableOptions
from selkern.data.tables import (
    LABEL_NAMES,
    NEARLY_ALL,
    PATH_NAMES,
    SPLIT_NAMES,
    TABLES,
    BadRows,
    Table,
    binary_columns,
    class_columns,
    classes_in,
    column_called,
    plain,
    read_table,
)
from selkern.errors import DataError, printable

_SAMPLE = 100  # names that are looked for in every place
_PARENTS, _CHILDREN = 3, 50  # folders above the table's, and in it
_SUFFIXES = ("", ".jpg", ".jpeg", ".png", ".JPG", ".tif", ".bmp", ".webp")  # some tables have names without
_URL = re.compile(r"(https?|s3|gs|ftp)://", flags=re.IGNORECASE)
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
Way = Literal["", "exact", "slash", "alike"]


@dataclass(frozen=True, kw_only=True)
class Lookup:
    """How the names of a table lead to files."""

    folder: Path
    """What they are relative to."""
    suffix: str = ""
    """What they lack."""
    drop: int = 0
    """How many parts at their beginning mean nothing here: whole paths of another machine."""
    note: str = ""
    """For the user, where any of these is not as it is with most tables."""

    names: dict[str, dict[str, list[str]]] = field(default_factory=dict, compare=False)
    """{folder: {a file's name without case and in one Unicode form: its names}}, of folders that lacked a file."""

    def __call__(self, name: str) -> tuple[str, Way]:
        """The file that a name stands for, and how it leads there; "" where there is none."""
        file = str(self.folder / (self._rest(name) + self.suffix))
        if is_file(file):
            return file, "exact"
        if "\\" in name:  # a table from Windows
            other = str(self.folder / (self._rest(name).replace("\\", "/") + self.suffix))
            if is_file(other):
                return other, "slash"
        alike = self._alike(file)
        return (alike, "alike") if alike else (file, "")

    def _rest(self, name: str) -> str:
        """A name as the file system has it."""
        name = name.removeprefix("file://")
        if self.drop:
            return "/".join(_parts_of(name)[self.drop :])
        return str(Path(name).expanduser()) if name.startswith("~/") else name

    def _alike(self, file: str) -> str:
        """The one file beside it that a file system of macOS or Windows would have taken; "" without one."""
        folder, name = os.path.split(file)
        if folder not in self.names:
            self.names[folder] = {}
            with contextlib.suppress(OSError, ValueError):
                for there in Path(folder).iterdir():
                    self.names[folder].setdefault(_form(there.name), []).append(there.name)
        alike = self.names[folder].get(_form(name), [])
        path = str(Path(folder) / alike[0]) if len(alike) == 1 else ""
        return path if is_file(path) else ""

    def missing(self, name: str) -> str:
        """What to say of a name whose file is not there."""
        if _URL.match(name):
            return f"a URL, not a file: {name[:200]!r}"
        return f"no such image file: {name[:200]!r}"

    def advice(self, name: str) -> str:
        """What to do where the files are not there: of one of them, where it was looked for and where it is."""
        if _URL.match(name):
            return "download the images, and name the files"
        if os.sep != "\\" and _WINDOWS.match(name):
            return "these are paths of a Windows machine: write them relative to the table's folder"
        if Path(name).is_absolute():
            return "correct the paths, or write them relative to the table's folder"
        looked = show(Path(self(name)[0]).absolute())
        if is_file(name):
            here = f"it is in {show(Path.cwd())}, but paths are relative to the table's folder"
            return f"{looked} was looked for; {here}: move the table, or write whole paths"
        return f"{looked} was looked for: correct the paths, or move the table"


def find_lookup(table: Path, names: Sequence[str]) -> Lookup:
    """How the names in a table are meant: relative to its folder, else to one near it where they are.

    Raises:
        DataError: the names are in several folders alike.
    """
    step = max(1, len(names) // _SAMPLE)
    sample = [name for name in names[::step] if name][:_SAMPLE]
    plain = Lookup(folder=table.parent)
    if not sample or any(plain(name)[1] for name in sample):
        return plain
    best: dict[Path, Lookup] = {}  # by folder, the likelier before
    most = 0
    for lookup in _others(table.parent, sample):
        hits = sum(lookup(name)[1] != "" for name in sample)
        if hits > most:
            best, most = {}, hits
        if hits and hits == most:
            best.setdefault(lookup.folder, lookup)
    if not best:
        return plain
    inside = [folder for folder in best if folder.parent == table.parent]
    if len(inside) == 1 or len(inside) < len(best):
        return next(iter(best.values()))
    words = {split_word(piece) for piece in re.split(r"[\W_]+", table.stem)} - {""}
    own = [folder for folder in inside if split_word(folder.name) in words]  # train.csv lists train/
    if len(own) != 1:
        where = " and ".join(f"{show(folder.name)}/" for folder in inside[:2])
        raise DataError(f"files of such names are in {where}", show(table), "write the folder before the names")
    return best[own[0]]


def _others(folder: Path, names: Sequence[str]) -> Iterator[Lookup]:
    """The other ways to understand names, the likelier before."""
    above = [Path(path) for path in folder.absolute().parents[:_PARENTS]]
    inside = [Path(entry.path) for entry in Search().folders(folder)][:_CHILDREN]
    whole = all(_is_whole(name) for name in names)
    for drop in range(1, len(_parts_of(names[0]))) if whole else ():
        if len({tuple(_parts_of(name)[drop:]) for name in names}) == len(set(names)):
            note = f"paths are taken relative to {show(folder)}, without their beginning {_beginning(names[0], drop)}"
            yield Lookup(folder=folder, drop=drop, note=note)
    bare = not any(re.search(r"\.[A-Za-z]{3,5}$", name) for name in names)
    for suffix in _SUFFIXES if bare else ("",):
        for place in (folder, *above, *inside):
            notes = [f"paths are relative to {show(place)}, where the files are"] if place != folder else []
            notes += [f"{suffix} is added to the names in the table"] if suffix else []
            yield Lookup(folder=place, suffix=suffix, note="; ".join(notes))


def _is_whole(name: str) -> bool:
    return Path(name).is_absolute() or _WINDOWS.match(name) is not None


def _parts_of(name: str) -> list[str]:
    """The folders of a path and its name, whichever system it is of; first what a whole path begins with."""
    return re.split(r"[/\\]+", name)


def _beginning(name: str, parts: int) -> str:
    return repr("/".join(_parts_of(name)[:parts]) or "/")


def _form(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


METADATA = ("metadata.csv", "metadata.jsonl", "_classes.csv")  # Hugging Face's, Roboflow's
_FILE = re.compile(r"\.(jpe?g|png|webp|bmp|tiff?|gif)(\s+\S+)?$", flags=re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class _Columns:
    """Positions of the columns that are read."""

    path: int
    label: int
    """Where there are `classes`, it is not read."""
    classes: dict[int, str]
    """{column of 0 and 1: the class it is of}, of a table that has these in place of labels."""
    split: int | None
    notes: tuple[str, ...]

    def labels_in(self, cells: Sequence[str]) -> list[str]:
        """The labels of a row; one, unless the columns of classes hold no 1."""
        return classes_in(cells, self.classes) if self.classes else [cells[self.label]]


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One image."""

    label: str
    split: str
    where: str
    """Where it is listed."""


@dataclass(frozen=True, kw_only=True)
class _Listed:
    """What the tables have said so far."""

    entries: dict[str, _Entry] = field(default_factory=dict)
    """By file."""
    clashing: set[str] = field(default_factory=set)
    """Files that are listed with two labels, or in two splits."""
    spellings: dict[str, set[str]] = field(default_factory=dict)
    """How a class name is written: with spaces around it, and without."""
    bad: BadRows = field(default_factory=BadRows)
    notes: list[str] = field(default_factory=list)


def open_csv(path: Path, options: Options) -> Source:
    """One table; its paths are relative to its folder."""
    return open_tables(path, [("", path)], options)


def find_tables(root: Path, options: Options) -> list[tuple[str, Path]]:
    """(split, table) of a folder whose images are listed in tables; none of a folder without such.

    metadata.csv in the folder or one in each split folder, as Hugging Face's ImageFolder has it; or train.csv with
    val.csv or test.csv beside images that are in no class folders.
    """
    if (own := _metadata(root, options)) is not None:
        return [("", own)]
    search = Search()
    folders = {folder.path: split_word(folder.name) for folder in search.folders(root)}
    tables = {path: table for path, word in folders.items() if word and (table := _metadata(Path(path), options))}
    if tables:
        meant = assign_splits({folders[path] for path in tables})
        return [(meant[folders[path]], table) for path, table in tables.items()]
    files = [Path(entry.path) for entry in search.files(root)]
    words = {file: split_word(file.stem) for file in files if file.suffix.lower() in TABLES}
    meant = assign_splits({word for word in words.values() if word})
    if "train" not in meant.values() or len(meant) < 2:
        return []
    classes = (path for path, word in folders.items() if search.has_images(path) and (not word or search.folders(path)))
    if len(list(itertools.islice(classes, 2))) > 1:
        return []
    lists = {meant[word]: file for file, word in words.items() if word and _fits(file, options)}
    return list(lists.items()) if "train" in lists and len(lists) > 1 else []


def _metadata(folder: Path, options: Options) -> Path | None:
    return next((folder / name for name in METADATA if is_file(folder / name) and _fits(folder / name, options)), None)


def _fits(path: Path, options: Options) -> bool:
    """Whether a table can be read, and has the columns of images and labels."""
    with contextlib.suppress(DataError):
        table = read_table(path, options.table.separator, lambda columns: fit(columns, options.table))
        own = path.name not in METADATA or options.table.path_column or "filename" in map(plain, table.columns)
        return bool(own) and (fit(table.columns, options.table) or _has_classes(table, options.table))
    return False


def _has_classes(table: Table, asked: TableOptions) -> bool:
    """Whether a table has columns of paths, and of 0 and 1 for each class."""
    with contextlib.suppress(DataError):
        return bool(_columns(table, asked).classes)
    return False


def open_tables(name: Path, tables: Sequence[tuple[str, Path]], options: Options) -> Source:
    """Images listed in one table, or in one for each split.

    Args:
        name: what the user gave.
        tables: (train, val or test, the table); "" where the table may say itself.
        options: how they are read, and what becomes of rows that are no images.
    """
    listed = _Listed()
    root = show(name)
    if name.is_dir():
        listed.notes.append(f"the images are those of {some(show(path.relative_to(name)) for _, path in tables)}")
    for split, path in tables:
        table = read_table(path, options.table.separator, lambda columns: fit(columns, options.table))
        columns = _columns(table, options.table)
        names = [cells[columns.path].strip() for _, cells in table.rows if len(cells) == len(table.columns)]
        lookup = find_lookup(path, names)
        root = show(lookup.folder) if len(tables) == 1 else root
        listed.notes.extend([*table.notes, *columns.notes, *filter(None, [lookup.note])])
        by_folder = {} if split or columns.split is not None else _split_folders(names)
        _read(table, columns, lookup, by_folder or split, listed)
        _require_there(listed.bad, lookup, names)
    notes = (*dict.fromkeys(listed.notes), *listed.bad.settle(options.on_bad), *_spaced(listed.spellings))
    entries = {file: entry for file, entry in listed.entries.items() if file not in listed.clashing}
    listing = Listing(
        wheres=[show(file) for file in entries],
        names=Coded.of(entry.label for entry in entries.values()),
        splits=Coded.of(entry.split for entry in entries.values()),
        root=root,
        notes=notes,
        left_out=tuple(listed.bad.left_out),
    )
    return file_source(show(name), "csv", listing, options, list(entries))


def fit(columns: Sequence[str], asked: TableOptions) -> bool:
    """Whether columns of such names can be read."""
    try:
        return None not in (
            column_called(columns, asked.path_column, PATH_NAMES, "path", "")[0],
            column_called(columns, asked.label_column, LABEL_NAMES, "label", "")[0],
        )
    except DataError:  # such as two that could be it
        return asked.path_column is None and asked.label_column is None


def _columns(table: Table, asked: TableOptions) -> _Columns:
    where = table.where(table.header_line)
    path, path_note = column_called(table.columns, asked.path_column, PATH_NAMES, "path", where)
    label, label_note = column_called(table.columns, asked.label_column, LABEL_NAMES, "label", where)
    split, split_note = column_called(table.columns, asked.split_column, SPLIT_NAMES, "split", where)
    at = table.columns.index
    taken = [at(column) for column in (path, split) if column is not None]
    classes = class_columns(table, taken) if path is not None and label is None else {}
    if classes:
        label = next(iter(classes.values()))
        label_note = f"classes are the columns of 0 and 1: {some(map(printable, classes.values()))}"
    if path is None or label is None:
        lacking = [name for name, column in (("path", path), ("label", label)) if column is None]
        raise _no_columns(table, lacking, binary_columns(table, taken))
    known = split is not None and any(len(cells) > at(split) and cells[at(split)].strip() for _, cells in table.rows)
    if split_note and asked.split_column is None:  # a column that is not called split may hold something else
        words = [split_word(cells[at(split)]) for _, cells in table.rows if len(cells) > at(split)]
        known = all(words)
    notes = (path_note, label_note, split_note if known else "")
    return _Columns(
        path=at(path),
        label=at(label),
        classes=classes,
        split=at(split) if split is not None and known else None,
        notes=tuple(note for note in notes if note),
    )


def _no_columns(table: Table, lacking: list[str], binary: dict[int, str]) -> DataError:
    lookup = Lookup(folder=table.path.parent)
    where = table.where(table.header_line)
    if any(re.search(_FILE, cell) or (cell and lookup(cell)[1]) for cell in table.columns):
        return DataError("the table has no header: its first line names an image", where, "write path,label above it")
    what = f"no column {' or '.join(lacking)} in the header"
    there = ", ".join(map(repr, table.columns))[:200]
    flags = " and ".join(f"--{name}-column" for name in lacking)
    fix = f"choose among {there} by {flags}" if len(table.columns) > 1 else "name the columns path,label[,split]"
    if binary and "label" in lacking:
        fix = f"make one column label of those of 0 and 1 ({some(map(printable, binary.values()))}): an image has one"
    other = re.search(r"[,;|\t]", table.columns[0]) if len(table.columns) == 1 else None
    fix = f"its columns seem to be separated by {other[0]!r}: leave --sep out" if other else fix
    return DataError(what, where, fix)


def _split_folders(names: Sequence[str]) -> dict[str, str]:
    """{first folder of the names: its split} where all names begin with such a folder, and with more than one."""
    first = {_first(name) for name in names if name}
    words = {folder: split_word(folder) for folder in first}
    meant = assign_splits(set(words.values()))
    if (
        len(first) < 2
        or not all(words.values())
        or len(set(meant.values())) < len(first)
        or "train" not in meant.values()
    ):
        return {}
    return {folder: meant[word] for folder, word in words.items()}


def _first(name: str) -> str:
    return re.split(r"[/\\]", name.removeprefix("./"), maxsplit=1)[0]


def _read(table: Table, columns: _Columns, lookup: Lookup, split: str | dict[str, str], listed: _Listed) -> None:
    """Take in the rows of a table; `split` is that of all of them, or by the first folder of their paths."""
    bad = listed.bad
    bad.rows += len(table.rows)
    ways: Counter[Way] = Counter()
    meant = _splits(table, columns.split)
    listed.notes.extend(vague_notes(meant))
    if isinstance(split, dict):
        listed.notes.append(f"splits are taken from the paths ({', '.join(f'{name}/' for name in sorted(split))})")
    for line, cells in table.rows:
        where = table.where(line)
        if len(cells) != len(table.columns):
            what = f"{len(cells)} columns where the header has {len(table.columns)}"
            bad.add(where, f"{what} (texts that hold the separator need quotes)")
            continue
        name, labels = cells[columns.path].strip(), columns.labels_in(cells)
        label = labels[0].strip() if len(labels) == 1 else ""
        said: str | None = split if isinstance(split, str) else split.get(_first(name), "")
        if columns.split is not None:
            said = meant.get(split_word(cells[columns.split]))
        if not name or not label:
            bad.add(where, _lack(name, labels))
            continue
        if said is None:
            bad.add(where, f"unknown split {cells[columns.split or 0].strip()!r}")
            continue
        file, way = lookup(name)
        ways[way] += 1
        entry = _Entry(label=printable(label), split=said, where=where)
        if file in listed.entries:
            _again(file, name, entry, listed)
            continue
        listed.entries[file] = entry
        listed.spellings.setdefault(entry.label, set()).add(labels[0])
        if not way:
            bad.add(where, lookup.missing(name), missing=True)
    if ways["slash"]:
        listed.notes.append(f"paths in which \\ is read as /: {ways['slash']:,}")
    if ways["alike"]:
        listed.notes.append(f"paths that differ from their files in case or in Unicode form: {ways['alike']:,}")


def _lack(name: str, labels: Sequence[str]) -> str:
    """What a row lacks."""
    if not name:
        return "the path is empty"
    return "the label is empty" if len(labels) == 1 else "no column of a class holds 1"


def _splits(table: Table, column: int | None) -> dict[str, str]:
    """{word in the column of splits: the split it means}."""
    if column is None:
        return {}
    return assign_splits({split_word(cells[column]) for _, cells in table.rows if len(cells) > column})


def _again(file: str, name: str, entry: _Entry, listed: _Listed) -> None:
    """Note a row that names a file of an earlier one. Where they disagree, neither is used."""
    first = listed.entries[file]
    lines = [place.rpartition(" ")[2] for place in (first.where, entry.where)]
    differs = f", with label {first.label!r}" if first.label != entry.label else ""
    differs = differs or (f", in split {first.split}" if first.split != entry.split else "")
    listed.bad.add(entry.where, f"{name} is listed in line {lines[0]} already{differs}")
    if differs and file not in listed.clashing:
        listed.clashing.add(file)
        listed.bad.add(first.where, f"{name} is listed again, and otherwise, in line {lines[1]}")


def _require_there(bad: BadRows, lookup: Lookup, names: Sequence[str]) -> None:
    """Raise DataError, with advice, where nearly all files are missing."""
    if names and len(bad.missing) >= NEARLY_ALL * bad.rows:
        first = bad.missing[0]
        what = f"{len(bad.missing):,} of {bad.rows:,} image files are missing, the first: {first.reason}"
        name = next(name for name in names if name and not lookup(name)[1])
        raise DataError(what, first.where, lookup.advice(name))


def _spaced(spellings: dict[str, set[str]]) -> tuple[str, ...]:
    """A note where a class is written with spaces around it in some rows only."""
    mixed = sorted(name for name, written in spellings.items() if len(written) > 1)
    more = f" and {len(mixed) - 1:,} more" if len(mixed) > 1 else ""
    return (f"spaces around a label are left out: {mixed[0]!r}{more}",) if mixed else ()

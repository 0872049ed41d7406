"""The source whose images are listed in tables: path, label and, if they like, split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from selkern.data.decode import show
from selkern.data.files import file_source
from selkern.data.lookup import Lookup, find_lookup
from selkern.data.split import LeftOut, Listing, Options, Source
from selkern.data.split_names import VAGUE, assign_splits, split_word
from selkern.data.table import Table, column_called, read_table
from selkern.data.table_options import TableOptions
from selkern.errors import DataError, printable

PATH_NAMES = (
    *("path", "paths", "file", "files", "filename", "filenames", "filepath", "filepaths", "fname"),
    *("image", "images", "img", "imagepath", "imgpath", "imagefile", "imagename", "imgname", "imageid", "imgid"),
)
LABEL_NAMES = (
    *("label", "labels", "class", "classname", "classlabel", "target", "targets", "category", "categoryname"),
)
SPLIT_NAMES = ("split", "splits", "subset", "partition", "set", "dataset")
NEARLY_ALL = 0.9  # share of the rows without which nothing is trained, whatever the policy


@dataclass(frozen=True, kw_only=True)
class _Columns:
    """Positions of the columns that are read."""

    path: int
    label: int
    split: int | None
    notes: tuple[str, ...]


@dataclass
class _Listed:
    """What the tables have said so far; the dicts are by file."""

    names: dict[str, str] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    lines: dict[str, str] = field(default_factory=dict)
    clashing: set[str] = field(default_factory=set)  # listed with two labels, or in two splits
    missing: list[LeftOut] = field(default_factory=list)
    problems: list[LeftOut] = field(default_factory=list)  # rows that are no images
    first: LeftOut | None = None  # of both
    notes: list[str] = field(default_factory=list)
    rows: int = 0

    def bad(self, where: str, reason: str, *, missing: bool = False) -> None:
        """Note a row."""
        row = LeftOut(where, reason)
        self.first = self.first or row
        (self.missing if missing else self.problems).append(row)


def open_csv(path: Path, options: Options) -> Source:
    """One table; its paths are relative to its folder."""
    return open_tables(path, [("", path)], options)


def open_tables(name: Path, tables: Sequence[tuple[str, Path]], options: Options) -> Source:
    """Images listed in one table, or in one for each split.

    Args:
        name: what the user gave.
        tables: (train, val or test, the table); "" where the table may say itself.
        options: how they are read, and what becomes of rows that are no images.
    """
    listed = _Listed()
    root = show(name)
    for split, path in tables:
        table = read_table(path, options.table.separator, lambda columns: _fit(columns, options.table))
        columns = _columns(table, options.table)
        names = [cells[columns.path] for _, cells in table.rows if len(cells) == len(table.columns)]
        lookup = find_lookup(path, names)
        root = show(lookup.folder) if len(tables) == 1 else root
        listed.notes += [*table.notes, *columns.notes, *filter(None, [lookup.note])]
        _read(table, columns, lookup, split, listed)
        if names and len(listed.missing) >= NEARLY_ALL * listed.rows:
            first = listed.missing[0]
            what = f"{len(listed.missing):,} of {listed.rows:,} image files are not there; {first.reason}"
            raise DataError(what, first.where, lookup.advice(next(n for n in names if not lookup(n)[1])))
    if listed.first is not None and _fails(listed, options):
        _raise(listed)
    files = [file for file in listed.names if file not in listed.clashing]
    listing = Listing(
        wheres=[show(file) for file in files],
        names=[listed.names[file] for file in files],
        splits=[listed.splits[file] for file in files],
        root=root,
        notes=(*listed.notes, *_notes(listed)),
        left_out=tuple(listed.problems),
    )
    return file_source(show(name), "csv", listing, options, files)


def _fit(columns: Sequence[str], asked: TableOptions) -> bool:
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
    if path is None or label is None:
        raise _no_columns(table, [name for name, column in (("path", path), ("label", label)) if column is None])
    at = table.columns.index
    known = split is not None and any(len(cells) > at(split) and cells[at(split)] for _, cells in table.rows)
    if split_note and asked.split_column is None:  # a column that is not called split may hold something else
        known = all(len(cells) <= at(split) or split_word(cells[at(split)]) for _, cells in table.rows)
    notes = (path_note, label_note, split_note if known else "")
    return _Columns(
        path=at(path),
        label=at(label),
        split=at(split) if split is not None and known else None,
        notes=tuple(note for note in notes if note),
    )


def _no_columns(table: Table, lacking: list[str]) -> DataError:
    lookup = Lookup(folder=table.path.parent)
    where = table.where(table.header_line)
    if any(cell and lookup(cell)[1] for cell in table.columns):
        what = "the table has no header: its first line names an image"
        return DataError(what, where, "write the line path,label above it")
    what = f"no column {' or '.join(lacking)} in the header"
    there = ", ".join(map(repr, table.columns))[:200]
    flags = " and ".join(f"--{name}-column" for name in lacking)
    fix = f"choose among {there} by {flags}" if len(table.columns) > 1 else "name the columns path,label[,split]"
    return DataError(what, where, fix)


def _read(table: Table, columns: _Columns, lookup: Lookup, split: str, listed: _Listed) -> None:
    """Take in the rows of a table."""
    listed.rows += len(table.rows)
    slashes = 0
    meant = _splits(table, columns.split)
    listed.notes += [f"split {word!r} is taken for {meant[word]}" for word in sorted(VAGUE.intersection(meant))]
    for line, cells in table.rows:
        where = table.where(line)
        if len(cells) != len(table.columns):
            what = f"{len(cells)} columns where the header has {len(table.columns)}"
            listed.bad(where, f"{what} (texts that hold the separator need quotes)")
            continue
        name, label = cells[columns.path], cells[columns.label]
        said = split if columns.split is None else meant.get(split_word(cells[columns.split]))
        if not name or not label:
            listed.bad(where, f"the {'label' if name else 'path'} is empty")
            continue
        if said is None:
            listed.bad(where, f"unknown split {cells[columns.split or 0]!r}")
            continue
        file, there = lookup(name)
        if file in listed.names:
            first = f"is listed in line {listed.lines[file].rpartition(' ')[2]} already"
            listed.bad(where, f"{name} {first}")
            if (listed.names[file], listed.splits[file]) != (printable(label), said):
                listed.clashing.add(file)
            continue
        listed.names[file], listed.splits[file], listed.lines[file] = printable(label), said, where
        if not there:
            listed.bad(where, lookup.missing(name), missing=True)
        slashes += there and "\\" in name and "\\" not in file
    if slashes:
        listed.notes.append(f"\\ in {slashes:,} paths is read as /")


def _splits(table: Table, column: int | None) -> dict[str, str]:
    """{word in the column of splits: the split it means}."""
    if column is None:
        return {}
    return assign_splits({split_word(cells[column]) for _, cells in table.rows if len(cells) > column})


def _fails(listed: _Listed, options: Options) -> bool:
    """Whether what is bad is too much."""
    bad = len(listed.missing) + len(listed.problems)
    return options.on_bad == "error" or bad >= NEARLY_ALL * listed.rows


def _raise(listed: _Listed) -> None:
    assert listed.first is not None
    bad = len(listed.missing) + len(listed.problems)
    more = f"; {bad:,} of {listed.rows:,} rows cannot be used" if bad > 1 else ""
    fix = "correct or remove the line" if bad == 1 else "`selkern data check` lists them all; --on-bad-image skip skips"
    raise DataError(listed.first.reason + more, listed.first.where, fix)


def _notes(listed: _Listed) -> list[str]:
    """What was left out, in a line each."""
    notes = []
    for rows, what in ((listed.missing, "image files are missing"), (listed.problems, "rows are left out")):
        if rows:
            notes.append(f"{len(rows):,} of {listed.rows:,} {what}, the first {rows[0].where}: {rows[0].reason}")
    return notes

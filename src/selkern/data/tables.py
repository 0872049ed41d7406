"""Tables as people write them: their encoding, separator, header and columns."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from selkern.data.decode import is_pointer, not_pulled, show
from selkern.data.split import LeftOut, Note, NoteKind, OnBad
from selkern.data.table_options import SEPARATORS
from selkern.errors import DataError, printable

NEARLY_ALL = 0.9  # share of the rows without which nothing is trained, whatever the policy

_FIX = "`selkern data check` lists them all, --on-bad-image skip leaves them out"


class BadRows:
    """What is wrong with the rows of some tables.

    Attributes:
        rows: all that were read, good ones too.
        left_out: those that are no images.
        missing: those whose image file is not there. They stay listed, since another day it may be.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.left_out: list[LeftOut] = []
        self.missing: list[LeftOut] = []
        self._first: LeftOut | None = None

    def add(self, where: str, reason: str, *, missing: bool = False) -> None:
        """Note a row, in the table's order."""
        row = LeftOut(where, reason)
        self._first = self._first or row
        (self.missing if missing else self.left_out).append(row)

    def settle(self, on_bad: OnBad, fix: str = _FIX, noun: str = "rows") -> tuple[str, ...]:
        """A note on each kind.

        Args:
            on_bad: "error" raises for any.
            fix: what to do about several of them.
            noun: what the rows are.

        Raises:
            DataError: the first of them, and how many there are; with "skip" only where nearly all are bad.
        """
        count = len(self.left_out) + len(self.missing)
        if self._first is not None and (on_bad == "error" or count >= NEARLY_ALL * self.rows):
            more = f"; {count:,} of {self.rows:,} {noun} cannot be used" if count > 1 else ""
            fix = "correct it or remove it" if count == 1 else "correct them" if on_bad == "skip" else fix
            raise DataError(self._first.reason + more, self._first.where, fix)
        kinds: tuple[tuple[list[LeftOut], str, NoteKind], ...] = (
            (self.missing, "image files are missing", "missing files"),
            (self.left_out, f"{noun} are left out", "rows left out"),
        )
        return tuple(
            Note(f"{len(rows):,} of {self.rows:,} {what}, the first {rows[0].where}: {rows[0].reason}", kind)
            for rows, what, kind in kinds
            if rows
        )


# What columns are called, without case, spaces and underscores; one called as the first is preferred.
PATH_NAMES = (
    *("path", "paths", "file", "files", "filename", "filenames", "filepath", "filepaths", "fname"),
    *("image", "images", "img", "imagepath", "imgpath", "imagefile", "imagename", "imgname", "imageid", "imgid"),
)
LABEL_NAMES = (
    *("label", "labels", "class", "classname", "classlabel", "target", "targets", "category", "categoryname"),
)
SPLIT_NAMES = ("split", "splits", "subset", "partition", "set", "dataset")
JSON_LINES = (".jsonl", ".ndjson")
TABLES = (".csv", ".tsv", *JSON_LINES)
_LONGEST = 1 << 20  # characters of a line of a table; the csv module itself allows 131,072 in a cell
_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\0\0", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_KINDS = (
    (b"PK\x03\x04", "an Excel workbook or a zip"),
    (b"\x1f\x8b", "a compressed file"),
    (b"PAR1", "a Parquet file"),
)
_SEPARATOR_NAMES = {"\t": "tab"}

Row = tuple[int, list[str]]  # number of the line, its cells


@dataclass(frozen=True, kw_only=True)
class Table:
    """The rows of a table that has a header."""

    path: Path
    """The file."""
    columns: tuple[str, ...]
    """Their names, as in the header."""
    header_line: int
    """Number of the header's line."""
    rows: tuple[Row, ...]
    """Those that are not blank, nor the header again; their number of cells may be another than that of the columns."""
    notes: tuple[str, ...]
    """What was assumed to read it."""

    def where(self, line: int) -> str:
        """A line of it, for messages."""
        return f"{show(self.path)} line {line}"


def read_table(path: Path, sep: str | None, fits: Callable[[Sequence[str]], bool]) -> Table:
    """Read a table.

    Args:
        path: UTF-8, or UTF-16 with a byte order mark as Excel writes it; a .jsonl holds a JSON object in each line.
        sep: what separates its columns; None tries the usual ones.
        fits: whether such columns hold what is looked for.

    Raises:
        DataError: no such file, no text, or a text that is no table.
    """
    if path.suffix.lower() in JSON_LINES:
        return _read_json(path)
    try:
        try:
            return _read_csv(path, sep, fits, strict=True)
        except csv.Error as error:
            if str(error) == "unexpected end of data":  # all that follows the mark would be one cell
                raise DataError("a quotation mark is not closed", show(path), "remove it, or write it twice") from error
            return _read_csv(path, sep, fits, strict=False)  # such as text after a closing quotation mark
    except UnicodeDecodeError as error:
        raise _other_encoding(path, error) from error
    except (OSError, csv.Error) as error:
        fix = "give a UTF-8 CSV whose first line names the columns, such as path,label"
        raise DataError(f"cannot read the table ({error})", show(path), fix) from error


def _read_csv(path: Path, sep: str | None, fits: Callable[[Sequence[str]], bool], *, strict: bool) -> Table:
    with path.open(newline="", encoding=_encoding(path)) as file:
        lines = _lines(file, path)
        header, line, said = _header_line(lines)
        sep = sep or said or _separator(header, path.suffix.lower() == ".tsv", fits)
        text = itertools.chain([header], lines)
        rows = csv.reader(text, delimiter=sep, strict=strict, skipinitialspace=sep != "\t")
        first = next(rows, [])
        kept = tuple(
            (line + rows.line_num - 1, cells)
            for row in rows
            if row != first and any(map(str.strip, cells := _cells(row, len(first))))
        )
    notes = (f"columns of {path.name} are separated by {_named(sep)}",) if sep != _usual(path) and not said else ()
    columns = tuple(cell.strip() for cell in first)
    return Table(path=path, columns=columns, header_line=line, rows=kept, notes=notes)


def _read_json(path: Path) -> Table:
    """One JSON object in each line; its keys are the columns."""
    fix = 'give one object in each line, such as {"file_name": "a.png", "label": "cat"}'
    result: list[tuple[int, dict[str, object]]] = []
    line = 0
    try:
        with path.open(encoding=_encoding(path)) as file:
            for line, text in enumerate(_lines(file, path), start=1):
                if text.strip():
                    row = json.loads(text)
                    if not isinstance(row, dict):
                        raise ValueError("no object")
                    result.append((line, row))
    except UnicodeDecodeError as error:
        raise _other_encoding(path, error) from error
    except (OSError, ValueError, RecursionError) as error:
        where = f"{show(path)} line {line}"
        raise DataError(f"cannot read the table ({str(error)[:100]})", where, fix) from error
    columns = tuple(dict.fromkeys(key for _, row in result for key in row))
    rows = tuple((number, [_cell(row.get(column)) for column in columns]) for number, row in result)
    return Table(path=path, columns=columns, header_line=1, rows=rows, notes=())


def _cell(value: object) -> str:
    """A value of JSON as a table has it."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def read_text(path: Path) -> str:
    """A small text, as people's programs encode it. Raises DataError."""
    try:
        return path.read_text(encoding=_encoding(path))
    except UnicodeDecodeError as error:
        raise _other_encoding(path, error) from error
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", show(path), "check the name and rights") from error


def column_called(
    columns: Sequence[str], asked: str | None, names: Sequence[str], what: str, where: str
) -> tuple[str | None, str]:
    """Which column holds something, and a note where it is not called as we ask for it; None where none does.

    Args:
        columns: all there are.
        asked: the user's word.
        names: what such columns are called; one called as the first of them is it.
        what: "path", "label" or "split", for messages.
        where: the table.

    Raises:
        DataError: the column asked for is not there, is there twice, or several have such names.
    """
    flag = f"--{what}-column"
    if asked is not None:
        chosen = [c for c in columns if c == asked] or [c for c in columns if plain(c) == plain(asked)]
        if not chosen:
            raise DataError(f"no column {asked!r}", where, f"{flag} can be one of {', '.join(columns)[:200]}")
    else:
        chosen = [c for c in columns if plain(c) == names[0]] or [c for c in columns if plain(c) in names]
    if not chosen:
        return None, ""
    if len(set(chosen)) < len(chosen):
        raise DataError(f"two columns named {chosen[0]}", where, "keep one of them")
    if len(chosen) > 1:
        raise DataError(f"columns {' and '.join(chosen)} could each be the {what}", where, f"choose by {flag}")
    named = asked is not None or plain(chosen[0]) == names[0]
    return chosen[0], "" if named else f"{what}s are taken from the column {printable(chosen[0])!r}"


def plain(column: str) -> str:
    """A column's name without what people write differently: "Image Path" and "image_path" are imagepath."""
    return re.sub(r"[\W_]+", "", column).lower()


def _encoding(path: Path) -> str:
    """By the file's first bytes. Raises DataError where these are no text."""
    with path.open("rb") as file:
        head = file.read(64)
    if is_pointer(head):
        raise not_pulled(show(path))
    start = head[:4]
    for mark, kind in _KINDS:
        if start.startswith(mark):
            raise DataError(f"this is {kind}, not a table of text", show(path), "save it as text, in UTF-8")
    if b"\0" in start and not start.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")):
        raise DataError("not UTF-8: UTF-16 without its mark, or no text", show(path), 'save it as "CSV UTF-8"')
    return next((encoding for mark, encoding in _MARKS if start.startswith(mark)), "utf-8")


def _other_encoding(path: Path, error: UnicodeDecodeError) -> DataError:
    byte = error.object[error.start]
    if error.encoding.startswith("utf-16") or not byte:
        return DataError(f"text that is broken ({error.reason})", show(path), "save it as text, in UTF-8")
    what = f"not UTF-8: it holds the byte 0x{byte:02x}, as Windows-1252 (Latin-1) text does"
    return DataError(what, show(path), 'save it as "CSV UTF-8", or run iconv -f WINDOWS-1252 -t UTF-8')


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    """The lines of a table, none of which can take all memory."""
    while line := file.readline(_LONGEST):
        if len(line) == _LONGEST:
            raise DataError(f"a line of over {_LONGEST:,} characters", show(path), "give one line for each image")
        yield line


def _header_line(lines: Iterator[str]) -> tuple[str, int, str | None]:
    """The first line that is neither blank nor a comment, its number, and the separator that Excel's `sep=;` says."""
    sep = None
    number = 0
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if (said := re.fullmatch(r"sep=(.)", line.strip("\r\n"), flags=re.IGNORECASE)) is not None:
            sep = said[1]
        elif text.strip(",;|\t") and not text.startswith("#"):
            return line, number, sep
    return "", max(number, 1), sep


def _separator(header: str, tabs: bool, fits: Callable[[Sequence[str]], bool]) -> str:
    """The separator under which the header names what is looked for, else the one that gives most columns."""
    result: dict[str, list[str]] = {}
    for sep in sorted(SEPARATORS, key=lambda sep: sep != "\t") if tabs else SEPARATORS:
        result[sep] = [cell.strip() for cell in next(csv.reader(io.StringIO(header), delimiter=sep), [])]
        if fits(result[sep]):
            return sep
    return max(result, key=lambda sep: len(result[sep]))


def _cells(row: list[str], width: int) -> list[str]:
    """The cells of a row, none of a comment's; empty ones beyond the last column are left out."""
    cells = row
    while len(cells) > width and not cells[-1].strip():
        cells.pop()
    return [] if cells and len(cells) != width and cells[0].startswith("#") else cells


def _usual(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _named(sep: str) -> str:
    return _SEPARATOR_NAMES.get(sep, repr(sep))


_FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


def binary_columns(table: Table, taken: Sequence[int]) -> dict[int, str]:
    """{column: its name} of those that hold 0 or 1 in every row; fewer than two are none.

    Args:
        taken: columns that hold something else, such as the paths.
    """
    rows = [cells for _, cells in table.rows if len(cells) == len(table.columns)]
    free = [at for at in range(len(table.columns)) if at not in taken]
    result = {at: table.columns[at] for at in free if all(cells[at].strip().lower() in _FLAGS for cells in rows)}
    return result if len(result) > 1 and rows else {}


def class_columns(table: Table, taken: Sequence[int]) -> dict[int, str]:
    """{column: the class it is of} where all columns but those taken hold 0 or 1, no row several 1, few none."""
    result = binary_columns(table, taken)
    if len(result) < len(table.columns) - len(set(taken)):
        return {}
    rows = [cells for _, cells in table.rows if len(cells) == len(table.columns)]
    ones = [len(classes_in(cells, result)) for cells in rows]
    return result if max(ones, default=0) == 1 and sum(ones) > NEARLY_ALL * len(rows) else {}


def classes_in(cells: Sequence[str], columns: dict[int, str]) -> list[str]:
    """The classes whose column of a row holds 1."""
    return [name for at, name in columns.items() if _FLAGS[cells[at].strip().lower()]]

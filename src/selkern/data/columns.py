"""Columns of a listing: the texts of a million rows in a few arrays, where strings would be a million objects.

They pickle as what they hold; arrays of a kept index (``data.kept``) pickle as the name of their file.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from typing_extensions import Self

_CHUNK = 1 << 16  # texts that are joined at once


class Column(Sequence[str]):
    """What columns share: slices are lists, and rows are made when they are asked for."""

    def row(self, index: int) -> str:
        """One text, numbered from 0."""
        raise NotImplementedError

    def at(self, rows: NDArray[np.int64]) -> Iterator[str]:
        """The texts of some rows."""
        return map(self.row, each(rows))

    def __iter__(self) -> Iterator[str]:
        return self.at(np.arange(len(self)))

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self.row(at) for at in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self.row(int(index) % len(self))


def each(numbers: NDArray[np.integer[Any]]) -> Iterator[int]:
    """Numbers of an array as Python's own, some at a time."""
    return (number for first in range(0, len(numbers), _CHUNK) for number in numbers[first : first + _CHUNK].tolist())


def rows_of(column: Sequence[str], rows: NDArray[np.int64]) -> Iterator[str]:
    """The texts of some rows of any sequence."""
    return column.at(rows) if isinstance(column, Column) else map(column.__getitem__, each(rows))


class Texts(Column):
    """Texts of their own, such as names of files, in one array of bytes.

    Args:
        data: (bytes,) all texts one after the other, in UTF-8; what is not valid there is kept (surrogateescape).
        ends: (n,) where each of them ends in ``data``.
    """

    def __init__(self, data: NDArray[np.uint8], ends: NDArray[np.int64]) -> None:
        self.data, self.ends = data, ends

    @classmethod
    def of(cls, texts: Iterable[str]) -> Self:
        """Of strings."""
        pieces: list[bytes] = []
        lengths: list[NDArray[np.int64]] = []
        source = iter(texts)
        while some := [text.encode("utf-8", "surrogateescape") for text in itertools.islice(source, _CHUNK)]:
            pieces.append(b"".join(some))
            lengths.append(np.fromiter(map(len, some), dtype=np.int64, count=len(some)))
        ends = np.cumsum(np.concatenate(lengths)) if lengths else np.zeros(0, dtype=np.int64)
        return cls(np.frombuffer(b"".join(pieces), dtype=np.uint8), ends)

    @property
    def plain(self) -> bool:
        """Whether all characters are printable ASCII."""
        return not len(self.data) or bool(self.data.min() >= 32 and self.data.max() < 127)

    @classmethod
    def joined(cls, parts: Sequence[Texts]) -> Self:
        """Those of all parts, one after the other."""
        shifts = np.cumsum([0, *(len(part.data) for part in parts)], dtype=np.int64)
        ends = [part.ends + shift for part, shift in zip(parts, shifts.tolist(), strict=False)]
        return cls(np.concatenate([part.data for part in parts]), np.concatenate(ends))

    def __len__(self) -> int:
        return len(self.ends)

    def row(self, index: int) -> str:
        """One text."""
        start = int(self.ends[index - 1]) if index else 0
        return self.data[start : int(self.ends[index])].tobytes().decode("utf-8", "surrogateescape")

    def at(self, rows: NDArray[np.int64]) -> Iterator[str]:
        """The texts of some rows, fast where these go up."""
        for first in range(0, len(rows), _CHUNK):
            some = rows[first : first + _CHUNK]
            low, high = int(some.min()), int(some.max())
            offset = int(self.ends[low - 1]) if low else 0
            if high - low > 8 * _CHUNK:  # far from one another
                yield from map(self.row, some.tolist())
                continue
            block, ends = self.data[offset : int(self.ends[high])].tobytes(), self.ends[some] - offset
            starts = np.where(some > 0, self.ends[some - 1], 0) - offset
            places = zip(starts.tolist(), ends.tolist(), strict=True)
            if block.isascii():
                text = block.decode("ascii")
                yield from (text[start:end] for start, end in places)
            else:
                yield from (block[start:end].decode("utf-8", "surrogateescape") for start, end in places)


class Coded(Column):
    """Words of which there are few, such as names of classes.

    Args:
        codes: (n,) the place of each in ``values``.
        values: the words, each once.
    """

    def __init__(self, codes: NDArray[np.int32], values: Sequence[str]) -> None:
        self.codes, self.values = codes, tuple(values)

    @classmethod
    def of(cls, words: Iterable[str]) -> Self:
        """Of strings; of a column as it is."""
        if isinstance(words, cls):
            return words
        places: dict[str, int] = {}
        codes = np.fromiter((places.setdefault(word, len(places)) for word in words), dtype=np.int32)
        return cls(codes, tuple(places))

    def __len__(self) -> int:
        return len(self.codes)

    def row(self, index: int) -> str:
        """One text."""
        return self.values[self.codes[index]]

    def at(self, rows: NDArray[np.int64]) -> Iterator[str]:
        """The words of some rows."""
        return map(self.values.__getitem__, each(self.codes[rows]))

    @property
    def counts(self) -> dict[str, int]:
        """{word: rows}, without words of no row."""
        rows = np.bincount(self.codes, minlength=len(self.values)).tolist()
        return {value: count for value, count in zip(self.values, rows, strict=True) if count}

    def renamed(self, values: Sequence[str]) -> Self:
        """The same rows with other words, some of them equal perhaps."""
        places = {value: place for place, value in enumerate(dict.fromkeys(values))}
        table = np.array([places[value] for value in values], dtype=np.int32)
        return type(self)(table[self.codes] if len(table) else self.codes, tuple(places))


class Files(Column):
    """Paths of files that lie many to a folder.

    Args:
        folders: paths of the folders.
        within: (n,) the place of each file's folder in ``folders``.
        names: of the files in their folders.
        between: what stands between a folder and a name.
    """

    def __init__(self, folders: Sequence[str], within: NDArray[np.int32], names: Texts, between: str = "/") -> None:
        self.folders, self.within, self.names, self.between = tuple(folders), within, names, between

    def __len__(self) -> int:
        return len(self.names)

    def row(self, index: int) -> str:
        """One text."""
        return f"{self.folders[self.within[index]]}{self.between}{self.names[index]}"

    def at(self, rows: NDArray[np.int64]) -> Iterator[str]:
        """The texts of some rows, fast where these go up."""
        before = map([f"{folder}{self.between}" for folder in self.folders].__getitem__, each(self.within[rows]))
        return map(operator.add, before, self.names.at(rows))


class Rows(Column):
    """Some rows of another column."""

    def __init__(self, column: Column, rows: NDArray[np.int64]) -> None:
        self.column, self.rows = column, rows

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, index: int) -> str:
        """One text."""
        return self.column.row(int(self.rows[index]))

    def at(self, rows: NDArray[np.int64]) -> Iterator[str]:
        """The texts of some of them."""
        return self.column.at(self.rows[rows])


class FileList(Column):
    """Paths of the files of a listing, and behind them those that a saved split adds."""

    def __init__(self, files: Sequence[str]) -> None:
        self.files = files
        self.added: list[str] = []

    def __len__(self) -> int:
        return len(self.files) + len(self.added)

    def row(self, index: int) -> str:
        """One path."""
        return self.files[index] if index < len(self.files) else self.added[index - len(self.files)]

    def at(self, rows: NDArray[np.int64]) -> Iterator[str]:
        """The paths of some rows."""
        return super().at(rows) if self.added else rows_of(self.files, rows)

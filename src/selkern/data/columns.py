"""Columns of a listing: the texts of a million rows in a few arrays, where strings would be a million objects.

They pickle as what they hold; arrays of a kept index (``data.kept``) pickle as the name of their file.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from typing_extensions import Self

_CHUNK = 1 << 16  # texts that are joined at once


class _Column(Sequence[str]):
    """What columns share: slices are lists, and rows are made when they are asked for."""

    def _row(self, index: int) -> str:
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self._row(at) for at in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self._row(int(index) % len(self))

    def __iter__(self) -> Iterator[str]:
        return (self._row(at) for at in range(len(self)))


class Texts(_Column):
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

    def __len__(self) -> int:
        return len(self.ends)

    def _row(self, index: int) -> str:
        start = int(self.ends[index - 1]) if index else 0
        return self.data[start : int(self.ends[index])].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        start = 0
        for first in range(0, len(self), _CHUNK):
            ends = self.ends[first : first + _CHUNK]
            block, offset = self.data[start : int(ends[-1])].tobytes(), start
            for end in ends.tolist():
                yield block[start - offset : end - offset].decode("utf-8", "surrogateescape")
                start = end


class Coded(_Column):
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

    def _row(self, index: int) -> str:
        return self.values[self.codes[index]]

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _CHUNK):
            yield from (self.values[code] for code in self.codes[first : first + _CHUNK].tolist())

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


class Files(_Column):
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

    def _row(self, index: int) -> str:
        return f"{self.folders[self.within[index]]}{self.between}{self.names[index]}"

    def __iter__(self) -> Iterator[str]:
        rows = (code for first in range(0, len(self), _CHUNK) for code in self.within[first : first + _CHUNK].tolist())
        return (f"{self.folders[code]}{self.between}{name}" for code, name in zip(rows, self.names, strict=True))

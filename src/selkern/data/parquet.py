"""The Parquet source: encoded images and labels as columns, as the Hugging Face Hub stores them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from selkern.data.cut import assemble
from selkern.data.decode import Header, decode, read_header, show
from selkern.data.split import SPLITS, Listing, Options, Source
from selkern.errors import DataError, printable

_IMAGE_NAMES = ("img", "image")
_LABEL_NAMES = ("label", "labels", "fine_label")


class Encoded:
    """The encoded images of some Parquet files, kept in memory as Arrow buffers.

    Loaded at the first use, and shared by processes forked after it; a pickled copy loads for itself.

    Args:
        files: their paths.
        column: the image column.
        counts: number of rows of each file.
    """

    def __init__(self, files: Sequence[str], column: str, counts: Sequence[int]) -> None:
        self.files, self.column = tuple(files), column
        self.starts: NDArray[np.int64] = np.cumsum([0, *counts], dtype=np.int64)
        self._images: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_images": None}

    def __getitem__(self, row: int) -> bytes | None:
        """The bytes of one image, rows counted over all files; None where the row has none."""
        if self._images is None:
            self._images = self._load()
        value: bytes | None = self._images[row].as_py()
        return value

    def where(self, row: int) -> str:
        """``file.parquet row 12``, rows counted from 0 in each file."""
        file = int(np.searchsorted(self.starts, row, side="right")) - 1
        return f"{show(self.files[file])} row {row - int(self.starts[file])}"

    def _load(self) -> Any:
        import pyarrow as pa
        import pyarrow.compute as pc

        chunks: list[Any] = []
        for file in self.files:
            values = _read_column(file, self.column)
            if pa.types.is_struct(values.type):
                values = pc.struct_field(values, "bytes")
            try:
                chunks += values.cast(pa.large_binary()).chunks
            except pa.ArrowException as error:
                raise _broken(file, error) from error
        return pa.chunked_array(chunks, pa.large_binary())


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

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int, epoch: int = 0) -> Image.Image:  # noqa: ARG002  rows do not change by epoch
        """The decoded image of one row."""
        return decode(self._bytes(index), self.where(index))

    def header(self, index: int) -> Header:
        """Of the image of one row."""
        return read_header(self._bytes(index), self.where(index))

    def where(self, index: int) -> str:
        """``file.parquet row 12``."""
        return self._encoded.where(int(self._rows[index]))

    def _bytes(self, index: int) -> bytes:
        data = self._encoded[int(self._rows[index])]
        if data is None:
            raise DataError("the row holds no image bytes", self.where(index), "store the images in the file")
        return data


def open_parquet(path: Path, options: Options) -> Source:
    """One Parquet file, or a folder with train*.parquet [val*.parquet] [test*.parquet]."""
    groups = _files(path)
    files = [file for group in groups.values() for file in group]
    columns = [_Columns(file) for file in files]
    first = columns[0]
    for other in columns[1:]:
        if (other.image, other.label, other.classes) != (first.image, first.label, first.classes):
            what = f"columns or class names differ from those of {Path(first.file).name}"
            raise DataError(what, show(other.file), "give files that agree")
    names = {column.file: column.read_names() for column in columns}
    used = {name for part in names.values() for name in part}
    listing = Listing(
        wheres=[f"{show(file)} row {row}" for file in files for row in range(len(names[file]))],
        names=[name for file in files for name in names[file]],
        splits=[split for split, group in groups.items() for file in group for _ in names[file]],
        classes=first.classes or (tuple(sorted(used, key=int)) if first.integer else None),
        root=show(path if path.is_dir() else path.parent),
    )
    parts: dict[str, tuple[int, Encoded]] = {}  # split the files say -> (its first entry in the listing, images)
    start = 0
    for split, group in groups.items():
        counts = [len(names[file]) for file in group]
        parts[split] = (start, Encoded(group, first.image, counts))
        start += sum(counts)

    def make(split: str, entries: NDArray[np.int64], labels: NDArray[np.int64]) -> ParquetSplit:
        # A split that was cut off lies in the files it was cut from, the first group.
        offset, encoded = parts.get(split, next(iter(parts.values())))
        return ParquetSplit(split, labels, entries - offset, encoded)

    return assemble(show(path), "parquet", listing, options, make)


class _Columns:
    """Which columns of one file hold image and label, and what its labels mean."""

    def __init__(self, file: str) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.file = file
        try:
            told = pq.read_metadata(file)
            schema = told.schema.to_arrow_schema()
        except (OSError, pa.ArrowException) as error:
            raise _broken(file, error) from error
        if told.num_rows > Path(file).stat().st_size:  # labels alike pack so well that a small file could fill memory
            raise DataError(f"{told.num_rows:,} rows are more than its bytes", show(file), "give one that holds images")
        if double := next((name for name in schema.names if schema.names.count(name) > 1), None):
            raise DataError(f"two columns named {double!r}", show(file), "keep one of them")
        types = dict(zip(schema.names, schema.types, strict=True))
        self.image = self._choose([n for n, t in types.items() if _is_image(t)], _IMAGE_NAMES, "image")
        self.label = self._choose([n for n, t in types.items() if _is_label(t)], _LABEL_NAMES, "label")
        self.integer: bool = pa.types.is_integer(types[self.label])
        self.classes = _class_names(schema.metadata, self.label) if self.integer else None

    def _choose(self, found: list[str], preferred: tuple[str, ...], what: str) -> str:
        for name in preferred:
            if name in found:
                return name
        if len(found) == 1:
            return found[0]
        problem = f"several columns could be the {what}: {', '.join(found)}" if found else f"no {what} column"
        raise DataError(problem, show(self.file), f"name the {what} column {preferred[0]!r}")

    def read_names(self) -> list[str]:
        """The class name of every row."""
        names = []
        for row, value in enumerate(_read_column(self.file, self.label).to_pylist()):
            if value is None or value == "":
                raise DataError("the label is empty", f"{show(self.file)} row {row}", "give every row a label")
            if self.classes is not None and not 0 <= value < len(self.classes):
                fix = f"the file names {len(self.classes)} classes: use labels 0 to {len(self.classes) - 1}"
                raise DataError(f"label {value} has no name", f"{show(self.file)} row {row}", fix)
            names.append(printable(str(value)) if self.classes is None else self.classes[value])
        return names


def _files(path: Path) -> dict[str, list[str]]:
    """{split that the file names say, "" for a single file: the files}."""
    if path.is_file():
        return {"": [str(path)]}
    found = sorted(path.glob("*.parquet"))
    groups = {split: [str(f) for f in found if f.name.lower().startswith(split)] for split in SPLITS}
    if any(groups.values()):
        return {split: files for split, files in groups.items() if files}
    if len(found) == 1:
        return {"": [str(found[0])]}
    raise DataError("no train*.parquet among the files", show(path), "name them train*, val* and test*.parquet")


def _read_column(file: str, column: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(file, columns=[column], memory_map=True)[column]
    except (OSError, pa.ArrowException) as error:
        raise _broken(file, error) from error


def _is_image(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_image(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_label(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _class_names(metadata: dict[bytes, bytes] | None, column: str) -> tuple[str, ...] | None:
    """The names of a Hugging Face ``ClassLabel``, or None where the file has none."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(printable(str(name)) for name in features[column]["names"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None


def _broken(file: str, error: Exception) -> DataError:
    return DataError(f"cannot read the Parquet file ({error})"[:160], show(file), "restore it from its original")

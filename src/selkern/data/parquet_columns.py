"""The columns of a Parquet file: which hold images, labels and splits, and what the labels mean."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selkern.data.decode import is_pointer, not_pulled, show
from selkern.data.listing import split_word
from selkern.data.table_options import TableOptions
from selkern.data.tables import LABEL_NAMES, SPLIT_NAMES, column_called, plain
from selkern.errors import DataError, printable

_IMAGE_NAMES = ("img", "image")
_LABEL_NAMES = ("label", "labels", "fine_label")
UNLABELLED = -1  # what a ClassLabel of the Hub says of an image without a label


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Of one file."""

    file: str
    image: str
    """Name of the column of encoded images."""
    label: str
    split: str | None
    """None where rows are of the split that the file's name says."""
    classes: tuple[str, ...] | None
    """Class names of integer labels, where the file has them."""
    integer: bool
    """Whether labels are numbers."""
    splits: tuple[str, ...] | None
    """Names of the splits, where the column holds numbers."""
    rows: int
    notes: tuple[str, ...]

    def read_labels(self) -> list[str | DataError | None]:
        """The class name of every row; None where it has none by intention, an error, without a place, where by slip.

        Where no row of a file has a label, that is the intention.
        """
        values = read_column(self.file, self.label).to_pylist()
        if all(value is None for value in values):
            return values
        return [self._label(value) for value in values]

    def read_splits(self) -> list[str] | None:
        """The word for the split in every row; None without such a column."""
        if self.split is None:
            return None
        values = read_column(self.file, self.split).to_pylist()
        if not any(value not in (None, "") for value in values):
            return None
        if self.splits is None:
            return [str(value or "") for value in values]
        return [self.splits[v] if v is not None and 0 <= v < len(self.splits) else "" for v in values]

    def _label(self, value: Any) -> str | DataError | None:
        if value is None or value == "":
            return DataError("the label is empty", fix="give every row a label")
        if self.classes is None:
            return str(value).lower() if isinstance(value, bool) else printable(str(value))
        if value == UNLABELLED:
            return None
        if not 0 <= value < len(self.classes):
            fix = f"the file names {len(self.classes)} classes: use labels 0 to {len(self.classes) - 1}"
            return DataError(f"label {value} has no name", fix=fix)
        return self.classes[value]


def may_hold_images(file: str | Path) -> bool:
    """Whether a file has a column that could be of images, or cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return any(map(_is_image, pq.read_schema(file).types))
    except (OSError, pa.ArrowException):
        return True


def find_columns(file: str, asked: TableOptions) -> Columns:
    """The columns of a file.

    Raises:
        DataError: it cannot be read, or lacks one, or several could be it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        content = pq.read_metadata(file)
        schema = content.schema.to_arrow_schema()
    except (OSError, pa.ArrowException) as error:
        raise broken(file, error) from error
    if content.num_rows > Path(file).stat().st_size:  # labels alike pack so well that a small file could fill memory
        raise DataError(f"{content.num_rows:,} rows are more than its bytes", show(file), "give one that holds images")
    if double := next((name for name in schema.names if schema.names.count(name) > 1), None):
        raise DataError(f"two columns named {double!r}", show(file), "keep one of them")
    types = dict(zip(schema.names, schema.types, strict=True))
    image = _choose_image(types, asked.path_column, file)
    _require_bytes(content, image, file)
    others = {name: kind for name, kind in types.items() if name != image}
    split = _choose_split(others, asked.split_column, file)
    label, notes = _choose_label({n: k for n, k in others.items() if n != split}, asked.label_column, file)
    integer = bool(pa.types.is_integer(types[label]))
    return Columns(
        file=file,
        image=image,
        label=label,
        split=split,
        classes=_class_names(schema.metadata, label) if integer else None,
        integer=integer,
        splits=_class_names(schema.metadata, split) if split else None,
        rows=content.num_rows,
        notes=notes,
    )


def read_column(file: str, column: str) -> Any:
    """A chunked array. Raises DataError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(file, columns=[column], memory_map=True)[column]
    except (OSError, pa.ArrowException) as error:
        raise broken(file, error) from error


def broken(file: str, error: Exception) -> DataError:
    """A file that pyarrow cannot read."""
    with contextlib.suppress(OSError), Path(file).open("rb") as stream:
        if is_pointer(stream.read(64)):
            return not_pulled(show(file))
    return DataError(f"cannot read the Parquet file ({error})"[:160], show(file), "restore it from its original")


def _choose_image(types: dict[str, Any], asked: str | None, file: str) -> str:
    if asked is not None:
        name, _ = column_called(list(types), asked, (), "path", show(file))
        assert name is not None
        if not _is_image(types[name]):
            raise _wrong(name, types[name], "hold encoded images", file)
        return name
    fitting = [name for name, kind in types.items() if _is_image(kind)]
    if (name := _preferred(fitting, _IMAGE_NAMES)) is not None:
        return name
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        what = f"several columns could be the image: {', '.join(fitting)}"
        raise DataError(what, show(file), "choose by --path-column")
    called = _preferred(list(types), (*_IMAGE_NAMES, "images", "imgs", "pixel_values"))
    if called is not None:
        raise _wrong(called, types[called], "hold encoded images", file, "no image column: ")
    raise DataError("no image column", show(file), f"its columns are {', '.join(types)[:200]}")


def _require_bytes(content: Any, image: str, file: str) -> None:
    """Raise DataError where all images of a file are empty, by its statistics: datasets can store names alone."""
    empty = 0
    for group in map(content.row_group, range(content.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            if chunk.path_in_schema in (image, f"{image}.bytes") and chunk.statistics is not None:
                empty += chunk.statistics.null_count or 0
    if empty and empty == content.num_rows:
        fix = "store the images themselves in it, or give a CSV of path,label"
        raise DataError(f"the column {printable(image)!r} holds no image, at most their names", show(file), fix)


def _choose_label(types: dict[str, Any], asked: str | None, file: str) -> tuple[str, tuple[str, ...]]:
    """The column of labels, and a note where it is not called so."""
    if asked is not None:
        name, _ = column_called(list(types), asked, (), "label", show(file))
        assert name is not None
        if not _is_label(types[name]):
            raise _wrong(name, types[name], "be a class", file)
        return name, ()
    fitting = [name for name, kind in types.items() if _is_label(kind) and not name.startswith("__index_level_")]
    if (name := _preferred(fitting, _LABEL_NAMES)) is not None:
        return name, () if name != "fine_label" else ("labels are taken from the column 'fine_label'",)
    named, note = column_called(fitting, None, LABEL_NAMES, "label", show(file))
    if named is not None:
        return named, (note,) if note else ()
    called = _preferred(list(types), (*_LABEL_NAMES, *LABEL_NAMES))
    if called is not None:
        raise _wrong(called, types[called], "be a class", file)
    if len(fitting) == 1:
        return fitting[0], (f"labels are taken from the column {printable(fitting[0])!r}",)
    what = f"several columns could be the label: {', '.join(fitting)}" if fitting else "no label column"
    raise DataError(what, show(file), "choose by --label-column" if fitting else "add a column called label")


def _choose_split(types: dict[str, Any], asked: str | None, file: str) -> str | None:
    """The column of splits, if there is one; one that is not called split must hold such words."""
    name, _ = column_called(
        [name for name, kind in types.items() if _is_label(kind)], asked, SPLIT_NAMES, "split", file
    )
    if name is None or asked is not None or plain(name) == SPLIT_NAMES[0]:
        return name
    words = read_column(file, name).unique().to_pylist()
    return name if all(isinstance(word, str) and split_word(word) for word in words) else None


def _preferred(names: Sequence[str], preferred: Sequence[str]) -> str | None:
    """The first of the preferred names that is there."""
    return next((name for name in preferred if name in names), None)


def _wrong(column: str, kind: Any, use: str, file: str, before: str = "") -> DataError:
    hint = {"be a class": "give whole numbers or text", "hold encoded images": "store JPEG or PNG bytes"}[use]
    what = f"{before}the column {printable(column)!r} holds {kind}, which cannot {use}"
    return DataError(what, show(file), f"{hint}, or choose another column")


def _is_image(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _is_image(kind.field("bytes").type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_label(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    tests: tuple[Callable[[Any], bool], ...] = (
        pa.types.is_integer,
        pa.types.is_string,
        pa.types.is_large_string,
        pa.types.is_boolean,
        pa.types.is_null,  # of a file without any label
    )
    return any(test(kind) for test in tests)


def _class_names(metadata: dict[bytes, bytes] | None, column: str) -> tuple[str, ...] | None:
    """The names of a Hugging Face ``ClassLabel``, or None where the file has none."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(printable(str(name)) for name in features[column]["names"])
    except (KeyError, TypeError, ValueError, RecursionError):
        return None

"""``open_source``: what the user gave as data -> a ``Source``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from selkern.data.advice import not_data
from selkern.data.decode import show
from selkern.data.listing import is_file, is_folder
from selkern.data.shard_names import TAR, find_shards, is_pattern
from selkern.data.split import OnBad, Options, Source, Split
from selkern.data.stores import is_address
from selkern.data.table_options import TableOptions
from selkern.data.tables import TABLES
from selkern.errors import DataError, printable

__all__ = ["Source", "Split", "open_source"]

_ACCEPTED = "give digits, a folder with train/ and val/, a folder of class folders, a .csv, .parquet or .tar file"


def open_source(
    data: str,
    *,
    seed: int = 0,
    val_fraction: float = 0.1,
    classes: Sequence[str] | None = None,
    split_csv: Path | None = None,
    on_bad: OnBad = "error",
    table: TableOptions | None = None,
    keep_gone: bool = False,
    cut: bool = True,
    parts: Mapping[str, str] | None = None,
) -> Source:
    """Open images with labels. Reads names and labels, no pixels, and writes nothing.

    Args:
        data: "digits" (drawn here; "digits:scale=1.5-3" as `open_digits` says), a folder with train/ [val/] [test/],
            a folder of class folders, a CSV (path,label[,split]), a Parquet file or tar shard, a folder of these, a
            pattern of shards (train-{000000..001023}.tar), or an address of shards (s3://, https://).
        seed: cuts off the splits the source lacks; draws the training scenes of "digits".
        val_fraction: share of the training images that a missing val (and test) split takes.
        classes: the class list of a checkpoint: its ids are kept, a label outside it is a DataError.
        split_csv: the saved split of an earlier run, which then says what is in each part, and in which order. Images
            that it does not know are left out, with a note.
        keep_gone: images of the saved split that are gone keep their place, as ones that cannot be read; else they are
            left out, with a note.
        cut: whether a missing val or test split is cut off; where not, a source without splits is one split, "all".
        parts: {image, by its name in split.csv: its part} of an earlier run, to which images keep where a split is cut
            off: what was trained on is not tested on.
        on_bad: "error" raises a DataError for the first row or file that cannot be an image of a split and says how
            many there are; "skip" leaves them out (`Source.left_out`), with a note. Image files that are missing stay
            listed with "skip": reading them fails.
        table: how to read a table, where its header does not say so.
    """
    options = Options(
        seed=seed,
        val_fraction=val_fraction,
        classes=None if classes is None else tuple(classes),
        split_csv=None if split_csv is None else Path(split_csv),
        on_bad=on_bad,
        table=table or TableOptions(),
        keep_gone=keep_gone,
        cut=cut,
        parts=parts or {},
    )
    if data == "digits" or data.startswith("digits:"):
        from selkern.data.scenes import open_digits

        return open_digits(options, data.partition(":")[2] if ":" in data else None)
    if not data.strip():  # which a path would take for the folder we are in
        raise DataError("no such data", "(empty name)", _ACCEPTED)
    if is_address(data) or (is_pattern(data) and not os.path.lexists(data)):
        return _open_shards(data, options)
    try:
        path = Path(data).expanduser()
    except RuntimeError as error:  # ~name, where nobody is called so
        raise DataError("no such home folder", data, "write the whole path") from error
    if is_folder(path):
        return _open_folder(path, options)
    from selkern.data.parquet import PARQUET, open_parquet

    if is_file(path) and path.suffix.lower() in PARQUET:
        return open_parquet(path, [path], options)
    if is_file(path) and path.suffix.lower() in TABLES:
        from selkern.data.listed import open_csv

        return open_csv(path, options)
    if is_file(path) and path.suffix.lower() == TAR:
        return _open_shards(str(path), options)
    if os.path.lexists(path):
        raise not_data(path, _ACCEPTED)
    raise DataError("no such data", show(data), _ACCEPTED)


def _open_folder(path: Path, options: Options) -> Source:
    # Here, since it needs torch, which a command's help comes without.
    from selkern.data.parquet import find_parquet, open_parquet

    if parquets := find_parquet(path):
        return open_parquet(path, parquets, options)
    from selkern.data.files import open_folder
    from selkern.data.listed import find_tables, open_tables

    if tables := find_tables(path, options):
        return open_tables(path, tables, options)
    if shards := find_shards(path):
        return _open_shards(str(path), options, shards)
    return open_folder(path, options)


def _open_shards(data: str, options: Options, found: Sequence[str] = ()) -> Source:
    from selkern.data.shards import open_shards

    if is_address(data) and not data.partition("?")[0].lower().endswith((TAR, "/")) and "." in data.rpartition("/")[2]:
        raise DataError(
            "a web address, not of .tar shards", printable(data), "download it, and give the folder or file"
        )
    return open_shards(data, options, found)

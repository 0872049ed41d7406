"""Writing files so that a kill at any moment leaves the old one or the new one, never half of one."""

from __future__ import annotations

import csv
import errno
import io
import itertools
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from selkern.errors import ResourceError, UsageError

_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def require_new(path: Path, flag: str = "--output") -> None:
    """Raise UsageError unless a new file can be made at `path`, which the user gave by `flag`."""
    if path.exists() or path.is_symlink():
        raise UsageError("exists already", f"{flag} {path}", "give a new file")
    if not path.parent.is_dir():
        raise UsageError("no such folder", f"{flag} {path.parent}", "make it first, or choose another")


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write `data` beside `path`, sync it, and rename it into place.

    Staged in the same folder, because a rename is atomic only within one file system.

    Raises:
        ResourceError: the disk is full or the folder cannot be written to; the old file is untouched.
    """
    with _staged(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def _staged(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path`, which takes its place when the block is left without an error."""
    staged = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with staged.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        staged.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):  # where nothing can be written, perhaps nothing can be removed either
            staged.unlink(missing_ok=True)
        raise cannot_write(path, error) from error


def append(path: Path, text: str) -> None:
    """Add text to the end of a file, which a failure or a kill may cut short.

    Raises:
        ResourceError: the disk is full or the file cannot be written to.
    """
    try:
        with path.open("a") as file:
            file.write(text)
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> ResourceError:
    """The error to show instead of what the system raised."""
    fix = (
        "choose a folder that can be written to" if error.errno in _FORBIDDEN else "free space or choose another folder"
    )
    return ResourceError(f"cannot write ({error.strerror or error})", str(path), fix)


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A CSV file, written whole or not at all; its rows are taken one after the other."""
    with _staged(path) as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
        text.detach()


def require_space(folder: Path, size: int) -> None:
    """Raise ResourceError where a disk has less room than `size` bytes."""
    free = shutil.disk_usage(folder).free
    if free < size:
        what = f"{free / 2**20:.0f} MiB are free, {size / 2**20:.0f} are needed for the saved states"
        raise ResourceError(what, str(folder), "free space or choose another --output")


def new_folder(base: Path, name: str) -> Path:
    """Make `base/name`, or `name-2` and so on where that exists. Raises OSError where it cannot be made."""
    base.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        path = base / (name if number == 1 else f"{name}-{number}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise AssertionError("there is always a next number")

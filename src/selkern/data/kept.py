"""Indexes of large data sets, kept in the user's cache folder, so that the next start need not look again.

An index is some arrays, each a .npy file that is mapped into memory: the processes of a machine share it, however they
are started, and a worker that is sent such an array opens the file. What is in doubt is made anew.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from selkern.data.decode import show
from selkern.io import sync_folder

Arrays = Mapping[str, NDArray[Any]]

_FORM = 1  # of the files: others are not read
_STAMP = "stamp.json"
_OLD = 7 * 86400.0  # s after which an index that another has replaced is removed: nobody opens it any more


def cache_folder() -> Path:
    """$SELKERN_CACHE, else selkern/ in the system's folder for what can be made again."""
    if given := os.environ.get("SELKERN_CACHE"):
        return Path(given).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "selkern"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "selkern"


class Mapped(np.memmap):
    """A memory-mapped array that pickles as the name of its file and its place there."""

    _mmap: mmap.mmap | None  # of numpy's class

    def __reduce__(self) -> Any:
        array = np.asarray(self)
        if self._mmap is None or self.filename is None or not array.flags.c_contiguous:
            return np.array, (np.array(array),)
        # The mapping begins with a whole page.
        page = self.offset - self.offset % mmap.ALLOCATIONGRANULARITY
        start = page + array.ctypes.data - np.frombuffer(self._mmap, dtype=np.uint8).ctypes.data
        return _map, (str(self.filename), array.dtype.str, start, array.shape)


def _map(file: str, dtype: str, start: int, shape: tuple[int, ...]) -> NDArray[Any]:
    return Mapped(file, dtype=np.dtype(dtype), mode="r", offset=start, shape=shape)


@dataclass(frozen=True)
class Index:
    """What is kept of one data set."""

    stamp: str
    """What it was made of: an index of another stamp is out of date."""
    arrays: Arrays
    """Read-only."""


def find_index(name: str) -> Index | None:
    """The newest index of a data set; None where there is none that can be read.

    Args:
        name: of the data set and of the way it is read, unlike all others.
    """
    with suppress(OSError, ValueError, EOFError, KeyError, TypeError, RuntimeError):  # RuntimeError: without a home
        made = [file for file in _place(name).glob(f"*/{_STAMP}") if not file.parent.name.startswith(".")]
        return _open(max(made, key=lambda file: file.stat().st_mtime_ns).parent) if made else None
    return None


def keep_index(name: str, stamp: str, arrays: Arrays) -> tuple[Arrays, tuple[str, ...]]:
    """Keep an index -> (its arrays, from now on those of the files; a note where that is not possible)."""
    try:
        place = _place(name)
        place.mkdir(parents=True, exist_ok=True)
        for old in place.iterdir():
            if old.stat().st_mtime < time.time() - _OLD:
                shutil.rmtree(old, ignore_errors=True)
        staged = place / f".{os.getpid()}.tmp"
        made = place / f"{time.time_ns():x}"
        shutil.rmtree(staged, ignore_errors=True)
        try:
            staged.mkdir()
            for key, array in arrays.items():
                with (staged / f"{key}.npy").open("wb") as file:
                    np.save(file, array, allow_pickle=False)
                    file.flush()
                    os.fsync(file.fileno())
            (staged / _STAMP).write_text(json.dumps({"stamp": stamp, "arrays": list(arrays)}), encoding="utf-8")
            staged.rename(made)
            sync_folder(place)
        finally:
            shutil.rmtree(staged, ignore_errors=True)
        return _open(made).arrays, ()
    except (OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        what = f"no index can be kept in {show(cache_folder())} ({reason}): the next start takes as long"
        return arrays, (f"{what}; SELKERN_CACHE names another folder",)


def kept_index(name: str, stamp: str, build: Callable[[], Arrays]) -> tuple[Arrays, tuple[str, ...]]:
    """The arrays of a data set, from its index if that has this stamp, else built and kept -> (arrays, notes).

    Args:
        name: as in ``find_index``.
        stamp: what the data set is now, such as sizes and times of its files.
        build: makes the arrays; of several processes on a machine, one builds and the others wait.
    """
    with building(name):
        index = find_index(name)
        if index is not None and index.stamp == stamp:
            return index.arrays, ()
        return keep_index(name, stamp, build())


@contextmanager
def building(name: str) -> Iterator[None]:
    """Within, no other process on this machine builds the same index; where there are no locks, both may."""
    handle = None
    with suppress(OSError, ImportError, RuntimeError):
        import fcntl  # not on Windows

        _place(name).parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(_place(name).with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _place(name: str) -> Path:
    digest = hashlib.blake2b(f"{_FORM}\0{name}".encode("utf-8", "surrogateescape"), digest_size=12)
    return cache_folder() / "index" / digest.hexdigest()


def _open(folder: Path) -> Index:
    """The index in a folder. What is not as it was written raises any of the errors that ``find_index`` knows."""
    said = json.loads((folder / _STAMP).read_text(encoding="utf-8"))
    arrays: dict[str, NDArray[Any]] = {}
    for key in said["arrays"]:
        array = np.load(folder / f"{key}.npy", mmap_mode="r", allow_pickle=False)
        arrays[key] = array.view(Mapped) if isinstance(array, np.memmap) else array
    return Index(str(said["stamp"]), arrays)

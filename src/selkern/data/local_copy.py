"""``--local-cache``: shards of a store copied whole to this machine when they are first needed, and read there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from selkern.data.decode import show
from selkern.data.stores import LocalFiles, Range, Stamp, Store
from selkern.errors import DataError
from selkern.io import cannot_write, sync_folder
from selkern.progress import doing

_PIECE, _PIECES = 1 << 23, 4  # bytes of a request, and requests at once


class LocalCopies:
    """Files of a store, each copied once for all processes of this machine.

    Args:
        store: where they lie.
        folder: for the copies; made where it is not there.
    """

    def __init__(self, store: Store, folder: str) -> None:
        self.store, self.folder = store, Path(folder).expanduser()
        self._local = LocalFiles()

    def stamp(self, file: str) -> Stamp:
        """As the store has it."""
        return self.store.stamp(file)

    def open(self, file: str, stamp: Stamp) -> IO[bytes]:
        """The copy, opened."""
        return self._local.open(self._copy(file, stamp), stamp)

    def read(self, file: str, stamp: Stamp, start: int, length: int, where: str) -> bytes:
        """Some bytes of the copy. Raises ResourceError where it cannot be made."""
        for attempt in range(2):
            copy = self._copy(file, stamp)
            try:
                return self._local.read(copy, self._local.stamp(copy), start, length, where)
            except DataError:  # somebody has removed or changed it: it is copied once more
                if attempt:
                    raise
        raise AssertionError("the second attempt returns or raises")

    def read_some(self, wanted: Sequence[tuple[Stamp, Range]]) -> list[bytes | None]:
        """None of them: a copy is read when it is there."""
        return [None] * len(wanted)

    def _copy(self, file: str, stamp: Stamp) -> str:
        """The copy of a file, which is made where it is not there. Raises ResourceError."""
        digest = hashlib.blake2b(f"{file}\0{stamp.version}\0{stamp.size}".encode(), digest_size=8).hexdigest()
        name = file.partition("?")[0].rpartition("/")[2]
        copy = self.folder / f"{digest}-{name}"
        if _is_whole(copy, stamp):
            return str(copy)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _alone(self.folder / f".{digest}.lock"):
                if not _is_whole(copy, stamp):
                    self._fetch(file, stamp, copy)
        except OSError as error:
            raise cannot_write(copy, error) from error
        return str(copy)

    def _fetch(self, file: str, stamp: Stamp, copy: Path) -> None:
        doing(f"copying {show(copy.name.partition('-')[2])} to {show(self.folder)}")
        staged = copy.with_name(f".{copy.name}.{os.getpid()}.tmp")
        try:
            with staged.open("wb") as target:
                for first in range(0, stamp.size, _PIECE * _PIECES):
                    last = min(first + _PIECE * _PIECES, stamp.size)
                    ranges = [(file, at, min(_PIECE, last - at)) for at in range(first, last, _PIECE)]
                    hits = self.store.read_some([(stamp, one) for one in ranges])
                    for (_, start, length), data in zip(ranges, hits, strict=True):
                        target.write(data or self.store.read(file, stamp, start, length, file))
                target.flush()
                os.fsync(target.fileno())
            staged.replace(copy)
            sync_folder(copy.parent)
        finally:
            with suppress(OSError):
                staged.unlink(missing_ok=True)


def _is_whole(copy: Path, stamp: Stamp) -> bool:
    try:
        return copy.stat().st_size == stamp.size
    except OSError:
        return False


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Within, no other process on this machine makes the same copy; without locks both make it, one after the other."""
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        with suppress(ImportError):
            import fcntl  # not on Windows

            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)

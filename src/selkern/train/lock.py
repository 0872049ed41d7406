"""A run is trained by one job at a time: a lock on its folder that ends with the process, however it ends."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from selkern.errors import ResourceError
from selkern.train.distributed import Ranks

if sys.platform != "win32":
    import fcntl

FILE = ".lock"  # in the run's folder; it stays there, the lock does not


@contextmanager
def locked(folder: Path, ranks: Ranks, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a run within the block; rank 0 holds it for all. Reading the run needs none.

    Args:
        folder: of the run.
        say: told where a file system has no locks.

    Raises:
        ResourceError: another process trains this run, on every rank.
    """
    handle, holder = _take(folder / FILE, say) if ranks.main else (None, "")
    if holder := ranks.from_main(holder):
        if handle is not None:
            os.close(handle)
        fix = "wait for its end or stop it; `evaluate` and `predict` work meanwhile"
        raise ResourceError(f"this run is being trained by {holder}", str(folder), fix)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _take(file: Path, say: Callable[[str], None]) -> tuple[int | None, str]:
    """The open file that holds the lock, and "", or who else has it."""
    if sys.platform == "win32":  # which has no such locks
        return None, ""
    try:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError:  # a folder that cannot be written to: what is to be written there says so
        return None, ""
    try:
        # Not flock: workers, which are forked, would keep such a lock for some seconds after a kill.
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return handle, os.pread(handle, 300, 0).decode(errors="replace").strip() or "another process"
        os.close(handle)
        say(f"warning: no lock on {file.parent} ({error.strerror}): see that no other process trains this run")
        return None, ""
    with suppress(OSError):  # a full disk: the lock holds all the same
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return handle, ""

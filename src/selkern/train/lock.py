"""A run is trained by one job at a time: a lock on its folder that ends with the process, however it ends."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO

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
        ResourceError: another process trains this run, on every rank; or the folder cannot be written to.
    """
    file, holder = _take(folder / FILE, say) if ranks.main else (None, "")
    with file or nullcontext():
        if holder := ranks.from_main(holder):
            fix = "wait for its end or stop it; `evaluate` and `predict` work meanwhile"
            raise ResourceError(f"this run is being trained by {holder}", str(folder), fix)
        yield


def _take(path: Path, say: Callable[[str], None]) -> tuple[IO[bytes] | None, str]:
    """The open file that holds the lock, and "", or who else has it.

    Raises:
        ResourceError: the folder cannot be written to.
    """
    if sys.platform == "win32":  # which has no such locks
        return None, ""
    try:
        file = path.open("ab")
        try:
            # Not flock: workers, which are forked, would keep such a lock for some seconds after a kill.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return None, path.read_text(errors="replace").strip()[:300] or "another process"
            say(f"warning: no lock on {path.parent} ({error.strerror}): see that no other process trains this run")
            return None, ""
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        file.flush()
    except OSError as error:
        fix = "free space, or give yourself the right to write there"
        raise ResourceError(f"cannot write ({error.strerror})", str(path), fix) from error
    return file, ""

"""Writes that can be made to fail: every call by which this process changes files, and a folder put back as it was."""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import os
import shutil
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FD = Path("/proc/self/fd")


@dataclass(frozen=True)
class Fault:
    """What a call meets instead of success.

    Attributes:
        code: name of the error, as in `errno`.
        for_ever: it meets every call from then on, and not this one alone.
        short: the call, a write, takes half of its bytes first.
    """

    code: str
    for_ever: bool = False
    short: bool = False

    def __str__(self) -> str:
        return f"{'half a write, then ' if self.short else ''}{self.code} {'from then on' if self.for_ever else 'once'}"

    def error(self, path: str | None = None) -> OSError:
        """The error as the system raises it; calls that are given a file by its number name none."""
        number: int = getattr(errno, self.code)
        return OSError(number, os.strerror(number), *([] if path is None else [path]))


Meet = Callable[[str, Path], "Fault | None"]


class _Raw(io.FileIO):
    """A file opened for writing, below the buffers of Python: each of its writes is one of the system."""

    meet: Meet
    _fault: Fault | None = None  # of a write whose first half went through

    def write(self, data: Any) -> int:
        met, self._fault = self._fault, None
        if met is None and (met := self.meet("write", Path(self.name))) is not None and met.short and len(data) > 1:
            self._fault = met
            return super().write(memoryview(data)[: len(data) // 2])
        if met is not None:
            raise met.error()
        return super().write(data)


def watch(meet: Meet) -> None:
    """From now on, ask `meet` before every call by which this process changes files, and obey.

    Args:
        meet: (kind of call, path) -> the fault that the call meets; None lets it through. The kinds are open, write,
            fsync, rename, mkdir, unlink, rmdir, "open folder" (to sync it) and "empty folder" (opened to do so).
    """
    original = io.open

    def open_file(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **named: Any) -> Any:
        if isinstance(file, int) or not set(mode) & set("wax+"):
            return original(file, mode, buffering, *rest, **named)
        path = Path(os.path.abspath(file))  # noqa: PTH100 - a name, not a file that is there
        if (met := meet("open", path)) is not None:
            raise met.error(str(file))
        raw = _Raw(path, mode.replace("b", "").replace("t", ""))
        raw.meet = meet
        binary = io.BufferedWriter(raw)
        return binary if "b" in mode else io.TextIOWrapper(binary, *rest, **named)

    io.open = builtins.open = open_file
    for name in ("open", "replace", "rename", "mkdir", "unlink", "rmdir"):
        _wrap(name, meet)
    sync = os.fsync

    def fsync(fd: Any) -> None:
        if (met := meet("fsync", (_FD / str(fd)).readlink())) is not None:
            raise met.error()
        sync(fd)

    os.fsync = fsync


def _wrap(name: str, meet: Meet) -> None:
    """Put `meet` before a function of `os` on a path, perhaps within an open folder; a rename's is the new name."""
    original = getattr(os, name)

    def wrapped(path: Any, *args: Any, **named: Any) -> Any:
        reported, folder, kind = path, named.get("dir_fd"), name
        if name in ("replace", "rename"):
            reported, kind = args[0], "rename"
        elif name == "open" and not args[0] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            kind = "empty folder" if "dir_fd" in named else "open folder"  # as shutil.rmtree does it, and nobody else
        full = Path(os.path.abspath(reported)) if folder is None else (_FD / str(folder)).readlink() / reported  # noqa: PTH100
        if (met := meet(kind, full)) is not None:
            raise met.error(str(path))
        return original(path, *args, **named)

    setattr(os, name, wrapped)


def put_aside(folder: Path, aside: Path) -> None:
    """Move a folder away, with the files of it that this process has open, and leave a copy in its place."""
    folder.rename(aside)
    shutil.copytree(aside, folder)


def take_copy(folder: Path, aside: Path) -> None:
    """Of a fork, after `put_aside`: let files that are open be the copy's, at the same places in them."""
    for link in list(_FD.iterdir()):
        with suppress(FileNotFoundError):  # the one by which the list itself was read
            number, path = int(link.name), link.readlink()
            if path.is_relative_to(aside):
                flags = fcntl.fcntl(number, fcntl.F_GETFL) & ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC)
                copy = os.open(folder / path.relative_to(aside), flags)
                if stat.S_ISREG(os.fstat(number).st_mode):
                    os.lseek(copy, os.lseek(number, 0, os.SEEK_CUR), os.SEEK_SET)
                os.dup2(copy, number)
                os.close(copy)


def put_back(folder: Path, aside: Path) -> None:
    """Undo `put_aside`, whatever became of the copy."""
    shutil.rmtree(folder)
    aside.rename(folder)

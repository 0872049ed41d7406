"""Bytes of files: on this machine by position, on object stores and web servers by fsspec, with patience."""

from __future__ import annotations

import io
import os
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

from selkern.data.decode import show
from selkern.errors import DataError, PackageError, ResourceError, kind_and_line, printable
from selkern.progress import say

T = TypeVar("T")
Range = tuple[str, int, int]  # file, first byte, number of bytes
WAITS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # s before each further attempt, and up to half as much again
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
_VERSIONS = ("ETag", "etag", "LastModified", "Last-Modified", "updated", "mtime", "Content-MD5")
_WEB = ("http", "https")
_LATER = (408, 425, 429)  # of the 4xx, those that say: not now
_SAY = 30.0  # s between two lines of one process about a store that fails
_BLOCK = 1 << 22  # bytes of a store that are read at once where a shard is gone through


@dataclass(frozen=True)
class Stamp:
    """What a file was when it was listed: another size or version is another file."""

    size: int
    """Bytes."""
    version: str
    """Time of the last change, or the store's own word for a version."""


class Files(Protocol):
    """Where shards lie."""

    def stamp(self, file: str) -> Stamp:
        """What a file is now; DataError where it is not there."""

    def open(self, file: str, stamp: Stamp) -> IO[bytes]:
        """To go through it from the start."""

    def read(self, file: str, stamp: Stamp, start: int, length: int, where: str) -> bytes:
        """Some bytes; DataError at `where` where they cannot be had, ResourceError where no others can either."""

    def read_some(self, wanted: Sequence[tuple[Stamp, Range]]) -> list[bytes | None]:
        """Several ranges at once; None for one that could not be had so."""


def is_address(data: str) -> bool:
    """Whether data are named by an address, as s3://bucket/folder."""
    return "://" in data


class _Handle:
    """An open file, closed when the last that uses it is done."""

    def __init__(self, file: str) -> None:
        self.number = os.open(file, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def __del__(self) -> None:
        with suppress(OSError, AttributeError):
            os.close(self.number)


class LocalFiles:
    """Files of this machine, read by position: processes that are forked may share what is open.

    Args:
        most: files that are kept open.
    """

    def __init__(self, most: int = 0) -> None:
        self.most = most or _most_open()
        self._open: OrderedDict[str, _Handle] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {"most": self.most, "_open": OrderedDict()}

    def stamp(self, file: str) -> Stamp:
        """Size and time of the last change."""
        try:
            status = Path(file).stat()
        except (OSError, ValueError) as error:
            reason = "no such shard" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
            raise DataError(reason, show(file), "check the name and rights") from error
        return _stamp(status)

    def open(self, file: str, stamp: Stamp) -> IO[bytes]:  # noqa: ARG002  read through at once
        """The file, opened."""
        try:
            return Path(file).open("rb", buffering=1 << 13)
        except OSError as error:
            raise DataError(f"cannot be read ({error.strerror})", show(file), "check the name and rights") from error

    def read(self, file: str, stamp: Stamp, start: int, length: int, where: str) -> bytes:
        """Some bytes of a file that is as it was."""
        fix = "restore it, or start again: its index is then made anew"
        try:
            handle = self._handle(file)
            if _stamp(os.fstat(handle.number)) != stamp:
                self._open.pop(file, None)
                raise DataError("the shard was changed since it was listed", where, fix)
            data = _read_at(handle.number, start, length)
        except OSError as error:
            self._open.pop(file, None)
            gone = isinstance(error, FileNotFoundError)
            what = "the shard is gone" if gone else f"the shard cannot be read ({error.strerror or error})"
            raise DataError(what, where, fix) from error
        if len(data) != length:
            raise DataError(f"the shard ends {length - len(data):,} bytes too early", where, fix)
        return data

    def read_some(self, wanted: Sequence[tuple[Stamp, Range]]) -> list[bytes | None]:
        """None of them: the system learns what is needed soon, and reads ahead."""
        if hasattr(os, "posix_fadvise"):
            for _, (file, start, length) in wanted:
                with suppress(OSError):
                    os.posix_fadvise(self._handle(file).number, start, length, os.POSIX_FADV_WILLNEED)
        return [None] * len(wanted)

    def _handle(self, file: str) -> _Handle:
        handle = self._open.get(file)
        if handle is None:
            handle = self._open[file] = _Handle(file)
            while len(self._open) > self.most:
                self._open.popitem(last=False)
        else:
            self._open.move_to_end(file)
        return handle


def _most_open() -> int:
    """A quarter of what a process may have open, at most 256."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    except (ImportError, OSError, ValueError):  # Windows
        limit = 512
    return max(8, min(256, limit // 4)) if limit > 0 else 256


def _stamp(status: os.stat_result) -> Stamp:
    return Stamp(status.st_size, str(status.st_mtime_ns))


def _read_at(handle: int, start: int, length: int) -> bytes:
    """Bytes at a position, fewer at the end of the file."""
    if not hasattr(os, "pread"):  # Windows, where no process inherits what is open
        os.lseek(handle, start, os.SEEK_SET)
        return os.read(handle, length)
    data = os.pread(handle, length, start)
    while 0 < len(data) < length:
        more = os.pread(handle, length - len(data), start + len(data))
        if not more:
            break
        data += more
    return data


_INHERITED: list[Any] = []  # file systems of a parent: at the end of one its connections would be closed, by a child


class Store:
    """Files on an object store or web server, by fsspec; each process has a connection of its own.

    A request that fails is made again, with growing pauses, and what comes is measured: an image is there whole, or the
    run ends and says why (`ResourceError`).

    Args:
        protocol: s3, gs, http, https, ...
    """

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol
        self._pid, self._system = 0, None
        self._said = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {"protocol": self.protocol, "_pid": 0, "_system": None, "_said": 0.0}

    @property
    def system(self) -> Any:
        """The file system of this process: its thread does not live on in a forked one."""
        if self._pid != os.getpid() or self._system is None:
            _INHERITED.append(self._system)
            self._system, self._pid = _file_system(self.protocol), os.getpid()
        return self._system

    def stamp(self, file: str) -> Stamp:
        """Size and version, as the store has them."""
        info = self._again(lambda: self._info(file), file)
        size = info.get("size")
        if not isinstance(size, int):
            fix = "serve it by one that gives sizes and knows ranges, or copy the shards to this machine"
            raise DataError("the server does not say how large it is", printable(file), fix)
        return Stamp(size, next((str(info[name]) for name in _VERSIONS if info.get(name)), ""))

    def _info(self, file: str) -> dict[str, Any]:
        if self.protocol not in _WEB:
            return dict(self.system.info(file))
        from fsspec.asyn import sync

        # fsspec's own calls a server that is overloaded for a moment "not there".
        return dict(sync(self.system.loop, _web_info, self.system, file))

    def names(self, folder: str) -> list[str]:
        """The addresses of what lies in a folder; none where the store does not list."""
        try:
            hits = self._again(lambda: self.system.ls(folder, detail=False), folder)
        except (DataError, RefusedError):
            return []
        place = folder.rstrip("/")
        return [f"{place}/{name.rstrip('/').rpartition('/')[2]}" for name in hits]

    def open(self, file: str, stamp: Stamp) -> IO[bytes]:
        """To be read through in large pieces."""
        return io.BufferedReader(_Stream(self, file, stamp), 1 << 16)

    def read(self, file: str, stamp: Stamp, start: int, length: int, where: str) -> bytes:
        """Some bytes, however often the store has to be asked."""

        def fetch() -> bytes:
            data: bytes = self.system.cat_file(file, start=start, end=start + length)
            if len(data) == length:
                return data
            if len(data) == stamp.size:
                raise _no_ranges(file)
            raise OSError(f"{len(data):,} of {length:,} bytes came")

        return self._again(fetch, where) if length else b""

    def read_some(self, wanted: Sequence[tuple[Stamp, Range]]) -> list[bytes | None]:
        """All at once, each asked for once."""
        files = [file for _, (file, _, _) in wanted]
        starts = [start for _, (_, start, _) in wanted]
        ends = [start + length for _, (_, start, length) in wanted]
        try:
            hits = self.system.cat_ranges(files, starts, ends, on_error="return")
        except Exception:  # noqa: BLE001  whatever it is, it is said of the range that is asked for alone
            return [None] * len(wanted)
        lengths = [length for _, (_, _, length) in wanted]
        return [
            data if isinstance(data, bytes) and len(data) == length else None
            for data, length in zip(hits, lengths, strict=True)
        ]

    def _again(self, action: Callable[[], T], where: str) -> T:
        """What an action gives, which is tried until it does. Raises DataError or ResourceError."""
        for wait in (*WAITS, None):
            try:
                return action()
            except (DataError, ResourceError, ImportError, MemoryError):  # ours, and what no second attempt changes
                raise
            except Exception as error:
                refuse(error, where)
                reason = kind_and_line(error)[:200]
                if wait is None:
                    fix = f"asked {len(WAITS) + 1} times; check the connection, then go on with --resume"
                    raise ResourceError(f"the store does not answer ({reason})", printable(where), fix) from error
                self._report(f"{printable(where)}: {printable(reason)}; asking again in {wait:g} s")
                time.sleep(wait * (1 + random.random() / 2))
        raise AssertionError("the last attempt returns or raises")

    def _report(self, text: str) -> None:
        now = time.monotonic()
        if not self._said or now - self._said > _SAY:
            self._said = now
            say(f"warning: {text}")


def refuse(error: Exception, where: str) -> None:
    """Raise the error of ours for an answer that will not change: not there, or not for us."""
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        raise DataError("not in the store", printable(where), "check the address") from error
    denied = isinstance(error, PermissionError) or status in (401, 403) or "NoCredentials" in type(error).__name__
    if denied:
        fix = "check the address, and the credentials that the store's own client uses"
        raise RefusedError("the store refuses to give it", printable(where), fix) from error
    if isinstance(status, int) and 400 <= status < 500 and status not in _LATER:
        raise ResourceError(f"the store answers {status}", printable(where), "check the address") from error


def _file_system(protocol: str) -> Any:
    """A file system that no other process knows of. Raises DataError and PackageError."""
    import fsspec

    options: dict[str, Any] = {}
    try:
        if protocol in _WEB:
            import aiohttp

            wait = aiohttp.ClientTimeout(total=None, sock_connect=20, sock_read=60)
            options["client_kwargs"] = {"timeout": wait, "trust_env": True}
        return fsspec.filesystem(protocol, skip_instance_cache=True, **options)
    except ImportError as error:
        if protocol in _WEB:
            raise PackageError("aiohttp is not installed", f"{protocol}://", "pip install 'selkern[remote]'") from error
        package = _PACKAGES.get(protocol)
        fix = f"pip install {package}" if package else printable(kind_and_line(error))[:200]
        raise PackageError(f"{package or 'a package'} is not installed", f"{protocol}://", fix) from error
    except ValueError as error:  # fsspec's for a protocol that it does not know
        fix = "give https://, s3:// or gs://, or a file of this machine"
        raise DataError(f"unknown kind of address {protocol}://", protocol, fix) from error


async def _web_info(system: Any, file: str) -> dict[str, Any]:
    """Size and version of a file on a web server, by a request for its first byte, as all others are made."""
    session = await system.set_session()
    async with session.get(system.encode_url(file), headers={"Range": "bytes=0-0"}) as answer:
        if answer.status == 416:  # an empty file has no first byte
            return {"size": 0}
        answer.raise_for_status()
        if answer.status != 206:
            raise _no_ranges(file)
        total = answer.headers.get("Content-Range", "").rpartition("/")[2]
        if not total.isdecimal():
            raise OSError("no size came")
        return {**answer.headers, "size": int(total)}


def _no_ranges(file: str) -> ResourceError:
    fix = "serve them by one that does, or copy the shards to this machine"
    return ResourceError("the server knows no ranges: it sends the whole shard", printable(file), fix)


class RefusedError(ResourceError):
    """The store has it perhaps, and not for us."""


class _Stream(io.RawIOBase):
    """A file of a store as one to read and seek in, fetched in blocks.

    Args:
        store: that has it.
        file: its address.
        stamp: what it is.
    """

    def __init__(self, store: Store, file: str, stamp: Stamp) -> None:
        self.store, self.file, self.stamp = store, file, stamp
        self._at, self._start, self._block = 0, 0, b""

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.stamp.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        """The next bytes."""
        if not self._start <= self._at < self._start + len(self._block):
            self._start = self._at
            length = min(_BLOCK, max(0, self.stamp.size - self._at))
            self._block = self.store.read(self.file, self.stamp, self._at, length, self.file) if length else b""
        piece = self._block[self._at - self._start :][: len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)

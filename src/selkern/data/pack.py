"""``pack_shards``: any images with labels as tar shards, WebDataset's convention, the bytes of the images unchanged."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any

from selkern.data.decode import SUFFIXES, read_header, show
from selkern.data.order import permutation
from selkern.data.shards import CLASSES
from selkern.data.split import WHOLE, LeftOut, OnBad, Source, Split, Stored, ahead, relative
from selkern.data.tar_members import IMAGES
from selkern.errors import DataError, UsageError
from selkern.io import cannot_write, sync_folder, write_atomic

if TYPE_CHECKING:
    from typing_extensions import Self

_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class PackedPart:
    """The shards of one split."""

    name: str
    """Of the shards, before their number."""
    images: int
    shards: int
    bytes: int
    """Of the images alone."""


@dataclass(frozen=True, kw_only=True)
class Packed:
    """What ``pack_shards`` has written."""

    target: Path
    parts: tuple[PackedPart, ...]
    left_out: tuple[LeftOut, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "target": str(self.target)}


def pack_shards(
    source: Source,
    target: Path,
    shard_bytes: int,
    *,
    seed: int | None = 0,
    on_bad: OnBad = "error",
    progress: Callable[[int], object] = lambda _: None,
) -> Packed:
    """Write the images and labels of a source as shards ``train-000000.tar``, ..., and classes.json beside them.

    The same source and seed give the same bytes. Images are not decoded.

    Args:
        source: opened without a cut, so that the shards have the splits which the source has.
        target: a new or empty folder.
        shard_bytes: of a shard, at most, unless one image is larger.
        seed: mixes the images of each split over its shards, which lets ``--shuffle shards`` mix well; None keeps the
            order of the source.
        on_bad: an image whose bytes cannot be read is an error, or is left out.
        progress: called with a number of images whenever so many more are done.

    Raises:
        UsageError: the source is drawn, or the folder is not empty.
        DataError: an image cannot be read.
        ResourceError: the disk is full.
    """
    if not all(isinstance(part, Stored) for part in source.parts if len(part)):
        raise UsageError("these images are drawn, not stored", source.name, "give a folder, a table or shards")
    parts, left_out = [], list(source.left_out)
    try:
        target.mkdir(parents=True, exist_ok=True)
        if any(target.iterdir()):
            raise UsageError("not empty", f"--to {show(target)}", "give a new folder")
    except OSError as error:
        raise cannot_write(target, error) from error
    write_atomic(target / CLASSES, json.dumps(source.classes, ensure_ascii=False, indent=0))
    for part in source.parts:
        if len(part):
            packed, bad = _pack(part, source, target, shard_bytes, seed, on_bad, progress)
            parts.append(packed)
            left_out += bad
    return Packed(target=target, parts=tuple(parts), left_out=tuple(left_out))


def _pack(
    part: Split,
    source: Source,
    target: Path,
    shard_bytes: int,
    seed: int | None,
    on_bad: OnBad,
    progress: Callable[[int], object],
) -> tuple[PackedPart, list[LeftOut]]:
    """One split's shards, and what is in none."""
    order = range(len(part)) if seed is None else permutation(len(part), seed, 0).tolist()
    name, bad, taken = "images" if part.name == WHOLE else part.name, list[LeftOut](), set[str]()
    images = size = 0
    with _Shards(target, name, shard_bytes) as shards:
        for index, data in _encoded(part, order):
            progress(1)
            where = part.where(index)
            try:
                if isinstance(data, DataError):
                    raise data
                key, suffix = key_of(relative(where, source.root), taken), _suffix(where, data)
            except DataError as error:
                if on_bad == "error":
                    raise
                bad.append(LeftOut(error.where or where, error.what))
                continue
            shards.add(key, {suffix: data, "cls": str(int(part.labels[index])).encode()})
            images, size = images + 1, size + len(data)
    return PackedPart(name, images, shards.count, size), bad


def _encoded(part: Split, order: Sequence[int]) -> Iterator[tuple[int, bytes | DataError]]:
    """The bytes of every image, or why there are none."""
    assert isinstance(part, Stored)
    for index in ahead(part, order):
        try:
            yield index, part.encoded(index)
        except DataError as error:
            yield index, error


def key_of(where: str, taken: set[str]) -> str:
    """The key of a sample by where its image was: its path without suffix and dots, unlike those that are taken."""
    path = PurePosixPath(where.rpartition(" member ")[2])
    parts = [piece for piece in path.parts if piece not in ("/", "..", ".")]
    last = path.stem if path.suffix.lower().removeprefix(".") in IMAGES else path.name
    key = "/".join([*parts[:-1], last.replace(".", "_") or "_"])
    key = re.sub(r"(^|/)__", r"\1_", key)  # names between double underscores are no samples
    number, free = 1, key
    while free in taken:
        number += 1
        free = f"{key}-{number}"
    taken.add(free)
    return free


def _suffix(where: str, data: bytes) -> str:
    """As the file's name has it, else by the image itself. Raises DataError for what is none."""
    suffix = PurePosixPath(where).suffix.lower().removeprefix(".")
    return suffix if suffix in IMAGES else SUFFIXES[read_header(data, where).format][0].removeprefix(".")


class _Shards:
    """Writes samples into one shard after the other, each of which appears when it is whole.

    Args:
        folder: that is there.
        name: of the shards, before their number.
        limit: bytes of one.
    """

    def __init__(self, folder: Path, name: str, limit: int) -> None:
        self.folder, self.name, self.limit = folder, name, limit
        self.count = 0
        self._shard: tarfile.TarFile | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if error is None:
                self._finish()
        finally:
            if self._shard is not None:
                with suppress(OSError):
                    self._shard.close()
                    self._staged.unlink(missing_ok=True)

    @property
    def _staged(self) -> Path:
        return self.folder / f".{self.name}.{os.getpid()}.tmp"

    def add(self, key: str, members: dict[str, bytes]) -> None:
        """One sample. Raises ResourceError where the disk is full."""
        size = sum(_BLOCK + -(-len(data) // _BLOCK) * _BLOCK for data in members.values())
        try:
            if self._shard is not None and self._shard.offset + size + 2 * _BLOCK > self.limit:
                self._finish()
            if self._shard is None:
                self._shard = tarfile.open(self._staged, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115  closed when full
            for suffix, data in members.items():
                member = tarfile.TarInfo(f"{key}.{suffix}")
                member.size, member.mode = len(data), 0o644
                self._shard.addfile(member, io.BytesIO(data))
            self._shard.members.clear()  # type: ignore[attr-defined]  # it keeps every one
        except OSError as error:
            raise cannot_write(self.folder, error) from error

    def _finish(self) -> None:
        """The shard is whole. Raises ResourceError."""
        if self._shard is None:
            return
        try:
            self._shard.close()
            with self._staged.open("rb") as file:
                os.fsync(file.fileno())
            self._staged.replace(self.folder / f"{self.name}-{self.count:06}.tar")
            sync_folder(self.folder)
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        self._shard, self.count = None, self.count + 1

"""One tar shard -> its samples: where the image of each lies in the file, and its label (WebDataset's convention)."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

from selkern.data.decode import HEIF_SUFFIXES, IMAGE_SUFFIXES, MAX_BYTES, is_pointer

IMAGES = frozenset(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES | HEIF_SUFFIXES)
LABEL_KEYS = ("label", "cls", "class", "class_name")  # of a .json; the first that is there
LARGEST_HEADER = 1 << 20  # bytes that may be read to learn a member's name: a header can claim gigabytes
_LARGEST_CLS, _LARGEST_JSON = 1 << 12, 1 << 20
_KEY = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)", flags=re.DOTALL)  # up to the first dot of the last component
_META = re.compile(r"(^|/)(__[^/]*__|__MACOSX)(/|$)")  # what WebDataset passes over, and macOS adds
_NUMBER = re.compile(r"[+-]?\d{1,18}")
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


@dataclass
class Members:
    """The samples of one shard, in its order, and what of it is none."""

    names: list[str] = field(default_factory=list)
    """Of the images' members; bytes that are no UTF-8 are half surrogates, as in the names of files."""
    offsets: list[int] = field(default_factory=list)
    """Where an image begins, bytes from the start of the shard."""
    lengths: list[int] = field(default_factory=list)
    """Of an image, bytes."""
    labels: list[str] = field(default_factory=list)
    """The class of an image: its name, or its number as text."""
    bad: list[tuple[str, str]] = field(default_factory=list)
    """(member, why it is no image with a label)."""
    others: Counter[str] = field(default_factory=Counter)
    """{suffix: members of it that are neither images nor labels}."""
    broken: str = ""
    """Why the shard ends before its end, or is none; empty for a sound one."""


class _Limited(io.RawIOBase):
    """A file of which no member's header can make us read more than `LARGEST_HEADER`.

    Args:
        file: what is read.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.left = file, LARGEST_HEADER

    def read(self, size: int = -1) -> bytes:
        """As a file reads."""
        self.left -= size
        if size < 0 or self.left < 0:
            raise tarfile.ReadError(f"a member's header of over {LARGEST_HEADER:,} bytes")
        return self.file.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        """As a file does."""
        return self.file.seek(offset, whence)


@dataclass
class _Sample:
    """What was found of one key so far."""

    name: str = ""
    offset: int = 0
    length: int = 0
    label: str | None = None
    from_cls: bool = False
    reason: str = ""


def read_members(file: IO[bytes]) -> Members:
    """The samples of a shard: headers and labels are read, images are not.

    Args:
        file: the shard, which can be sought in.
    """
    result = Members()
    samples: dict[str, _Sample] = {}
    head = file.read(512)
    if reason := _no_tar(head):
        result.broken = reason
        return result
    file.seek(0)
    limited = _Limited(file)
    try:
        with tarfile.open(fileobj=limited, mode="r:") as shard:
            for member in _each(shard, limited):
                _take(member, file, samples, result)
            result.broken = _no_end(file, shard.offset)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        result.broken = f"{error}" or type(error).__name__
    for key, sample in samples.items():
        if not sample.name and not sample.reason:  # a label, or a .json, without an image
            result.others["label without an image"] += 1
        elif sample.reason:
            result.bad.append((sample.name or key, sample.reason))
        elif sample.label is None:
            result.bad.append((sample.name, f"no label: neither {key.rpartition('/')[2]}.cls nor a .json with one"))
        else:
            result.names.append(sample.name)
            result.offsets.append(sample.offset)
            result.lengths.append(sample.length)
            result.labels.append(sample.label)
    return result


def _each(shard: tarfile.TarFile, limited: _Limited) -> Iterator[tarfile.TarInfo]:
    while True:
        limited.left = LARGEST_HEADER
        member = shard.next()
        if member is None:
            return
        shard.members.clear()  # type: ignore[attr-defined]  # it keeps every one
        yield member


def _no_tar(head: bytes) -> str:
    if head.startswith(_COMPRESSED):
        return "a compressed tar: images in it cannot be reached in place"
    if is_pointer(head[:64]):
        return "a Git LFS pointer, not the file itself"
    return "" if head else "an empty file (0 bytes)"


def _no_end(file: IO[bytes], offset: int) -> str:
    """Why what lies behind the last member is no end: tarfile takes a broken header for one."""
    file.seek(offset)
    block = file.read(512)
    if len(block) < 512:
        return "cut off: it has no end mark"
    return "broken: a member's header is none" if any(block) else ""


def _take(member: tarfile.TarInfo, file: IO[bytes], samples: dict[str, _Sample], result: Members) -> None:
    """Take in one member."""
    if member.isdir() or _META.search(member.name):
        return
    parts = _KEY.fullmatch(member.name)
    if parts is None:
        result.others["without a suffix"] += not member.name.rpartition("/")[2].startswith(".")
        return
    key, suffix = parts[1], parts[2].lower()
    if suffix in IMAGES:
        _take_image(member, samples.setdefault(key, _Sample()))
    elif suffix in ("cls", "json") and member.isreg():
        sample = samples.setdefault(key, _Sample())
        label, reason = _read_label(member, file, suffix)
        if suffix == "cls":
            reason = reason or ("two .cls members of one key" if sample.from_cls else "")
            sample.label, sample.from_cls = label, True
        elif not sample.from_cls:
            sample.label = label
        sample.reason = sample.reason or reason
    else:
        result.others[f".{suffix}" if re.fullmatch(r"[\w.]{1,20}", suffix) else "without a suffix"] += 1


def _take_image(member: tarfile.TarInfo, sample: _Sample) -> None:
    if sample.name:
        sample.reason = "two images of one key"
    sample.name, sample.offset, sample.length = member.name, member.offset_data, member.size
    if not member.isreg():
        sample.reason = "a link or device, not a file"
    elif member.issparse():
        sample.reason = "stored in pieces (a sparse member)"
    elif member.size > MAX_BYTES:
        sample.reason = f"image file too large: {member.size:,} bytes"


def _read_label(member: tarfile.TarInfo, file: IO[bytes], suffix: str) -> tuple[str | None, str]:
    """(label, None where there is none; why it is none that can be used)."""
    if member.size > (_LARGEST_CLS if suffix == "cls" else _LARGEST_JSON):
        return None, f"a .{suffix} of {member.size:,} bytes"
    file.seek(member.offset_data)
    data = file.read(member.size)
    if len(data) < member.size:
        raise tarfile.ReadError("unexpected end of data")
    try:
        if suffix == "cls":
            text = data.decode().strip()
            return _plain(text), "" if text else "its .cls is empty"
        values = json.loads(data)
    except (ValueError, RecursionError):
        return None, f"its .{suffix} cannot be read"
    if not isinstance(values, dict):
        return None, ""
    value = next((values[name] for name in LABEL_KEYS if values.get(name) is not None), None)
    if value is None:
        return None, ""
    if isinstance(value, (int, str)) and not isinstance(value, bool) and str(value).strip():
        return _plain(str(value).strip()), ""
    return None, f"the label in its .json is {json.dumps(value)[:40]}"


def _plain(text: str) -> str:
    """007 is 7."""
    return str(int(text)) if _NUMBER.fullmatch(text) else text

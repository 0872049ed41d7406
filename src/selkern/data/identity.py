"""Whether two images are the same file: fingerprints of the bytes that they are stored in."""

from __future__ import annotations

import bisect
import hashlib
import io
import itertools
import os
import time
from pathlib import Path
from typing import IO

import numpy as np

from selkern.data.split import Source, Stored, fingerprint, relative
from selkern.data.survey import evenly

MOST = 100_000  # images of a source that are fingerprinted, an even sample of more
SECONDS = 2.0  # that it may take: a far disk gives fewer of them
_PIECE = 1 << 17  # bytes read at the start, the middle and the end of a larger file


def of_file(path: str | Path) -> str:
    """The fingerprint of a file; empty where it cannot be read."""
    try:
        if not Path(path).is_file():
            return ""
        with Path(path).open("rb") as file:
            return _digest(file)
    except (OSError, ValueError):
        return ""


def of_bytes(data: bytes) -> str:
    """The fingerprint of a file that holds these bytes."""
    return _digest(io.BytesIO(data))


def _digest(file: IO[bytes]) -> str:
    """Size and hash; of files that are larger than three pieces, the pieces are hashed."""
    size = file.seek(0, os.SEEK_END)
    digest = hashlib.blake2b(digest_size=8)
    starts = (0,) if size <= 3 * _PIECE else (0, (size - _PIECE) // 2, size - _PIECE)
    for start in starts:
        file.seek(start)
        digest.update(file.read(size if len(starts) == 1 else _PIECE))
    return f"{size:x}-{digest.hexdigest()}"


def fingerprints(source: Source, *, most: int = MOST, seconds: float = SECONDS) -> dict[str, str]:
    """{image, named as in split.csv: its fingerprint} of all images, or of an even sample; nothing for drawn ones.

    Args:
        most: how many images at most.
        seconds: how long at most. What is read first is an even sample in itself, so that an early end leaves one.
    """
    splits = [split for split in source.parts if isinstance(split, Stored)]
    ends = list(itertools.accumulate(map(len, splits)))
    kept = evenly(ends[-1] if ends else 0, most)
    until = time.monotonic() + seconds
    prints: dict[str, str] = {}
    for at in _bits_reversed(len(kept)):
        place = bisect.bisect_right(ends, kept[at])
        split, index = splits[place], kept[at] - ends[place] + len(splits[place])
        if prints and time.monotonic() > until:
            break
        if text := fingerprint(split, index):
            prints[relative(split.where(index), source.root)] = text
    return prints


def _bits_reversed(n: int) -> list[int]:
    """0 to n - 1 in an order whose every beginning is spread evenly: bits in reverse."""
    bits = max(1, (n - 1).bit_length())
    order = np.zeros(1, dtype=np.int64)
    for _ in range(bits):
        order = np.concatenate([2 * order, 2 * order + 1])
    return [int(at) for at in order[order < n]]

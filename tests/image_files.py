"""TIFF and PNG files written byte by byte, so that no library that is tested has made them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Values = Mapping[int, Sequence[int] | Sequence[float]]
_TYPES = {"H": (3, 2), "I": (4, 4), "f": (11, 4)}
_FORMATS = {"u": 1, "i": 2, "f": 3}  # TIFF's names of NumPy's kinds


def tiff(
    values: NDArray[np.generic],
    colours: int = 1,
    *,
    big_endian: bool = False,
    planar: bool = False,
    packed: bool = False,
    **tags: Sequence[int] | Sequence[float],
) -> bytes:
    """A TIFF of (H, W) or (H, W, C) values; `colours` is its photometric interpretation; t123=[4] adds a tag."""
    order: Literal["<", ">"] = ">" if big_endian else "<"
    height, width, channels = values.shape if values.ndim == 3 else (*values.shape, 1)
    ordered = values.astype(values.dtype.newbyteorder(order))
    planes = [ordered[..., c] for c in range(channels)] if planar else [ordered]
    strips = [zlib.compress(plane.tobytes()) if packed else plane.tobytes() for plane in planes]
    table: dict[int, tuple[str, Sequence[int] | Sequence[float]]] = {
        256: ("H", [width]),
        257: ("H", [height]),
        258: ("H", [8 * values.dtype.itemsize] * channels),
        259: ("H", [8 if packed else 1]),
        262: ("H", [colours]),
        277: ("H", [channels]),
        278: ("H", [height]),
        279: ("I", [len(strip) for strip in strips]),
        284: ("H", [2 if planar else 1]),
        339: ("H", [_FORMATS[values.dtype.kind]] * channels),
    }
    for name, given in tags.items():
        table[int(name[1:])] = ("f" if isinstance(given[0], float) else "H", given)
    start = 8 + 2 + 12 * (len(table) + 1) + 4
    table[273] = ("I", [0] * len(strips))
    outside = sum(size for kind, given in table.values() if (size := _TYPES[kind][1] * len(given)) > 4)
    ends = np.cumsum([0, *map(len, strips)])
    table[273] = ("I", [start + outside + int(end) for end in ends[:-1]])
    entries, extra = b"", b""
    for tag in sorted(table):
        kind, given = table[tag]
        raw = struct.pack(f"{order}{len(given)}{kind}", *given)
        if len(raw) > 4:
            raw, extra = struct.pack(f"{order}I", start + len(extra)), extra + raw
        entries += struct.pack(f"{order}HHI", tag, _TYPES[kind][0], len(given)) + raw.ljust(4, b"\0")
    head = (b"MM\0*" if big_endian else b"II*\0") + struct.pack(f"{order}IH", 8, len(table))
    return head + entries + bytes(4) + extra + b"".join(strips)


def png(values: NDArray[np.integer], depth: int, kind: int, clear: Sequence[int] = ()) -> bytes:
    """A PNG of (H, W, C) values; `kind` is its colour type, `clear` the transparent value."""
    height, width = values.shape[:2]
    rows = values.reshape(height, -1)
    if depth == 16:
        lines = [row.astype(">u2").tobytes() for row in rows]
    else:
        bits = (rows[..., None] >> np.arange(depth)[::-1]) & 1
        lines = [np.packbits(row).tobytes() for row in bits.reshape(height, -1).astype(np.uint8)]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))]
    if clear:
        chunks.append((b"tRNS", struct.pack(f">{len(clear)}H", *clear)))
    chunks += [(b"IDAT", zlib.compress(b"".join(b"\0" + line for line in lines))), (b"IEND", b"")]
    reported = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(reported)

"""Plain JPEG files straight to an array, by simplejpeg where it is installed: bit for bit what Pillow decodes.

Rows are stored from the top, and those below the last that is needed are left out: the file gets a smaller height.

Nothing here says what is wrong with a file. Of one that is not plain, or cannot be decoded, None is returned, and
``decode`` has Pillow look at it.
"""

from __future__ import annotations

import io
import re
import stat
import struct
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from selkern.data.levels import SHRUNK

_START, _END = b"\xff\xd8\xff", b"\xff\xd9"
_MARKER = re.compile(rb"\xff[^\0]")
_EXIF, _SEVERAL = b"Exif\0\0", b"MPF\0"
_FRAME, _SCAN, _APP1, _APP2 = (0xC0, 0xC1), 0xDA, 0xE1, 0xE2  # sequential Huffman frames
# Tables, restarts, comments and applications' own: none changes which pixels there are.
_AROUND = frozenset({0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0)})
_HEAD = struct.Struct(">BHHB")  # of a frame: bits, height, width, components


class PlainJpeg(Image.Image):
    """An image whose pixels are an array. Pillow's own storage is made when one of Pillow's methods asks for it.

    Args:
        data: the file.
        size: width and height, px.
        at: where in the file its height is, and where its pixels begin.
        exif: what EXIF data the file has; empty for none.
    """

    format = "JPEG"

    def __init__(self, data: bytes, size: tuple[int, int], at: tuple[int, int], exif: bytes) -> None:
        super().__init__()
        self._mode, self._size, self._data = "RGB", size, data
        self._at, self._scan = at
        self._pixels: NDArray[np.uint8] | None = None
        if exif:
            self.info["exif"] = exif

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """(H, W, 3) of an image that is decoded, or fewer rows where no more were asked for."""
        assert self._pixels is not None
        return self._pixels

    def decode(self, rows: int, by: int = 1) -> bool:
        """Decode so many rows from the top, the sides divided by 1, 2, 4 or 8; False where that was not possible."""
        from simplejpeg import decode_jpeg

        (width, height), data = self.size, self._data
        most = (-(-rows // by) + 1) * by  # colours are interpolated between rows, so one more
        if most >= height or not self._ends_after_scan():
            most = height
        else:
            data = b"".join((data[: self._at], most.to_bytes(2, "big"), data[self._at + 2 :]))
        shape = (-(-most // by), -(-width // by), 3)
        try:
            # Where rows are left out, data are left over, of which it would warn.
            pixels = decode_jpeg(data, min_height=shape[0], min_width=shape[1], min_factor=by, strict=most == height)
        except ValueError:
            return False
        if by > 1:
            self._size = (shape[1], -(-height // by))
            self.info[SHRUNK] = (width, height, by)
        self._pixels, self._data = pixels, b""
        return bool(pixels.shape == shape)

    def _ends_after_scan(self) -> bool:
        """Whether nothing but the end follows the pixels, so that no error lies in what is left out."""
        mark = _MARKER.search(self._data, self._scan)
        return mark is not None and self._data[mark.start() :] == _END

    def load(self) -> Any:
        """Pillow's storage, filled; rows that were not asked for are black."""
        if self._im is None:
            whole = Image.new("RGB", self.size)
            whole.paste(Image.fromarray(self.pixels))
            self.im = whole.im
        return super().load()


def open_plain(data: bytes | Path, most: int) -> PlainJpeg | None:
    """A JPEG that simplejpeg decodes as Pillow does, its pixels not yet decoded; None for anything else.

    Args:
        data: the encoded bytes, or the file that holds them.
        most: bytes that a file may have.
    """
    if not _agrees():
        return None
    if isinstance(data, Path):
        try:
            data = _read(data, most)
        except OSError:
            return None
    return _parse(data) if len(data) <= most else None


def _read(path: Path, most: int) -> bytes:
    """A file that begins as a JPEG does; empty for others."""
    status = path.stat()  # before it is opened: a pipe would keep us waiting
    if not stat.S_ISREG(status.st_mode) or status.st_size > most:
        return b""
    with path.open("rb", buffering=0) as file:
        start = file.read(len(_START))
        return start + file.read() if start == _START else b""


def _parse(data: bytes) -> PlainJpeg | None:
    """A file of one scan of 8-bit grey or three colours, of whose segments each is understood."""
    if not data.startswith(_START):
        return None
    size, height, components, exif, at = (0, 0), 0, 0, b"", 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + length]
        if marker == _SCAN:  # of all components at once, the first of which is their number
            plain = components and body[:1] == bytes([components])
            return PlainJpeg(data, size, (height, at + 2 + length), exif) if plain else None
        if marker in _FRAME:
            if components or len(body) < _HEAD.size:
                return None
            bits, high, wide, components = _HEAD.unpack(body[: _HEAD.size])
            size, height = (wide, high), at + 5
            if bits != 8 or components not in (1, 3) or not (wide and high):
                return None
        elif marker == _APP1:
            if exif or not body.startswith(_EXIF):  # XMP can say how an image is turned, too
                return None
            exif = body
        elif marker not in _AROUND or (marker == _APP2 and body.startswith(_SEVERAL)):
            return None
        at += 2 + length
    return None


@cache
def _agrees() -> bool:
    """Whether simplejpeg is there and decodes as Pillow does, of which each brings a libjpeg-turbo of its own."""
    if find_spec("simplejpeg") is None:
        return False
    picture = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    image = Image.fromarray(picture).resize((83, 61), Image.Resampling.BICUBIC)  # no whole blocks
    files = [(image, {"subsampling": subsampling}) for subsampling in range(3)] + [(image.convert("L"), {})]
    return all(_agrees_on(one, options, by) for one, options in files for by in (1, 2, 4, 8))


def _agrees_on(image: Image.Image, options: dict[str, int], by: int) -> bool:
    """The same for one picture, saved with Pillow's options, its sides divided."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    plain, theirs = _parse(buffer.getvalue()), Image.open(buffer)
    theirs.draft(theirs.mode, (image.width // by, image.height // by))
    return (
        plain is not None
        and plain.decode(image.height, by)
        and np.array_equal(plain.pixels, np.asarray(theirs.convert("RGB")))
    )

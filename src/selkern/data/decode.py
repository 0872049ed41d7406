"""Bytes or a file -> an RGB image, or a ``DataError`` that says in one line what is wrong with it.

Images are hostile input: size is limited, formats are a short list, and whatever a decoder raises becomes a
``DataError`` with the file's name.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from selkern.errors import DataError, printable

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
# Pillow's own default, repeated because any library in the process can switch Pillow's off.
MAX_PIXELS = 89_478_485
MAX_BYTES = 1 << 29  # of a file: some decoders read all of it before they look at its size in pixels
# Bytes of a value by its type in a TIFF directory; types that are not here have no values that Pillow reads.
_VALUE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}

_ORIENTATION = 0x0112  # the EXIF tag; its values 2 to 8 mean:
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = frozenset(turn for value, turn in _UPRIGHT.items() if value >= 5)  # width and height change places


@dataclass(frozen=True, kw_only=True)
class Header:
    """What an image says of itself before its pixels are decoded."""

    width: int
    """Of the upright image, px."""
    height: int
    """Of the upright image, px."""
    format: str
    """Pillow's name of the format, such as JPEG."""
    mode: str
    """Pillow's name of the pixels' kind, such as RGB or I;16."""


def decode(data: bytes | Path, where: str = "") -> Image.Image:
    """Decode one image to upright 8-bit RGB.

    The first frame of an animation; EXIF orientation applied; transparency over white; 16-bit grey scaled.

    Args:
        data: the encoded bytes, or the file that holds them.
        where: the name for messages; the path when empty.

    Raises:
        DataError: the image cannot be read, is too large, or is not in ``FORMATS``.
    """
    with _opened(data, where) as image:
        image.load()
        return _upright(image)


def read_header(data: bytes | Path, where: str = "") -> Header:
    """Size and kind of one image, without its pixels. Arguments and errors are those of ``decode``."""
    with _opened(data, where) as image:
        width, height = image.size
        if _turn(image) in _SIDEWAYS:
            width, height = height, width
        return Header(width=width, height=height, format=image.format or "", mode=image.mode)


def turn_of(data: bytes | Path, where: str = "") -> Image.Transpose | None:
    """What makes the stored pixels upright; None where they are. Arguments and errors are those of ``decode``."""
    with _opened(data, where) as image:
        return _turn(image)


@contextmanager
def _opened(data: bytes | Path, where: str) -> Iterator[Image.Image]:
    """An image whose size is allowed; whatever is raised while it is used becomes a ``DataError``."""
    where = where or (show(data) if isinstance(data, Path) else "image")
    if isinstance(data, bytes) and not data:
        raise DataError("the image is empty (0 bytes)", where, "remove it or restore it from its original")
    try:
        with warnings.catch_warnings():
            # Pillow warns of odd metadata and large sizes; the first is harmless, the second checked below.
            warnings.simplefilter("ignore")
            with io.BytesIO(data) if isinstance(data, bytes) else _open(data, where) as file:
                _check_file(file, where)
                with Image.open(file, formats=FORMATS) as image:
                    _check_size(image.size, where)
                    yield image
    except (DataError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise _too_large(where, "") from None
    except Exception as error:  # broken bytes make decoders raise anything
        raise _unreadable(data, where, error) from error


def show(path: str | Path) -> str:
    """A path as printable text, even where the file name is not valid UTF-8."""
    return printable(os.fsencode(path).decode(errors="replace"))


def _open(path: Path, where: str) -> IO[bytes]:
    """The file, opened; not a pipe, which would keep us waiting, nor a device, which may never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise DataError("not a file with an image", where, "give an image file")
    return path.open("rb")


def _check_file(file: IO[bytes], where: str) -> None:
    """Refuse what could not be an image of allowed size, and a TIFF file whose tags unpack to more than they are."""
    size = file.seek(0, os.SEEK_END)
    if size > MAX_BYTES:
        raise DataError(f"image file too large: {size:,} bytes", where, f"give one of at most {MAX_BYTES:,}")
    file.seek(0)
    if not _tags_fit(file, size):
        raise DataError("the image is broken (its tags hold more than the file)", where, "remove it or restore it")
    file.seek(0)


def _tags_fit(file: IO[bytes], size: int) -> bool:
    """Whether the first directory of a TIFF file, or of EXIF data, claims no more than `size` bytes could hold.

    A Pillow that does not look at this itself reads every value, and a thousand may lie in the same place. Anything
    else than TIFF fits.
    """
    head = file.read(16)
    order = {b"II*\0": "<", b"MM\0*": ">", b"II+\0": "<", b"MM\0+": ">"}.get(head[:4])
    if order is None or len(head) < 16:
        return True
    big = b"+" in head[:4]
    (start,) = struct.unpack(order + ("Q" if big else "I"), head[8:16] if big else head[4:8])
    if start > size:
        return True
    file.seek(start)
    number, entry = struct.Struct(order + ("Q" if big else "H")), struct.Struct(order + ("HHQ8x" if big else "HHI4x"))
    told = file.read(number.size)
    if len(told) < number.size:
        return True
    table = file.read(min(number.unpack(told)[0], 1 << 16) * entry.size)
    values = entry.iter_unpack(table[: len(table) - len(table) % entry.size])
    # Twice, and a little: some programs count a tag too long, which does no harm.
    return sum(_VALUE.get(kind, 0) * count for _, kind, count in values) <= 2 * size + (1 << 16)


def _upright(image: Image.Image) -> Image.Image:
    rgb, turn = _rgb(image), _turn(image)
    return rgb if turn is None else rgb.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What makes an image upright."""
    try:
        exif = _exif(image)
        fits = _tags_fit(io.BytesIO(exif), len(exif))
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1)) if fits else None
    except Exception:  # noqa: BLE001  broken EXIF makes the parser raise anything; the pixels are sound
        return None


def _exif(image: Image.Image) -> bytes:
    """The EXIF data beside an image, as `getexif` finds them; those of a TIFF file are the file's own tags."""
    told = image.info.get("exif", b"")
    if not told and "Raw profile type exif" in image.info:
        told = bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:]))
    return bytes(told).removeprefix(b"Exif\0\0")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255 and would make a white image of it.
        wide = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError("32-bit pixels, whose white is unknown")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def _check_size(size: tuple[int, int], where: str) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise _too_large(where, f": {size[0]} x {size[1]} px")


def _too_large(where: str, detail: str) -> DataError:
    return DataError(f"image too large{detail}", where, f"scale it below {MAX_PIXELS:,} px or remove it")


def _unreadable(data: bytes | Path, where: str, error: Exception) -> DataError:
    if isinstance(data, Path):
        if not data.exists():
            return DataError("no such image file", where, "check the path")
        if isinstance(error, PermissionError):
            return DataError("the image file may not be read", where, "give yourself the right to read it")
        if data.is_file() and not data.stat().st_size:
            return DataError("the image is empty (0 bytes)", where, "remove it or restore it from its original")
    if isinstance(error, UnidentifiedImageError):
        return DataError("not an image, or of a format not read here", where, f"use {', '.join(FORMATS)}")
    reason = f"{error}"[:120] or type(error).__name__
    return DataError(f"the image is broken ({reason})", where, "remove it or restore it from its original")

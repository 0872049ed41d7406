"""Bytes or a file -> an RGB image, or a ``DataError`` that says in one line what is wrong with it.

Images are hostile input: size is limited, formats are a short list, and whatever a decoder raises becomes a
``DataError`` with the file's name.
"""

from __future__ import annotations

import io
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

from selkern.data.formats import FORMATS, is_heif, is_pointer
from selkern.data.levels import PLAIN, SHRUNK, Reading, Used
from selkern.data.pixels import Unread, deep_of, to_rgb, used
from selkern.data.tags import SIDEWAYS, exif_turn, tags_fit, tiff_kind
from selkern.errors import DataError, printable

# Pillow's own default, repeated because any library in the process can switch Pillow's off.
MAX_PIXELS = 89_478_485
MAX_BYTES = 1 << 29  # of a file: some decoders read all of it before they look at its size in pixels
# How Pillow's decoders begin where a file is sound and they lack what it needs.
_OF_A_KIND = re.compile("(?i)unsupported|unknown|not supported|cannot handle|.*not (yet )?(supported|implemented)")


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
    deep: str = ""
    """The kind of pixels of more than 8 bits, in words: 16-bit, 32-bit float; "" for others."""
    pages: bool = False
    """Whether more pages or frames follow, which are not read."""


def decode(data: bytes | Path, where: str = "", reading: Reading = PLAIN) -> Image.Image:
    """Decode one image to upright 8-bit RGB.

    The first page or frame; EXIF orientation applied; transparency over white; colour profiles left alone.

    Args:
        data: the encoded bytes, or the file that holds them.
        where: the name for messages; the path when empty.
        reading: what becomes of deep pixels, and how many pixels are needed.

    Raises:
        DataError: the image cannot be read, is too large, or is not in ``FORMATS``.
    """
    with _opened(data, where) as open_image:
        image = open_image()
        width, height = image.size
        shrunk = _divisor(image, reading)
        if shrunk > 1:
            image.draft(image.mode, (width // shrunk, height // shrunk))
        rgb = to_rgb(image, open_image, reading.levels)
        turn = exif_turn(image)  # of a PNG the tags may come after the pixels
        if turn is not None:
            rgb = rgb.transpose(turn)
        if shrunk > 1:
            rgb.info[SHRUNK] = (height, width, shrunk) if turn in SIDEWAYS else (width, height, shrunk)
        return rgb


def _divisor(image: Image.Image, reading: Reading) -> int:
    """By how much a JPEG's sides may be divided while it is decoded: 1, 2, 4 or 8; 1 for other formats."""
    if not reading.least or image.format not in ("JPEG", "MPO"):
        return 1
    (width, height), turn = image.size, exif_turn(image)
    upright = (height, width) if turn in SIDEWAYS else (width, height)
    least = reading.least if isinstance(reading.least, int) else reading.least(*upright)
    turned = turn is not None
    # Sides that are no multiples get a part of a pixel more at their ends, which a turn would bring to their beginning.
    fine = (by for by in (8, 4, 2) if by * least <= min(width, height) and not (turned and (width % by or height % by)))
    return next(fine, 1)


def read_header(data: bytes | Path, where: str = "") -> Header:
    """Size and kind of one image, without its pixels. Arguments and errors are those of ``decode``."""
    with _opened(data, where) as open_image:
        image = open_image()
        width, height = image.size
        # Pillow turns TIFF itself, and gives the size of the upright image.
        if image.format != "TIFF" and exif_turn(image) in SIDEWAYS:
            width, height = height, width
        deep = deep_of(image)
        return Header(
            width=width,
            height=height,
            format=image.format or "",
            mode=image.mode,
            deep=deep.words if deep else "",
            # The further pictures of an MPO are a camera's previews and depth maps.
            pages=image.format != "MPO" and bool(getattr(image, "is_animated", False)),
        )


def read_used(data: bytes | Path, where: str = "") -> Used | None:
    """The values of a deep image, or those that it declares; None where it has 8 bits."""
    with _opened(data, where) as open_image:
        return used(open_image(), open_image)


def turn_of(data: bytes | Path, where: str = "") -> Image.Transpose | None:
    """What makes the stored pixels upright; None where they are. Arguments and errors are those of ``decode``."""
    with _opened(data, where) as open_image:
        return exif_turn(open_image())


@contextmanager
def _opened(data: bytes | Path, where: str) -> Iterator[Callable[[], Image.Image]]:
    """What opens an image, its pixels not yet decoded; whatever is raised within becomes a ``DataError``."""
    where = where or (show(data) if isinstance(data, Path) else "image")
    if isinstance(data, bytes) and not data:
        raise DataError("the image is empty (0 bytes)", where, "remove it or restore it from its original")
    try:
        with warnings.catch_warnings():
            # Pillow warns of odd metadata and large sizes; the first is harmless, the second checked below.
            warnings.simplefilter("ignore")
            with io.BytesIO(data) if isinstance(data, bytes) else _open(data, where) as file:
                _check_file(file, where)
                yield partial(_open_image, file, where)
    except (DataError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise _too_large(where, "") from None
    except Unread as error:
        raise DataError(f"{error}", where, error.fix) from error
    except Exception as error:  # broken bytes make decoders raise anything
        raise _unreadable(data, where, error) from error


def _open_image(file: IO[bytes], where: str) -> Image.Image:
    """The image in a file, its pixels not yet decoded; DataError where it has too many."""
    file.seek(0)
    head = file.read(64)
    file.seek(0)
    if is_pointer(head):
        raise not_pulled(where)
    image = _open_heif(file, where) if is_heif(head) else Image.open(file, formats=FORMATS)
    if image.size[0] * image.size[1] > MAX_PIXELS:
        raise _too_large(where, f": {image.size[0]} x {image.size[1]} px")
    return image


def _open_heif(file: IO[bytes], where: str) -> Image.Image:
    try:
        from pillow_heif.as_plugin import HeifImageFile
    except ImportError as error:
        raise DataError("HEIC needs pillow-heif", where, "pip install 'selkern[heif]'") from error
    image: Image.Image = HeifImageFile(file)  # type: ignore[no-untyped-call]
    return image


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
    if not tags_fit(file, size):
        raise DataError("the image is broken (its tags hold more than the file)", where, "remove it or restore it")
    file.seek(0)


def not_pulled(where: str) -> DataError:
    """The error for a file of a Git repository that holds a pointer only."""
    return DataError("a Git LFS pointer, not the file itself", where, "run git lfs pull in its repository")


def _too_large(where: str, detail: str) -> DataError:
    return DataError(f"image too large{detail}", where, f"scale it below {MAX_PIXELS:,} px or remove it")


def _unreadable(data: bytes | Path, where: str, error: Exception) -> DataError:
    if isinstance(data, Path):
        try:
            there = data.exists()
        except OSError:  # a name longer than any can be
            there = False
        if not there:
            return DataError("no such image file", where, "check the path")
        if isinstance(error, PermissionError):
            return DataError("the image file may not be read", where, "give yourself the right to read it")
        if data.is_file() and not data.stat().st_size:
            return DataError("the image is empty (0 bytes)", where, "remove it or restore it from its original")
    tiff = _tiff_kind(data)
    if isinstance(error, UnidentifiedImageError):
        what = f"a TIFF of a kind not read here ({tiff})" if tiff else "not an image, or of a format not read here"
        fix = "save it as PNG of 8 or 16 bits" if tiff else f"use {', '.join(FORMATS)} or HEIF"
        return DataError(what, where, fix)
    reason = f"{error}"[:120] or type(error).__name__
    if tiff and reason.startswith("decoder error"):
        what = f"the image is broken, or a TIFF of a kind not read here ({tiff})"
        return DataError(what, where, "restore it from its original, or save it as PNG")
    if _OF_A_KIND.match(reason):
        return DataError(f"an image of a kind not read here ({reason})", where, "save it as PNG")
    return DataError(f"the image is broken ({reason})", where, "remove it or restore it from its original")


def _tiff_kind(data: bytes | Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        with io.BytesIO(data) if isinstance(data, bytes) else data.open("rb") as file:
            return tiff_kind(file)

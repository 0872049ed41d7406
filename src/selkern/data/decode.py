"""Bytes or a file -> an RGB image, or a ``DataError`` that says in one line what is wrong with it.

Images are hostile input: size is limited, formats are a short list, and whatever a decoder raises becomes a
``DataError`` with the file's name.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from selkern.errors import DataError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
# Pillow's own default, repeated because any library in the process can switch Pillow's off.
MAX_PIXELS = 89_478_485

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


def decode(data: bytes | Path, where: str = "") -> Image.Image:
    """Decode one image to upright 8-bit RGB.

    The first frame of an animation; EXIF orientation applied; transparency over white; 16-bit grey scaled.

    Args:
        data: the encoded bytes, or the file that holds them.
        where: the name for messages; the path when empty.

    Raises:
        DataError: the image cannot be read, is too large, or is not in ``FORMATS``.
    """
    where = where or (show(data) if isinstance(data, Path) else "image")
    if isinstance(data, bytes) and not data:
        raise DataError("the image is empty (0 bytes)", where, "remove it or restore it from its original")
    try:
        with warnings.catch_warnings():
            # Pillow warns of odd metadata and large sizes; the first is harmless, the second checked below.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=FORMATS) as image:
                _check_size(image.size, where)
                image.load()
                return _upright(image)
    except (DataError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise _too_large(where, "") from None
    except Exception as error:  # broken bytes make decoders raise anything
        raise _unreadable(data, where, error) from error


def find_images(folder: Path) -> list[Path]:
    """Every image file below ``folder`` by suffix, in lexical order.

    Names that start with a dot are skipped; links are followed, but never back into a folder above.
    """
    return [Path(path) for path in _walk(str(folder), ())]


def show(path: str | Path) -> str:
    """A path as printable text, even where the file name is not valid UTF-8."""
    return os.fsencode(path).decode(errors="replace")


def list_folder(folder: str | Path) -> list[os.DirEntry[str]]:
    """The entries of a folder without the dot names, in lexical order; DataError where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise DataError(
            f"cannot read the folder ({error.strerror})", show(folder), "check the name and rights"
        ) from error


def _walk(folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    stat = Path(folder).stat()
    here = (stat.st_dev, stat.st_ino)
    if here in above:  # a link back up: its images are listed already
        return
    for entry in list_folder(folder):
        if entry.is_dir():
            yield from _walk(entry.path, (*above, here))
        elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES and entry.is_file():
            yield entry.path


def _upright(image: Image.Image) -> Image.Image:
    rgb = _rgb(image)
    try:
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # noqa: BLE001  broken EXIF makes the parser raise anything; the pixels are sound
        turn = None
    return rgb if turn is None else rgb.transpose(turn)


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

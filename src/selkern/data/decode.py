"""Bytes or a file -> an RGB image, or a ``DataError`` that says in one line what is wrong with it.

Images are hostile input: size is limited, formats are a short list, and whatever a decoder raises becomes a
``DataError`` with the file's name.
"""

from __future__ import annotations

import io
import os
import re
import stat
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import COMPRESSION_INFO, ImageFileDirectory_v2

from selkern.data.jpeg import PlainJpeg, open_plain
from selkern.data.levels import PLAIN, SHRUNK, Reading, Used
from selkern.data.pixels import Unread, deep_of, to_rgb, used
from selkern.errors import DataError, printable

# Pillow's name of each format -> usual suffixes; HEIF is decoded by pillow-heif.
SUFFIXES: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".jif"),
    "MPO": (".mpo",),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "AVIF": (".avif",),
    "JPEG2000": (".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".jpc"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "HEIF": (".heic", ".heif", ".hif"),
}
# A file of such a suffix is looked into: many hold JPEG or PNG, and HEIF needs a package of its own.
HEIF_SUFFIXES = frozenset(SUFFIXES["HEIF"])
IMAGE_SUFFIXES = frozenset(suffix for suffixes in SUFFIXES.values() for suffix in suffixes) - HEIF_SUFFIXES
# Pillow's JPEG opens MPO files itself.
FORMATS = tuple(name for name in SUFFIXES if name not in ("MPO", "HEIF"))

_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_ANY_BRANDS = frozenset({b"mif1", b"msf1"})  # of the container: any codec may be inside
_AVIF_BRANDS = frozenset({b"avif", b"avis"})


def is_heif(head: bytes) -> bool:
    """Whether a file that begins with these 64 bytes is a HEIF picture, and no AVIF."""
    if head[4:8] != b"ftyp":
        return False
    length = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, length, 4))}
    return bool(brands & (_HEIF_BRANDS | _ANY_BRANDS)) and not brands & _AVIF_BRANDS


def is_pointer(head: bytes) -> bool:
    """Whether a file that begins with these 64 bytes is what Git LFS has in place of the file itself."""
    return head.startswith(b"version https://git-lfs.github.com/spec/")


def has_heif() -> bool:
    """Whether HEIF can be decoded here."""
    return find_spec("pillow_heif") is not None


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
SIDEWAYS = frozenset(turn for value, turn in _UPRIGHT.items() if value >= 5)  # width and height change places
_COLOURS = {0: "white is 0", 1: "grey", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "Lab", 9: "Lab"}
_COLOURS |= {10: "Lab", 32803: "camera raw", 32844: "LogL", 32845: "LogLuv", 34892: "camera raw"}
_SAMPLES = {1: "unsigned", 2: "signed", 3: "float", 5: "complex", 6: "complex"}


def tags_fit(file: IO[bytes], size: int) -> bool:
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
    raw = file.read(number.size)
    if len(raw) < number.size:
        return True
    table = file.read(min(number.unpack(raw)[0], 1 << 16) * entry.size)
    values = entry.iter_unpack(table[: len(table) - len(table) % entry.size])
    # Twice, and a little: some programs count a tag too long, which does no harm.
    return sum(_VALUE.get(kind, 0) * count for _, kind, count in values) <= 2 * size + (1 << 16)


def exif_turn(image: Image.Image) -> Image.Transpose | None:
    """What makes an image upright."""
    try:
        exif = _exif(image)
        fits = tags_fit(io.BytesIO(exif), len(exif))
        # Not PNG's own, which decodes the pixels to see what may come after them.
        return _UPRIGHT.get(Image.Image.getexif(image).get(_ORIENTATION, 1)) if fits else None
    except Exception:  # noqa: BLE001  broken EXIF makes the parser raise anything; the pixels are sound
        return None


def _exif(image: Image.Image) -> bytes:
    """The EXIF data beside an image, as `getexif` finds them; those of a TIFF file are the file's own tags."""
    raw = image.info.get("exif", b"")
    if not raw and "Raw profile type exif" in image.info:
        raw = bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:]))
    return bytes(raw).removeprefix(b"Exif\0\0")


def tiff_kind(file: IO[bytes]) -> str:
    """What a TIFF file says of its pixels, in words; "" where it is none, or its tags cannot be read."""
    head = file.read(16)
    if head[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return ""
    try:
        tags = ImageFileDirectory_v2(head if b"+" in head[:4] else head[:8])
        file.seek(tags.next)
        tags.load(file)
        samples = int(tags.get(277, 1))
        bits = _distinct(tags.get(258, (1,)))
        form = "/".join(_SAMPLES.get(int(value), "unknown") for value in dict.fromkeys(tags.get(339, (1,))))
        colours = _COLOURS.get(int(tags.get(262, 0)), "unknown colours")
        order = "big endian" if head[:1] == b"M" else "little endian"
        packed = COMPRESSION_INFO.get(int(tags.get(259, 1)), "an unknown way")
    except Exception:  # noqa: BLE001  broken tags make the parser raise anything
        return ""
    return f"{colours}, {samples} x {bits}-bit {form}, {order}, {packed}"


def _distinct(values: Sequence[int]) -> str:
    return "/".join(str(int(value)) for value in dict.fromkeys(values))


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
    if reading.rows is not None and (plain := _decode_plain(data, reading, reading.rows)) is not None:
        return plain
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


def _decode_plain(data: bytes | Path, reading: Reading, rows: Callable[[int, int], int]) -> PlainJpeg | None:
    """A plain JPEG of allowed size that is upright, decoded; None for all else."""
    image = open_plain(data, MAX_BYTES)
    if image is None or image.width * image.height > MAX_PIXELS:
        return None
    if "exif" in image.info and exif_turn(image) is not None:
        return None
    return image if image.decode(rows(*image.size), _divisor(image, reading)) else None


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
    if isinstance(path, str) and path.isascii() and path.isprintable():
        return path
    return printable(os.fsencode(path).decode(errors="replace"))


def _open(path: Path, where: str) -> IO[bytes]:
    """The file, opened; not a pipe, which would keep us waiting, nor a device, which may never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise DataError("not a file with an image", where, "give an image file")
    return path.open("rb")


def read_file(path: Path, where: str) -> bytes:
    """The bytes of an image file, not decoded. Raises DataError where they cannot be read."""
    try:
        with _open(path, where) as file:
            _check_file(file, where)
            return file.read()
    except OSError as error:
        raise _unreadable(path, where, error) from error


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

"""What the tags of an image say: whether they fit, which way is up, of what kind a TIFF is."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from typing import IO

from PIL import Image
from PIL.TiffImagePlugin import COMPRESSION_INFO, ImageFileDirectory_v2

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
    told = file.read(number.size)
    if len(told) < number.size:
        return True
    table = file.read(min(number.unpack(told)[0], 1 << 16) * entry.size)
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
    told = image.info.get("exif", b"")
    if not told and "Raw profile type exif" in image.info:
        told = bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:]))
    return bytes(told).removeprefix(b"Exif\0\0")


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

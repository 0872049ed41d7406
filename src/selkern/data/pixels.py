"""An opened image -> 8-bit RGB, also where Pillow's own conversion would be wrong.

Deep pixels are brought to 8 bits by levels (``data.levels``). Of 16-bit colours Pillow keeps the higher byte; where
all 16 bits are needed, the file is decoded twice, the second time with the bytes' order swapped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile, _Tile
from PIL.TiffImagePlugin import TiffImageFile

from selkern.data.levels import LOST, SIXTEEN, Levels, Span, Used, are_lost, to_bytes, used_by

Again = Callable[[], Image.Image]  # opens the same file once more
_TWELVE: Span = (0.0, 4095.0)
# Raw modes of 16-bit colours -> those that give the other byte of each value. libtiff's N is this machine's order.
_SWAPPED = {
    f"{colours};16{order}": f"{colours};16{other}"
    for colours in ("RGB", "RGBX", "RGBA")
    for order, other in (("B", "L"), ("L", "B"), ("N", "B"))
} | {"LA;16B": "RGBA"}  # four bytes: both of grey, both of alpha
_NATIVE = {"I;16BS": "I;16NS", "I;32BS": "I;32NS", "F;32BF": "F;32NF"}  # raw modes of big-endian grey
_FEW_BITS = {"L;2": 85, "L;4": 17}  # raw mode -> what a value is multiplied by
# TIFF tags
_SUBFILE, _BITS, _COLOUR, _PLANES, _PALETTE, _FORMAT, _SMALLEST, _LARGEST = 254, 258, 262, 284, 320, 339, 340, 341


class Unread(Exception):
    """Pixels that could be decoded, but not truly shown; the text names them."""

    def __init__(self, what: str, fix: str = "save it as 8-bit PNG") -> None:
        super().__init__(what)
        self.fix = fix


@dataclass(frozen=True, kw_only=True)
class Deep:
    """Pixels of more than 8 bits."""

    words: str
    """Their kind: 16-bit, 16-bit signed, 32-bit, 32-bit float."""
    white: Span | None
    """The values of black and white that the file's kind or tags say; None where they say nothing."""
    rawmode: str = ""
    """Pillow's raw mode of 16-bit colours; "" for grey."""
    flipped: bool = False
    """Whether the smallest value is white."""
    unsigned: bool = True
    """False where values may be below 0."""


def deep_of(image: Image.Image) -> Deep | None:
    """What is deep about an opened image that is not yet decoded; None where its pixels have 8 bits."""
    rawmode = _rawmode(image)
    if _is_planar16(image):
        return Deep(words="16-bit", white=SIXTEEN, rawmode="planes")
    if rawmode.startswith(("RGB", "LA", "CMYK")) and rawmode[:-1].endswith(";16"):
        return Deep(words="16-bit", white=SIXTEEN, rawmode=rawmode)
    if isinstance(image, TiffImageFile):
        return _deep_tiff(image)
    if image.mode == "F":
        return Deep(words="32-bit float", white=None)
    return Deep(words="16-bit", white=SIXTEEN) if image.mode.startswith("I") else None


def _deep_tiff(image: TiffImageFile) -> Deep | None:
    """The same of a TIFF whose pixels are grey."""
    tags = image.tag_v2
    bits, form = int(tags.get(_BITS, (1,))[0]), int(tags.get(_FORMAT, (1,))[0])
    if not image.mode.startswith(("I", "F")) and (image.mode, form) != ("L", 2):
        return None
    words = f"{bits}-bit" + {2: " signed", 3: " float"}.get(form, "")
    white = {12: _TWELVE, 16: SIXTEEN}.get(bits) if form == 1 else _declared(image)
    return Deep(words=words, white=white, flipped=tags.get(_COLOUR) == 0, unsigned=form == 1)


def to_rgb(image: Image.Image, again: Again, levels: Levels) -> Image.Image:
    """Decode an opened image to 8-bit RGB, as it is stored (``tags.exif_turn``).

    Raises:
        Unread: its pixels cannot be shown truly.
    """
    deep = deep_of(image)
    _mend(image)
    palette = _small_palette(image)
    image.load()
    if palette:
        image.putpalette(palette, "RGB;L")
    if deep is not None and (levels != "full" or not deep.rawmode or "transparency" in image.info):
        return _from_deep(image, again, deep, levels)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def used(image: Image.Image, again: Again) -> Used | None:
    """The values that a deep image declares or else uses; None where it has 8 bits."""
    deep = deep_of(image)
    if deep is None:
        return None
    if not deep.unsigned and deep.white is not None:
        return Used(ends=deep.white, bulk=deep.white, middle=sum(deep.white) / 2)
    _mend(image)
    image.load()
    return used_by(_values(image, again, deep)[0])


def _from_deep(image: Image.Image, again: Again, deep: Deep, levels: Levels) -> Image.Image:
    values, alpha = _values(image, again, deep)
    shown = deep.white if levels == "full" else levels
    if shown is None:
        raise Unread(f"{deep.words} pixels without a known range", "train with --white-level, or save it as 8-bit PNG")
    eight = to_bytes(values, shown)
    if deep.flipped:
        eight = 255 - eight
    if alpha is not None:
        eight = _over_white(eight, alpha)
    rgb = Image.fromarray(eight).convert("RGB")
    if not isinstance(shown, str) and are_lost(values, shown):
        rgb.info[LOST] = True
    return rgb


def _values(image: Image.Image, again: Again, deep: Deep) -> tuple[NDArray[np.generic], NDArray[np.uint8] | None]:
    """((H, W) or (H, W, 3) values of a decoded image, (H, W) alpha or None)."""
    values: NDArray[np.generic]
    alpha: NDArray[np.generic] | None = None
    if deep.rawmode:
        high, low = np.asarray(image), _other_bytes(again(), deep.rawmode)
        if deep.rawmode == "LA;16B":
            values, alpha = low[..., 0].astype(np.uint16) << 8 | low[..., 1], low[..., 2]
        else:
            wide = high[..., :3].astype(np.uint16)
            wide <<= 8  # in place: a large image takes much memory as it is
            wide |= low[..., :3]
            values, alpha = wide, high[..., 3] if high.shape[2] == 4 else None
    else:
        values = np.asarray(image)
        if deep.words == "32-bit":  # Pillow has no unsigned ones
            values = values.view(np.uint32)
        elif deep.words == "8-bit signed":
            values = values.view(np.int8)
        elif values.dtype.kind == "u":
            values = values.astype(np.uint16, copy=False)  # in this machine's order
    clear = image.info.get("transparency")
    if clear is not None and alpha is None:
        equal = values == np.asarray(clear)
        alpha = np.where(equal.all(axis=2) if equal.ndim == 3 else equal, 0, 255)
    return values, None if alpha is None else alpha.astype(np.uint8)


def _other_bytes(image: Image.Image, rawmode: str) -> NDArray[np.uint8]:
    """The lower byte of each 16-bit value; of grey with alpha, all bytes."""
    assert isinstance(image, ImageFile)
    if rawmode not in _SWAPPED:
        raise Unread(f"16-bit pixels in a way that only --white-level full can be read ({rawmode})")
    _mend(image)
    _set_rawmode(image, _SWAPPED[rawmode])
    return np.asarray(image)


def _is_planar16(image: Image.Image) -> bool:
    """Whether an image is a TIFF of 16-bit colours, each in a plane of its own."""
    if not isinstance(image, TiffImageFile):
        return False
    return image.tag_v2.get(_PLANES) == 2 and image.tag_v2.get(_BITS, (8,))[0] == 16 and len(image.getbands()) >= 3


def _rawmode(image: Image.Image) -> str:
    """Pillow's name of the pixels as they are stored; "" where it does not say."""
    if not isinstance(image, ImageFile) or not image.tile:
        return ""
    args = image.tile[0].args
    return str(args[0] if isinstance(args, tuple) and args else args or "")


def _set_rawmode(image: ImageFile, rawmode: str) -> None:
    image.tile = [
        tile._replace(args=(rawmode, *tile.args[1:]) if isinstance(tile.args, tuple) else rawmode)
        for tile in image.tile
    ]


def _mend(image: Image.Image) -> None:
    """Prepare an image whose pixels Pillow would take for others."""
    if isinstance(image, TiffImageFile):
        tags = image.tag_v2
        if int(tags.get(_SUBFILE, 0)) & 1:
            raise Unread("a TIFF that begins with a thumbnail, as a camera's raw file does", "save it as JPEG or PNG")
        if tags.get(_PLANES) == 2 and len(image.getbands()) == 2:
            raise Unread("a TIFF with grey and alpha each in a plane of its own")
        if _rawmode(image) in _NATIVE and image.tile[0].codec_name == "libtiff":
            # libtiff gives values in this machine's order, whatever the file's.
            _set_rawmode(image, _NATIVE[_rawmode(image)])
        if _is_planar16(image) and image.tile[0].codec_name == "raw":
            # Pillow's own reader knows planes of 8 bits only; libtiff knows these.
            image.use_load_libtiff = True
            args = (f"{image.mode};16N", False, tags.offset)
            image.tile = [_Tile("libtiff", (0, 0, *image._tile_size), 0, args)]
    elif _rawmode(image) in _FEW_BITS and "transparency" in image.info:
        # Pillow brings grey of 2 and 4 bits to 8, and leaves the value that is transparent behind.
        image.info["transparency"] *= _FEW_BITS[_rawmode(image)]


def _small_palette(image: Image.Image) -> bytes | None:
    """The colours of a TIFF whose writer counted them to 255 instead of 65,535."""
    if image.mode not in ("P", "PA") or not isinstance(image, TiffImageFile):
        return None
    colours = image.tag_v2.get(_PALETTE, ())
    return bytes(colours) if colours and max(colours) < 256 else None


def _declared(image: TiffImageFile) -> Span | None:
    """Black and white as the tags SMinSampleValue and SMaxSampleValue have them."""
    ends = [image.tag_v2.get(tag) for tag in (_SMALLEST, _LARGEST)]
    low, high = (float(end[0] if isinstance(end, tuple) else end) if end else None for end in ends)
    return (low, high) if low is not None and high is not None and low < high else None


def _over_white(pixels: NDArray[np.uint8], alpha: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W) or (H, W, 3) pixels over white, by (H, W) alpha."""
    share = alpha.reshape(*alpha.shape, *(1,) * (pixels.ndim - 2)).astype(np.uint32)
    return ((pixels * share + 255 * (255 - share) + 127) // 255).astype(np.uint8)

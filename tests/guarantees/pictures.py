"""Image files as people have them, sound and odd and broken, made on the fly."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

HUGE = 30_000  # px a side, 900 Mpx: ten times what is read
JUST_TOO_MANY = 9_460  # px a side, the first beyond the limit of 89,478,485


class Picture(NamedTuple):
    """A file: its name, its bytes, and whether it can be read; None where a decoder may find either."""

    name: str
    data: bytes
    readable: bool | None


def noise(size: int = 20) -> Image.Image:
    """A picture of (size + 2) x size px that hardly compresses."""
    return Image.fromarray(np.random.default_rng(size).integers(0, 256, (size, size + 2, 3)).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The bytes of an image file."""
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk of a PNG file."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, *more: bytes, pixels: bytes = b"") -> bytes:
    """A PNG file of a claimed size with chunks before its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def tiff(entries: list[tuple[int, int, int, int]], tail: bytes = b"") -> bytes:
    """A TIFF file of one directory: (tag, type, count, value or place) each."""
    body = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + body + b"\0\0\0\0" + tail


def claims(width: int, height: int) -> Iterator[Picture]:
    """Tiny files of every format whose headers promise so many pixels."""
    where = f"{width}x{height}"
    yield Picture(f"claims-{where}.png", png(width, height), False)
    small = encode(noise(), "BMP")
    yield Picture(f"claims-{where}.bmp", small[:18] + struct.pack("<ii", width, height) + small[26:], False)
    sides = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    yield Picture(f"claims-{where}.tif", tiff([*sides, (273, 4, 1, 8), (278, 4, 1, height), (279, 4, 1, 99)]), False)
    if width < 1 << 16:
        gif = encode(noise(), "GIF")
        yield Picture(f"claims-{where}.gif", gif[:6] + struct.pack("<HH", width, height) + gif[10:], False)
        jpg = encode(noise(), "JPEG")
        at = jpg.index(b"\xff\xc0") + 5
        yield Picture(f"claims-{where}.jpg", jpg[:at] + struct.pack(">HH", height, width) + jpg[at + 4 :], False)
    if width < 1 << 14:
        webp = bytearray(encode(noise(), "WEBP", lossless=True))
        bits = struct.unpack("<I", webp[21:25])[0] >> 28 << 28 | (height - 1) << 14 | (width - 1)
        webp[21:25] = struct.pack("<I", bits)
        yield Picture(f"claims-{where}.webp", bytes(webp), False)


def sound() -> Iterator[Picture]:
    """What can be read, in every mode and manner."""
    plain = noise()
    for kind, suffix in (
        ("JPEG", "jpg"),
        ("PNG", "png"),
        ("WEBP", "webp"),
        ("BMP", "bmp"),
        ("TIFF", "tif"),
        ("GIF", "gif"),
    ):
        yield Picture(f"plain.{suffix}", encode(plain, kind), True)
    yield Picture("PLAIN.JPEG", encode(plain, "JPEG"), True)
    yield Picture("cmyk.jpg", encode(plain.convert("CMYK"), "JPEG"), True)
    yield Picture("cmyk.tif", encode(plain.convert("CMYK"), "TIFF"), True)
    yield Picture("grey.jpg", encode(plain.convert("L"), "JPEG"), True)
    for mode in ("RGBA", "LA", "1", "P"):
        yield Picture(f"mode-{mode}.png", encode(plain.convert(mode), "PNG"), True)
    yield Picture("rgba.webp", encode(plain.convert("RGBA"), "WEBP"), True)
    yield Picture("transparent-palette.png", encode(plain.convert("P"), "PNG", transparency=3), True)
    yield Picture("transparent-palette.gif", encode(plain.convert("P"), "GIF", transparency=3), True)
    yield Picture("transparent-rgb.png", encode(plain, "PNG", transparency=(1, 2, 3)), True)
    wide = Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 160)
    yield Picture("sixteen-bit.png", encode(wide, "PNG"), True)
    yield Picture("sixteen-bit.tif", encode(wide, "TIFF"), True)
    frames = [noise(20), noise(21).resize((22, 20)), noise(22).resize((22, 20))]
    for kind, suffix in (("GIF", "gif"), ("WEBP", "webp"), ("TIFF", "tif"), ("PNG", "png")):
        yield Picture(f"frames.{suffix}", encode(frames[0], kind, save_all=True, append_images=frames[1:]), True)
    exif = Image.Exif()
    exif[0x0112] = 6
    yield Picture("turned.jpg", encode(plain, "JPEG", exif=exif), True)
    for number, broken in enumerate(
        (b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    ):
        yield Picture(f"broken-exif-{number}.jpg", encode(plain, "JPEG", exif=broken), True)
    yield Picture("broken-profile.jpg", encode(plain, "JPEG", icc_profile=b"\x00nonsense" * 9), True)
    yield Picture("broken-profile.png", encode(plain, "PNG", icc_profile=b"\x00nonsense" * 9), True)
    text = PngImagePlugin.PngInfo()
    text.add_text("note", "x" * 900_000, zip=True)
    yield Picture("long-text.png", encode(plain, "PNG", pnginfo=text), True)
    yield Picture("progressive.jpg", encode(plain, "JPEG", progressive=True), True)
    yield Picture("lzw.tif", encode(plain, "TIFF", compression="tiff_lzw"), True)
    yield Picture("dot.png", encode(plain.crop((0, 0, 1, 1)), "PNG"), True)
    yield Picture("line.png", encode(plain.resize((3000, 1)), "PNG"), True)
    yield Picture("png-called.jpg", encode(plain, "PNG"), True)
    yield Picture("webp-called.png", encode(plain, "WEBP"), True)
    yield Picture("more-behind.jpg", encode(plain, "JPEG") + b"more" * 99, True)
    yield Picture("more-behind.png", encode(plain, "PNG") + b"more" * 99, True)


def broken() -> Iterator[Picture]:
    """What cannot be read: cut, damaged, of another kind, or claiming too much."""
    plain = noise(48)
    kinds = (("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp"), ("BMP", "bmp"), ("TIFF", "tif"), ("GIF", "gif"))
    for kind, suffix in kinds:
        whole = encode(plain, kind)
        for percent in (1, 10, 50, 90, 99):
            yield Picture(
                f"cut-{percent}.{suffix}", whole[: len(whole) * percent // 100], None if percent > 50 else False
            )
    for percent in (20, 60):
        whole = encode(plain, "JPEG", progressive=True)
        yield Picture(f"cut-progressive-{percent}.jpg", whole[: len(whole) * percent // 100], False)
    checked = bytearray(encode(plain, "PNG"))
    checked[len(checked) // 2] ^= 0xFF
    yield Picture("checksum.png", bytes(checked), False)
    others = {
        "empty.jpg": b"",
        "text.jpg": b"this is a text\n" * 20,
        "page.jpg": b"<!doctype html><html><body>404 not found</body></html>",
        "drawing.png": b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>',
        "paper.png": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n",
        "script.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "zeros.png": bytes(1000),
        "random.jpg": np.random.default_rng(0).bytes(1000),
        "signature.png": b"\x89PNG\r\n\x1a\n",
        "start.jpg": b"\xff\xd8\xff\xe0",
        "no-pixels.png": png(20, 20),
        "no-width.png": png(0, 20),
        "negative.png": png(0xFFFFFFFF, 0xFFFFFFFF),
        "loop.tif": b"II*\0\x08\0\0\0\0\0\x08\0\0\0",
        "icon.jpg": encode(plain, "ICO"),
        "targa.png": encode(plain, "TGA"),
        "paintbrush.tif": encode(plain, "PCX"),
        "archive.png": _archive(),
        "text-bomb.png": png(20, 20, chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(1 << 26)))),
    }
    for name, data in others.items():
        yield Picture(name, data, False)
    yield Picture("profile-bomb.png", profile_bomb(), None)
    yield from claims(HUGE, HUGE)
    yield from claims(JUST_TOO_MANY, JUST_TOO_MANY)


def profile_bomb() -> bytes:
    """A sound PNG whose colour profile unpacks to 256 MiB."""
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(1 << 20)) for _ in range(256)) + packer.flush()
    sound = encode(noise(), "PNG")
    return sound[:33] + chunk(b"iCCP", b"profile\0\0" + packed) + sound[33:]


def _archive() -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        file.writestr("a.png", b"nothing")
    return data.getvalue()

"""Every kind of image people have: decoded to the right pixels, or refused in one line naming the file."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from selkern.data.decode import decode
from selkern.errors import DataError

# A picture without any symmetry, smooth enough for JPEG.
Y, X = np.mgrid[0:24, 0:32]
PICTURE: NDArray[np.uint8] = np.stack([X * 8, Y * 10, (X + Y) * 2], axis=2).astype(np.uint8)


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes | Path) -> NDArray[np.int64]:
    image = decode(data)
    assert image.mode == "RGB"
    return np.asarray(image).astype(np.int64)


def bomb(edge: int) -> bytes:
    """A PNG whose header promises edge^2 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", edge, edge, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def bad_checksum() -> bytes:
    data = bytearray(encode(Image.fromarray(PICTURE)))
    data[len(data) // 2] ^= 0xFF
    return bytes(data)


def claiming(jp2: bytes, edge: int) -> bytes:
    """A JPEG 2000 file whose header promises edge^2 pixels."""
    at = jp2.index(b"ihdr") + 4
    return jp2[:at] + struct.pack(">II", edge, edge) + jp2[at + 8 :]


BROKEN: dict[str, tuple[Callable[[], bytes], str]] = {
    "truncated.jpg": (lambda: encode(Image.fromarray(PICTURE), "JPEG")[:-200], "broken"),
    "truncated.png": (lambda: encode(Image.fromarray(PICTURE))[:-60], "broken"),
    "checksum.png": (bad_checksum, "broken"),
    "empty.jpg": (lambda: b"", "empty"),
    "text.jpg": (lambda: b"this is a text\n" * 20, "not an image"),
    "pointer.jpg": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS pointer"),
    "header.png": (lambda: b"\x89PNG\r\n\x1a\n", "not an image|broken"),
    "bomb.png": (lambda: bomb(100_000), "too large"),  # above Pillow's error
    "mild.png": (lambda: bomb(10_000), "too large"),  # above its warning, below its error
    "bomb.ppm": (lambda: b"P6 100000 100000 255\n", "too large"),
    "bomb.jp2": (lambda: claiming(encode(Image.fromarray(PICTURE), "JPEG2000"), 60_000), "too large"),
    "truncated.jp2": (lambda: encode(Image.fromarray(PICTURE), "JPEG2000")[:-300], "broken"),
    "truncated.avif": (lambda: encode(Image.fromarray(PICTURE), "AVIF")[:-200], "broken|not an image"),
    "short.ppm": (lambda: encode(Image.fromarray(PICTURE), "PPM")[:-9], "broken"),
    "script.eps": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "float.tif": (lambda: encode(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "32-bit"),
}


@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize("name", BROKEN)
def test_broken_image_is_one_line_naming_the_file(name: str, as_bytes: bool, tmp_path: Path) -> None:
    make, what = BROKEN[name]
    file = tmp_path / name
    file.write_bytes(make())
    with pytest.raises(DataError, match=what) as caught:
        decode(file.read_bytes() if as_bytes else file, str(file))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(caught.value.fix) > 5


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such image file.*gone\.png"):
        decode(tmp_path / "gone.png")
    with pytest.raises(DataError):
        decode(tmp_path)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_keep_the_pixels(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(pixels(encode(Image.fromarray(PICTURE), kind, **options)), PICTURE)


def test_jpeg_is_close() -> None:
    assert np.abs(pixels(encode(Image.fromarray(PICTURE), "JPEG", quality=95)) - PICTURE).mean() < 3


def test_cmyk_comes_out_in_the_right_colours() -> None:
    data = encode(Image.new("RGB", (8, 8), (200, 40, 90)).convert("CMYK"), "JPEG", quality=100)
    assert np.abs(pixels(data) - [200, 40, 90]).max() <= 4


def test_transparency_shows_white_behind() -> None:
    clear = np.zeros((2, 2, 4), np.uint8)
    clear[0, 0] = (10, 20, 30, 255)
    clear[0, 1] = (10, 20, 30, 51)  # one fifth
    result = pixels(encode(Image.fromarray(clear)))
    assert result[0, 0].tolist() == [10, 20, 30]
    assert np.abs(result[0, 1] - (255 - 0.2 * (255 - np.array([10, 20, 30])))).max() <= 1
    assert result[1, 1].tolist() == [255, 255, 255]


def test_grey_with_alpha_and_transparent_palette() -> None:
    grey = np.array([[[7, 255], [7, 0]]], np.uint8)
    assert pixels(encode(Image.fromarray(grey, "LA")))[0].tolist() == [[7] * 3, [255] * 3]
    palette = Image.new("P", (2, 1))
    palette.putpalette([9, 8, 7, 1, 2, 3])
    palette.putdata([0, 1])
    assert pixels(encode(palette))[0].tolist() == [[9, 8, 7], [1, 2, 3]]
    assert pixels(encode(palette, transparency=1))[0].tolist() == [[9, 8, 7], [255] * 3]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    wide = np.array([[0, 257, 128 * 257, 65535, 40000]], np.uint16)
    result = pixels(encode(Image.fromarray(wide), kind))
    assert result[0, :, 0].tolist() == [0, 1, 128, 255, round(40000 / 257)]


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue", "green")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (pixels(data) == [255, 0, 0]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int) -> None:
    # How a camera stores the upright picture, by the EXIF standard's table (row 0, column 0 of the storage).
    store: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    stored = Image.fromarray(np.ascontiguousarray(store[orientation](PICTURE)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(pixels(encode(stored, kind, exif=exif)), PICTURE), kind


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_broken_exif_does_not_matter(exif: bytes) -> None:
    plain = encode(Image.fromarray(PICTURE), "JPEG")
    broken = encode(Image.fromarray(PICTURE), "JPEG", exif=exif)
    assert np.array_equal(pixels(broken), pixels(plain))

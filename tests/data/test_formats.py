"""Formats beside JPEG and PNG: known by what a file holds, whatever it is called."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selkern.data.decode import FORMATS, HEIF_SUFFIXES, IMAGE_SUFFIXES, SUFFIXES, decode, is_heif, read_header
from selkern.data.listing import find_images
from selkern.errors import DataError

Y, X = np.mgrid[0:48, 0:64]
PICTURE = np.stack([X * 4, Y * 5, X + Y], axis=2).astype(np.uint8)


def encode(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PICTURE).save(buffer, kind, **options)
    return buffer.getvalue()


def heic() -> bytes:
    from pillow_heif import from_pillow

    buffer = io.BytesIO()
    from_pillow(Image.fromarray(PICTURE)).save(buffer, quality=95)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("kind", "options", "near"),
    [
        ("AVIF", {"quality": 95}, 12),
        ("JPEG2000", {"irreversible": False}, 0),
        ("PPM", {}, 0),
        ("MPO", {"quality": 95}, 12),
    ],
)
def test_what_a_file_holds_decides(kind: str, options: dict[str, object], near: int, tmp_path: Path) -> None:
    data = encode(kind, **options)
    for name in ("a", "a.jpg", "a.HEIC", "a.xyz"):
        (tmp_path / name).write_bytes(data)
        result = np.asarray(decode(tmp_path / name)).astype(int)
        assert np.abs(result - PICTURE).max() <= near
    assert len(find_images(tmp_path)) == 4


def test_sixteen_bits_of_jpeg_2000_and_pgm() -> None:
    wide = (PICTURE[..., 0].astype(np.uint16)) * 257
    for kind in ("JPEG2000", "PPM"):
        buffer = io.BytesIO()
        Image.fromarray(wide).save(buffer, kind)
        assert read_header(buffer.getvalue()).deep == "16-bit"
        assert np.array_equal(np.asarray(decode(buffer.getvalue()))[..., 0], PICTURE[..., 0])
    twelve = b"P5 2 1 4095\n" + np.array([2048, 4095], ">u2").tobytes()
    assert np.asarray(decode(twelve))[0, :, 0].tolist() == [128, 255]


def test_heic_is_decoded_where_its_package_is(tmp_path: Path) -> None:
    pytest.importorskip("pillow_heif")
    (tmp_path / "IMG_0001.HEIC").write_bytes(heic())
    (findings,) = find_images(tmp_path)
    header = read_header(findings)
    assert (header.width, header.height, header.format, header.pages) == (64, 48, "HEIF", False)
    assert np.abs(np.asarray(decode(findings)).astype(int) - PICTURE).mean() < 4
    with pytest.raises(DataError, match=r"broken|not an image"):
        decode(heic()[:-200])


def test_heic_without_the_package_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = (24).to_bytes(4, "big") + b"ftypheic\0\0\0\0mif1heic" + bytes(60)
    (tmp_path / "a.heic").write_bytes(data)
    for name in ("pillow_heif", "pillow_heif.as_plugin"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(DataError, match="HEIC needs pillow-heif") as caught:
        decode(tmp_path / "a.heic")
    assert caught.value.fix == "pip install 'selkern[heif]'"
    assert find_images(tmp_path) == []


def test_brands() -> None:
    def head(*brands: bytes) -> bytes:
        return (16 + 4 * (len(brands) - 1)).to_bytes(4, "big") + b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])

    assert is_heif(head(b"heic", b"mif1"))
    assert is_heif(head(b"mif1", b"heic", b"miaf"))
    assert not is_heif(head(b"mif1", b"avif"))
    assert not is_heif(head(b"avif", b"mif1"))
    assert not is_heif(head(b"isom", b"mp42"))  # a film
    assert not is_heif(b"")


def test_one_table_of_suffixes() -> None:
    assert {".jfif", ".jpe", ".avif", ".jp2", ".pgm", ".tif"} <= IMAGE_SUFFIXES
    assert not IMAGE_SUFFIXES & HEIF_SUFFIXES
    assert set(FORMATS) | {"MPO", "HEIF"} == set(SUFFIXES)
    assert not {"EPS", "PDF", "WMF", "PSD", "TGA", "FITS"} & set(FORMATS)


def test_a_bmp_of_another_kind_is_not_called_broken() -> None:
    data = bytearray(encode("BMP"))
    data[14:18] = (52).to_bytes(4, "little")
    data[28:30], data[30:34] = (16).to_bytes(2, "little"), (3).to_bytes(4, "little")
    for number, mask in enumerate((0xF00, 0xF0, 0xF)):
        data[54 + 4 * number : 58 + 4 * number] = mask.to_bytes(4, "little")
    with pytest.raises(DataError, match="of a kind not read here") as caught:
        decode(bytes(data))
    assert "broken" not in str(caught.value)


def test_the_header_of_a_turned_tiff_has_the_size_of_the_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "a.tif", exif=exif)
    header = read_header(tmp_path / "a.tif")
    assert (header.width, header.height) == decode(tmp_path / "a.tif").size == (20, 40)

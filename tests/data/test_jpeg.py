"""JPEGs to train on are decoded by simplejpeg, and nothing shows it: the same pixels, the same errors, or Pillow."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from selkern.data import decode as decoding
from selkern.data import jpeg
from selkern.data.augment import Augment, augment, reading
from selkern.data.decode import MAX_PIXELS, decode
from selkern.data.jpeg import PlainJpeg, open_plain
from selkern.data.levels import SHRUNK, Reading
from selkern.data.loader import Samples
from selkern.data.order import sample_rng
from selkern.data.preprocess import Preprocess
from selkern.data.sources import open_source
from selkern.errors import DataError

pytest.importorskip("simplejpeg")
WIDTH, HEIGHT = 243, 181  # px: no whole blocks of 8 or 16


def picture(mode: str = "RGB", seed: int = 0) -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 256, (45, 60, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).convert(mode)


def encode(image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image or picture()).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def rows(count: int = HEIGHT, least: int = 0) -> Reading:
    return Reading(least=least, rows=lambda _wide, _high: count)


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    return image.pixels if isinstance(image, PlainJpeg) else np.asarray(image)


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(exif=exif)


PLAIN: dict[str, Callable[[], bytes]] = {
    "4:4:4": lambda: encode(subsampling=0),
    "4:2:2": lambda: encode(subsampling=1),
    "4:2:0": lambda: encode(subsampling=2),
    "grey": lambda: encode(picture("L")),
    "restarts": lambda: encode(restart_marker_blocks=3),
    "optimized": lambda: encode(optimize=True, quality=35),
    "kept as RGB": lambda: encode(keep_rgb=True),
    "comment": lambda: encode(comment=b"\xff\xda" * 40),
    "upright by EXIF": lambda: turned(1),
    "followed by something": lambda: encode() + b"\xff\xd9",
}
LEFT: dict[str, Callable[[], bytes]] = {
    "progressive": lambda: encode(progressive=True),
    "CMYK": lambda: encode(picture("CMYK")),
    "turned by EXIF": lambda: turned(6),
    "XMP": lambda: encode(xmp=b'<x:xmpmeta xmlns:x="adobe:ns:meta/"></x:xmpmeta>'),
    "broken at once": lambda: encode()[:1] + b"\xd9" + encode()[2:],
    "PNG": lambda: _png(),
}


def _png() -> bytes:
    buffer = io.BytesIO()
    picture().save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("by", [1, 2, 4, 8])
@pytest.mark.parametrize("kind", PLAIN)
def test_the_rows_that_are_needed_are_pillows_to_the_bit(kind: str, by: int) -> None:
    data = PLAIN[kind]()
    least = HEIGHT // by if by > 1 else 0
    whole = decode(data, reading=Reading(least=least))
    for count in (1, 7, 8, 15, 16, 17, 32, 100, HEIGHT - 1, HEIGHT):
        part = decode(data, reading=rows(count, least))
        assert isinstance(part, PlainJpeg), kind
        assert (part.size, part.info.get(SHRUNK)) == (whole.size, whole.info.get(SHRUNK))
        needed = -(-count // by)
        assert len(part.pixels) >= needed
        assert np.array_equal(part.pixels[:needed], np.asarray(whole)[:needed]), (kind, count)
    if kind not in ("restarts", "followed by something"):
        assert len(pixels(decode(data, reading=rows(32, least)))) < -(-HEIGHT // by)


@pytest.mark.parametrize("kind", LEFT)
def test_what_is_not_plain_is_left_to_pillow(kind: str, tmp_path: Path) -> None:
    data = LEFT[kind]()
    (tmp_path / "x").write_bytes(data)
    for given in (data, tmp_path / "x"):
        try:
            expected = np.asarray(decode(given, "x"))
        except DataError as error:
            with pytest.raises(DataError, match=str(error).replace("|", r"\|").replace("(", r"\(").replace(")", r"\)")):
                decode(given, "x", rows())
        else:
            image = decode(given, "x", rows())
            assert not isinstance(image, PlainJpeg)
            assert np.array_equal(np.asarray(image), expected)


def result(data: bytes | Path, plan: Reading) -> NDArray[np.uint8] | str:
    try:
        return pixels(decode(data, "x.jpg", plan))
    except DataError as error:
        return str(error)


@pytest.mark.parametrize("seed", range(8))
def test_damaged_files_are_refused_or_read_as_pillow_does(seed: int) -> None:
    """Bytes changed, cut out, put in, and the end lost; in two of three files after the head."""
    rng = np.random.default_rng(seed)
    refused = fast = 0
    for number in range(60):
        data = bytearray(list(PLAIN.values())[int(rng.integers(6))]())
        for _ in range(int(rng.integers(1, 4))):
            at = int(rng.integers(2 if number % 3 == 0 else 700, len(data) - 8))
            how = rng.integers(4)
            if how == 0:
                data[at] = int(rng.integers(256))
            elif how == 1:
                del data[at : at + int(rng.integers(1, 40))]
            elif how == 2:
                data[at:at] = rng.integers(0, 256, 5, dtype=np.uint8).tobytes()
            elif rng.random() < 0.3:
                del data[at:]
                data += bytes(10)
        count = int(rng.integers(1, HEIGHT + 1))
        expected, seen = result(bytes(data), Reading()), result(bytes(data), rows(count))
        if isinstance(expected, str) or isinstance(seen, str):
            assert str(expected) == str(seen), (seed, number)
            refused += 1
        else:
            assert np.array_equal(expected[:count], seen[:count]), (seed, number, count)
            fast += len(seen) < len(expected)
    print("seed", seed, "refused", refused, "in part", fast)
    assert refused
    assert fast


def test_limits_and_messages_are_those_of_every_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = encode().index(b"\xff\xc0") + 5
    huge = encode()[:at] + b"\xff\xdc\xff\xdc" + encode()[at + 4 :]
    assert MAX_PIXELS < 0xFFDC**2
    for name, data, what in (
        ("huge.jpg", huge, "too large"),
        ("cut.jpg", encode()[:-400], "broken"),
        ("empty.jpg", b"", "empty"),
        ("start.jpg", encode()[:40], "broken|not an image"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=what) as caught:
            decode(tmp_path / name, reading=rows())
        assert name in str(caught.value)
    with pytest.raises(DataError, match="no such image file"):
        decode(tmp_path / "gone.jpg", reading=rows())
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it would wait for a writer
    with pytest.raises(DataError, match="not a file"):
        decode(tmp_path / "pipe.jpg", reading=rows())
    monkeypatch.setattr(decoding, "MAX_BYTES", 1000)
    (tmp_path / "long.jpg").write_bytes(encode())
    for given in (encode(), tmp_path / "long.jpg"):
        with pytest.raises(DataError, match="file too large"):
            decode(given, reading=rows())


def test_no_height_no_scan_and_two_frames_are_not_plain() -> None:
    data = encode()
    at, scan = data.index(b"\xff\xc0"), data.index(b"\xff\xda")
    frame = data[at : at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")]
    assert open_plain(data, 1 << 20) is not None
    assert open_plain(data, len(data) - 1) is None
    assert open_plain(data[: at + 5] + b"\0\0" + data[at + 7 :], 1 << 20) is None
    assert open_plain(data[:scan], 1 << 20) is None
    assert open_plain(data[:scan] + frame + data[scan:], 1 << 20) is None
    assert open_plain(data[:at] + data[at + len(frame) :], 1 << 20) is None
    one = data[: scan + 4] + b"\1" + data[scan + 5 :]
    assert open_plain(one, 1 << 20) is None


def test_pillows_methods_work_on_it() -> None:
    whole = decode(encode())
    part = decode(encode(), reading=rows(50))
    assert isinstance(part, PlainJpeg)
    seen = np.asarray(part.convert("RGB"))
    assert np.array_equal(seen[:50], np.asarray(whole)[:50])
    assert not seen[len(part.pixels) :].any()
    assert part.resize((9, 9)).size == (9, 9)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(6):
        file = tmp_path / "ab"[number % 2] / f"{number}.jpg"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(encode(picture(seed=number), exif=Image.Exif() if number else b""))
    (tmp_path / "a" / "0.jpg").write_bytes(turned(6))
    return tmp_path


@pytest.mark.parametrize("size", [32, 64, 160])
def test_a_sample_is_the_same_without_simplejpeg(folder: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = Augment(crop="resized", flip=0.5, colour=0.4, cutmix=1.0)
    samples = Samples(open_source(str(folder)).train, Preprocess(size=size), spec, 0)

    def read() -> list[NDArray[np.uint8]]:
        return [samples[(epoch, index)].pixels for epoch in range(6) for index in range(len(samples))]  # type: ignore[union-attr]

    opened: list[PlainJpeg] = []

    def spy(data: bytes | Path, most: int) -> PlainJpeg | None:
        image = open_plain(data, most)
        opened.extend([image] if image else [])
        return image

    monkeypatch.setattr(decoding, "open_plain", spy)
    fast = read()
    assert opened
    assert size > 32 or any(SHRUNK in image.info for image in opened)
    monkeypatch.setattr(decoding, "open_plain", lambda _data, _most: None)
    assert all(np.array_equal(one, other) for one, other in zip(fast, read(), strict=True))


def test_a_decoder_that_does_not_agree_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    import simplejpeg

    right = simplejpeg.decode_jpeg
    jpeg._agrees.cache_clear()
    try:
        assert jpeg._agrees()
        jpeg._agrees.cache_clear()
        monkeypatch.setattr(
            simplejpeg, "decode_jpeg", lambda *given, **named: right(*given, **named, fastupsample=True)
        )
        assert not jpeg._agrees()
        assert open_plain(encode(), 1 << 20) is None
    finally:
        jpeg._agrees.cache_clear()


def test_evaluation_is_pillows() -> None:
    assert Preprocess(size=64).reading().rows is None
    for spec, resize in ((Augment(crop="pad"), "crop"), (Augment(), "crop"), (Augment(crop="resized"), "pad")):
        plan = reading(spec, Preprocess(size=64, resize=resize), sample_rng(0, 0, 0))  # type: ignore[arg-type]
        assert plan.rows is None


@pytest.mark.parametrize(("wide", "high"), [(224, 224), (500, 375), (37, 90), (1, 1), (2900, 1700)])
def test_a_crop_is_what_pillow_makes_of_it(wide: int, high: int) -> None:
    """Within two grey levels: 16 bits of weight where Pillow has 22."""
    rng = np.random.default_rng(wide)
    image = Image.fromarray(rng.integers(0, 256, (high, wide, 3), dtype=np.uint8))
    whole = Augment(crop="resized", crop_scale=(1.0, 1.0), crop_ratio=(wide / high, wide / high))
    seen = augment(image, whole, Preprocess(size=112), sample_rng(0, 0, 0)).astype(int)
    pillows = np.asarray(image.resize((112, 112), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
    assert np.abs(seen - pillows).max() <= 2
    assert np.abs(seen - pillows).mean() < 0.1

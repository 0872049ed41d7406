"""Pixels that Pillow alone would read as others: the right values by NumPy, or a refusal that says why."""

from __future__ import annotations

import numpy as np
import pytest
from image_files import png, tiff
from numpy.typing import NDArray

from selkern.data.decode import decode, read_header, read_used
from selkern.data.levels import Levels, Reading
from selkern.errors import DataError

RAMP = np.arange(48, dtype=np.uint16).reshape(6, 8) * 5  # 0 to 235
RGB = np.stack([RAMP, RAMP[::-1], RAMP * 0 + 250], axis=2)


def pixels(data: bytes, levels: Levels = "full") -> NDArray[np.int64]:
    return np.asarray(decode(data, reading=Reading(levels=levels))).astype(np.int64)


def used_ends(data: bytes) -> tuple[float, float]:
    used = read_used(data)
    assert used is not None
    return used.ends


def grey(values: NDArray[np.generic]) -> NDArray[np.int64]:
    return np.repeat(values.astype(np.int64)[..., None], 3, axis=2)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("big_endian", [False, True])
def test_planes_of_sixteen_bits(big_endian: bool, packed: bool) -> None:
    data = tiff(RGB * 257, 2, planar=True, big_endian=big_endian, packed=packed)
    assert np.array_equal(pixels(data), RGB)


@pytest.mark.parametrize("packed", [False, True])
def test_white_is_zero_in_sixteen_bits(packed: bool) -> None:
    assert np.array_equal(pixels(tiff(65535 - RAMP * 257, 0, packed=packed)), grey(RAMP))
    assert np.array_equal(pixels(tiff(4095 - RAMP * 16, 0), (0.0, 4095.0)), grey(np.rint(RAMP * 16 / 4095 * 255)))


def test_a_palette_counted_to_255() -> None:
    colours = [*range(256), *range(255, -1, -1), *[9] * 256]
    data = tiff(RAMP.astype(np.uint8), 3, t320=colours)
    assert np.array_equal(pixels(data), np.stack([RAMP, 255 - RAMP, RAMP * 0 + 9], axis=2))
    right = tiff(RAMP.astype(np.uint8), 3, t320=[value * 257 for value in colours])
    assert np.array_equal(pixels(right), pixels(data))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("kind", [np.uint16, np.int16, np.int32, np.float32])
def test_deep_grey_in_every_order(kind: type, big_endian: bool, packed: bool) -> None:
    data = tiff(RAMP.astype(kind), 1, big_endian=big_endian, packed=packed)
    assert np.array_equal(pixels(data, (0.0, 255.0)), grey(RAMP))
    assert used_ends(data) == (0, 235)
    assert read_header(data).deep


def test_signed_values_lie_around_zero() -> None:
    for kind in (np.int8, np.int16):
        values = RAMP.astype(np.int16) - 120
        data = tiff(values.astype(kind), 1)
        assert used_ends(data) == (-120, 115)
        wanted = np.rint((values + 128.0) * 255 / 255)
        assert np.array_equal(pixels(data, (-128.0, 127.0)), grey(wanted))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (RAMP.astype(np.float32), "32-bit float pixels without a known range"),
        (RAMP.astype(np.int16), "16-bit signed pixels without a known range"),
        (RAMP.astype(np.uint32), "32-bit pixels without a known range"),
        (RAMP.astype(np.int8), "8-bit signed pixels without a known range"),
    ],
)
def test_a_range_that_nothing_says_is_asked_for(values: NDArray[np.generic], words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        decode(tiff(values, 1), "a.tif")
    assert "--white-level" in caught.value.fix


def test_floats_by_the_tags_of_the_file() -> None:
    data = tiff(RAMP.astype(np.float32) / 100, 1, t340=[0.0], t341=[2.55])
    assert np.abs(pixels(data) - grey(RAMP)).max() <= 1
    assert used_ends(data) == pytest.approx((0, 2.55))


def test_no_number_is_black() -> None:
    values = np.array([[np.nan, np.inf, -np.inf, 0.5]], dtype=np.float32)
    assert pixels(tiff(values, 1), (0.0, 1.0))[0, :, 0].tolist() == [0, 255, 0, 128]
    assert used_ends(tiff(values, 1)) == (0.5, 0.5)


def test_unread_kinds_of_tiff_are_named() -> None:
    for data, words in (
        (tiff(RGB.astype(np.float32), 2), "RGB, 3 x 32-bit float"),
        (tiff(RGB.astype(np.uint32), 2, big_endian=True), "RGB, 3 x 32-bit unsigned, big endian"),
        (tiff(RGB, 8), "Lab, 3 x 16-bit"),
        (tiff(RGB[..., :2].astype(np.uint8), 1, planar=True, packed=True, t338=[2]), "grey and alpha each in a plane"),
        (tiff(RAMP.astype(np.uint8), 1, t254=[1]), "begins with a thumbnail"),
    ):
        with pytest.raises(DataError, match=words):
            decode(data)


def test_lab_is_read_as_colours() -> None:
    lab = np.full((4, 4, 3), (138, 0, 0), dtype=np.uint8)  # L 54 of 100: a middle grey
    assert np.abs(pixels(tiff(lab, 8)) - 129).max() <= 2


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_the_transparent_value_of_grey(depth: int) -> None:
    top = 2**depth - 1
    values = (np.arange(16).reshape(2, 8, 1) * 4369) & top
    shown = grey(np.rint(values[..., 0] * 255 / top))
    assert np.abs(pixels(png(values, depth, 0)) - shown).max() <= 1
    clear = np.where(values == values[1, 3], 255, shown)
    assert np.abs(pixels(png(values, depth, 0, [int(values[1, 3, 0])])) - clear).max() <= 1


def test_the_transparent_value_of_sixteen_bit_colours_is_whole() -> None:
    values = np.array([[[1000, 2000, 3000], [1000, 2000, 3001]]])  # alike in their higher bytes
    result = pixels(png(values, 16, 2, [1000, 2000, 3000]))
    assert result[0, 0].tolist() == [255] * 3
    assert np.abs(result[0, 1] - np.array([1000, 2000, 3001]) / 257).max() <= 1


@pytest.mark.parametrize(("kind", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_twelve_bits_in_a_png_of_sixteen(kind: int, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 4096, (5, 7, channels))
    colours = channels - (channels + 1) % 2
    shown = values[..., :colours] * 255 / 4095
    if colours < channels:
        values[..., -1] *= 16
        share = values[..., -1:] / 65535
        shown = shown * share + 255 * (1 - share)
    assert np.abs(pixels(png(values, 16, kind), (0.0, 4095.0)) - shown).max() <= 1.5


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("big_endian", [False, True])
def test_twelve_bits_in_a_tiff_of_sixteen(big_endian: bool, packed: bool) -> None:
    data = tiff(RGB * 16, 2, big_endian=big_endian, packed=packed)
    assert np.array_equal(pixels(data, (0.0, 4095.0)), np.rint(RGB * 16.0 * 255 / 4095))
    assert np.array_equal(pixels(data), RGB * 16 >> 8)  # full: as it always was
    assert used_ends(data) == (0, 4000)
    with pytest.raises(DataError, match="only --white-level full"):
        decode(tiff(RGB * 16, 2, planar=True), reading=Reading(levels="percentile"))

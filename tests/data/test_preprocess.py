"""The geometry of evaluation against an independent computation."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from selkern.data.preprocess import Preprocess, Resize
from selkern.errors import UsageError

NOISE = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)


def chw(image: Image.Image) -> np.ndarray:
    return np.asarray(image).transpose(2, 0, 1)


def test_an_image_that_fits_is_untouched() -> None:
    image = Image.fromarray(NOISE[:48, :48])
    assert np.array_equal(Preprocess(size=48)(image), chw(image))


def test_a_short_side_that_fits_is_only_cropped() -> None:
    image = Image.fromarray(NOISE[:32, :53])
    assert np.array_equal(Preprocess(size=32)(image), chw(image)[:, :, 10:42])


@pytest.mark.parametrize(("width", "height"), [(60, 40), (40, 60), (31, 47), (200, 100), (20, 20)])
@pytest.mark.parametrize("crop", [1.0, 0.875, 0.5])
def test_equals_resizing_all_of_it_and_cutting_the_centre(width: int, height: int, crop: float) -> None:
    # Grey enough for bicubic never to overshoot 0..255: Pillow clips between its two passes, in any order.
    image = Image.fromarray(NOISE[:height, :width] // 4 + 96)
    target = round(28 / crop)
    wide, high = round(width * target / min(width, height)), round(height * target / min(width, height))
    whole = chw(image.resize((wide, high), Image.Resampling.BICUBIC)).astype(int)
    left, top = (wide - 28) // 2, (high - 28) // 2
    result = Preprocess(size=28, crop=crop)(image).astype(int)
    assert result.shape == (3, 28, 28)
    assert np.abs(result - whole[:, top : top + 28, left : left + 28]).max() <= 1


def test_zoom_two_enlarges_the_centre_half() -> None:
    image = Image.fromarray(NOISE[:32, :32])
    centre = image.crop((8, 8, 24, 24)).resize((32, 32), Image.Resampling.BICUBIC)
    result = Preprocess(size=32)(image, zoom=2.0)
    inner = slice(6, 26)  # at the rim the two see different neighbours
    assert np.array_equal(result[:, inner, inner], chw(centre)[:, inner, inner])
    assert np.array_equal(Preprocess(size=32)(image, zoom=1.0), chw(image))


def test_zoom_makes_a_centred_object_larger() -> None:
    y, x = np.mgrid[0:64, 0:64] - 31.5
    disc = np.repeat(((y**2 + x**2 < 10**2) * 255).astype(np.uint8)[:, :, None], 3, axis=2)
    areas = [(Preprocess(size=64)(Image.fromarray(disc), zoom=z)[0] > 127).sum() for z in (1.0, 1.5, 2.0)]
    assert areas[1] / areas[0] == pytest.approx(1.5**2, rel=0.05)
    assert areas[2] / areas[0] == pytest.approx(2.0**2, rel=0.05)


def test_a_long_thin_image_needs_no_memory() -> None:
    assert Preprocess(size=64)(Image.new("RGB", (1, 200_000))).shape == (3, 64, 64)


def test_normalise() -> None:
    preprocess = Preprocess(size=2, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    batch = torch.arange(24, dtype=torch.uint8).view(2, 3, 2, 2) * 10
    expected = batch.double() / 255
    for colour in range(3):
        expected[:, colour] = (expected[:, colour] - preprocess.mean[colour]) / preprocess.std[colour]
    result = preprocess.normalise(batch)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), expected, rtol=1e-5, atol=1e-6)


def test_dict_round_trip_through_json() -> None:
    preprocess = Preprocess(size=224, crop=0.875, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    assert Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess
    for broken in ({}, {**preprocess.to_dict(), "colour": 1}, {**preprocess.to_dict(), "mean": 3}):
        with pytest.raises(UsageError, match="Preprocess"):
            Preprocess.from_dict(broken)


@pytest.mark.parametrize(
    "wrong", [{"size": 0}, {"crop": 0.0}, {"crop": 1.1}, {"mean": (2.0, 0, 0)}, {"std": (0.0, 1, 1)}]
)
def test_validation_names_the_field(wrong: dict[str, object]) -> None:
    (field,) = wrong
    with pytest.raises(UsageError, match=f"Preprocess.{field}"):
        Preprocess(**{"size": 8, **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize("zoom", [0.5, 0.0, float("nan")])
def test_zoom_below_one(zoom: float) -> None:
    with pytest.raises(UsageError, match="zoom"):
        Preprocess(size=8)(Image.new("RGB", (8, 8)), zoom=zoom)


@pytest.mark.parametrize(("width", "height"), [(60, 40), (40, 60), (200, 20), (28, 28), (9, 150)])
@pytest.mark.parametrize("crop", [1.0, 0.875])
@pytest.mark.parametrize("resize", ["squash", "pad"])
def test_squash_and_pad_equal_resizing_all_of_it(resize: Resize, width: int, height: int, crop: float) -> None:
    image = Image.fromarray(NOISE[:height, :width] // 4 + 96)
    preprocess = Preprocess(size=28, crop=crop, mean=(0.2, 0.4, 0.6), resize=resize)
    target = round(28 / crop)
    shape = (target, target)
    if resize == "pad":
        shape = (round(width * target / max(width, height)), round(height * target / max(width, height)))
    square = Image.new("RGB", (target + 28, target + 28), (51, 102, 153))
    left, top = ((target + 28) // 2 + (28 - length) // 2 - 14 for length in shape)
    square.paste(image.resize(shape, Image.Resampling.BICUBIC), (left, top))
    edge = (target + 28) // 2 - 14
    expected = chw(square.crop((edge, edge, edge + 28, edge + 28))).astype(int)
    result = preprocess(image).astype(int)
    assert result.shape == (3, 28, 28)
    assert np.abs(result - expected).max() <= 1
    filled = (result == np.array([51, 102, 153])[:, None, None]).all(axis=0).mean()
    assert filled == pytest.approx(1 - np.prod([min(length, 28) for length in shape]) / 28**2)


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
@pytest.mark.parametrize(("width", "height"), [(300, 100), (100, 240), (128, 128)])
@pytest.mark.parametrize("crop", [1.0, 0.8])
def test_to_input_says_where_a_box_comes_to_lie(resize: Resize, width: int, height: int, crop: float) -> None:
    box = (width // 2 - 10, height // 2 - 20, width // 2 + 20, height // 2 + 15)
    image = Image.new("RGB", (width, height))
    image.paste((255, 255, 255), box)
    preprocess = Preprocess(size=64, crop=crop, mean=(0, 0, 0), resize=resize)
    white = preprocess(image)[0] / 255
    left, top, right, bottom = preprocess.to_input(box, width, height)
    assert white.sum() == pytest.approx((right - left) * (bottom - top), rel=0.03)
    assert white.max(axis=0).sum() == pytest.approx(right - left, abs=1)
    middle = (np.arange(64) + 0.5) @ white.sum(axis=0) / white.sum()
    assert middle == pytest.approx((left + right) / 2, abs=0.2)
    assert (np.arange(64) + 0.5) @ white.sum(axis=1) / white.sum() == pytest.approx((top + bottom) / 2, abs=0.2)
    whole = preprocess.to_input((0, 0, width, height), width, height)
    side = {"crop": min(width, height), "squash": width, "pad": max(width, height)}[resize]
    assert whole[2] - whole[0] == pytest.approx(64 / crop * width / side, abs=1)


@pytest.mark.parametrize("resize", ["squash", "pad"])
def test_zoom_enlarges_the_centre_of_what_is_shown(resize: Resize) -> None:
    image = Image.new("RGB", (200, 100))
    image.paste((200, 200, 200), (80, 40, 120, 60))
    preprocess = Preprocess(size=50, mean=(0, 0, 0), resize=resize)
    areas = [(preprocess(image, zoom)[0] > 100).sum() for zoom in (1.0, 2.0)]
    assert areas[1] == pytest.approx(4 * areas[0], rel=0.1)


@pytest.mark.parametrize("resize", ["squash", "pad"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 9000), (9000, 1), (320, 32)])
def test_any_shape_has_an_input(resize: Resize, shape: tuple[int, int]) -> None:
    image = Image.new("RGB", shape, (255, 255, 255))
    assert (Preprocess(size=32, mean=(0, 0, 0), resize=resize)(image) == 255).any()


def test_a_card_names_the_resize_only_where_it_is_not_the_default() -> None:
    assert Preprocess(size=8).to_dict().keys() == {"size", "crop", "mean", "std"}  # what versions before can read
    message = Preprocess(size=8, resize="pad").to_dict()
    assert Preprocess.from_dict(json.loads(json.dumps(message))).resize == "pad"
    for wrong in ("stretch", ["pad"], None):
        with pytest.raises(UsageError, match="give crop, squash or pad"):
            Preprocess.from_dict({**message, "resize": wrong})

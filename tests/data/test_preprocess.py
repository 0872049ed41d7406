"""The geometry of evaluation against an independent computation."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from selkern.data.preprocess import Preprocess
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

"""Random changes: each does what it says, within its limits, from the sample's own random numbers."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from selkern.data.augment import Augment, _jitter, augment, mix
from selkern.data.order import sample_rng
from selkern.data.preprocess import Preprocess, Resize
from selkern.errors import UsageError

S = 32
PREPROCESS = Preprocess(size=S, mean=(0.2, 0.4, 0.6))
FILL = np.array([51, 102, 153])
PIXELS = np.random.default_rng(0).integers(0, 256, (S, S, 3), dtype=np.uint8)
IMAGE = Image.fromarray(PIXELS)
PLAIN = PREPROCESS(IMAGE)
EVERYTHING = Augment(crop="resized", flip=0.5, colour=0.4, erase=0.5)


def run(spec: Augment, index: int = 0, image: Image.Image = IMAGE) -> np.ndarray:
    return augment(image, spec, PREPROCESS, sample_rng(0, 0, index))


def test_the_default_changes_nothing() -> None:
    assert np.array_equal(run(Augment()), PLAIN)


def test_pure_and_varied() -> None:
    assert np.array_equal(run(EVERYTHING, 4), run(EVERYTHING, 4))
    assert len({run(EVERYTHING, index).tobytes() for index in range(30)}) == 30


def test_pad_shifts_and_fills_with_the_mean_colour() -> None:
    wide = np.empty((3, S + 8, S + 8), np.uint8)
    wide[:] = FILL[:, None, None]
    wide[:, 4:-4, 4:-4] = PLAIN
    windows = {wide[:, y : y + S, x : x + S].tobytes(): (y, x) for y in range(9) for x in range(9)}
    seen = {windows[run(Augment(crop="pad", pad=4), index).tobytes()] for index in range(600)}
    assert len(seen) > 75  # of 81 places


def test_flip_mirrors_with_its_probability() -> None:
    results = [run(Augment(flip=0.25), index) for index in range(400)]
    flipped = sum(np.array_equal(result, PLAIN[:, :, ::-1]) for result in results)
    kept = sum(np.array_equal(result, PLAIN) for result in results)
    assert flipped + kept == 400
    assert 60 < flipped < 140
    assert np.array_equal(run(Augment(flip=1.0)), PLAIN[:, :, ::-1])


def test_resized_crop_shows_a_part_of_the_asked_area() -> None:
    """On a picture whose colours are its coordinates, the corners say which part was taken."""
    y, x = np.mgrid[0:200, 0:200]
    map_ = Image.fromarray(np.stack([x, y, 0 * x], axis=2).astype(np.uint8))
    spec = Augment(crop="resized", crop_scale=(0.25, 0.5), crop_ratio=(0.5, 2.0))
    areas, ratios = [], []
    for index in range(200):
        part = run(spec, index, map_).astype(float)
        width, height = (np.ptp(part[colour]) * S / (S - 1) for colour in (0, 1))
        areas.append(width * height / 200**2)
        ratios.append(width / height)
    assert min(areas) > 0.22
    assert max(areas) < 0.54
    assert np.mean(areas) == pytest.approx(0.375, abs=0.02)
    assert min(ratios) < 0.7 < 1.5 < max(ratios) < 2.1


def test_resized_crop_of_a_line_falls_back_to_its_centre() -> None:
    line = Image.fromarray(np.repeat(np.arange(200, dtype=np.uint8)[None, :, None], 3, axis=2))
    part = run(Augment(crop="resized", crop_scale=(1.0, 1.0)), 0, line)
    assert abs(int(part.min()) - 99) <= 2
    assert abs(int(part.max()) - 100) <= 2


def test_colour_jitter_of_a_grey_card_is_brightness_within_its_limits() -> None:
    card = Image.new("RGB", (S, S), (100, 100, 100))
    values = [run(Augment(colour=0.4), index, card) for index in range(200)]
    assert all(np.ptp(value) == 0 for value in values)
    levels = [int(value[0, 0, 0]) for value in values]
    assert 60 <= min(levels) < 65
    assert 135 < max(levels) <= 140


def test_colour_jitter_moves_saturation_and_contrast() -> None:
    def spread(pixels: np.ndarray) -> float:
        return float(np.ptp(pixels.astype(float), axis=0).mean() / pixels.mean())

    ratios = [spread(run(Augment(colour=0.4), index)) / spread(PLAIN) for index in range(100)]
    assert min(ratios) < 0.7
    assert max(ratios) > 1.15


@pytest.mark.parametrize("seed", range(5))
def test_colour_jitter_is_its_three_steps_within_rounding(seed: int) -> None:
    """Brightness, saturation about each pixel's grey, contrast about the mean grey, one after the other."""
    pixels = np.random.default_rng(seed).integers(0, 256, (3, S, S), dtype=np.uint8)
    brightness, contrast, saturation = sample_rng(0, 0, seed).uniform(0.6, 1.4, 3)
    x = pixels * brightness
    grey = np.tensordot([0.299, 0.587, 0.114], x, 1)
    x = grey + saturation * (x - grey)
    expected = np.clip(grey.mean() + contrast * (x - grey.mean()), 0, 255)
    assert np.abs(_jitter(pixels, 0.4, sample_rng(0, 0, seed)) - expected).max() < 0.501


def test_erase_fills_one_rectangle_with_the_mean_colour() -> None:
    white = Image.new("RGB", (S, S), "white")
    shares = []
    for index in range(200):
        result = run(Augment(erase=1.0), index, white)
        rows, columns = np.nonzero((result == FILL[:, None, None]).all(axis=0))
        area = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
        assert area == len(rows)
        assert (result == 255).all(axis=0).sum() == S * S - area
        shares.append(area / S**2)
    assert min(shares) < 0.06
    assert 0.28 < max(shares) < 0.37


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mix_shows_both_images_by_their_weight(kind: str) -> None:
    black, white = np.zeros((3, S, S), np.uint8), np.full((3, S, S), 255, np.uint8)
    weights = []
    for index in range(200):
        rng = sample_rng(0, 0, index)
        mixed, label, partner, lam = mix(
            black,
            1,
            Augment(mixup=float(kind == "mixup"), cutmix=float(kind == "cutmix")),
            rng,
            lambda: (white, 2),
        )
        assert (label, partner) == (1, 2)
        assert mixed.mean() / 255 == pytest.approx(1 - lam, abs=0.002)
        assert (np.ptp(mixed) == 0) == (kind == "mixup" or lam in (0.0, 1.0))
        weights.append(lam)
    # cutmix: 1 - E[(s - s^2 / 4)^2], s^2 uniform, is what clipping at the rim leaves of the sample.
    assert np.mean(weights) == pytest.approx(0.5 if kind == "mixup" else 0.679, abs=0.06)
    assert not black.any()


def test_mix_picks_one_of_the_two_per_sample() -> None:
    black, white = np.zeros((3, S, S), np.uint8), np.full((3, S, S), 255, np.uint8)
    spec = Augment(mixup=1.0, cutmix=1.0)
    mixed = [mix(black, 0, spec, sample_rng(0, 0, index), lambda: (white, 1))[0] for index in range(200)]
    blended = sum(np.ptp(image) == 0 for image in mixed)
    assert 70 < blended < 140


def test_no_mix_loads_no_partner() -> None:
    def fail() -> tuple[np.ndarray, int]:
        raise AssertionError

    result = mix(PLAIN, 3, Augment(), sample_rng(0, 0, 0), fail)
    assert result[0] is PLAIN
    assert result[1:] == (3, 3, 1.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop": "centre"},
        {"pad": -1},
        {"crop_scale": (0.0, 1.0)},
        {"crop_scale": (0.5, 1.5)},
        {"crop_ratio": (2.0, 1.0)},
        {"flip": 1.5},
        {"colour": -0.1},
        {"erase": float("nan")},
        {"mixup": -1.0},
        {"cutmix": float("inf")},
    ],
)
def test_validation_names_the_field(wrong: dict[str, object]) -> None:
    (field,) = wrong
    with pytest.raises(UsageError, match="--" + field.replace("_", "-")):
        Augment(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("resize", ["squash", "pad"])
def test_resized_crop_of_a_wide_picture_takes_from_all_of_it(resize: Resize) -> None:
    """A picture whose colours are its coordinates, 4 times as wide as high, and no colour that the fill has."""
    x, y = np.meshgrid(np.arange(200), np.arange(50) * 4)
    wide = Image.fromarray(np.stack([x // 2, y // 2, 0 * x + 255], axis=2).astype(np.uint8))
    preprocess = Preprocess(size=S, mean=(0.5, 0.5, 0.5), resize=resize)
    spec = Augment(crop="resized", crop_scale=(0.25, 0.5), crop_ratio=(1.0, 1.0))
    parts = [augment(wide, spec, preprocess, sample_rng(0, 0, i)).astype(float) for i in range(150)]
    assert min(part[0].min() for part in parts) < 5  # both ends are seen
    assert max(part[0][part[2] > 200].max() for part in parts) > 93
    ratios = []
    for part in parts:
        shown = part[2] > 200
        assert shown.mean() > 0.15  # never the fill alone
        if shown.all():
            ratios.append(np.ptp(part[0]) / np.ptp(part[1]))
    if resize == "squash":
        assert len(ratios) == 150
        assert np.mean(ratios) == pytest.approx(1.0, abs=0.05)  # of the squashed picture, a square part
    else:
        assert not ratios


def test_a_small_part_of_a_padded_line_shows_the_line() -> None:
    line = Image.new("RGB", (300, 3), (255, 255, 255))
    preprocess = Preprocess(size=S, mean=(0, 0, 0), resize="pad")
    spec = Augment(crop="resized", crop_scale=(0.02, 0.02))
    assert all((augment(line, spec, preprocess, sample_rng(0, 0, index)) == 255).any() for index in range(50))

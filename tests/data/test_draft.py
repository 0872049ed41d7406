"""Large JPEGs decoded at a smaller scale: what the network sees stays the same within 3 grey levels.

Crops to train on end where pixels of the smaller image do.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from selkern.data.augment import Augment, _random_region, augment, reading
from selkern.data.decode import decode
from selkern.data.levels import PLAIN, SHRUNK, Reading
from selkern.data.order import sample_rng
from selkern.data.preprocess import Box, Preprocess, Resize, whole_size
from selkern.data.sources import open_source


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    """2,075 x 1,301 px: soft detail in every size, as cameras give it."""
    rng = np.random.default_rng(0)
    total = np.zeros((1301, 2075, 3))
    for cells in (5, 20, 80, 320):
        small = Image.fromarray(rng.integers(0, 256, (cells, cells * 8 // 5, 3), dtype=np.uint8))
        total += np.asarray(small.resize((2075, 1301), Image.Resampling.BICUBIC)) / 4
    return Image.fromarray(total.astype(np.uint8))


def jpeg(image: Image.Image, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92, exif=exif)
    return buffer.getvalue()


def test_it_comes_no_smaller_than_asked(photo: Image.Image) -> None:
    data = jpeg(photo)
    assert decode(data).size == decode(data, reading=Reading(least=651)).size == (2075, 1301)
    assert decode(data, reading=Reading(least=650)).size == (1038, 651)
    assert decode(data, reading=Reading(least=1)).size == (260, 163)
    assert whole_size(decode(data, reading=Reading(least=1))) == (2075, 1301)


def test_turned_sides_that_are_no_multiples_stay_whole(photo: Image.Image) -> None:
    for size, wanted in (((2072, 1296), (324, 518)), ((2076, 1300), (650 // 2, 519)), ((2075, 1300), (1300, 2075))):
        data = jpeg(photo.resize(size), orientation=6)
        assert decode(data, reading=Reading(least=300)).size == wanted


def test_coloured_lines_of_a_pixel_come_further_apart() -> None:
    """The limit: of the whole image such colours are clipped pixel by pixel, of the smaller one together."""
    lines = np.zeros((1040, 1040, 3), dtype=np.uint8)
    lines[::4], lines[2::4] = (255, 0, 0), (0, 0, 255)
    preprocess = Preprocess(size=64, crop=1.0)
    data = jpeg(Image.fromarray(lines))
    apart = np.abs(preprocess(decode(data)).astype(int) - preprocess(decode(data, reading=preprocess.reading())))
    assert 3 < apart.max() <= 16


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
def test_the_input_is_the_same_within_three_grey_levels(photo: Image.Image, resize: Resize, orientation: int) -> None:
    preprocess = Preprocess(size=112, crop=0.875, resize=resize)
    data = jpeg(photo.crop((0, 0, 2074, 1300)) if orientation > 1 else photo, orientation)
    whole, small = decode(data), decode(data, reading=preprocess.reading())
    assert min(small.size) in (650, 651)
    assert whole_size(small) == whole.size
    for zoom in (1.0, 2.0):
        difference = preprocess(whole, zoom).astype(int) - preprocess(small, zoom)
        assert np.abs(difference).max() <= 3


@pytest.mark.parametrize("resize", ["crop", "squash", "pad"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_crops_are_drawn_alike_and_lack_no_pixels(photo: Image.Image, resize: Resize, orientation: int) -> None:
    preprocess = Preprocess(size=48, resize=resize)
    data = jpeg(photo.crop((0, 0, 2074, 1300)), orientation)
    whole, widths = decode(data), set()
    for spec in (Augment(crop="resized"), Augment(crop="pad")):
        for index in range(6):
            rng = sample_rng(0, 0, index, 0)
            small = decode(data, reading=reading(spec, preprocess, rng))
            seen = augment(small, spec, preprocess, rng).astype(int)
            expected = augment(whole, spec, preprocess, sample_rng(0, 0, index, 0))
            if spec.crop == "resized" and resize == "crop":
                region = _random_region(*whole.size, spec, resize, sample_rng(0, 0, index, 0))
                expected = _moved(whole, region, small.info[SHRUNK][2], preprocess)
            assert np.abs(expected - seen).max() <= 3
            widths.add(small.width)
    assert whole.width // 2 in widths
    tiny = reading(Augment(crop="resized", crop_scale=(0.003, 0.004)), preprocess, sample_rng(0, 0, 0, 0))
    assert decode(data, reading=tiny).size == whole.size  # its crop needs all pixels


def _moved(whole: Image.Image, region: Box, by: int, preprocess: Preprocess) -> NDArray[np.uint8]:
    """A part whose edges are moved to those of pixels of the smaller image, by no more than half of one."""
    ends = (min(by * round(edge / by), length) for edge, length in zip(region, 2 * whole.size, strict=True))
    left, top, right, bottom = (int(edge) for edge in ends)
    assert max(np.abs(np.subtract((left, top, right, bottom), region))) <= by / 2
    part = whole.crop((left, top, right, bottom)).resize((preprocess.size, preprocess.size), Image.Resampling.BICUBIC)
    return np.asarray(part).transpose(2, 0, 1)


def test_a_split_read_plainly_has_all_pixels(photo: Image.Image, tmp_path: Path) -> None:
    for label in "ab":
        for number in range(3):
            (tmp_path / label).mkdir(exist_ok=True)
            (tmp_path / label / f"{number}.jpg").write_bytes(jpeg(photo))
    split = open_source(str(tmp_path)).train
    assert split.read(0).size == split.read(0, 0, PLAIN).size == (2075, 1301)
    assert split.read(0, reading=Preprocess(size=48).reading()).size == (1038, 651)
    assert (split.header(0).width, split.header(0).height) == (2075, 1301)

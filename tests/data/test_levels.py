"""Levels of deep pixels: as text, from a range in use, from a split; and the 8 bits that come of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from image_files import tiff
from PIL import Image

from selkern.data.check import check_data
from selkern.data.decode import decode
from selkern.data.levels import Levels, Reading, fit, parse_levels, show_levels, to_bytes, used_by, whole_bits
from selkern.data.preprocess import Preprocess
from selkern.data.sources import open_source
from selkern.data.survey import settle_levels, split_notes
from selkern.errors import DataError, UsageError

SIXTEEN = np.arange(0, 3201, 200, dtype=np.uint16).reshape(1, 17)


def folder(root: Path, values: np.ndarray, count: int = 6, odd: np.ndarray | None = None) -> Path:
    """So many images of each class and split, all alike but for an odd one, train/b/0.tif."""
    for label in "ab":
        for split in ("train", "val", "test"):
            (root / split / label).mkdir(parents=True)
            for number in range(count):
                (root / split / label / f"{number}.tif").write_bytes(tiff(values, 1))
    if odd is not None:
        (root / "train/b/0.tif").write_bytes(tiff(odd, 1))
    return root


def frame(low: int, high: int) -> np.ndarray:
    """(40, 40) of all values between two, about."""
    return np.linspace(low, high, 1600).round().astype(np.uint16).reshape(40, 40)


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ("full", "full"),
        ("percentile", "percentile"),
        ("4095", (0.0, 4095.0)),
        ("-1024:3000", (-1024.0, 3000.0)),
        ("0.25", (0.0, 0.25)),
        ("0.1:0.7", (0.1, 0.7)),
    ],
)
def test_levels_as_text(text: str, levels: Levels) -> None:
    assert parse_levels(text) == levels
    assert show_levels(levels) == text


@pytest.mark.parametrize("text", ["", "white", "nan", "0", "5:5", "9:1", "1:inf", "-4", "1:2:3", "1e999"])
def test_a_level_that_is_none_names_the_flag(text: str) -> None:
    with pytest.raises(UsageError, match="--white-level"):
        parse_levels(text)


@pytest.mark.parametrize(
    ("used", "bits"),
    [
        ((320, 3200), (0, 4095)),
        ((0, 4095), (0, 4095)),
        ((0, 4096), (0, 8191)),
        ((7, 65535), (0, 65535)),
        ((0, 200), (0, 255)),
        ((0, 0), (0, 1)),
        ((-1000, 3000), (-1024, 4095)),
        ((0.02, 0.988), (0, 1)),
        ((0, 0.2), (0, 0.25)),
        ((-0.3, 0.9), (-0.5, 1)),
        ((-3, -1), (-4, 0)),
    ],
)
def test_a_range_widened_to_whole_bits(used: tuple[float, float], bits: tuple[float, float]) -> None:
    assert whole_bits(*used) == bits


def test_percentiles_stretch_each_image() -> None:
    values = np.concatenate([np.full(5, -1e9), np.linspace(10, 20, 9990), np.full(5, 1e9)])
    shown = to_bytes(values, "percentile")
    assert shown[5] == 0
    assert shown[9994] == 255
    assert abs(int(shown[5000]) - 128) <= 1
    assert to_bytes(np.full((3, 3), 7, dtype=np.uint16), "percentile").max() == 0


def test_twelve_bits_are_seen_in_a_folder(tmp_path: Path) -> None:
    source = open_source(str(folder(tmp_path / "d", SIXTEEN)))
    levels, notes = settle_levels(source.train, "auto")
    assert levels == (0.0, 4095.0)
    (note,) = notes
    assert "16-bit and use 200 to 3,000: white is 4,095; --white-level full for 65,535" in note
    assert note in check_data(source).notes
    image = source.train.read(0, reading=Preprocess(size=8, levels=levels).reading())
    assert np.array_equal(np.asarray(image)[0, :, 0], np.rint(SIXTEEN[0] * 255.0 / 4095))
    kept, (note, lost) = settle_levels(source.train, (0.0, 9.0))
    assert kept == (0.0, 9.0)
    assert note.endswith("16-bit and use 200 to 3,000: white is 9")
    assert lost.startswith("12 of 12 images measured use values beyond black or white, 12 of them for half")
    note, few = split_notes(source.train, "full")
    assert "white is 65,535" in note
    assert "11 of 256 grey levels" in few
    assert split_notes(source.train, levels) == ()


def test_all_sixteen_bits_are_said_and_eight_need_no_word(tmp_path: Path) -> None:
    levels, (note,) = settle_levels(open_source(str(folder(tmp_path / "d", SIXTEEN * 16))).train, "auto")
    assert levels == "full"
    assert note == "all images looked at are 16-bit and use 3,200 to 48,000: white is 65,535"
    eight = open_source(str(folder(tmp_path / "e", SIXTEEN.astype(np.uint8)))).train
    assert settle_levels(eight, "auto") == ("full", ())


def test_a_hot_pixel_decides_nothing(tmp_path: Path) -> None:
    hot = frame(192, 3312)
    hot[9, 9] = 65535
    source = open_source(str(folder(tmp_path / "d", hot)))
    levels, (note, single) = settle_levels(source.train, "auto")
    assert levels == (0.0, 4095.0)
    assert "white is 4,095" in note
    assert "of 12 of 12 images measured lie beyond, up to 65,535" in single
    assert not check_data(source).lost


def test_an_odd_image_decides_nothing_and_is_named(tmp_path: Path) -> None:
    source = open_source(str(folder(tmp_path / "d", frame(192, 3312), count=12, odd=frame(3084, 53000))))
    levels, (_, lost) = settle_levels(source.train, "auto")
    assert levels == (0.0, 4095.0)
    assert lost.startswith("1 of 24 images measured use values beyond black or white, 1 of them for half")
    assert "train/b/0.tif: " in lost
    assert lost.endswith("--white-level percentile")
    (shown,) = split_notes(source.train, levels)
    assert shown.startswith(lost.partition(": ")[0])
    assert shown.endswith("the network learned 0 to 4,095; save them in that range")


def test_one_of_few_images_decides_with_a_word(tmp_path: Path) -> None:
    source = open_source(str(folder(tmp_path / "d", frame(192, 3312), count=4, odd=frame(3084, 53000))))
    levels, notes = settle_levels(source.train, "auto")
    assert levels == "full"
    assert any("a typical image uses" in note and "12 of 256 grey levels: --white-level" in note for note in notes)


def test_check_counts_every_image_that_is_lost(tmp_path: Path) -> None:
    root = folder(tmp_path / "d", frame(192, 3312))
    for name in ("test/a/0.tif", "val/b/3.tif"):  # of which training measures none
        (root / name).write_bytes(tiff(frame(5000, 53000), 1))
    result = check_data(open_source(str(root)))
    assert [result.short(place.file) for place in result.lost] == ["val/b/3.tif", "test/a/0.tif"]
    assert result.remarks == 1
    assert sum(row[0] == "beyond black or white" for row in result.to_rows()) == 2
    assert not check_data(open_source(str(root)), white="percentile").lost


@pytest.mark.parametrize(
    ("used", "levels"),
    [
        ((192, 3312), (0, 4095)),
        ((30048, 30828), (29824, 30976)),
        ((300.5, 310.25), (298, 314)),
        ((7, 7), (0, 7)),
        ((-31000, -30000), (-31232, -29824)),
        ((-1000, 3000), (-1024, 4095)),
    ],
)
def test_a_narrow_range_far_from_zero_has_a_black(used: tuple[float, float], levels: tuple[float, float]) -> None:
    assert fit(*used) == levels
    assert levels[0] <= used[0] <= used[1] <= levels[1]


def test_an_offset_is_taken_out(tmp_path: Path) -> None:
    source = open_source(str(folder(tmp_path / "d", frame(30048, 30828))))
    levels, (note,) = settle_levels(source.train, "auto")
    assert levels == (29824.0, 30976.0)
    assert "black is 29,824, white 30,976" in note
    shown = np.asarray(source.train.read(0, reading=Reading(levels=levels)))
    assert np.unique(shown).size > 128


def test_a_small_object_is_no_hot_pixel() -> None:
    values = np.zeros((100, 100), dtype=np.uint16)
    values[0, :5] = 900
    used = used_by(values)
    assert used.bulk == used.ends == (0, 900)


def test_floats_have_the_range_of_the_set(tmp_path: Path) -> None:
    source = open_source(str(folder(tmp_path / "d", (SIXTEEN / 3300).astype(np.float32))))
    levels, (note,) = settle_levels(source.train, "auto")
    assert levels == (0.0, 1.0)
    assert "32-bit float and use 0.06061 to 0.9091: white is 1" in note
    assert not check_data(source).unreadable


def test_integers_and_floats_have_no_range_in_common(tmp_path: Path) -> None:
    root = folder(tmp_path / "d", SIXTEEN)
    (root / "train/a/0.tif").write_bytes(tiff(SIXTEEN.astype(np.float32), 1))
    source = open_source(str(root))
    with pytest.raises(DataError, match="integer and float"):
        settle_levels(source.train, "auto")
    assert any("integer and float" in note for note in check_data(source).notes)
    assert settle_levels(source.train, "percentile")[0] == "percentile"


def test_what_cannot_be_measured_is_said(tmp_path: Path) -> None:
    source = open_source(str(folder(tmp_path / "d", SIXTEEN)))
    planes = tiff(np.stack([SIXTEEN] * 3, axis=2), 2, planar=True)
    for index in range(len(source.train)):
        Path(source.train.where(index)).write_bytes(planes)
    levels, (note,) = settle_levels(source.train, "auto")
    assert levels == "full"
    assert "cannot be measured" in note


def test_further_pages_are_said(tmp_path: Path) -> None:
    root = folder(tmp_path / "d", SIXTEEN.astype(np.uint8))
    frames = [Image.new("L", (4, 4), shade) for shade in (10, 200)]
    for name, kind in (("0.tif", "TIFF"), ("1.gif", "GIF"), ("2.png", "PNG"), ("3.webp", "WEBP")):
        frames[0].save(root / "train" / "a" / name, kind, save_all=True, append_images=frames[1:], lossless=True)
    source = open_source(str(root))
    _, (note,) = settle_levels(source.train, "auto")
    assert note == "4 of 15 images looked at are of several pages or frames: the first is read"
    assert decode(root / "train/a/0.tif").getpixel((0, 0)) == (10, 10, 10)


def test_levels_in_a_card() -> None:
    plain = Preprocess(size=8)
    assert "levels" not in plain.to_dict()
    for levels in ("percentile", (0.0, 4095.0)):
        there = Preprocess(size=8, levels=levels)
        assert Preprocess.from_dict(there.to_dict()) == there
        assert there.reading() == Reading(levels=levels, least=512)
    for wrong in ("auto", [1], [5, 5], [0, "a"], None, [0, float("nan")]):
        with pytest.raises(ValueError):
            Preprocess.from_dict({**plain.to_dict(), "levels": wrong})

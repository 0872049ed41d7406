"""What headers say: sizes of upright images, and a sample that leaves out what cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from selkern.data.decode import decode, read_header
from selkern.data.scenes import SceneSplit
from selkern.data.sources import open_source
from selkern.data.survey import survey


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_header_has_the_size_of_the_upright_image(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.jpg"
    Image.new("RGB", (40, 20)).save(path, exif=exif)
    header = read_header(path)
    assert (header.width, header.height) == decode(path).size
    assert (header.format, header.mode) == ("JPEG", "RGB")


def test_a_survey_leaves_out_what_cannot_be_read(tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / label).mkdir()
        for number in range(10):
            Image.new("RGB", (30 + number, 60)).save(tmp_path / label / f"{number}.png")
    (tmp_path / "a" / "0.png").write_bytes(b"no image")
    train = open_source(str(tmp_path)).train
    seen = survey(train, limit=1000)
    assert len(seen.headers) == len(train) - ("a/0.png" in {train.where(i)[-7:] for i in range(len(train))})
    assert set(seen.sizes[:, 1].tolist()) == {60}
    assert 30 <= seen.short_side <= 39
    assert len(survey(train, limit=4).headers) <= 4


def test_a_survey_of_scenes_knows_their_size() -> None:
    assert survey(SceneSplit("test", 10, 0)).short_side == 48

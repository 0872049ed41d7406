"""Sizes of objects from a table: read as written, matched to the images of a split, every fault named by its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tiny import make_options, train

from selkern import cli
from selkern.data.boxes import Objects, objects_of
from selkern.data.preprocess import Preprocess
from selkern.data.sources import open_source
from selkern.errors import DataError

CLASSES = ("cat", "dog")
FILES = {"cat/a.png": (40, 20), "cat/b.png": (120, 60), "dog/c.png": (60, 20), "dog/d.png": (20, 20)}


def table(folder: Path, text: str) -> Path:
    path = folder / "boxes.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Images of several sizes, all in one split; b.png is a.png stored three times as large."""
    for name, size in FILES.items():
        (tmp_path / "test" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, "red").save(tmp_path / "test" / name)
    for part in ("train", "val"):
        for name in CLASSES:
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(tmp_path / part / name / "x.png")
    return tmp_path


def read(pictures: Path, text: str, preprocess: Preprocess | None = None) -> Objects:
    split = open_source(str(pictures)).test
    return objects_of(table(pictures / "test", text), split, preprocess or Preprocess(size=10), CLASSES)


def test_a_size_is_in_px_of_the_networks_input(pictures: Path) -> None:
    """a.png's short side, 20 px, becomes the input's 10; b.png is the same picture, stored larger."""
    result = read(pictures, "path,size\ncat/a.png,6\ncat/b.png,18\ndog/d.png,6\n")
    assert result.indices.tolist() == [0, 1, 3]
    assert result.sizes == pytest.approx([3, 3, 3])
    boxes = read(pictures, "path,x0,y0,x1,y1\ncat/a.png,10,3,16,9\ncat/b.png,30,9,48,27\n")
    assert boxes.sizes == pytest.approx([3, 3])
    cropped = read(pictures, "path,size\ncat/a.png,6\n", Preprocess(size=10, crop=0.5))
    assert cropped.sizes == pytest.approx([6]), "the centre of an image resized to 20 px"
    assert read(pictures, "path,size_input\ncat/a.png,6\ncat/b.png,0.5\n").sizes.tolist() == [6, 0.5]


def test_the_centre_crop_cuts_boxes_off(pictures: Path) -> None:
    """Of c.png, 60 x 20 px, the network sees x from 20 to 40."""
    text = "path,x0,y0,x1,y1\ndog/c.png,30,5,60,15\ncat/a.png,0,0,4,20\ncat/b.png,-50,-50,200,150\n"
    result = read(pictures, text)
    assert result.indices.tolist() == [1, 2]
    assert result.sizes == pytest.approx([10, (5 * 5) ** 0.5])
    assert any(note.startswith("1 objects lie outside of what the network is shown") for note in result.notes)
    assert any(note.startswith("2 objects reach out of what the network is shown") for note in result.notes)
    assert any("a size to 2 of the 4 images of the test split" in note for note in result.notes)
    huge = read(pictures, "path,size\ndog/d.png,200\n")
    assert huge.sizes.tolist() == [10], "nothing is larger than all"
    assert any(note.startswith("1 objects reach out") for note in huge.notes)


@pytest.mark.parametrize(("resize", "size"), [("crop", 6), ("squash", 6 / 3**0.5), ("pad", 2)])
def test_every_way_to_resize_has_its_sizes(resize: Any, size: float, pictures: Path) -> None:
    """c.png is 60 x 20 px: boxes of 10 px a side in its middle, and half above it and three quarters off the crop."""
    preprocess = Preprocess(size=12, resize=resize)
    assert read(pictures, "path,size\ndog/c.png,10\n", preprocess).sizes == pytest.approx([size])
    middle = read(pictures, "path,x0,y0,x1,y1\ndog/c.png,25,5,35,15\n", preprocess)
    assert middle.sizes == pytest.approx([size])
    edge = read(pictures, "path,x0,y0,x1,y1\ndog/c.png,12.5,-5,22.5,5\n", preprocess)
    share = (0.25 if resize == "crop" else 1) * 0.5
    assert edge.sizes == pytest.approx([size * share**0.5])


def test_boxes_are_of_the_upright_image(pictures: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, shown 20 wide and 60 high
    Image.new("RGB", (60, 20)).save(pictures / "test" / "dog" / "c.png", exif=exif)
    result = read(pictures, "path,x0,y0,x1,y1\ndog/c.png,0,30,10,60\n")
    assert result.sizes == pytest.approx([5]), "y from 20 to 40 is seen"


def test_of_several_boxes_the_largest_of_the_images_class_counts(pictures: Path) -> None:
    same = "cat/a.png,12,0,18,6,cat\n"
    rows = "dog/d.png,0,0,4,4,dog\ndog/d.png,0,0,8,8,dog\ndog/d.png,0,0,20,20,cat\n" + 2 * same
    result = read(pictures, f"path,xmin,ymin,xmax,ymax,class\n{rows}")
    assert result.sizes == pytest.approx([3, 4])
    message = "1 images have several boxes: of each the largest of its own class counts"
    assert message in result.notes
    numbered = read(pictures, "path,x0,y0,x1,y1,label\n" + rows.replace(",cat", ",1").replace(",dog", ",2"))
    assert numbered.sizes == pytest.approx([3, 10])
    assert "1 images have several boxes: of each the largest counts" in numbered.notes
    unknown = (
        "labels of boxes.csv that are no class of the network: 1, 2; an object of the image's own class goes before"
    )
    assert any(note.startswith(unknown) for note in numbered.notes)
    assert not any("no class" in note for note in result.notes)


def test_boxes_of_other_copies_of_the_pictures_are_refused(pictures: Path) -> None:
    rows = "cat/a.png,10,0,90,20\ncat/b.png,0,0,120,20\ndog/d.png,0,0,9,9\n"
    with pytest.raises(DataError, match="2 of 4 boxes lie outside of their own images"):
        read(pictures, f"path,x0,y0,x1,y1\n{rows}dog/c.png,70,0,80,10\n")
    result = read(pictures, f"path,x0,y0,x1,y1\n{rows}dog/c.png,20,0,80,10\n")
    assert result.indices.tolist() == [0, 1, 2, 3], "one of four may be a slip"
    with pytest.raises(DataError, match="every object lies outside of what the network is shown"):
        read(pictures, "path,x0,y0,x1,y1\ndog/c.png,0,0,10,10\n")


def test_groups(pictures: Path) -> None:
    rows = "cat/a.png,6,one\ncat/b.png,6,one\ndog/c.png,6,\ndog/d.png,6,two\n"
    result = read(pictures, f"path,size,group\n{rows}")
    assert result.groups is not None
    assert result.groups.tolist() == [0, 0, 1, 2]
    assert not any("no column group" in note for note in result.notes)
    alone = read(pictures, "path,size\ncat/a.png,6\n")
    assert alone.groups is None
    assert any("no column group: images count as independent" in note for note in alone.notes)


def test_paths_written_on_windows(pictures: Path) -> None:
    assert read(pictures, "path,size\ncat\\a.png,6\n").indices.tolist() == [0]


def test_rows_that_say_no_size_end_or_are_left_out(pictures: Path) -> None:
    text = "path;x0;y0;x1;y1\ncat/a.png;12;2;18;8\ncat/b.png;4;4;4;8\ndog/c.png;0;0;big;4\ndog/gone.png;0;0;4;4\n"
    with pytest.raises(DataError) as caught:
        read(pictures, text)
    for part in ("the object's size is 0.0; 2 of 4 rows cannot be used", "boxes.csv line 3", "correct lines 3, 4;"):
        assert part in str(caught.value)
    split, path = open_source(str(pictures)).test, table(pictures / "test", text)
    result = objects_of(path, split, Preprocess(size=10), CLASSES, on_bad="skip")
    assert result.indices.tolist() == [0]
    said = " // ".join(result.notes)
    for part in (
        "columns of boxes.csv are separated by ';'",
        f"2 of 4 rows are left out, the first {path} line 3: the object's size is 0.0",
        f"images of the table of boxes that are not there: 1, the first {pictures}/test/dog/gone.png",
    ):
        assert part in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,width\na.png,3\n", "no columns of sizes in the header | .*line 1"),
        ("path,size\na.png,big\n", "not a number .* line 2"),
        ("path,size\na.png,0\n", "the object's size is 0.0 .* line 2"),
        ("path,size\na.png,nan\n", "the object's size is nan"),
        ("path,size\na.png\n", "not a number"),
        ("path,x0,y0,x1,y1\na.png,4,4,2,8\n", "the object's size is 0.0"),
        ("path,x0,y0,x1,y1\na.png,0.1,0.1,0.5,1\n", "shares of the picture"),
        ("path,size\na.png,0.3\nb.png,1\n", "shares of the picture"),
        (
            "path,size\na.png,3\n",
            r"none of its images is in the train split .*it names .*a\.png, the split has .*0\.png",
        ),
        ("path,size\n", "no rows below the header"),
        ('path,size\na.png,"193,5"\n', r"193,5 has a decimal comma, where 193\.5 is read .* line 2"),
        ("", "no columns of sizes"),
    ],
)
def test_faults(text: str, message: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        objects_of(table(tmp_path, text), open_source(str(data)).train, Preprocess(size=16))


def test_no_table(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the table"):
        objects_of(tmp_path / "none.csv", open_source(str(data)).train, Preprocess(size=16))


@pytest.mark.usefixtures("tiny_networks")
def test_analyze_holds_the_selection_against_the_boxes(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(make_options(data, tmp_path, model="sk_tiny"))
    split = open_source(str(data)).train
    rows = "".join(f"{split.where(i)},{1 + i % 7}\n" for i in range(20))
    words = [
        "analyze",
        str(run.path),
        "--split",
        "train",
        "--output",
        str(tmp_path / "out"),
        "--device",
        "cpu",
        "--json",
    ]
    assert cli.main([*words, "--boxes", str(table(tmp_path, "path,size\n" + rows))]) == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    result = printed["studies"]
    assert printed["above_chance"] == ("not better than" not in printed["said"]["main"][0])
    assert any("no column group" in note for note in printed["notes"])
    assert {row["n"] for row in result["true_scale"]} == {20}
    assert len(result["field_growth"]) == 2
    assert {"within_rho", "within_both_rho", "rho", "partial_both_rho"} < result["true_scale"][0].keys()
    assert (tmp_path / "out" / "report.html").read_text().count("size of the object") >= 1

"""Sizes of objects from a table: read as written, matched to the images of a split, every fault told by its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny import make_options, train

from selkern import cli
from selkern.data.boxes import sizes_of
from selkern.data.sources import open_source
from selkern.errors import DataError


def table(folder: Path, text: str) -> Path:
    path = folder / "boxes.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_sizes_and_boxes(data: Path, tmp_path: Path) -> None:
    split = open_source(str(data)).train
    one, two = (Path(split.where(i)) for i in (3, 0))
    assert sizes_of(table(tmp_path, f"path,size\n{one},2.5\n{two},7\nelsewhere.png,1\n"), split) == {3: 2.5, 0: 7.0}
    inside = table(
        data, f"path,label,x0,y0,x1,y1\n{one.relative_to(data)},a,2,2,6,18\n{one.relative_to(data)},b,0,0,1,1\n"
    )
    assert sizes_of(inside, split) == {3: 8.0}
    inside.unlink()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("path,width\na.png,3\n", "no columns of sizes in the header | .*line 1"),
        ("path,size\na.png,big\n", "not a number .* line 2"),
        ("path,size\na.png,0\n", "the object's size is 0.0 .* line 2"),
        ("path,size\na.png,nan\n", "the object's size is nan"),
        ("path,size\na.png\n", "not a number"),
        ("path,x0,y0,x1,y1\na.png,4,4,2,8\n", "the object's size is 0.0"),
        ("path,size\na.png,3\n", "none of its images is in the split"),
        ("", "no columns of sizes"),
    ],
)
def test_faults(text: str, told: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=told):
        sizes_of(table(tmp_path, text), open_source(str(data)).train)


def test_no_table(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the table"):
        sizes_of(tmp_path / "none.csv", open_source(str(data)).train)


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
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["studies"]
    assert {row["n"] for row in found["true_scale"]} == {20}
    assert len(found["field_growth"]) == 2
    assert (tmp_path / "out" / "report.html").read_text().count("size of the object") >= 1

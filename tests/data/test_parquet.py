"""Parquet: the right images with the right labels, or one line that says what to do."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from selkern.data.sources import open_source
from selkern.data.split import Split
from selkern.errors import DataError

CIFAR10 = Path(os.environ.get("SELKERN_CIFAR10", Path(__file__).parents[2].parent / "shared" / "data" / "cifar10"))


def image_bytes(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 5), (value % 256, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def members(split: Split) -> set[str]:
    return {split.where(index) for index in range(len(split))}


def message(**wrong: Any) -> str:
    """The one line that ``open_source`` fails with."""
    with pytest.raises(DataError) as caught:
        open_source(**wrong)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text.split(" | ")) == 3, text
    return text


def write(
    path: Path, labels: list[Any], names: list[str] | None = None, image: str = "image", struct: bool = True
) -> Path:
    """A Parquet file whose image i has red i, in row groups of three."""
    data = [image_bytes(i) for i in range(len(labels))]
    column = [{"bytes": d, "path": None} for d in data] if struct else data
    content = pa.table({image: column, "label": labels})
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        content = content.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(exist_ok=True)
    pq.write_table(content, path, row_group_size=3)
    return path


def test_parquet_folder_with_shards_keeps_the_declared_class_order(tmp_path: Path) -> None:
    names = ["zebra", "ant"]
    write(tmp_path / "d" / "train-00000.parquet", [0, 1, 0, 1, 0], names)
    write(tmp_path / "d" / "train-00001.parquet", [1, 1], names)
    write(tmp_path / "d" / "validation.parquet", [1, 1], names)
    write(tmp_path / "d" / "test.parquet", [0], names)
    source = open_source(str(tmp_path / "d"))
    assert (source.kind, source.classes, source.notes) == ("parquet", ("zebra", "ant"), ())
    assert source.train.labels.tolist() == [0, 1, 0, 1, 0, 1, 1]
    assert source.val.labels.tolist() == [1, 1]
    assert [source.train.read(i).getpixel((0, 0))[0] for i in range(7)] == [0, 1, 2, 3, 4, 0, 1]  # type: ignore[index]
    assert source.train.where(6) == f"{tmp_path / 'd' / 'train-00001.parquet'} row 1"
    assert source.test.read(0).getpixel((0, 0)) == (0, 0, 0)
    copy: Split = pickle.loads(pickle.dumps(source.train))
    assert copy.read(5).tobytes() == source.train.read(5).tobytes()
    assert next(source.split_rows()) == ("train-00000.parquet row 0", "zebra", "train")


@pytest.mark.parametrize("struct", [True, False])
def test_one_parquet_file_with_text_labels_is_cut(tmp_path: Path, struct: bool) -> None:
    path = write(tmp_path / "all.parquet", [["b", "a"][i % 2] for i in range(40)], struct=struct, image="picture")
    source = open_source(str(path))
    assert source.classes == ("a", "b")
    assert [len(s) for s in (source.train, source.val, source.test)] == [32, 4, 4]
    for split in (source.train, source.val, source.test):
        for index in range(len(split)):
            row = int(split.where(index).split()[-1])
            assert split.read(index).getpixel((0, 0)) == (row, 0, 0)
            assert source.classes[split.labels[index]] == "ba"[row % 2]
    with (tmp_path / "split.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(source.split_rows())
    restored = open_source(str(path), seed=4, split_csv=tmp_path / "split.csv")
    assert members(restored.val) == members(source.val)


def test_numbers_without_names_are_in_numeric_order(tmp_path: Path) -> None:
    path = write(tmp_path / "all.parquet", [10, 2, 1] * 10)
    source = open_source(str(path))
    assert source.classes == ("1", "2", "10")
    assert open_source(str(path), classes=["10", "1", "2", "3"]).classes == ("10", "1", "2", "3")


def test_parquet_classes_of_a_checkpoint(tmp_path: Path) -> None:
    path = write(tmp_path / "all.parquet", [0, 1] * 10, ["dog", "cat"])
    source = open_source(str(path), classes=["cat", "cow", "dog"])
    assert set(source.train.labels.tolist()) == {0, 2}
    assert "unknown label 'cat'" in message(data=str(path), classes=["dog", "cow"])


def test_parquet_errors(tmp_path: Path) -> None:
    text = message(data=str(write(tmp_path / "range.parquet", [0, 1, 0, 2], ["a", "b"])))
    assert "label 2" in text
    assert "range.parquet row 3" in text
    assert "label -2" in message(data=str(write(tmp_path / "minus.parquet", [0, -2], ["a", "b"])))
    assert "row 1" in message(data=str(write(tmp_path / "null.parquet", ["a", None, "b"])))
    broken = tmp_path / "broken.parquet"
    broken.write_bytes((tmp_path / "range.parquet").read_bytes()[:-20])
    assert "broken.parquet" in message(data=str(broken))
    pq.write_table(pa.table({"label": [1, 2]}), tmp_path / "bare.parquet")
    assert "no image column" in message(data=str(tmp_path / "bare.parquet"))
    assert "bare.parquet" in message(data=str(tmp_path))
    both = tmp_path / "both"
    write(both / "train.parquet", [0, 1], ["a", "b"])
    write(both / "test.parquet", [0, 1], ["b", "a"])
    assert "differ" in message(data=str(both))


def test_a_broken_row_is_named_and_the_rest_is_readable(tmp_path: Path) -> None:
    good = image_bytes(7)
    images = [{"bytes": b, "path": "p"} for b in (good, None, b"text", good[:-30], good)]
    pq.write_table(pa.table({"img": images, "label": list("ababa")}), tmp_path / "train.parquet")
    pq.write_table(pa.table({"img": images[:1], "label": ["a"]}), tmp_path / "val.parquet")
    source = open_source(str(tmp_path))
    for row in (1, 2, 3):
        with pytest.raises(DataError, match=rf"train\.parquet row {row} \|"):
            source.train.read(row)
    assert source.train.read(4).getpixel((0, 0)) == (7, 0, 0)


@pytest.mark.skipif(not (CIFAR10 / "train.parquet").is_file(), reason=f"no CIFAR-10 at {CIFAR10} (SELKERN_CIFAR10)")
def test_cifar10() -> None:
    source = open_source(str(CIFAR10))
    assert source.classes[0] == "airplane"
    assert source.classes[9] == "truck"
    assert (len(source.train), len(source.val), len(source.test)) == (45_000, 5_000, 10_000)
    counts = [np.bincount(part.labels) for part in (source.train, source.val, source.test)]
    assert np.abs(counts[0] - 9 * counts[1]).max() <= 9
    assert counts[2].tolist() == [1000] * 10
    images = [source.train.read(index) for index in range(0, 45_000, 3000)]
    assert {image.size for image in images} == {(32, 32)}
    assert len({image.tobytes() for image in images}) == 15

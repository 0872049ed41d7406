"""Parquet: the right images with the right labels, or one line that says what to do."""

from __future__ import annotations

import csv
import datetime
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
from selkern.data.table_options import TableOptions
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


# ------------------------------------------------------------------------------- as the Hub and people lay them out


@pytest.mark.parametrize(
    ("files", "sizes"),
    [
        (["train.parquet", "dev.parquet"], (8, 8, 8)),
        (["data/train-00000-of-00001-b42737f1d6ff0b6f.parquet", "data/validation-00000-of-00001.parquet"], (8, 8, 8)),
        (["default/train/0000.parquet", "default/test/0000.parquet"], (6, 2, 8)),
        (["cifar_train.parquet", "cifar_val.parquet", "cifar_test.parquet"], (8, 8, 8)),
        (["part-00000.parquet", "part-00001.parquet"], (12, 2, 2)),
    ],
)
def test_files_of_a_hub_clone(tmp_path: Path, files: list[str], sizes: tuple[int, ...]) -> None:
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / file, [0, 1] * 4)
    (tmp_path / "README.md").write_text("a data set")
    source = open_source(str(tmp_path))
    assert source.kind == "parquet"
    assert tuple(len(split) for split in (source.train, source.val, source.test)) == sizes
    if "train" in files[0]:
        assert all("train" in source.train.where(index) for index in range(sizes[0]))


def test_files_of_several_data_sets_or_of_none(tmp_path: Path) -> None:
    for name in ("small", "large"):
        (tmp_path / "two" / name / "train").mkdir(parents=True)
        write(tmp_path / "two" / name / "train" / "0000.parquet", [0, 1] * 4)
    assert "several data sets: large/, small/" in message(data=str(tmp_path / "two"))
    for name in ("a", "b"):
        for i in range(8):
            (tmp_path / "folders" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "folders" / name / f"{i}.png").write_bytes(image_bytes(i))
    pq.write_table(pa.table({"embedding": [1.0]}), tmp_path / "folders" / "embeddings.parquet")
    assert open_source(str(tmp_path / "folders")).kind == "folder"
    write(tmp_path / "folders" / "train.parquet", [0, 1] * 4)
    write(tmp_path / "folders" / "val.parquet", [0, 1] * 4)
    (tmp_path / "folders" / "embeddings.parquet").unlink()
    assert "ignored: a/ and 1 more folders beside the Parquet files" in open_source(str(tmp_path / "folders")).notes


def with_column(path: Path, name: str, values: list[Any]) -> Path:
    """A file of `write` with one more column."""
    pq.write_table(pq.read_table(path).append_column(name, pa.array(values)), path)
    return path


@pytest.mark.parametrize("column", ["split", "subset"])
def test_a_split_column(tmp_path: Path, column: str) -> None:
    words = ["train", "Validation", "test", "train"] * 3
    path = with_column(write(tmp_path / "all.parquet", ["a", "a", "b", "b"] * 3), column, words)
    source = open_source(str(path))
    for split, word in ((source.train, "train"), (source.val, "Validation"), (source.test, "test")):
        rows = [int(split.where(index).split()[-1]) for index in range(len(split))]
        assert rows == [row for row, said in enumerate(words) if said == word]
        assert [split.read(index).getpixel((0, 0))[0] for index in range(len(split))] == rows  # type: ignore[index]
    copy: Split = pickle.loads(pickle.dumps(source.val))
    assert copy.read(1).tobytes() == source.val.read(1).tobytes()
    saved = tmp_path / "split.csv"  # of a run that knew nothing of such a column
    lines = [f"all.parquet row {row},{'aabb'[row % 4]},{'val' if row == 11 else 'train'}\n" for row in range(12)]
    saved.write_text("".join(lines))
    assert len(open_source(str(path), split_csv=saved).train) == 11


def test_a_split_column_that_is_none(tmp_path: Path) -> None:
    path = with_column(write(tmp_path / "all.parquet", ["a", "b"] * 10), "dataset", ["cifar"] * 20)
    assert len(open_source(str(path)).train) == 16
    path = with_column(write(tmp_path / "all.parquet", ["a", "b"] * 10), "split", ["train"] * 18 + ["best", ""])
    assert "unknown split 'best'; 2 of 20 rows" in message(data=str(path))
    assert [left.where[-2:] for left in open_source(str(path), on_bad="skip").left_out] == ["18", "19"]


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        ([0.0, 1.0] * 10, "double"),
        ([[0], [1]] * 10, "list<element: int64>"),
        ([datetime.datetime(2026, 1, 1)] * 20, "timestamp[us]"),
    ],
)
def test_labels_of_a_type_that_cannot_be_one(tmp_path: Path, labels: list[Any], kind: str) -> None:
    path = write(tmp_path / "all.parquet", labels)
    assert f"the column 'label' holds {kind}, which cannot be a class" in message(data=str(path))
    asked = TableOptions(label_column="label")
    path = with_column(path, "class", ["x", "y"] * 10)
    assert open_source(str(path)).classes == ("x", "y")
    assert "which cannot be a class" in message(data=str(path), table=asked)


def test_labels_that_are_true_or_false(tmp_path: Path) -> None:
    assert open_source(str(write(tmp_path / "all.parquet", [True, False] * 10))).classes == ("false", "true")


def test_columns_that_the_user_chooses(tmp_path: Path) -> None:
    path = with_column(write(tmp_path / "all.parquet", ["a", "b"] * 10), "view", [image_bytes(99)] * 20)
    path = with_column(path, "species", ["x", "x", "y", "y"] * 5)
    source = open_source(str(path), table=TableOptions(path_column="view", label_column="species"))
    assert source.classes == ("x", "y")
    assert source.train.read(0).getpixel((0, 0)) == (99, 0, 0)
    assert "--label-column can be one of" in message(data=str(path), table=TableOptions(label_column="breed"))
    pq.write_table(pq.read_table(path).drop_columns(["image", "label"]), path)
    assert "labels are taken from the column 'species'" in open_source(str(path)).notes


@pytest.mark.parametrize("absent", [-1, None])
def test_a_split_without_labels_is_left_out(tmp_path: Path, absent: int | None) -> None:
    write(tmp_path / "train.parquet", [0, 1] * 10, ["a", "b"])
    write(tmp_path / "val.parquet", [0, 1] * 2, ["a", "b"])
    labels = pa.array([absent] * 3, type=pa.int64())
    write(tmp_path / "test.parquet", labels, ["a", "b"])
    source = open_source(str(tmp_path))
    assert source.test is source.val
    assert f"left out: 3 rows without a label, the first {tmp_path}/test.parquet row 0" in source.notes
    assert "3 rows without a label" in message(data=str(tmp_path / "test.parquet"))


def test_rows_without_a_label_are_left_out(tmp_path: Path) -> None:
    path = str(write(tmp_path / "all.parquet", ["a", "b"] * 10 + [None, ""]))
    assert "the label is empty; 2 of 22 rows" in message(data=path)
    source = open_source(path, on_bad="skip")
    assert [left.where for left in source.left_out] == [f"{path} row 20", f"{path} row 21"]
    assert sum(map(len, (source.train, source.val, source.test))) == 20


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([{"bytes": None, "path": "a.png"}] * 4, "the column 'image' holds no image, at most their names"),
        ([[{"bytes": b"x"}]] * 4, "holds list<element: struct<bytes: binary>>, which cannot hold encoded images"),
        (["a.png"] * 4, "the column 'image' holds string, which cannot hold encoded images"),
    ],
)
def test_images_that_are_none(tmp_path: Path, images: list[Any], said: str) -> None:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if isinstance(images[0], dict) else None
    path = tmp_path / "all.parquet"
    pq.write_table(pa.table({"image": pa.array(images, type=kind), "label": [0, 1] * 2}), path)
    assert said in message(data=str(path))


def test_a_clone_without_its_large_files(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_text(
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n"
    )
    assert "a Git LFS pointer, not the file itself | " in message(data=str(tmp_path))

"""Folders and CSV: the right images with the right labels, or one line that says what to do."""

from __future__ import annotations

import csv
import hashlib
import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from selkern.data.sources import Source, open_source
from selkern.data.split import Split
from selkern.errors import DataError, UsageError


def image_bytes(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 5), (value % 256, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def fill(root: Path, counts: dict[str, int]) -> Path:
    """{"train/cat": 3} -> three small images; their red is the number in the file's name."""
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            (root / folder / f"{index:03}.png").write_bytes(image_bytes(index))
    return root


def members(split: Split) -> set[str]:
    return {split.where(index) for index in range(len(split))}


def save(source: Source, path: Path) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "label", "split"), *source.split_rows()])
    return path


def message(**wrong: Any) -> str:
    """The one line that ``open_source`` fails with."""
    with pytest.raises(DataError) as caught:
        open_source(**wrong)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text.split(" | ")) == 3, text
    return text


def fingerprint(root: Path) -> dict[str, str]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# ------------------------------------------------------------------------------------------------ folders


@pytest.mark.parametrize("val", ["val", "valid", "validation", "Val"])
def test_three_split_folders(tmp_path: Path, val: str) -> None:
    fill(tmp_path, {"train/b": 4, "train/a": 3, f"{val}/a": 2, "test/b": 1})
    before = fingerprint(tmp_path)
    source = open_source(str(tmp_path))
    assert (source.kind, source.classes, source.notes) == ("folder", ("a", "b"), ())
    assert source.train.labels.tolist() == [1] * 4 + [0] * 3 or source.train.labels.tolist() == [0] * 3 + [1] * 4
    assert source.val.labels.tolist() == [0, 0]
    assert source.test.labels.tolist() == [1]  # test lacks class a: ids do not shift
    for split in (source.train, source.val, source.test):
        for index, label in enumerate(split.labels):
            where = Path(split.where(index))
            assert where.parent.name == source.classes[label]
            assert split.read(index).getpixel((0, 0)) == (int(where.stem), 0, 0)
    assert fingerprint(tmp_path) == before


def test_class_order_is_lexical_not_natural(tmp_path: Path) -> None:
    fill(tmp_path, {f"train/{name}": 1 for name in ("2", "10", "b", "B")} | {"val/2": 1})
    assert open_source(str(tmp_path)).classes == ("10", "2", "B", "b")


def test_missing_val_is_cut_from_train_and_missing_test_is_val(tmp_path: Path) -> None:
    fill(tmp_path, {"train/a": 50, "train/b": 30})
    source = open_source(str(tmp_path), val_fraction=0.2)
    assert len(source.train) == 64
    assert np.bincount(source.val.labels).tolist() == [10, 6]
    assert source.test is source.val
    assert source.notes == (
        "no val split: 20 % of train (16 images) cut off by seed 0",
        "no test split: the test figures are those of val",
    )
    assert not members(source.train) & members(source.val)
    assert len(list(source.split_rows())) == 80


def test_missing_test_with_val_there_cuts_nothing(tmp_path: Path) -> None:
    source = open_source(str(fill(tmp_path, {"train/a": 5, "train/b": 5, "val/a": 2})))
    assert (len(source.train), len(source.val)) == (10, 2)
    assert source.test is source.val


def test_one_folder_of_classes_is_cut_in_three(tmp_path: Path) -> None:
    source = open_source(str(fill(tmp_path, {"a": 40, "b/deep/er": 20})))
    parts = [members(split) for split in (source.train, source.val, source.test)]
    assert [len(part) for part in parts] == [48, 6, 6]
    assert len(set.union(*parts)) == 60
    assert np.bincount(source.test.labels).tolist() == [4, 2]


def test_the_cut_follows_the_seed(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 40, "b": 20})
    first, again, other = (members(open_source(str(tmp_path), seed=s).val) for s in (1, 1, 2))
    assert first == again != other


def test_small_classes_keep_a_training_image(tmp_path: Path) -> None:
    source = open_source(str(fill(tmp_path, {"a": 1, "b": 2, "c": 3})))
    assert np.bincount(source.train.labels).tolist() == [1, 1, 1]
    assert np.bincount(source.val.labels, minlength=3).tolist() == [0, 1, 1]
    assert np.bincount(source.test.labels, minlength=3).tolist() == [0, 0, 1]


def test_dot_folders_strangers_and_empty_classes_are_noted(tmp_path: Path) -> None:
    fill(
        tmp_path,
        {"train/a": 3, "train/b": 3, "train/.ipynb_checkpoints": 2, "train/c": 0, "val/a": 1, "docs": 2},
    )
    source = open_source(str(tmp_path))
    assert source.classes == ("a", "b", "c")
    assert len(source.train) == 6
    notes = "\n".join(source.notes)
    for part in ("ignored: docs/", ".ipynb_checkpoints", "'c' has no training image"):
        assert part in notes


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    assert open_source(str(fill(tmp_path, {"train": 9, "plane": 9}))).classes == ("plane", "train")


def test_folder_errors(tmp_path: Path) -> None:
    assert "no such data" in message(data=str(tmp_path / "gone"))
    assert "digits" in message(data="mnist")
    (tmp_path / "a.tmp").write_bytes(b"")
    assert "unknown kind" in message(data=str(tmp_path / "a.tmp"))
    fill(tmp_path, {"flat": 3, "one/cat": 3, "none/cat": 0, "none/dog": 0})
    fill(tmp_path, {"two/train/a": 3, "two/train/b": 3, "two/val/a": 1, "two/valid/a": 1})
    fill(tmp_path, {"late/test/a": 3, "late/test/b": 3, "tiny/a": 1, "tiny/b": 1})
    for folder, what in {
        "flat": "no class folders",
        "one": "only class 'cat'",
        "none": "no images",
        "two": "two val folders",
        "late": "no training images",
        "tiny": "too few images",
    }.items():
        text = message(data=str(tmp_path / folder))
        assert what in text
        assert str(tmp_path / folder) in text


def test_classes_of_a_checkpoint_keep_their_ids(tmp_path: Path) -> None:
    fill(tmp_path, {"val/dog": 2, "val/ant": 1})
    source = open_source(str(tmp_path), classes=["zebra", "dog", "ant"])
    assert source.classes == ("zebra", "dog", "ant")
    assert sorted(source.test.labels.tolist()) == [1, 1, 2]
    assert len(source.train) == 0
    text = message(data=str(tmp_path), classes=["zebra", "dog"])
    assert "unknown label 'ant'" in text
    assert str(tmp_path / "val" / "ant" / "000.png") in text


@pytest.mark.parametrize("cut", [False, True])
def test_labels_that_a_checkpoint_does_not_know(tmp_path: Path, cut: bool) -> None:
    data = str(fill(tmp_path, {"dog": 12, "hen": 2, "Sea Blue": 9, "cow": 11}))
    known = ["cow", "dog", "sea blue"]
    text = message(data=data, classes=known)
    assert "2 unknown labels: 'Sea Blue' (9 images; 'sea blue'?), 'hen' (2 images) | " in text
    source = open_source(data, classes=known, on_bad="skip", cut=cut)
    assert [sum(part.labels.tolist().count(label) for part in source.parts) for label in (0, 1, 2)] == [11, 12, 0]
    for part in source.parts:
        assert {Path(part.where(i)).parent.name for i in np.flatnonzero(part.labels == 1).tolist()} <= {"dog"}
    assert any(note.startswith("11 of 34 images are left out: 2 unknown labels") for note in source.notes)
    assert len(source.left_out) == 11
    assert "unknown label" in message(data=data, classes=["eel"], on_bad="skip")  # other data altogether


@pytest.mark.parametrize("wrong", [{"val_fraction": 0.0}, {"val_fraction": 0.5}, {"classes": ["a", "a"]}])
def test_wrong_options(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        open_source(str(fill(tmp_path, {"a": 9, "b": 9})), **wrong)


@pytest.mark.parametrize("layout", ["", "train/"])
def test_a_saved_split_is_restored(tmp_path: Path, layout: str) -> None:
    data = fill(tmp_path / "data", {f"{layout}a": 30, f"{layout}b": 30})
    old = open_source(str(data), seed=5)
    saved = save(old, tmp_path / "split.csv")
    (data / layout / "a" / "000new.png").write_bytes(image_bytes(1))
    moved = data.rename(tmp_path / "moved")
    new = open_source(str(moved), seed=6, split_csv=saved)
    for before, after in zip((old.train, old.val, old.test), (new.train, new.val, new.test), strict=True):
        assert {w.replace(str(data), str(moved)) for w in members(before)} == members(after)
    assert any("1 images are newer" in note for note in new.notes)
    assert members(open_source(str(moved), seed=6).val) != members(new.val)


def test_a_saved_split_that_no_longer_fits(tmp_path: Path) -> None:
    data = fill(tmp_path / "data", {"a": 30, "b": 30})
    saved = save(open_source(str(data)), tmp_path / "split.csv")
    (data / "a" / "007.png").rename(data / "b" / "a007.png")
    before = open_source(str(data), split_csv=saved)
    assert sum(map(len, (before.train, before.val, before.test))) == 59
    assert any("1 images of the saved split are gone and are left out: a/007.png" in note for note in before.notes)
    assert any("newer than the saved split and are left out: b/a007.png" in note for note in before.notes)
    assert "cannot read" in message(data=str(data), split_csv=tmp_path / "no.csv")
    saved.write_text("path,label,split\na/1.png,a,train\nnonsense\n")
    assert "line 3" in message(data=str(data), split_csv=saved)


# ---------------------------------------------------------------------------------------------------- CSV


def table(root: Path, text: str) -> str:
    (root / "table.csv").write_text(text, encoding="utf-8")
    return str(root / "table.csv")


def test_csv_with_splits(tmp_path: Path) -> None:
    fill(tmp_path, {"img": 5})
    body = "img/000.png,dog,train\nimg/001.png,cat,train\n\nimg/002.png,cat,valid\n"
    path = table(tmp_path, f"\ufeffPath, Label ,split\n{body}{tmp_path}/img/003.png,dog,test\n")
    source = open_source(path)
    assert (source.kind, source.classes) == ("csv", ("cat", "dog"))
    parts = (source.train, source.val, source.test)
    assert [part.labels.tolist() for part in parts] == [[1, 0], [0], [1]]
    assert source.test.read(0).getpixel((0, 0)) == (3, 0, 0)
    assert next(source.split_rows()) == ("img/000.png", "dog", "train")


def test_csv_without_splits_is_cut_and_restored(tmp_path: Path) -> None:
    fill(tmp_path, {"img": 40})
    rows = [f"img/{i:03}.png,{'ab'[i % 2]}" for i in range(40)]
    path = table(tmp_path, "\n".join(["path,label", *rows]))
    old = open_source(path)
    assert [len(part) for part in (old.train, old.val, old.test)] == [32, 4, 4]
    saved = save(old, tmp_path / "split.csv")
    random.Random(0).shuffle(rows)
    new = open_source(table(tmp_path, "\n".join(["path,label", *rows])), seed=9, split_csv=saved)
    assert members(new.val) == members(old.val)
    assert members(new.test) == members(old.test)
    wrong = "\n".join(["path,label", *rows]).replace("img/004.png,a", "img/004.png,b")
    text = message(data=table(tmp_path, wrong), split_csv=saved, keep_gone=True)
    assert "img/004.png" in text
    assert "'a'" in text
    corrected = open_source(table(tmp_path, wrong), split_csv=saved)
    assert any("1 labels are not those of the saved split but the data's: img/004.png" in n for n in corrected.notes)
    parts = [part for part in corrected.parts if str(tmp_path / "img/004.png") in members(part)]
    assert [part.labels[sorted(members(part)).index(str(tmp_path / "img/004.png"))] for part in parts] == [1]


@pytest.mark.parametrize("layout", ["", "train/"])
def test_an_image_that_is_gone_keeps_its_place_where_order_matters(tmp_path: Path, layout: str) -> None:
    data = fill(tmp_path / "data", {f"{layout}a": 30, f"{layout}b": 30})
    old = open_source(str(data))
    saved = save(old, tmp_path / "split.csv")
    lost = [Path(old.train.where(3)), Path(old.val.where(0))]
    for path in lost:
        path.unlink()
    (data / layout / "a" / "000new.png").write_bytes(image_bytes(1))
    new = open_source(str(data), split_csv=saved, keep_gone=True)
    for before, after in zip(old.parts, new.parts, strict=True):
        assert [before.where(i) for i in range(len(before))] == [after.where(i) for i in range(len(after))]
        assert before.labels.tolist() == after.labels.tolist()
    with pytest.raises(DataError, match="no such image file"):
        new.train.read(3)
    left = open_source(str(data), split_csv=saved)
    assert [len(before) - len(after) for before, after in zip(old.parts, left.parts, strict=True)] == [1, 1, 0][
        : len(old.parts)
    ]


def test_data_that_are_not_to_be_cut_are_one_split(tmp_path: Path) -> None:
    source = open_source(str(fill(tmp_path, {"a": 2, "b": 1})), cut=False)
    assert (len(source.train), len(source.test), source.test.name, source.val is source.test) == (0, 3, "all", True)
    assert len(list(source.split_rows())) == 3
    assert not source.notes


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ("", "line 1", "no column path or label"),
        ("path,name\na,b\n", "line 1", "no column label"),
        ("path,label\n", "table.csv", "no images"),
        ("path,label\nimg/000.png,a\nimg/9.png,b\n", "line 3", "img/9.png"),
        ("path,label\nimg/000.png,\n", "line 2", "label is empty"),
        ("path,label\nimg/000.png,a\nimg/000.png,b\n", "line 3", "listed in line 2 already, with label 'a'"),
        ("path,label\nimg/000.png,a,b\n", "line 2", "3 columns"),
        ("path,label,split\nimg/000.png,a,best\n", "line 2", "'best'"),
        ("path,label,split\nimg/000.png,a,train\nimg/001.png,b,\n", "line 3", "unknown split"),
        ("path,label\nimg/000.png,a\nimg/001.png,a\n", "table.csv", "only class 'a'"),
    ],
)
def test_csv_errors_name_the_line(tmp_path: Path, text: str, where: str, what: str) -> None:
    fill(tmp_path, {"img": 3})
    error = message(data=table(tmp_path, text))
    assert where in error
    assert what in error


def test_csv_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"path,label\n\xff\xfe\x00,a\n")
    assert "t.csv" in message(data=str(tmp_path / "t.csv"))

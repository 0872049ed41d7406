"""Folders as people lay them out: the right images in the right splits, or one line that says what to do."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selkern.data.listing import assign_splits, split_word, split_words
from selkern.data.sources import Source, open_source
from selkern.errors import DataError

Spec = Mapping[str, int | bytes]
A_B: Spec = {"a": 8, "b": 8}


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


PNG = [png(value) for value in range(20)]


def lay(root: Path, *specs: Spec) -> str:
    """{"train/cat": 3} makes a folder with three images, {"train.csv": b"..."} a file."""
    for spec in specs:
        for name, what in spec.items():
            path = root / name
            (path.parent if isinstance(what, bytes) else path).mkdir(parents=True, exist_ok=True)
            if isinstance(what, bytes):
                path.write_bytes(what)
            else:
                for number in range(what):
                    (path / f"{number}.png").write_bytes(PNG[number])
    return str(root)


def under(folder: str, spec: Spec = A_B) -> Spec:
    return {f"{folder}/{name}": what for name, what in spec.items()}


def places(source: Source) -> dict[str, set[str]]:
    """{split: the folders its images are in}."""
    parts = (source.train, source.val) if source.test is source.val else (source.train, source.val, source.test)
    return {
        part.name: {Path(part.where(index)).relative_to(source.root).parent.as_posix() for index in range(len(part))}
        for part in parts
    }


def error(data: str) -> str:
    """The one line that ``open_source`` fails with."""
    with pytest.raises(DataError) as caught:
        open_source(data)
    text = str(caught.value)
    assert len(text.split(" | ")) == 3, text
    return text


# ------------------------------------------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("word", "names"),
    {
        "train": (
            "train",
            "TRAIN",
            "trainset",
            "train_images",
            "images-train",
            "Train Data",
            "train2017",
            "imgs.train",
        ),
        "training": ("Training", "training_set", "TrainingImages"),
        "val": ("val", "valset", "val_images", "val2017"),
        "valid": ("valid",),
        "validation": ("Validation", "validation-split"),
        "test": ("Test", "test_set", "test1", "Test Images"),
        "testing": ("Testing",),
        "dev": ("dev", "dev-set"),
        "eval": ("eval", "Eval_Data"),
        "": ("", "cat", "latest", "trains", "devil", "training wheels", "images", "data", "contest", "12", "testtrain"),
    }.items(),
)
def test_names_of_splits(word: str, names: tuple[str, ...]) -> None:
    assert {name: split_word(name) for name in names} == dict.fromkeys(names, word)


def test_what_folders_side_by_side_share_does_not_count() -> None:
    names = ["seg_train", "seg_test", "seg_pred", "docs", "Val"]
    assert list(split_words(names).values()) == ["train", "test", "", "", "val"]
    assert list(split_words(["train_mask", "test_nomask"]).values()) == ["", ""]
    assert list(split_words(["birdsTrain", "birdsTest"]).values()) == ["train", "test"]


def test_vague_words_mean_what_is_free() -> None:
    assert assign_splits(["train", "eval"]) == {"train": "train", "eval": "val"}
    assert assign_splits(["eval", "dev", "train"]) == {"train": "train", "dev": "val", "eval": "test"}
    assert assign_splits(["eval", "valid"])["eval"] == "test"


# ----------------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize(
    ("train", "other", "split"),
    [
        ("Training", "Testing", "test"),
        ("train_images", "val_images", "val"),
        ("training_set", "test_set", "test"),
        ("train", "dev", "val"),
        ("train", "Eval", "val"),
        ("images/train", "images/val", "val"),
        ("data/dataset/train", "data/dataset/test", "test"),
        ("seg_train/seg_train", "seg_test/seg_test", "test"),
        ("train/images", "val/images", "val"),
    ],
)
def test_splits_by_other_names_and_in_other_places(tmp_path: Path, train: str, other: str, split: str) -> None:
    source = open_source(lay(tmp_path, under(train), under(other, {"a": 2, "b": 3})))
    assert source.classes == ("a", "b")
    assert places(source)["train"] == {f"{train}/a", f"{train}/b"}
    assert places(source)[split] == {f"{other}/a", f"{other}/b"}
    assert len(getattr(source, split)) == 5
    taken = [note for note in source.notes if "taken" in note]
    assert bool(taken) == ("/" in train or other in ("dev", "Eval"))


def test_dev_and_eval_beside_each_other_and_beside_val(tmp_path: Path) -> None:
    source = open_source(lay(tmp_path, under("train"), under("dev", {"a": 2}), under("eval", {"b": 3})))
    assert places(source) == {"train": {"train/a", "train/b"}, "val": {"dev/a"}, "test": {"eval/b"}}
    lay(tmp_path, under("val", {"a": 1}), under("test", {"a": 1}))
    source = open_source(str(tmp_path))
    assert places(source) == {"train": {"train/a", "train/b"}, "val": {"val/a"}, "test": {"test/a"}}
    ignored = [note for note in source.notes if note.startswith("ignored")]
    assert [note.partition(",")[0] for note in ignored] == ["ignored: dev/", "ignored: eval/"]


@pytest.mark.parametrize(("folder", "split"), [("test", "test"), ("val", "val"), ("Testing/unknown", "test")])
def test_images_without_class_folders_are_a_set_without_labels(tmp_path: Path, folder: str, split: str) -> None:
    source = open_source(lay(tmp_path / "my data", under("train"), {folder: 7}))
    assert source.classes == ("a", "b")
    assert set().union(*places(source).values()) == {"train/a", "train/b"}
    (note,) = (note for note in source.notes if "predict" in note)
    assert note.startswith(f"no {split} split: 7 images in {tmp_path}/my data/{folder}, ")
    assert f"`selkern predict RUN '{tmp_path}/my data/{folder}'`" in note


def test_a_split_of_one_known_class_is_a_split(tmp_path: Path) -> None:
    source = open_source(lay(tmp_path, under("train", {"a": 8, "cafe\u0301": 8}), under("val", {"caf\u00e9": 2})))
    assert places(source)["val"] == {"val/caf\u00e9"}


def test_splits_in_the_class_folders(tmp_path: Path) -> None:
    source = open_source(lay(tmp_path, {"a/train": 5, "a/test": 2, "b/Train": 4, "b/val": 1, "b/test": 3}))
    assert source.classes == ("a", "b")
    assert [np.bincount(part.labels).tolist() for part in (source.train, source.val, source.test)] == [
        [5, 4],
        [0, 1],
        [2, 3],
    ]


def test_a_class_that_is_called_as_a_split(tmp_path: Path) -> None:
    source = open_source(lay(tmp_path, {"test": 9, "plane": 9, "car": 9}))
    assert source.classes == ("car", "plane", "test")
    assert "test/ is taken for a class" in source.notes


def test_other_folders_beside_splits_are_named(tmp_path: Path) -> None:
    lay(tmp_path, under("train"), under("val"), under("holdout"), {"docs": 2, "meta/notes.txt": b"x"})
    notes = open_source(str(tmp_path)).notes
    assert [note for note in notes if note.startswith("ignored")] == [
        "ignored: docs/, which holds images (not a split)",
        "ignored: holdout/, which holds class folders (to use it, call it val or test)",
        "ignored: meta/ (not a split)",
    ]


@pytest.mark.parametrize(
    ("specs", "what", "fix"),
    [
        ((under("entrenamiento"), under("prueba")), "entrenamiento/, prueba/ hold folders of the same", "train, val"),
        ((under("color"), under("gray"), under("segmented")), "same names (a, b)", "give one of them"),
        ((under("drive-001/photos"), under("drive-002/photos")), "same names (a, b)", "give one of them"),
        (({"train": 9, "test": 9},), "no class folders in test/ and train/", "one folder per class in each"),
        (({"train": 9, "test": 9, "train.csv": b"id,label"},), "no class folders in test/ and train/", "train.csv"),
        ((under("train"), under("train_images")), "two train folders: train/ and train_images/", "keep one"),
        ((under("train"), {"val/0": 2, "val/1": 2}), "train and val have no class in common (0/, 1/ in val)", "alike"),
        (({"train": 9}, under("test")), "no class folders in it", "one folder per class"),
        ((under("data/train"), under("data/val"), {"docs": 3}), "data/ holds splits, and docs/", "give "),
        ((under("train"), {"car/x": 2, "boat/y": 2}), "train/ could be a split, or a class like boat/, car/", "rename"),
    ],
)
def test_what_could_be_splits_as_well_as_classes(tmp_path: Path, specs: tuple[Spec, ...], what: str, fix: str) -> None:
    message = error(lay(tmp_path, *specs)).split(" | ")
    assert what in message[0]
    assert message[1].startswith(str(tmp_path))
    assert fix in message[2]


def test_known_classes_settle_what_a_folder_is(tmp_path: Path) -> None:
    data = lay(tmp_path, under("cat", {"left": 3, "right": 3}), under("test", {"left": 2, "right": 3}))
    source = open_source(data, classes=["cat", "test"])
    labels = np.concatenate(
        [part.labels for part in {id(p): p for p in (source.train, source.val, source.test)}.values()]
    )
    assert np.bincount(labels).tolist() == [6, 5]


def test_many_classes_with_the_same_folders_are_classes(tmp_path: Path) -> None:
    source = open_source(lay(tmp_path, *(under(f"c{n:02}", {"left": 2, "right": 2}) for n in range(13))))
    assert len(source.classes) == 13
    assert "folders in class folders make no difference (c00/: left, right)" in source.notes


# ----------------------------------------------------------------------------------- what is no data set as it is


@pytest.mark.parametrize(
    ("spec", "what", "fix"),
    [
        ({"train.zip": b"PK", "test.tar.gz": b""}, "archives: test.tar.gz, train.zip", "unpack"),
        ({".": 9, "labels.csv": b"path,label"}, "no class folders in it, but 9 images", "labels.csv"),
        ({".": 9}, "no class folders in it, but 9 images", "if this is one of the class folders"),
        ({".": 9}, "no class folders in it, but 9 images", "; `selkern predict RUN "),
        ({"train/data-00000-of-00001.arrow": b"", "test/data-00000-of-00001.arrow": b""}, "no ", "by its `to_parquet`"),
        ({"images": 9, "labels.csv": b"path,label"}, "only class 'images'", "labels.csv"),
        ({"train": 9, "train/metadata.csv": b"file_name"}, "only class 'train'", "metadata.csv"),
        ({"a/x.txt": b"", "b/y.zip": b""}, "no images found", "1 .txt, 1 .zip"),
        (
            {f"{name}.{number}.png": PNG[0] for name in ("cat", "dog") for number in range(6)},
            "but 12 images",
            "folder for each class (cat, dog",
        ),
        (
            {"train/images": 9, "train/labels/1.txt": b"0 1 1 1 1", "valid/images": 2, "valid/labels/1.txt": b""},
            "images/, labels/ are no classes",
            "data import yolo",
        ),
        (
            {"images/train": 9, "images/val": 2, "labels/train/1.txt": b"0 1", "labels/val/1.txt": b""},
            "no class folders in train/ and val/",
            "data import yolo",
        ),
        ({"JPEGImages": 9, "Annotations/1.xml": b""}, "Annotations/, JPEGImages/ are no classes", "data import voc"),
        ({"images": 9, "masks": 9}, "images/, masks/ are no classes", "one folder per class"),
        (
            {f"images/{name}_{number}.png": PNG[0] for name in ("beagle", "pug") for number in range(6)}
            | {"annotations/trimaps": 3},
            "annotations/, images/ are no classes",
            "folder for each class (beagle, pug",
        ),
        ({"food/images/a": 5, "food/images/b": 5, "food/meta/x.txt": b""}, "only class 'images'", "food/images"),
        ({"images": 9, "annotations/all.json": b"{}"}, "annotations/, images/ are no classes", "data import coco"),
    ],
)
def test_what_it_is_and_what_to_do(tmp_path: Path, spec: Spec, what: str, fix: str) -> None:
    message = error(lay(tmp_path, spec)).split(" | ")
    assert what in message[0]
    assert fix in message[2]


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar.gz", "photos.TGZ", "photos.rar", "photos.7z"])
def test_an_archive_is_called_one(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"PK\3\4")
    message = error(str(tmp_path / name))
    assert message.startswith("an archive")
    assert "unpack it" in message


def test_a_web_address_is_called_one() -> None:
    assert error("https://example.org/photos.zip").startswith("a web address")


def test_a_single_image_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(PNG[0])
    assert error(str(tmp_path / "cat.png")).startswith("a single image")


def test_images_beside_class_folders_are_counted(tmp_path: Path) -> None:
    lay(tmp_path, under("train"), under("val"), {"train": 3, "val": 1})
    assert {note for note in open_source(str(tmp_path)).notes if "left out" in note} == {
        "left out: 3 images beside the class folders in train/",
        "left out: 1 image beside the class folders in val/",
    }
    notes = open_source(lay(tmp_path / "flat", A_B, {".": 2})).notes
    assert "left out: 2 images beside the class folders" in notes


def test_a_sample_submission_holds_no_labels(tmp_path: Path) -> None:
    message = error(lay(tmp_path, {".": 9, "sample_submission.csv": b"", "train.csv": b"", "test.csv": b""}))
    assert message.endswith(f"if a table holds the labels, give it: {tmp_path}/test.csv, {tmp_path}/train.csv")


def test_images_beside_split_folders_are_counted(tmp_path: Path) -> None:
    source = open_source(lay(tmp_path / "outer", under("train"), under("val"), {".": 2}))
    assert "left out: 2 images beside the split folders" in source.notes
    data = lay(tmp_path / "inner", under("a", {"train": 8, "test": 2}), under("b", {"train": 8, "test": 2}), {"a": 3})
    source = open_source(data)
    assert places(source)["test"] == {"a/test", "b/test"}
    assert len(source.train) + len(source.val) == 16
    assert "left out: 3 images beside the split folders in a/" in source.notes
    assert places(open_source(data, classes=["a", "b"], cut=False))["test"] == {"a/test", "b/test"}


@pytest.mark.parametrize("other", [{"b/raw": 2}, {"c": 8}])
def test_splits_in_some_class_folders_are_not_mixed(tmp_path: Path, other: Spec) -> None:
    message = error(lay(tmp_path, under("a", {"train": 8, "test": 2}), under("b", {"train": 8, "test": 2}), other))
    assert "/ holds test/, train/, but not every class folder holds such folders alone" in message


def test_splits_beside_the_folder_that_is_given_are_named(tmp_path: Path) -> None:
    lay(tmp_path, under("train"), under("val"), under("test"))
    (note,) = (note for note in open_source(str(tmp_path / "train")).notes if note.startswith("not used"))
    assert note == f"not used: test/, val/ beside train/ (give {tmp_path} to use it)"
    assert not [note for note in open_source(str(tmp_path / "test")).notes if note.startswith("not used")]


def test_class_folders_that_hold_one_folder_each_are_classes(tmp_path: Path) -> None:
    source = open_source(lay(tmp_path, {"n01/images": 8, "n02/images": 8, "n02/boxes.txt": b""}))
    assert source.classes == ("n01", "n02")


def test_a_copy_among_the_class_folders_is_no_class(tmp_path: Path) -> None:
    source = open_source(lay(tmp_path / "leaves", A_B, under("leaves")))
    assert source.classes == ("a", "b")
    assert set().union(*places(source).values()) == {"a", "b"}
    assert "ignored: leaves/, which holds folders of the same names as beside it" in source.notes


def test_links_back_up_do_not_bring_images_of_other_classes(tmp_path: Path) -> None:
    lay(tmp_path, under("train"), under("val"))
    for name in ("up", "train/a/up", "train/b/two up"):
        (tmp_path / name).symlink_to(tmp_path / ("train" if name == "train/a/up" else "."))
    source = open_source(str(tmp_path))
    assert (len(source.train), len(source.val)) == (16, 16)
    assert places(source)["train"] == {"train/a", "train/b"}


def test_masks_beside_their_images_are_named(tmp_path: Path) -> None:
    lay(tmp_path, A_B, {f"a/{number}_mask.png": PNG[1] for number in range(3)}, {"b/gas_mask.png": PNG[0]})
    (note,) = (note for note in open_source(str(tmp_path)).notes if "mask" in note)
    assert note.startswith("3 images are named as masks of other images")

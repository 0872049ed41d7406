"""Objects cut out of pictures with boxes: three formats alike, true sizes, one split for a picture, no silent loss."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from annotated import HEIGHT, WIDTH, boxes, make_coco, make_voc, make_yolo, picture, xml
from numpy.typing import NDArray
from PIL import Image

from selkern import cli
from selkern.data.detection import crops
from selkern.data.detection.crops import Imported, import_boxes
from selkern.data.detection.objects import Wanted
from selkern.data.sources import open_source
from selkern.errors import DataError, UsageError


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "boxes.csv").open() as file:
        return list(csv.DictReader(file))


def pixels(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image)


def reasons(done: Imported) -> Counter[str]:
    return Counter(each.reason for each in done.left_out)


def voc(root: Path, target: Path, **wanted: object) -> Imported:
    return import_boxes("voc", root, target, Wanted(**wanted))  # type: ignore[arg-type]


def test_three_formats_give_the_same_crops(tmp_path: Path) -> None:
    data = boxes()
    made = {"voc": make_voc, "yolo": make_yolo, "coco": make_coco}
    for kind, make in made.items():
        root = make(tmp_path / kind, data)
        before = files(root)
        done = import_boxes(kind, root, tmp_path / f"{kind}-crops", Wanted(size=16))  # type: ignore[arg-type]
        assert files(root) == before
        assert not done.left_out
        assert done.counts == {
            "train": {"cell": 8, "dot": 4},
            "val": {"cell": 2, "dot": 1},
            "test": {"cell": 2, "dot": 1},
        }
    one = {name: data for name, data in files(tmp_path / "voc-crops").items() if name.endswith(".png")}
    assert len(one) == 18
    for kind in ("yolo", "coco"):
        assert {n: d for n, d in files(tmp_path / f"{kind}-crops").items() if n.endswith(".png")} == one
        mine, theirs = (
            sorted([row["path"], row["x0"], row["y0"], row["x1"], row["y1"], row["label"]] for row in rows(folder))
            for folder in (tmp_path / f"{kind}-crops", tmp_path / "voc-crops")
        )
        assert mine == theirs


def test_a_window_shows_its_pixels_at_their_own_scale(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "voc", boxes())
    done = voc(root, tmp_path / "crops", size=16)
    table = {row["path"]: row for row in rows(tmp_path / "crops")}
    whole = pixels(root / "JPEGImages" / "p0.png")
    dot = pixels(tmp_path / "crops/train/dot/p0_01.png")
    assert (dot == whole[25:41, 35:51]).all()  # 16 px around (43, 33)
    assert table["train/dot/p0_01.png"] == {
        "path": "train/dot/p0_01.png",
        "x0": "5.0",
        "y0": "5.0",
        "x1": "11.0",
        "y1": "11.0",
        "label": "dot",
        "group": "JPEGImages/p0",
    }
    corner = pixels(tmp_path / "crops/train/cell/p0_02.png")  # 16 px around (57, 39), 1 px below 48
    assert (corner[:, :15] == whole[31:47, 49:64]).all()
    assert (corner[:, 15] == whole.mean((0, 1)).round()).all()
    larger = table["train/cell/p0_00.png"]  # 20 x 16 px: its true size is kept in a window of 16
    assert float(larger["x1"]) - float(larger["x0"]) == 20
    assert any("do not fit into the window" in note and "12 of 12 cell" in note for note in done.notes)
    assert any("6 windows reach past the picture's border" in note for note in done.notes)


def test_the_window_holds_most_boxes_of_each_class(tmp_path: Path) -> None:
    """One rare class of large objects counts as much as a common one of small ones."""
    data = {f"p{i}": [("dot", 4 * j, 4, 4 * j + 4, 8) for j in range(1, 9)] for i in range(6)}
    data["p0"] = [*data["p0"], ("cell", 2, 8, 42, 40)]
    assert voc(make_voc(tmp_path / "voc", data), tmp_path / "crops").size == 40


def test_tight_crops(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "voc", boxes())
    done = voc(root, tmp_path / "crops", crop="tight", margin=0.5)
    assert done.size is None
    assert pixels(tmp_path / "crops/train/dot/p0_01.png").shape == (12, 12, 3)
    assert pixels(tmp_path / "crops/train/cell/p0_02.png").shape == (27, 21, 3)  # not past the border
    row = next(row for row in rows(tmp_path / "crops") if row["path"] == "train/dot/p0_01.png")
    assert [row[key] for key in ("x0", "y0", "x1", "y1")] == ["3.0", "3.0", "9.0", "9.0"]


def test_crops_of_a_picture_stay_together(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "voc", boxes(20), splits=False)
    voc(root, tmp_path / "a")
    voc(root, tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    result: dict[str, set[str]] = {}
    for row in rows(tmp_path / "a"):
        result.setdefault(row["group"], set()).add(row["path"].split("/")[0])
    assert Counter(tuple(splits) for splits in result.values()) == {("train",): 16, ("val",): 2, ("test",): 2}
    voc(root, tmp_path / "c", seed=1)
    assert files(tmp_path / "a") != files(tmp_path / "c")
    voc(root, tmp_path / "d", group="p([0-9])")  # p1 with p10 to p19
    together = {row["path"].split("/")[0] for row in rows(tmp_path / "d") if row["group"] == "1"}
    assert len(together) == 1
    assert len({row["group"] for row in rows(tmp_path / "d")}) == 10


def test_a_missing_val_is_cut_from_train_by_picture(tmp_path: Path) -> None:
    """Training would cut it off by crop, and show the network the same picture on both sides."""
    root = make_voc(tmp_path / "voc", boxes(12))
    (root / "ImageSets/Main/val.txt").unlink()
    (root / "ImageSets/Main/trainval.txt").write_text("\n".join(f"p{i} 1" for i in range(11)))
    done = voc(root, tmp_path / "crops")
    assert {split: sum(counts.values()) for split, counts in done.counts.items()} == {"train": 30, "val": 3, "test": 3}
    assert any("val cut off by seed 0: 1 of 11 pictures" in note for note in done.notes)


def test_copies_that_roboflow_augmented_stay_together(tmp_path: Path) -> None:
    names = [f"p{i}_png.rf.{j}123456789abcdef" for i in range(10) for j in range(3)]
    root = tmp_path / "voc"
    for name in names:
        picture(root / "train" / f"{name}.png")
        (root / "train" / f"{name}.xml").write_text(xml(name, [("cell", 5, 5, 20, 20)]))
    voc(root, tmp_path / "crops")
    result: dict[str, set[str]] = {}
    for path in (tmp_path / "crops").rglob("*.png"):
        result.setdefault(path.name.split("_")[0], set()).add(path.parent.parent.name)
    assert len(result) == 10
    assert all(len(splits) == 1 for splits in result.values())


def test_training_takes_the_crops(tmp_path: Path) -> None:
    voc(make_voc(tmp_path / "voc", boxes()), tmp_path / "crops", size=16)
    source = open_source(str(tmp_path / "crops"))
    assert source.classes == ("cell", "dot")
    assert [len(split) for split in (source.train, source.val, source.test)] == [12, 3, 3]
    assert not any("ignored" in note for note in source.notes)


FAULTS: dict[str, tuple[list[tuple[str, object, object, object, object]], str]] = {
    "no area": ([("cell", 5, 5, 4, 20)], "the box has no area"),
    "outside": ([("cell", 70, 5, 90, 20)], "the box lies outside of the picture"),
    "small": ([("cell", 5, 5, 7, 20)], "a side below 4 px (--least)"),
    "no name": ([("", 5, 5, 20, 20)], "it has no class name"),
    "no number": ([("cell", "", 5, 20, 20)], "a coordinate is missing or no number"),
    "nan": ([("cell", "nan", 5, 20, 20)], "a coordinate that is no number"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_box_is_left_out_and_listed(fault: str, tmp_path: Path) -> None:
    objects, reason = FAULTS[fault]
    root = make_voc(tmp_path / "voc", boxes())
    (root / "Annotations/p1.xml").write_text(xml("p1", [*objects, ("dot", 5, 5, 20, 20)]))
    done = voc(root, tmp_path / "crops")
    assert reasons(done) == {reason: 1}
    assert "p1.xml object 1" in done.left_out[0].where
    assert reason in (tmp_path / "crops/left_out.csv").read_text()
    assert (tmp_path / "crops/train/dot/p1_01.png").is_file()


BAD_FILES = {
    "cut short": ("<annotation><object>", "broken XML"),
    "not one": ("<html></html>", "not an annotation (<html>)"),
    "bomb": ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "XML with entities, which are not read"),
    "empty": ("", "broken XML"),
    "other size": (
        xml("p1", [], size="<size><width>640</width><height>480</height></size>"),
        "of another size",
    ),
}


@pytest.mark.parametrize("fault", BAD_FILES)
def test_a_bad_annotation_is_left_out_and_listed(fault: str, tmp_path: Path) -> None:
    text, reason = BAD_FILES[fault]
    root = make_voc(tmp_path / "voc", boxes())
    (root / "Annotations/p1.xml").write_text(text)
    done = voc(root, tmp_path / "crops")
    (left,) = done.left_out
    assert reason in left.reason
    assert done.pictures == 5


def test_missing_and_broken_pictures_are_listed(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "voc", boxes())
    (root / "JPEGImages/p0.png").unlink()
    (root / "JPEGImages/p1.png").write_bytes((root / "JPEGImages/p1.png").read_bytes()[:2000])
    (root / "JPEGImages/p2.png").write_text("text")
    done = voc(root, tmp_path / "crops")
    assert done.pictures == 3
    assert [each.reason.split(" (")[0].split(",")[0] for each in done.left_out] == [
        "no picture for it",
        "not an image",
        "the image is broken",
    ]


def test_boxes_at_zero_are_edges(tmp_path: Path) -> None:
    """labelImg and others count from 0; VOC's own from 1, which makes a box one pixel larger than its numbers say."""
    for name, first in (("ones", 1), ("zeros", 0), ("floats", 1.5)):
        root = make_voc(tmp_path / name, {"p0": [], "p1": []}, splits=False)
        (root / "Annotations/p0.xml").write_text(xml("p0", [("cell", first, 1, 20, 20)]))
        done = voc(root, tmp_path / f"{name}-crops", crop="tight")
        (row,) = rows(tmp_path / f"{name}-crops")
        assert float(row["x1"]) - float(row["x0"]) == (20 - first + (first == 1))
        assert any("counted from 1" in note for note in done.notes)
        assert any("pictures without objects: 1" in note for note in done.notes)


def test_a_turned_picture(tmp_path: Path) -> None:
    """Boxes of the stored picture where its size in the annotation says so, else of the upright one."""
    root = make_voc(tmp_path / "voc", {"p0": [], "p1": []}, splits=False)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    image = Image.fromarray(pixels(root / "JPEGImages/p0.png"))
    for name in ("p0", "p1"):
        image.save(root / "JPEGImages" / f"{name}.png", exif=exif)
    (root / "Annotations/p0.xml").write_text(xml("p0", [("cell", 1, 11, 20, 40)]))
    upright = f"<size><width>{HEIGHT}</width><height>{WIDTH}</height></size>"
    (root / "Annotations/p1.xml").write_text(xml("p1", [("cell", 9, 1, 38, 20)], size=upright))
    done = voc(root, tmp_path / "crops", crop="tight", splits="new")
    one, two = (pixels(path) for path in sorted((tmp_path / "crops").rglob("*.png")))
    assert (one == np.rot90(np.asarray(image)[10:40, 0:20], -1)).all()
    assert (one == two).all()
    assert any("pictures stored turned" in note for note in done.notes)


def test_deep_pixels_are_shown_in_the_range_they_use(tmp_path: Path) -> None:
    """12 bits in a file of 16 would be black in a crop of 8."""
    root = make_voc(tmp_path / "voc", boxes(3))
    deep = np.random.default_rng(0).integers(0, 4096, (HEIGHT, WIDTH), dtype=np.uint16)
    for i in range(3):
        Image.fromarray(deep).save(root / "JPEGImages" / f"p{i}.png")
    done = voc(root, tmp_path / "crops", size=16)
    crop = pixels(tmp_path / "crops/train/dot/p0_01.png")
    assert np.abs(crop - (deep[25:41, 35:51] / 4095 * 255)[..., None]).max() <= 1
    assert any("white is 4,095" in note for note in done.notes)
    voc(root, tmp_path / "full", size=16, white_level="full")
    assert pixels(tmp_path / "full/train/dot/p0_01.png").max() < 17


def test_names_that_are_no_folders(tmp_path: Path) -> None:
    labels = (
        "../evil",
        "a/b",
        "a_b",
        ".hidden",
        "b\N{LATIN SMALL LETTER E WITH ACUTE}",
        "be\N{COMBINING ACUTE ACCENT}",
        "B",
    )
    root = make_voc(tmp_path / "voc", {"p0": [(label, 5, 5, 20, 20) for label in labels]}, splits=False)
    done = voc(root, tmp_path / "crops")
    assert sorted(path.name for path in (tmp_path / "crops/train").iterdir()) == sorted(
        ["_evil", "a_b", "a_b-2", "hidden", "b\u00e9", "B"]
    )
    assert done.counts["train"]["b\u00e9"] == 2  # one class in two Unicode forms
    assert not (tmp_path / "evil").exists()
    assert any("names of classes changed" in note for note in done.notes)


def test_pictures_of_one_name_in_two_folders(tmp_path: Path) -> None:
    root = make_yolo(tmp_path / "yolo", {"p0": [("cell", 2, 4, 22, 20)], "p1": [], "p2": []})
    for where in ("images", "labels"):
        suffix = "png" if where == "images" else "txt"
        (root / where / "train" / "more").mkdir()
        shutil.copy(root / where / "train" / f"p0.{suffix}", root / where / "train" / "more" / f"p0.{suffix}")
    done = import_boxes("yolo", root, tmp_path / "crops", Wanted())
    assert done.counts == {"train": {"cell": 2}}


YOLO_LINES = {
    "px": ("0 12 24 20 10", "numbers far outside of 0..1: not shares of the picture"),
    "words": ("cell 0.5 0.5 0.2 0.2", "not `class cx cy w h` or an outline, in numbers"),
    "short": ("0 0.5 0.5 0.2", "not `class cx cy w h` or an outline, in numbers"),
    "unknown": ("7 0.5 0.5 0.2 0.2", "a class that has no name (7)"),
    "nan": ("0 nan 0.5 0.2 0.2", "numbers far outside of 0..1: not shares of the picture"),
}


@pytest.mark.parametrize("fault", YOLO_LINES)
def test_a_bad_line_is_left_out_and_listed(fault: str, tmp_path: Path) -> None:
    line, reason = YOLO_LINES[fault]
    root = make_yolo(tmp_path / "yolo", boxes())
    (root / "labels/train/p1.txt").write_text(f"{line}\n1 0.5 0.5 0.25 0.25\n")
    done = import_boxes("yolo", root, tmp_path / "crops", Wanted())
    assert reasons(done) == {reason: 1}
    assert done.counts["train"] == {"cell": 6, "dot": 4}


def test_yolo_outlines_names_and_layouts(tmp_path: Path) -> None:
    """Roboflow's folders and paths, labels beside images, a class called no, an outline."""
    root = tmp_path / "yolo"
    for i, part in enumerate(("train/images", "valid/images", "train/images/deep")):
        picture(root / part / f"p{i}.png", i)
    (root / "train/labels/deep").mkdir(parents=True)
    (root / "train/labels/p0.txt").write_text("0 0.25 0.25 0.5 0.25 0.5 0.5\n1 0.5 0.5 0.25 0.25 0.9")
    (root / "valid/images/p1.txt").write_text("1 0.5 0.5 0.25 0.25")
    (root / "train/labels/deep/p2.txt").write_text("")
    (root / "train/labels/lost.txt").write_text("0 0.5 0.5 0.25 0.25")
    (root / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnames: [no, yes]\n"
    )
    done = import_boxes("yolo", root, tmp_path / "crops", Wanted(crop="tight"))
    assert done.counts == {"train": {"no": 1, "yes": 1}, "val": {"yes": 1}}
    assert pixels(tmp_path / "crops/train/no/p0_00.png").shape == (12, 16, 3)
    assert reasons(done) == {"no picture for it": 1}
    assert any("test: ../test/images is not below" in note for note in done.notes)


def test_yolo_of_darknet(tmp_path: Path) -> None:
    """As CVAT writes it: lists of pictures with paths of another machine, and obj.names."""
    root = tmp_path / "yolo"
    for i, part in enumerate(("obj_Train_data", "obj_Validation_data")):
        picture(root / part / f"p{i}.png", i)
        (root / part / f"p{i}.txt").write_text("1 0.5 0.5 0.25 0.25\n")
        (root / f"{('train', 'valid')[i]}.txt").write_text(f"data/{part}/p{i}.png\n")
    (root / "obj.names").write_text("cell\ndot\n")
    (root / "obj.data").write_text("classes = 2\ntrain = data/train.txt\n")
    done = import_boxes("yolo", root, tmp_path / "crops", Wanted())
    assert done.counts == {"train": {"dot": 1}, "val": {"dot": 1}}


def test_yolo_with_one_folder_for_train_and_val(tmp_path: Path) -> None:
    root = make_yolo(tmp_path / "yolo", boxes(12))
    (root / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [cell, dot]\n")
    done = import_boxes("yolo", root, tmp_path / "crops", Wanted())
    groups: dict[str, set[str]] = {"train": set(), "val": set(), "test": set()}
    for row in rows(tmp_path / "crops"):
        groups[row["path"].split("/")[0]].add(row["group"])
    assert not groups["train"] & groups["val"]
    assert any("10 pictures are in more than one split" in note for note in done.notes)


def coco(tmp_path: Path, change: object) -> Imported:
    root = make_coco(tmp_path / "coco", boxes())
    path = root / "annotations/instances_train2017.json"
    message = json.loads(path.read_text())
    change(message)  # type: ignore[operator]
    path.write_text(json.dumps(message))
    return import_boxes("coco", root, tmp_path / "crops", Wanted())


COCO_FAULTS = {
    "crowd": (lambda message: message["annotations"][0].update(iscrowd=1), "a crowd, not one object (iscrowd)"),
    "category": (lambda message: message["annotations"][0].update(category_id=99), "its category_id is not among"),
    "image": (lambda message: message["annotations"][0].update(image_id=99), "its image_id is not among the images"),
    "box": (lambda message: message["annotations"][0].update(bbox=[1, 2, "x", 4]), "its bbox is not four numbers"),
    "picture": (lambda message: message["images"].append({"id": 77, "file_name": "../../gone.png"}), "no such picture"),
    "twice": (
        lambda message: message["images"].append({**message["images"][0], "id": 77}),
        "a picture that is listed already",
    ),
}


@pytest.mark.parametrize("fault", COCO_FAULTS)
def test_a_bad_entry_is_left_out_and_listed(fault: str, tmp_path: Path) -> None:
    change, reason = COCO_FAULTS[fault]
    (left,) = coco(tmp_path, change).left_out
    assert left.reason.startswith(reason)


def test_file_names_with_folders(tmp_path: Path) -> None:
    """As much of the end of a path as fits, from whatever machine it is."""
    root = tmp_path / "coco"
    names = ("C:\\data\\a\\p.png", "/home/me/b/p.png")
    for i, folder in enumerate("ab"):
        picture(root / "images" / folder / "p.png", i)
    message = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [{"id": i, "image_id": i, "category_id": i, "bbox": [5, 5, 20, 20]} for i in range(2)],
        "categories": [{"id": 0, "name": "first"}, {"id": 1, "name": "second"}],
    }
    (root / "labels.json").write_text(json.dumps(message))
    import_boxes("coco", root, tmp_path / "crops", Wanted(crop="tight"))
    assert {row["label"]: row["group"] for row in rows(tmp_path / "crops")} == {
        "first": "images/a/p",
        "second": "images/b/p",
    }


def test_a_broken_json_file_ends_the_import(tmp_path: Path) -> None:
    """It may be all there is of a split: without it the others would be cut anew, and nothing would say so."""
    root = make_coco(tmp_path / "coco", boxes())
    for text in ("[" * 100_000, '{"images": [', "\x00"):
        (root / "annotations/instances_train2017.json").write_text(text)
        with pytest.raises(DataError, match="cannot be read as JSON"):
            import_boxes("coco", root, tmp_path / "crops", Wanted())
    (root / "annotations/instances_train2017.json").write_text('{"images": 3}')
    done = import_boxes("coco", root, tmp_path / "crops", Wanted())
    assert [each.reason[:22] for each in done.left_out] == ["no COCO file of boxes:"]


def test_a_picture_in_two_formats(tmp_path: Path) -> None:
    """The annotation's own file name decides."""
    root = make_voc(tmp_path / "voc", boxes())
    picture(root / "JPEGImages/p0.jpg", 7)
    assert not voc(root, tmp_path / "crops").left_out
    with Image.open(root / "JPEGImages/p0.png") as image:
        box = pixels(tmp_path / "crops/train/dot/p0_01.png").shape[0] // 2
        assert (pixels(tmp_path / "crops/train/dot/p0_01.png")[box, box] == np.asarray(image)[33, 43]).all()


def test_coco_of_roboflow(tmp_path: Path) -> None:
    made = make_coco(tmp_path / "coco", boxes())
    for split, folder in (("train", "train"), ("val", "valid"), ("test", "test")):
        shutil.move(made / f"{split}2017", made / folder)
        shutil.move(made / f"annotations/instances_{split}2017.json", made / folder / "_annotations.coco.json")
    done = import_boxes("coco", made, tmp_path / "crops", Wanted())
    assert done.counts["val"] == {"cell": 2, "dot": 1}


def test_flags_and_most(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "voc", boxes())
    (root / "Annotations/p0.xml").write_text(xml("p0", [("dot", 5, 5, 20, 20)], extra="<difficult>1</difficult>"))
    done = voc(root, tmp_path / "a", leave_out=("difficult", "border"))
    assert reasons(done) == {"marked difficult (--leave-out)": 1, "touches the picture's border (--leave-out)": 5}
    done = voc(root, tmp_path / "b", most=1)
    assert done.counts["train"] == {"cell": 3, "dot": 4}
    assert any("beyond 1 of a class in a picture (--most): 5" in note for note in done.notes)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "voc", boxes())
    target = tmp_path / "crops"
    target.mkdir()
    voc(root, target)  # an empty folder will do
    before = files(target)
    with pytest.raises(UsageError, match="exists already"):
        voc(root, target)
    with pytest.raises(UsageError, match="lies in the data set itself"):
        voc(root, root / "crops")
    with pytest.raises(UsageError, match="no such folder"):
        voc(root, tmp_path / "no" / "crops")
    assert files(target) == before
    assert not (root / "crops").exists()


def test_what_ends_early_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_voc(tmp_path / "voc", boxes())

    def stop(path: Path, *_: object) -> None:
        assert (path.parent / "train").is_dir()  # the crops are there, but not yet where they are taken for a data set
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(crops, "write_csv", stop)
        with pytest.raises(KeyboardInterrupt):
            voc(root, tmp_path / "crops")
    assert not (tmp_path / "crops").exists()
    (tmp_path / "killed" / ".unfinished").mkdir(parents=True)
    with pytest.raises(UsageError, match="an import ended early here"):
        voc(root, tmp_path / "killed")


def test_nothing_to_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for kind, said in (("voc", "no .xml file"), ("coco", "no .json file"), ("yolo", "no picture has a label file")):
        words = ["data", "import", kind, str(tmp_path / "empty"), "--to", str(tmp_path / "crops")]
        assert cli.main(words) == 3
        assert said in capsys.readouterr().err
    root = make_voc(tmp_path / "voc", {"p0": [("cell", 5, 5, 5, 5)]})
    with pytest.raises(DataError, match=r"1 times: the box has no area, such as .*p0.xml object 1"):
        voc(root, tmp_path / "crops")
    assert not (tmp_path / "crops").exists()


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (("--size", "2"), "--size"),
        (("--crop", "tight", "--size", "20"), "--size"),
        (("--margin", "0.1"), "--margin"),
        (("--most", "0"), "--most"),
        (("--group", "("), "--group"),
        (("--least", "nan"), "--least"),
    ],
)
def test_options_that_cannot_be(
    words: tuple[str, ...], flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["data", "import", "voc", str(tmp_path), "--to", str(tmp_path / "crops"), *words]) == 2
    assert f"| {flag} |" in capsys.readouterr().err


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_voc(tmp_path / "voc", boxes())
    words = ["data", "import", "voc", str(root), "--to", str(tmp_path / "crops"), "--size", "16"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "18 crops of 6 pictures, windows of 16 px: true size is kept" in said
    assert "--sheet sheet.png --image-size 16 --eval-crop 1\n  selkern train" in said
    assert f"selkern train --data {tmp_path / 'crops'} --image-size 16 --eval-crop 1 --crop pad" in said
    assert "--boxes" in said
    words = ["data", "import", "voc", str(root), "--to", str(tmp_path / "tight"), "--crop", "tight", "--json"]
    assert cli.main(words) == 0
    assert json.loads(capsys.readouterr().out)["size"] is None

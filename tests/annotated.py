"""Small data sets with boxes, the same in each format."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 64, 48
CLASSES = ("cell", "dot")
# name of a picture: (class, x0, y0, x1, y1), edges in px
Boxes = Mapping[str, Sequence[tuple[str, int, int, int, int]]]


def boxes(pictures: int = 6) -> dict[str, list[tuple[str, int, int, int, int]]]:
    """Three objects in each of some pictures, one of them at the border."""
    return {
        f"p{i}": [("cell", 2 + i, 4, 22 + i, 20), ("dot", 40, 30, 46, 36), ("cell", 50, 30, 64, 48)]
        for i in range(pictures)
    }


def picture(path: Path, seed: int = 0) -> None:
    """An image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def split_of(number: int, pictures: int) -> str:
    """The last picture is for test, the one before for val."""
    return {pictures - 1: "test", pictures - 2: "val"}.get(number, "train")


def xml(
    name: str, objects: Sequence[tuple[str, object, object, object, object]], extra: str = "", size: str = ""
) -> str:
    """An annotation in VOC's form, with numbers as they are."""
    size = size or f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    body = "".join(
        f"<object><name>{label}</name>{extra}<bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin><xmax>{x1}</xmax>"
        f"<ymax>{y1}</ymax></bndbox></object>"
        for label, x0, y0, x1, y1 in objects
    )
    return f"<annotation><filename>{name}.png</filename>{size}{body}</annotation>"


def make_voc(root: Path, data: Boxes, *, splits: bool = True) -> Path:
    """Annotations/, JPEGImages/, ImageSets/Main/."""
    (root / "Annotations").mkdir(parents=True)
    lists: dict[str, list[str]] = {}
    for i, (name, objects) in enumerate(data.items()):
        picture(root / "JPEGImages" / f"{name}.png", i)
        ones = [(label, x0 + 1, y0 + 1, x1, y1) for label, x0, y0, x1, y1 in objects]
        (root / "Annotations" / f"{name}.xml").write_text(xml(name, ones), encoding="utf-8")
        lists.setdefault(split_of(i, len(data)), []).append(name)
    if splits:
        (root / "ImageSets" / "Main").mkdir(parents=True)
        for split, names in lists.items():
            (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return root


def make_yolo(root: Path, data: Boxes) -> Path:
    """images/SPLIT, labels/SPLIT, data.yaml."""
    for i, (name, objects) in enumerate(data.items()):
        split = split_of(i, len(data))
        picture(root / "images" / split / f"{name}.png", i)
        lines = [
            f"{CLASSES.index(label)} {(x0 + x1) / 2 / WIDTH} {(y0 + y1) / 2 / HEIGHT} "
            f"{(x1 - x0) / WIDTH} {(y1 - y0) / HEIGHT}"
            for label, x0, y0, x1, y1 in objects
        ]
        label_file = root / "labels" / split / f"{name}.txt"
        label_file.parent.mkdir(parents=True, exist_ok=True)
        label_file.write_text("\n".join(lines))
    names = "\n".join(f"  {i}: {name}" for i, name in enumerate(CLASSES))
    splits = "\n".join(f"{split}: images/{split}" for split in ("train", "val", "test"))
    (root / "data.yaml").write_text(f"path: /elsewhere/set\n{splits}\nnames:\n{names}\n")
    return root


def make_coco(root: Path, data: Boxes) -> Path:
    """annotations/instances_SPLIT2017.json, SPLIT2017/."""
    (root / "annotations").mkdir(parents=True)
    for split in ("train", "val", "test"):
        images: list[dict[str, object]] = []
        result: list[dict[str, object]] = []
        for i, (name, objects) in enumerate(data.items()):
            if split_of(i, len(data)) != split:
                continue
            picture(root / f"{split}2017" / f"{name}.png", i)
            images.append({"id": i, "file_name": f"{name}.png", "width": WIDTH, "height": HEIGHT})
            for label, x0, y0, x1, y1 in objects:
                result.append(
                    {
                        "id": len(result),
                        "image_id": i,
                        "category_id": CLASSES.index(label) + 5,
                        "bbox": [x0, y0, x1 - x0, y1 - y0],
                        "iscrowd": 0,
                        "segmentation": [[x0, y0, x1, y0, x1, y1]],
                    }
                )
        reported = {
            "info": {},
            "images": images,
            "annotations": result,
            "categories": [{"id": i + 5, "name": name, "supercategory": "all"} for i, name in enumerate(CLASSES)],
        }
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(reported))
    return root

"""COCO: JSON files that list pictures, classes and boxes; Roboflow writes one into each split's folder."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from selkern.data.decode import show
from selkern.data.detection.annotations import Annotations, Box, Picture, PictureIndex, files_below, split_named
from selkern.errors import DataError

_LARGEST = 4 << 30  # bytes of a JSON file


class _Image(NamedTuple):
    id: Any
    name: Any
    width: Any
    height: Any


class _Object(NamedTuple):
    id: Any
    image: Any
    category: Any
    box: Any
    crowd: bool


def read_coco(root: Path) -> Annotations:
    """Every picture that a JSON file below a folder describes.

    Where some files are called instances_*, they alone are read: captions and key points describe the same pictures.

    Raises:
        DataError: no JSON file, or one that cannot be read.
    """
    data, index = Annotations(), PictureIndex(root)
    files = list(files_below(root, ".json"))
    files = [path for path in files if path.name.startswith("instances_")] or files
    for path in files:
        content = _load(path)
        keys = ("images", "annotations", "categories")
        if isinstance(content, dict) and all(isinstance(content.get(key), list) for key in keys):
            _add(path, content, index, data)
        else:
            data.leave(show(path), "no COCO file of boxes: it lacks lists of images, annotations and categories")
    if not data.pictures and not data.left_out:
        raise DataError("no .json file in it", show(root), "give the folder that holds annotations/ and images")
    return data


def _slim(item: dict[str, Any]) -> Any:
    """Only what is needed of a JSON object, as it is read: outlines take ten times the room of all the rest."""
    if "file_name" in item:
        return _Image(item.get("id"), item["file_name"], item.get("width"), item.get("height"))
    if "image_id" in item:
        crowd = item.get("iscrowd") in (1, True, "1")
        return _Object(item.get("id"), item["image_id"], item.get("category_id"), item.get("bbox"), crowd)
    return item


def _load(path: Path) -> Any:
    """What a JSON file holds. Raises DataError where it cannot be read: it may be all there is of a split."""
    if path.stat().st_size > _LARGEST:
        raise DataError(f"over {_LARGEST:,} bytes", show(path), "move it away if it lists no boxes")
    try:
        with path.open(encoding="utf-8-sig") as file:
            return json.load(file, object_hook=_slim)
    except (OSError, ValueError, RecursionError) as error:  # JSON's and Unicode's errors are ValueErrors
        reason = "nested too deep" if isinstance(error, RecursionError) else f"{error}"[:200]
        raise DataError(f"cannot be read as JSON ({reason})", show(path), "mend it, or move it away") from error


def _add(path: Path, content: dict[str, Any], index: PictureIndex, data: Annotations) -> None:
    """Add the pictures of one file."""
    classes = {
        str(item["id"]): str(item["name"]).strip()
        for item in content["categories"]
        if isinstance(item, dict) and str(item.get("name", "")).strip() and "id" in item
    }
    objects: dict[str, list[_Object]] = defaultdict(list)
    for item in content["annotations"]:
        if isinstance(item, _Object):
            objects[str(item.image)].append(item)
        else:
            data.leave(show(path), "an annotation without image_id")
    # instances_train2017 -> train; Roboflow names all files alike and has a folder for each split.
    named = split_named(path.stem.removeprefix("instances_"))
    for image in content["images"]:
        if not isinstance(image, _Image) or not isinstance(image.name, str):
            data.leave(show(path), "an image without file_name")
            continue
        mine = objects.pop(str(image.id), [])
        where = f"{show(path)} image {image.name[:200]}"
        try:
            file = index.find(image.name, path)
        except LookupError as error:
            data.leave(where, str(error))
            continue
        if file is None:
            data.leave(where, "no such picture")
            continue
        boxes = [_box(item, number, where, classes, data) for number, item in enumerate(mine)]
        split = named or index.split(path) or index.split(file)
        size = (image.width, image.height)
        data.pictures.append(
            Picture(
                file=file,
                split=split,
                boxes=tuple(box for box in boxes if box is not None),
                where=where,
                size=size if all(isinstance(side, int) and side > 0 for side in size) else None,
            )
        )
    for lost in objects.values():
        for item in lost:
            data.leave(f"{show(path)} annotation {item.id}", "its image_id is not among the images")


def _box(item: _Object, number: int, where: str, classes: dict[str, str], data: Annotations) -> Box | None:
    where = f"{where}: annotation {item.id}"
    label = classes.get(str(item.category))
    if item.crowd:
        data.leave(where, "a crowd, not one object (iscrowd)")
    elif label is None:
        data.leave(where, f"its category_id is not among the categories ({str(item.category)[:40]})")
    elif not _is_box(item.box):
        data.leave(where, "its bbox is not four numbers")
    else:
        x, y, width, height = map(float, item.box)
        return Box(label=label, corners=(x, y, x + width, y + height), where=where, number=number)
    return None


def _is_box(content: object) -> bool:
    if not isinstance(content, Sequence) or isinstance(content, str) or len(content) != 4:
        return False
    return all(isinstance(side, (int, float)) and not isinstance(side, bool) and abs(side) < 1e9 for side in content)

"""Pascal VOC: an XML file for each picture (labelImg, CVAT and Roboflow write them), lists of the splits beside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from selkern.data.decode import show
from selkern.data.detection.annotations import (
    Annotations,
    Box,
    Picture,
    PictureIndex,
    files_below,
    read_lines,
    read_small,
)
from selkern.errors import DataError

_LISTS = {"train": "train", "val": "val", "test": "test", "trainval": "train"}  # the last for what no other names


def read_voc(root: Path) -> Annotations:
    """Every picture that an XML file below a folder describes.

    Splits are those of ImageSets/Main, else of folders such as train/ and valid/.

    Raises:
        DataError: no XML file.
    """
    data, index = Annotations(), PictureIndex(root)
    files = list(files_below(root, ".xml"))
    if not files:
        raise DataError("no .xml file in it", show(root), "give the folder that holds Annotations/")
    lists = _lists(root, files, data)
    for path in files:
        try:
            picture = _read(path, index, data)
        except (DataError, LookupError) as error:
            data.leave(show(path), error.what if isinstance(error, DataError) else str(error))
            continue
        home = lists.get(_home(path))
        if home is not None and path.stem not in home:
            data.leave(show(path), "in none of the lists of ImageSets/Main")
        else:
            split = index.split(path) or index.split(picture.file) if home is None else home[path.stem]
            data.pictures.append(replace(picture, split=split))
    _count_from_zero(data)
    return data


def _home(path: Path) -> Path:
    """The folder that holds Annotations/ and ImageSets/, of an XML file."""
    for folder in path.parents:
        if folder.name.lower() == "annotations":
            return folder.parent
    return path.parent


def _lists(root: Path, files: list[Path], data: Annotations) -> dict[Path, dict[str, str]]:
    """{folder of a VOC set: {name of a picture: its split}}, of sets with lists."""
    stems: dict[Path, set[str]] = {}
    for path in files:
        stems.setdefault(_home(path), set()).add(path.stem)
    lists: dict[Path, dict[str, str]] = {}
    doubles = 0
    result = [path for path in files_below(root, ".txt") if path.stem in _LISTS and path.parent.name == "Main"]
    for path in sorted(result, key=lambda path: list(_LISTS).index(path.stem)):
        if (home := path.parent.parent.parent) not in stems:
            continue
        splits = lists.setdefault(home, {})
        for line in filter(None, map(str.strip, read_lines(path))):
            options = (line, line.rsplit(None, 1)[0], Path(line).stem)  # some have a second column, some a suffix
            name = next((option for option in options if option in stems[home]), "")
            if not name:
                data.leave(f"{show(path)}: {line[:200]}", "listed for a split, but without an annotation")
            elif path.stem != "trainval" and splits.get(name, _LISTS[path.stem]) != _LISTS[path.stem]:
                doubles += 1
            else:
                splits.setdefault(name, _LISTS[path.stem])
    if doubles:
        data.notes.append(f"{doubles:,} pictures are listed for several splits: kept in the first of them")
    return {home: splits for home, splits in lists.items() if splits}


def _read(path: Path, index: PictureIndex, data: Annotations) -> Picture:
    text = read_small(path)
    if b"<!ENTITY" in text:  # the parser limits what they unpack to; no annotation has them
        raise DataError("XML with entities, which are not read", show(path))
    try:
        tree = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the others: an encoding that does not exist
        raise DataError(f"broken XML ({error})", show(path)) from error
    if tree.tag != "annotation":
        raise DataError(f"not an annotation (<{tree.tag[:40]}>)", show(path))
    # By the XML's own name first: programs that rename files leave the name inside as it was.
    name = (tree.findtext("filename") or "").strip()
    same = PurePosixPath(name.replace("\\", "/")).stem == path.stem
    file = index.find(name if same else path.stem, path) or (index.find(name, path) if name else None)
    if file is None:
        raise DataError("no picture for it", show(path))
    size = (_whole(tree.findtext("size/width")), _whole(tree.findtext("size/height")))
    boxes = tuple(_boxes(tree, path, data))
    return Picture(file=file, split="", boxes=boxes, where=show(path), size=size if all(size) else None)


def _boxes(tree: ElementTree.Element, path: Path, data: Annotations) -> Iterator[Box]:
    for number, item in enumerate(tree.findall("object")):
        where = f"{show(path)} object {number + 1}"
        label = (item.findtext("name") or "").strip()
        sides = [(item.findtext(f"bndbox/{key}") or "").strip() for key in ("xmin", "ymin", "xmax", "ymax")]
        if not label:
            data.leave(where, "it has no class name")
            continue
        try:
            x0, y0, x1, y1 = map(float, sides)
        except ValueError:
            has = item.find("bndbox") is not None
            data.leave(where, "a coordinate is missing or no number" if has else "it has no bndbox")
            continue
        flags = frozenset(flag for flag in ("difficult", "truncated") if (item.findtext(flag) or "0").strip() != "0")
        yield Box(label=label, corners=(x0, y0, x1, y1), where=where, number=number, flags=flags)


def _whole(text: str | None) -> int:
    """A size in px; 0 where there is none, as some programs write."""
    text = (text or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 7 else 0


def _count_from_zero(data: Annotations) -> None:
    """Edges instead of first and last pixels counted from 1, where the data set counts so."""
    corners = [corner for picture in data.pictures for box in picture.boxes for corner in [box.corners]]
    whole = all(side.is_integer() for corner in corners for side in corner)
    if not whole or min((min(corner[:2]) for corner in corners), default=0) < 1:
        why = "some start at 0" if whole else "they are not whole"
        data.notes.append(f"the boxes' numbers are taken as edges, not as pixels counted from 1: {why}")
        return
    data.notes.append("the boxes' pixels are counted from 1, as in Pascal VOC: none starts at 0")
    for at, picture in enumerate(data.pictures):
        boxes = [
            replace(box, corners=(box.corners[0] - 1, box.corners[1] - 1, *box.corners[2:])) for box in picture.boxes
        ]
        data.pictures[at] = replace(picture, boxes=tuple(boxes))

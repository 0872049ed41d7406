"""YOLO: a text file for each picture, a line for each object; data.yaml names classes and splits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from selkern.data.decode import show
from selkern.data.detection.annotations import (
    PICTURES,
    Annotations,
    Box,
    Picture,
    PictureIndex,
    files_below,
    read_lines,
    read_small,
    split_named,
)
from selkern.data.split import SPLITS
from selkern.errors import DataError

_KEYS = {"train": "train", "val": "val", "valid": "val", "test": "test"}  # of data.yaml
_CLASSES = ("classes.txt", "obj.names", "classes.names", "labels.txt")


def read_yolo(root: Path) -> Annotations:
    """Every picture below a folder that has a label file.

    Splits are those of data.yaml where its paths lie below the folder, else of folders such as images/train or
    valid/images.

    Raises:
        DataError: no picture has a label file.
    """
    data, index = Annotations(), PictureIndex(root)
    config = _config(root, data)
    names = _names(root, config, data)
    splits = _splits(root, config, index, data)
    labels = _label_files(root)
    used: set[Path] = set()
    bare = 0
    for file in index.files:
        path = next((each for each in _candidates(file, root) if each in labels), None)
        if path is None:
            bare += 1
            continue
        used.add(path)
        try:
            boxes = tuple(_boxes(path, names, "kpt_shape" in config, data))
        except DataError as error:
            data.leave(show(path), error.what)
            continue
        split = splits.get(file, "") if splits else index.split(file)
        data.pictures.append(Picture(file=file, split=split, boxes=boxes, where=show(path), shares=True))
    if not used:
        raise DataError("no picture has a label file", show(root), "give the folder that holds images/ and labels/")
    if bare:
        data.notes.append(f"{bare:,} pictures have no label file: taken as pictures without objects")
    for path in sorted(labels - used):
        if "labels" in path.relative_to(root).parts[:-1]:
            data.leave(show(path), "no picture for it")
    return data


def _label_files(root: Path) -> set[Path]:
    return {path for path in files_below(root, ".txt") if path.name not in _CLASSES}


def _candidates(file: Path, root: Path) -> Iterator[Path]:
    """Where the labels of an image may be: for images/ a labels/ in its place, and beside the image."""
    parts = file.relative_to(root).parts
    for at in reversed(range(len(parts) - 1)):
        if parts[at].lower() in PICTURES:
            yield root.joinpath(*parts[:at], "labels", *parts[at + 1 :]).with_suffix(".txt")
    yield file.with_suffix(".txt")
    yield file.parent.joinpath("labels", file.name).with_suffix(".txt")
    yield root.joinpath("labels", *parts).with_suffix(".txt")


def _config(root: Path, data: Annotations) -> dict[str, Any]:
    """data.yaml, or the splits alone where there is none."""
    import yaml

    files = [path for path in files_below(root, ".yaml", ".yml") if len(path.relative_to(root).parts) <= 2]
    for path in sorted(files, key=lambda path: (path.name != "data.yaml", path)):
        try:
            content = yaml.load(read_small(path), Loader=yaml.BaseLoader)  # texts alone: a class may be called no
        except (yaml.YAMLError, DataError, ValueError, RecursionError) as error:
            data.leave(show(path), "cannot be read as YAML" if not isinstance(error, DataError) else error.what)
            continue
        if isinstance(content, dict) and "names" in content:
            return content
    # Darknet, as CVAT writes it: lists of pictures beside obj.names.
    return {key: f"{key}.txt" for key in _KEYS if (root / f"{key}.txt").is_file()}


def _names(root: Path, config: dict[str, Any], data: Annotations) -> dict[int, str] | None:
    """{number: class name}; None where nothing names them."""
    content = config.get("names")
    named = enumerate(content) if isinstance(content, list) else content.items() if isinstance(content, dict) else ()
    if names := {int(key): name.strip() for key, name in named if f"{key}".isdecimal() and isinstance(name, str)}:
        return names
    for path in sorted(files_below(root, *_CLASSES), key=lambda path: len(path.parts)):
        lines = [line.strip() for line in read_lines(path)]
        while lines and not lines[-1]:
            lines.pop()
        if lines and path.name in _CLASSES:
            data.notes.append(f"class names from {show(path)}")
            return dict(enumerate(lines))
    data.notes.append("no data.yaml or classes.txt names the classes: they are called by their numbers")
    return None


def _splits(root: Path, config: dict[str, Any], index: PictureIndex, data: Annotations) -> dict[Path, str]:
    """The split of every image that data.yaml names; empty where it names none that is here."""
    splits: dict[Path, str] = {}
    doubles = 0
    for key in sorted(_KEYS.keys() & config.keys(), key=lambda key: SPLITS.index(_KEYS[key])):
        entries = config[key] if isinstance(config[key], list) else [config[key]]
        for entry in (entry for entry in entries if isinstance(entry, str) and entry):
            place = _locate(root, entry)
            if place is None:
                data.notes.append(f"data.yaml's {key}: {entry[:200]} is not below {show(root)}")
                continue
            files = list(_listed(place, index))
            doubles += sum(splits.get(file, _KEYS[key]) != _KEYS[key] for file in files)
            splits = {**dict.fromkeys(files, _KEYS[key]), **splits}
    if doubles:
        data.notes.append(f"{doubles:,} pictures are in more than one split of data.yaml: kept in the first of them")
    return splits


def _locate(root: Path, content: str) -> Path | None:
    """The longest end of a path, perhaps of another machine, that exists below the root and still names a split."""
    parts = [part for part in PurePosixPath(content.replace("\\", "/")).parts if part not in ("/", "..", ".")]
    for at in range(len(parts)):
        place = root.joinpath(*parts[at:])
        if (at == 0 or any(map(split_named, parts[at:]))) and place.exists():
            return place
    return None


def _listed(place: Path, index: PictureIndex) -> Iterator[Path]:
    """The images in a folder, or those that a text file names."""
    if place.is_dir():
        yield from (file for file in index.files if place in file.parents)
        return
    for line in filter(None, map(str.strip, read_lines(place))):
        try:
            file = index.find(line, place)
        except LookupError:
            continue
        if file is not None:
            yield file


def _boxes(path: Path, names: dict[int, str] | None, points: bool, data: Annotations) -> Iterator[Box]:
    """The objects of a label file: `class cx cy w h`, or the outline `class x y x y x y ...`, whose box is taken."""
    for number, line in enumerate(filter(str.strip, read_lines(path))):
        where = f"{show(path)} object {number + 1}"
        try:
            kind, *sides = map(float, line.split())
            if len(sides) not in (4, 5) and not points and (len(sides) < 6 or len(sides) % 2):
                raise ValueError
        except ValueError:
            data.leave(where, "not `class cx cy w h` or an outline, in numbers")
            continue
        if not kind.is_integer() or (names is not None and int(kind) not in names):
            data.leave(where, f"a class that has no name ({kind:g})")
            continue
        if not all(-1 <= side <= 2 for side in (sides[:4] if points else sides)):
            data.leave(where, "numbers far outside of 0..1: not shares of the picture")
            continue
        label = str(int(kind)) if names is None else names[int(kind)]
        yield Box(label=label, corners=_corners(sides, points), where=where, number=number)


def _corners(sides: list[float], points: bool) -> tuple[float, float, float, float]:
    if len(sides) > 5 and not points:  # an outline
        return min(sides[::2]), min(sides[1::2]), max(sides[::2]), max(sides[1::2])
    x, y, width, height = sides[:4]  # more are a confidence, or key points
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2

"""Objects to be cut out: boxes held against their pictures, one split for each picture, one folder for each class."""

from __future__ import annotations

import math
import re
import unicodedata
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from PIL.Image import Transpose

from selkern.data.decode import read_header, show, turn_of
from selkern.data.detection.annotations import PICTURES, Annotations, Box, Picture, split_named
from selkern.data.levels import parse_levels
from selkern.data.split import SPLITS, LeftOut
from selkern.errors import DataError, UsageError, printable

Flag = Literal["difficult", "truncated", "border"]
Corners = tuple[float, float, float, float]
_HELD = 0.95  # share of the boxes that the default window holds, as a mean over classes
_ROUND = 8  # px that it is a multiple of
_SHARE = 0.1  # of the groups, to val and to test each
_UNSAFE = re.compile(r'[\\/:*?"<>|\x00-\x1f\x7f]')  # in names of files, on any system
_LONGEST = 120  # characters of a name
_SHOWN = 5  # classes in a note
_NEAR = 1.0  # px: a box that ends so near to the border touches it
# Copies of one picture that Roboflow has augmented: name_jpg.rf.0123abcd.jpg
_COPY = re.compile(r"\.rf\.[0-9A-Za-z]{8,}$")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """Which objects are cut out, and how."""

    crop: Literal["window", "tight"] = "window"
    """A window of one size around each box's centre, or the box itself."""
    size: int | None = None
    """Side of the window, px; None chooses it by the boxes."""
    margin: float = 0.0
    """Of a tight crop on each side, as a share of the box's side."""
    least: float = 4.0
    """Shorter side of the smallest box that is cut out, px."""
    most: int | None = None
    """Boxes of a class in a picture, drawn by seed; None for all."""
    leave_out: tuple[Flag, ...] = ()
    """Boxes so marked, or that touch the picture's border, are left out."""
    splits: Literal["own", "new"] = "own"
    """The data set's own splits where it has them, or new ones."""
    group: str | None = None
    """What pictures of one group have in common in their names: a regular expression."""
    seed: int = 0
    """Of the splits and of `most`."""
    white_level: str = "auto"
    """What is white of deep pixels, as ``parse_levels`` reads it: crops have 8 bits."""

    def __post_init__(self) -> None:
        parse_levels(self.white_level)
        if self.crop == "tight" and self.size is not None:
            raise UsageError("a tight crop has the size of its box", "--size", "leave it out, or use --crop window")
        if self.crop == "window" and self.margin:
            raise UsageError("a window has no margin", "--margin", "use --size, or --crop tight")
        for flag, value, low, high in (
            ("--size", self.size, 8, 4096),
            ("--margin", self.margin, 0, 10),
            ("--least", self.least, 1, 10_000),
            ("--most", self.most, 1, 1_000_000),
            ("--seed", self.seed, 0, 2**63 - 1),
        ):
            if value is not None and not low <= value <= high:
                raise UsageError(f"{flag[2:]} is {value}", flag, f"must lie between {low:,} and {high:,}")
        try:
            re.compile(self.group or "")
        except re.error as error:
            raise UsageError(f"not a regular expression ({error})", "--group", "such as '^(patient[0-9]+)_'") from error


@dataclass(frozen=True, kw_only=True)
class Object:
    """One object of a picture."""

    label: str
    """The folder of its class."""
    corners: Corners
    """Edges, px of the upright picture, within it."""
    number: int
    """Among the objects of its picture."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A picture whose objects are cut out."""

    file: Path
    split: str
    group: str
    """What its crops have in common with those of the pictures it belongs to."""
    name: str
    """Start of the names of its crops, which no other picture has."""
    objects: tuple[Object, ...]


@dataclass(kw_only=True)
class Plan:
    """What is to be cut out. It grows while the boxes are looked through."""

    scenes: list[Scene] = field(default_factory=list)
    size: int | None = None
    """Side of the window, px."""
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def boxes(self) -> int:
        """How many objects are cut out."""
        return sum(len(scene.objects) for scene in self.scenes)


def plan(data: Annotations, root: Path, wanted: Wanted, progress: Callable[[int], object] = lambda _: None) -> Plan:
    """Hold every box against its picture, of which only the header is read.

    Args:
        data: of ``read_voc``, ``read_yolo`` or ``read_coco``.
        root: the data set's folder.
        wanted: which objects, and how.
        progress: called with a number of pictures whenever so many more are done.

    Raises:
        DataError: there is nothing to cut out.
    """
    data.drop_doubles()
    out = Plan(left_out=data.left_out, notes=data.notes)
    groups = {picture.file: _group(picture.file.relative_to(root), wanted.group) for picture in data.pictures}
    if missed := sum(named is None for named in groups.values()):
        out.notes.append(f"--group fits no part of the names of {missed:,} pictures: each is a group of its own")
    known = {file: named or _plain(file, root) for file, named in groups.items()}
    splits = _splits(data, known, wanted, out)
    folders, names = _Names(), _Names()
    counts: Counter[str] = Counter()
    for picture in data.pictures:
        progress(1)
        try:
            boxes = _measured(picture, wanted, out, counts)
        except DataError as error:
            out.left_out.append(LeftOut(error.where, error.what))
            continue
        counts["pictures without objects"] += not picture.boxes
        kept = [_object(box, corners, folders) for box, corners in _thinned(boxes, picture, root, wanted, counts)]
        if kept:
            file = picture.file
            name = names.of(str(file), _name(file, root))
            group = printable(known[file])
            out.scenes.append(Scene(file=file, split=splits[file], group=group, name=name, objects=tuple(kept)))
    out.notes += [f"{what}: {count:,}" for what, count in counts.items() if count]
    if changed := folders.changed:
        more = f" and {len(changed) - _SHOWN:,} more" if len(changed) > _SHOWN else ""
        out.notes.append(f"names of classes changed to names of folders: {', '.join(changed[:_SHOWN])}{more}")
    if not out.scenes:
        raise _nothing(root, out)
    if wanted.crop == "window":
        out.size = _window(out, wanted.size)
    return out


def _nothing(root: Path, out: Plan) -> DataError:
    """Why there is nothing to cut out."""
    reasons = Counter(each.reason for each in out.left_out).most_common(1)
    why = ""
    if reasons:
        ((reason, count),) = reasons
        first = next(each.where for each in out.left_out if each.reason == reason)
        why = f"; {count:,} times: {reason}, such as {first}"
    return DataError(f"no box to cut out{why}", show(root), "check the folder and the format")


def _plain(file: Path, root: Path) -> str:
    """The path of an image without its suffix, and without the mark of a copy."""
    path = file.relative_to(root)
    return (path.parent / _COPY.sub("", path.stem)).as_posix()


def _name(file: Path, root: Path) -> str:
    """The path of an image in one word, without folders that say no more than what it is."""
    path = file.relative_to(root)
    folders = [part for part in path.parts[:-1] if part.lower() not in PICTURES and not split_named(part)]
    return "__".join([*folders, path.stem])


def _group(path: Path, pattern: str | None) -> str | None:
    """The part of an image's path that names its group; "" without a pattern, None where it fits nothing."""
    if pattern is None:
        return ""
    match = re.search(pattern, path.as_posix())
    return None if match is None else next(filter(None, match.groups()), match[0]) or None


def _splits(data: Annotations, groups: dict[Path, str], wanted: Wanted, out: Plan) -> dict[Path, str]:
    """The split of every picture: the data set's own, completed by whole groups."""
    if wanted.splits == "new":
        data.without_splits()
    elif not any(picture.split == "train" for picture in data.pictures):
        if any(picture.split for picture in data.pictures):
            out.notes.append("the data set has no train split of its own: all splits are cut anew")
        data.without_splits()
    own = {picture.split for picture in data.pictures} - {""}
    if own:
        for picture in data.pictures:
            if not picture.split:
                out.left_out.append(LeftOut(picture.where, "in none of the data set's splits"))
        data.pictures = [picture for picture in data.pictures if picture.split]
    splits = {picture.file: picture.split or "train" for picture in data.pictures}
    what = "pictures" if wanted.group is None else "groups"
    spread = defaultdict(set)
    for file, split in splits.items():
        spread[groups[file]].add(split)
    if torn := sum(len(result) > 1 for result in spread.values()):
        out.notes.append(f"{torn:,} groups of pictures are in more than one of the data set's splits: use --splits new")
    missing = [split for split in ("val", "test") if split not in own] if own != {"train", "val"} else []
    if not missing:
        out.notes.append(f"splits of the data set: {', '.join(split for split in SPLITS if split in own)}")
        return splits
    names = sorted({groups[file] for file, split in splits.items() if split == "train"})
    order = np.random.default_rng(wanted.seed).permutation(len(names)).tolist()
    count = min(max(1, round(_SHARE * len(names))), (len(names) - 1) // len(missing))
    chosen = {names[at]: split for i, split in enumerate(missing) for at in order[i * count : (i + 1) * count]}
    out.notes.append(f"{' and '.join(missing)} cut off by seed {wanted.seed}: {count:,} of {len(names):,} {what} each")
    if not count:
        out.notes.append("too few of them: training will cut off single crops, of pictures that it learns from")
    return {file: chosen.get(groups[file], split) if split == "train" else split for file, split in splits.items()}


def _measured(picture: Picture, wanted: Wanted, out: Plan, counts: Counter[str]) -> list[tuple[Box, Corners]]:
    """The boxes of a picture that can be cut out, in px of the upright picture."""
    header = read_header(picture.file, show(picture.file))
    here = (header.width, header.height)
    turn = None
    if picture.size is not None and picture.size != here:
        declared = " x ".join(map(str, picture.size))
        if picture.size != here[::-1]:
            where = f"{show(picture.file)} ({here[0]} x {here[1]} px, not {declared})"
            raise DataError("its annotation is of a picture of another size", where)
        turn = turn_of(picture.file, show(picture.file))
        turned = "pictures stored turned, their sizes as stored: boxes are taken as such too, and turned (look at some)"
        swapped = "pictures whose annotation has width and height the wrong way round"
        counts[swapped if turn is None else turned] += 1
    kept = []
    for box in picture.boxes:
        corners = box.corners
        if picture.shares:
            # The files have six decimals: rounded, so that the px are those that were drawn.
            x0, y0, x1, y1 = (round(share * side, 2) for share, side in zip(corners, here * 2, strict=True))
            corners = x0, y0, x1, y1
        corners = _turned(corners, here, turn)
        inside = _clipped(corners, here)
        reason = _fault(box, corners, inside, here, wanted)
        if reason:
            out.left_out.append(LeftOut(box.where, reason))
            continue
        reach = max(abs(a - b) for a, b in zip(corners, inside, strict=True))
        counts["boxes that reach past the picture's border, clipped there"] += reach > _NEAR
        kept.append((box, inside))
    return kept


def _fault(box: Box, corners: Corners, inside: Corners, size: tuple[int, int], wanted: Wanted) -> str:
    """Why a box is not cut out; empty where it is."""
    if not all(map(math.isfinite, corners)):
        return "a coordinate that is no number"
    if corners[0] >= corners[2] or corners[1] >= corners[3]:
        return "the box has no area"
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        return "the box lies outside of the picture"
    if min(inside[2] - inside[0], inside[3] - inside[1]) < wanted.least:
        return f"a side below {wanted.least:g} px (--least)"
    if marked := next((flag for flag in wanted.leave_out if flag in box.flags), ""):
        return f"marked {marked} (--leave-out)"
    touches = inside[0] <= _NEAR or inside[1] <= _NEAR or inside[2] >= size[0] - _NEAR or inside[3] >= size[1] - _NEAR
    return "touches the picture's border (--leave-out)" if touches and "border" in wanted.leave_out else ""


def _clipped(corners: Corners, size: tuple[int, int]) -> Corners:
    x0, y0, x1, y1 = corners
    return max(x0, 0.0), max(y0, 0.0), min(x1, float(size[0])), min(y1, float(size[1]))


def _turned(corners: Corners, size: tuple[int, int], turn: Transpose | None) -> Corners:
    """A box of the picture as it is stored, in the picture of `size` that the turn makes of it."""
    x0, y0, x1, y1 = corners
    width, height = size
    if turn is Transpose.TRANSPOSE:
        return y0, x0, y1, x1
    if turn is Transpose.ROTATE_270:
        return width - y1, x0, width - y0, x1
    if turn is Transpose.TRANSVERSE:
        return width - y1, height - x1, width - y0, height - x0
    if turn is Transpose.ROTATE_90:
        return y0, height - x1, y1, height - x0
    return corners


def _thinned(
    boxes: Sequence[tuple[Box, Corners]], picture: Picture, root: Path, wanted: Wanted, counts: Counter[str]
) -> Iterator[tuple[Box, Corners]]:
    """At most so many boxes of a class, drawn by seed and the picture's name."""
    for label, indices in _by_label(boxes).items():
        if wanted.most is not None and len(indices) > wanted.most:
            name = f"{picture.file.relative_to(root).as_posix()} {label}"
            rng = np.random.default_rng([wanted.seed, zlib.crc32(name.encode(errors="surrogateescape"))])
            counts[f"boxes left out, beyond {wanted.most:,} of a class in a picture (--most)"] += (
                len(indices) - wanted.most
            )
            indices = sorted(rng.choice(indices, wanted.most, replace=False).tolist())
        yield from (boxes[at] for at in indices)


def _by_label(boxes: Sequence[tuple[Box, Corners]]) -> dict[str, list[int]]:
    result: dict[str, list[int]] = defaultdict(list)
    for at, (box, _) in enumerate(boxes):
        result[_same(box.label)].append(at)
    return result


def _same(label: str) -> str:
    """A class name in the one form of Unicode: the same text is the same class."""
    return unicodedata.normalize("NFC", label)


def _object(box: Box, corners: Corners, folders: _Names) -> Object:
    return Object(label=folders.of(_same(box.label), box.label), corners=corners, number=box.number)


class _Names:
    """Names of files and folders for names of the user's: safe on every system, and a new one for each."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}
        self._taken: set[str] = set()
        self.changed: list[str] = []

    def of(self, key: str, name: str) -> str:
        """The name for a key, made from a name."""
        if key in self._known:
            return self._known[key]
        safe = unicodedata.normalize("NFC", name).encode(errors="replace").decode()
        safe = printable(_UNSAFE.sub("_", safe)).replace("\\", "_")[:_LONGEST].strip().lstrip(".").rstrip(". ") or "_"
        unique, number = safe, 2
        while unique.casefold() in self._taken:  # some systems take upper and lower case for one
            unique, number = f"{safe}-{number}", number + 1
        self._taken.add(unique.casefold())
        self._known[key] = unique
        if unique != _same(name):
            self.changed.append(f"{printable(name)[:_LONGEST]!r} to {unique}")
        return unique


def _window(out: Plan, given: int | None) -> int:
    """The side of the window, given or so that it holds most boxes of the average class."""
    sides: dict[str, list[float]] = defaultdict(list)
    for scene in out.scenes:
        for each in scene.objects:
            x0, y0, x1, y1 = each.corners
            sides[each.label].append(max(x1 - x0, y1 - y0))
    if given is None:
        lengths = np.concatenate([np.array(result) for result in sides.values()])
        weights = np.concatenate([np.full(len(result), 1 / len(result) / len(sides)) for result in sides.values()])
        order = np.argsort(lengths)
        at = min(int(np.searchsorted(np.cumsum(weights[order]), _HELD - 1e-9)), len(order) - 1)
        given = min(max(_ROUND, math.ceil(float(lengths[order][at]) / _ROUND) * _ROUND), 4096)
        out.notes.append(f"--size {given}: the window holds {_HELD:.0%} of the boxes of the average class")
    larger = {label: sum(side > given for side in result) for label, result in sides.items()}
    if total := sum(larger.values()):
        worst = [label for label, count in Counter(larger).most_common(_SHOWN) if count]
        which = ", ".join(f"{larger[label]:,} of {len(sides[label]):,} {label}" for label in worst)
        out.notes.append(f"{total:,} boxes do not fit into the window, which shows their middle: {which}")
    return given

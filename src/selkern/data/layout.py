"""How people lay out images in folders: which folders are splits, and which are classes."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from selkern.data.decode import show
from selkern.data.labels import same_text
from selkern.data.listing import Search, some
from selkern.data.split_names import VAGUE, assign_splits, split_words
from selkern.errors import DataError, printable

ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".rar", ".7z")
_TABLES = (".csv", ".tsv", ".parquet")
_BOXES = {"labels": "yolo", "annotations": "voc"}  # folder beside those of images -> the form of its boxes
_DEEPEST = 4  # folders that hold one folder each, as archives are packed
_MOST_SPLITS = 12  # folders of class folders; more of them that hold the same names are classes


@dataclass(frozen=True)
class Part:
    """A folder whose images are of one class, and of one split where the data say so."""

    split: str
    """train, val or test; "" where nothing says it."""
    name: str
    """Of the class."""
    folder: str
    """Where the images are."""


Folder = os.DirEntry[str]


def find_parts(root: Path, search: Search, known: Collection[str] = ()) -> tuple[list[Part], list[str]]:
    """The folders that hold the images of each class and split, and notes on what was assumed.

    Args:
        root: train/ [val/] [test/] of class folders, class folders, or a folder that holds one of these.
        search: keeps account of what is left out.
        known: class names that are known already.

    Raises:
        DataError: no class folders, or folders that could be splits as well as classes.
    """
    here, notes = root, []
    for _ in range(_DEEPEST):
        inner = None if _has_splits(here, search) else _inner(here, search, known)
        if inner is None:
            break
        here = Path(inner.path)
    if here != root:
        notes.append(f"the images are taken from {show(here.relative_to(root))}/")
    folders = search.folders(here)
    if not folders:
        raise _no_folders(here, search)
    parts = list(
        _of_splits(here, folders, search, known, notes)
        or _of_splits_in_classes(folders, search, notes)
        or _of_classes(here, folders, search, notes)
    )
    return parts, notes


def _has_splits(folder: str | Path, search: Search) -> bool:
    """Whether some folders in it are splits: called so, with folders in them, or several of them called so."""
    inside = search.folders(folder)
    words = split_words([entry.name for entry in inside])
    # A class that happens to be called "train" holds images.
    return len(set(assign_splits(words.values()).values())) > 1 or any(
        words[entry.name] and search.folders(entry.path) for entry in inside
    )


def _inner(here: Path, search: Search, known: Collection[str]) -> Folder | None:
    """The one folder in which the data lie; None where they lie here."""
    folders = search.folders(here)
    if len(folders) == 1:
        return folders[0] if _is_wrapped(here, folders, search, known) else None
    deeper = [folder for folder in folders if _has_splits(folder.path, search) and search.has_images(folder.path)]
    if len(deeper) != 1:
        return None
    (inner,) = deeper
    others = [folder for folder in folders if folder is not inner and search.has_images(folder.path)]
    if others:
        fix = f"give {show(inner.path)}, or move {_name(inner)} away if the other folders are classes"
        raise DataError(
            f"{_name(inner)} holds splits, and {some(map(_name, others))} beside it images", show(here), fix
        )
    return inner


def _is_wrapped(folder: str | Path, inside: Sequence[Folder], search: Search, known: Collection[str]) -> bool:
    """Whether a folder holds nothing but one folder of folders, which is no class that is known."""
    return (
        len(inside) == 1
        and inside[0].name not in known
        and bool(search.folders(inside[0].path))
        and not search.loose(folder)
    )


def _of_splits(
    here: Path, folders: Sequence[Folder], search: Search, known: Collection[str], notes: list[str]
) -> list[Part]:
    """The class folders of split folders; empty where there are none of these."""
    if not _has_splits(here, search):
        return []
    search.files(here)  # for its account of links
    layout, others = _assign(here, folders, notes)
    classes = _unwrap(layout, search, known, notes)
    if not any(classes.values()):
        raise _no_classes(here, list(layout.values()), search)
    names = {entry.name for inside in classes.values() for entry in inside}
    _refuse_boxes(here, layout, names)
    _note_others(here, layout, others, names, search, notes)
    parts = []
    for split, folder in layout.items():
        inside = classes[split]
        if not inside and split == "train":
            fix = "make one folder per class and put the images in"
            raise DataError("no class folders in it", show(folder.path), fix)
        learned = {_plain(entry) for entry in classes.get("train", ())}
        if learned and len(inside) == 1 and _plain(inside[0]) not in learned and not search.folders(inside[0].path):
            folder, inside = inside[0], []  # such as test/images
        loose = len(search.loose(folder.path))
        if not inside:
            notes.append(_unlabelled(split, folder, loose))
        elif loose:
            notes.append(f"left out: {_images(loose)} beside the class folders in {_name(folder)}")
        parts += [Part(split, class_name(entry), entry.path) for entry in inside]
    return parts


def _unwrap(
    layout: dict[str, Folder], search: Search, known: Collection[str], notes: list[str]
) -> dict[str, list[Folder]]:
    """{split: its class folders}, which may lie in a folder of their own: train/train/cat."""
    classes = {split: search.folders(folder.path) for split, folder in layout.items()}
    known = {*known, *(entry.name for inside in classes.values() if len(inside) > 1 for entry in inside)}
    for split, folder in layout.items():
        outer = folder.path
        for _ in range(_DEEPEST):
            if not _is_wrapped(outer, classes[split], search, known):
                break
            outer = classes[split][0].path
            classes[split] = search.folders(outer)
        if outer != folder.path:
            notes.append(f"the {split} split is taken from {show(Path(outer).relative_to(Path(folder.path).parent))}/")
    return classes


def _unlabelled(split: str, folder: Folder, images: int) -> str:
    """A note on a split without class folders."""
    if not images:
        return f"{_name(folder)} is not used as {split} split: it holds no images"
    return (
        f"{_name(folder)} is not used as {split} split: {_images(images)} without class folders have no labels; "
        f"`selkern predict RUN {show(folder.path)}` names their classes"
    )


def _assign(here: Path, folders: Sequence[Folder], notes: list[str]) -> tuple[dict[str, Folder], list[Folder]]:
    """{split: its folder}, and the folders that are none."""
    words = split_words([folder.name for folder in folders])
    meant = assign_splits(words.values())
    layout: dict[str, Folder] = {}
    for folder in sorted(folders, key=lambda folder: words[folder.name] in VAGUE):  # the clear words first
        word = words[folder.name]
        split = meant.get(word, "")
        if not word or (word in VAGUE and split in layout):
            continue
        if split in layout:
            what = f"two {split} folders: {_name(layout[split])} and {_name(folder)}"
            raise DataError(what, show(here), "keep one of them")
        layout[split] = folder
        if word in VAGUE:
            notes.append(f"{_name(folder)} is taken for the {split} split")
    return layout, [folder for folder in folders if folder not in layout.values()]


def _note_others(
    here: Path, layout: dict[str, Folder], others: Sequence[Folder], names: set[str], search: Search, notes: list[str]
) -> None:
    """Tell of folders beside the splits. Raises DataError where the one split could be a class among others."""
    holding = [folder for folder in others if search.has_images(folder.path)]
    apart = [folder for folder in holding if not names & {inner.name for inner in search.folders(folder.path)}]
    if len(layout) == 1 and len(apart) > 1:
        (split,) = layout.values()
        what = f"{_name(split)} could be a split, or a class like {some(map(_name, apart))}"
        raise DataError(what, show(here), "rename it if it is a class, else move the other folders away")
    for folder in others:
        if folder not in holding:
            notes.append(f"ignored: {_name(folder)} (not a split)")
        elif folder in apart:
            notes.append(f"ignored: {_name(folder)}, which holds images (not a split)")
        else:
            notes.append(f"ignored: {_name(folder)}, which holds class folders (to use it, call it val or test)")


def _of_splits_in_classes(folders: Sequence[Folder], search: Search, notes: list[str]) -> list[Part]:
    """The split folders in class folders (cat/train, cat/test); empty where the layout is not so."""
    if len(folders) < 2:
        return []
    parts = []
    for folder in folders:
        inside = search.folders(folder.path)
        words = split_words([inner.name for inner in inside])
        meant = assign_splits(words.values())
        if len(inside) < 2 or not all(words.values()) or len(set(meant.values())) < len(inside):
            return []
        if any(search.folders(inner.path) for inner in inside) or search.loose(folder.path):
            return []
        parts += [Part(meant[words[inner.name]], class_name(folder), inner.path) for inner in inside]
    notes.append(f"the splits are taken from the folders in the class folders (such as {_short(parts[0])}/)")
    return parts


def _of_classes(here: Path, folders: Sequence[Folder], search: Search, notes: list[str]) -> list[Part]:
    """One folder for each class."""
    inside = _same_inside(folders, search)
    if inside and len(folders) <= _MOST_SPLITS:
        what = f"{some(map(_name, folders))} hold folders of the same names ({some(inside)}): splits or classes?"
        fix = (
            "if splits, call them train, val and test; if versions, give one of them; if classes, move their images up"
        )
        raise DataError(what, show(here), fix)
    if inside:
        notes.append(f"every class folder holds the same folders ({some(inside)})")
    words = split_words([folder.name for folder in folders])
    notes += [f"{_name(folder)} is taken for a class: it holds no folders" for folder in folders if words[folder.name]]
    loose = len(search.loose(here))
    if loose:
        notes.append(f"left out: {_images(loose)} beside the class folders")
    return [Part("", class_name(folder), folder.path) for folder in folders]


def _same_inside(folders: Sequence[Folder], search: Search) -> list[str]:
    """The names of the folders that each of these folders holds; empty where they differ, or are fewer than two."""
    first: list[str] = []
    for folder in folders:
        names = [printable(inner.name) for inner in search.folders(folder.path)]
        first = first or names
        if len(folders) < 2 or len(names) < 2 or names != first or search.loose(folder.path):
            return []
    return first


def _refuse_boxes(here: Path, layout: dict[str, Folder], names: set[str]) -> None:
    """Raise a DataError for pictures with boxes or masks, which lie in split folders too."""
    lower = {name.lower() for name in names}
    if "images" in lower and len(lower) > 1 and lower <= {"images", "masks", *_BOXES}:
        folder = next(iter(layout.values()))
        what = f"{_name(folder)} holds {some(f'{printable(name)}/' for name in sorted(names))}, which are no classes"
        raise DataError(what, show(here), _cut(lower) or "make one folder per class and put the images in")


def one_class(root: Path, search: Search) -> str:
    """What to do about data whose images are all in one class folder."""
    folders = search.folders(root)
    tables = [*_tables(root, search), *(table for folder in folders for table in _tables(folder.path, search))]
    return _give(tables) or _cut({folder.name.lower() for folder in folders}) or "give images of at least 2 classes"


def _no_classes(here: Path, folders: Sequence[Folder], search: Search) -> DataError:
    """Split folders with images and no classes: pictures with boxes, or with a table of labels."""
    names = " and ".join(map(_name, folders))
    tables = [*_tables(here, search), *(table for folder in folders for table in _tables(folder.path, search))]
    beside = {folder.name.lower() for place in (here, here.absolute().parent) for folder in search.folders(place)}
    fix = _give(tables) or _cut(beside) or "make one folder per class in each, and put the images in"
    return DataError(f"no class folders in {names}", show(here), fix)


def _no_folders(here: Path, search: Search) -> DataError:
    """Why a folder without folders is no data set."""
    archives = [printable(entry.name) for entry in search.files(here) if entry.name.lower().endswith(ARCHIVES)]
    loose = len(search.loose(here))
    if archives and not loose:
        return DataError(f"no images in it, but archives: {some(archives)}", show(here), "unpack them")
    what = f"no class folders in it, but {_images(loose)}" if loose else "no class folders in it"
    above = f", or give {show(here.absolute().parent)} if this is one of the class folders" if loose else ""
    fix = _give(_tables(here, search)) or f"make one folder per class and put the images in{above}"
    return DataError(what, show(here), fix)


def _tables(folder: str | Path, search: Search) -> list[str]:
    return [show(entry.path) for entry in search.files(folder) if entry.name.lower().endswith(_TABLES)]


def _give(tables: Sequence[str]) -> str:
    return f"if a table holds the labels, give it: {some(tables)}" if tables else ""


def _cut(names: Collection[str]) -> str:
    """What to do about pictures with boxes, going by the names of folders; empty where none of them holds boxes."""
    form = next((form for name, form in _BOXES.items() if name in names), "")
    return f"if these are pictures with boxes, cut the objects out: selkern data import {form}" if form else ""


def _images(count: int) -> str:
    return f"{count:,} image{'s' if count > 1 else ''}"


def _name(folder: Folder) -> str:
    return f"{printable(folder.name)}/"


def _plain(folder: Folder) -> str:
    return same_text(folder.name).casefold().strip()


def _short(part: Part) -> str:
    return show(Path(*Path(part.folder).parts[-2:]))


def class_name(folder: Folder) -> str:
    """A folder's name as that of its class. Raises DataError where it is no text: two such could not be told apart."""
    try:
        folder.name.encode()
    except UnicodeEncodeError as error:
        raise DataError("the name of the class folder is not UTF-8", show(folder.path), "rename it") from error
    return printable(folder.name)

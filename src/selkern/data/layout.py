"""How people lay out images in folders: which folders are splits, and which are classes."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from selkern.data.decode import show
from selkern.data.listing import Search, some
from selkern.data.split_names import VAGUE, assign_splits, split_word
from selkern.errors import DataError, printable

ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".rar", ".7z")
_TABLES = (".csv", ".tsv", ".parquet")
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
        _of_splits(here, folders, search, notes)
        or _of_splits_in_classes(folders, search, notes)
        or _of_classes(here, folders, search, notes)
    )
    return parts, notes


def _has_splits(folder: Path, search: Search) -> bool:
    """Whether some folders in it are splits: called so, with folders in them, or several of them called so."""
    called = [inner for inner in search.folders(folder) if split_word(inner.name)]
    meant = set(assign_splits([split_word(inner.name) for inner in called]).values())
    # A class that happens to be called "train" holds images.
    return len(meant) > 1 or any(search.folders(inner.path) for inner in called)


def _inner(here: Path, search: Search, known: Collection[str]) -> Folder | None:
    """The one folder in which the data lie; None where they lie here."""
    folders = search.folders(here)
    if len(folders) == 1:
        (only,) = folders
        alone = only.name not in known and search.folders(only.path) and not search.loose(here)
        return only if alone else None
    deeper = [folder for folder in folders if _has_splits(Path(folder.path), search)]
    if len(deeper) != 1:
        return None
    (inner,) = deeper
    others = [folder.name for folder in folders if folder is not inner and search.has_images(folder.path)]
    if others:
        name, beside = printable(inner.name), some(f"{printable(other)}/" for other in others)
        fix = f"give {show(inner.path)}, or move {name}/ away if the other folders are classes"
        raise DataError(f"{name}/ holds splits, and {beside} beside it images", show(here), fix)
    return inner


def _of_splits(here: Path, folders: Sequence[Folder], search: Search, notes: list[str]) -> list[Part]:
    """The class folders of split folders; empty where there are none of these."""
    if not _has_splits(here, search):
        return []
    search.files(here)  # for its account of links
    layout, others = _assign(here, folders, notes)
    classes = {split: search.folders(folder.path) for split, folder in layout.items()}
    if not any(classes.values()):
        raise _no_classes(here, list(layout.values()), search)
    names = {entry.name for inside in classes.values() for entry in inside}
    _refuse_boxes(here, layout, names, search)
    _note_others(here, layout, others, names, search, notes)
    parts = []
    for split, folder in layout.items():
        inside, where = classes[split], printable(folder.name)
        loose = len(search.loose(folder.path))
        if not inside and split == "train":
            raise DataError(
                "no class folders in it", show(folder.path), "make one folder per class and put the images in"
            )
        if not inside:
            files = f"{_images(loose)} without class folders, so without labels" if loose else "no images"
            hint = f"; selkern predict RUN {show(folder.path)} names their classes" if loose else ""
            notes.append(f"{where}/ is not used as {split} split: it holds {files}{hint}")
        elif loose:
            notes.append(f"left out: {_images(loose)} beside the class folders in {where}/")
        parts += [Part(split, class_name(entry), entry.path) for entry in inside]
    return parts


def _assign(here: Path, folders: Sequence[Folder], notes: list[str]) -> tuple[dict[str, Folder], list[Folder]]:
    """{split: its folder}, and the folders that are none."""
    words = {folder.name: split_word(folder.name) for folder in folders}
    meant = assign_splits(words.values())
    layout: dict[str, Folder] = {}
    for folder in sorted(folders, key=lambda folder: words[folder.name] in VAGUE):  # the clear words first
        word = words[folder.name]
        split, name = meant.get(word, ""), printable(folder.name)
        if not word or (word in VAGUE and split in layout):
            continue
        if split in layout:
            raise DataError(
                f"two {split} folders: {printable(layout[split].name)}/ and {name}/", show(here), "keep one"
            )
        layout[split] = folder
        if word in VAGUE:
            notes.append(f"{name}/ is taken for the {split} split")
    return layout, [folder for folder in folders if folder not in layout.values()]


def _note_others(
    here: Path, layout: dict[str, Folder], others: Sequence[Folder], names: set[str], search: Search, notes: list[str]
) -> None:
    """Tell of folders beside the splits. Raises DataError where the one split could be a class among others."""
    holding = [folder for folder in others if search.has_images(folder.path)]
    apart = [folder for folder in holding if not names & {inner.name for inner in search.folders(folder.path)}]
    if len(layout) == 1 and len(apart) > 1:
        (split,) = layout.values()
        what = (
            f"{printable(split.name)}/ could be a split, or a class as {some(f'{printable(f.name)}/' for f in apart)}"
        )
        raise DataError(what, show(here), "rename it, or move the folders that are no splits away")
    for folder in others:
        name = printable(folder.name)
        if folder not in holding:
            notes.append(f"ignored: {name}/ (not a split)")
        elif folder in apart:
            notes.append(f"ignored: {name}/, which holds images (not a split)")
        else:
            notes.append(f"ignored: {name}/, which holds class folders (to use it as a split, call it val or test)")


def _of_splits_in_classes(folders: Sequence[Folder], search: Search, notes: list[str]) -> list[Part]:
    """The split folders in class folders (cat/train, cat/test); empty where the layout is not so."""
    if len(folders) < 2:
        return []
    parts = []
    for folder in folders:
        inside = search.folders(folder.path)
        words = [split_word(inner.name) for inner in inside]
        meant = assign_splits(words)
        if not all(words) or len(words) < 2 or len(set(meant.values())) < len(words):
            return []
        if any(search.folders(inner.path) for inner in inside) or search.loose(folder.path):
            return []
        parts += [Part(meant[word], class_name(folder), inner.path) for word, inner in zip(words, inside, strict=True)]
    notes.append(f"the splits are taken from the folders in the class folders (such as {_short(parts[0])}/)")
    return parts


def _of_classes(here: Path, folders: Sequence[Folder], search: Search, notes: list[str]) -> list[Part]:
    """One folder for each class."""
    inside = _same_inside(folders, search)
    if inside and len(folders) <= _MOST_SPLITS:
        what = f"{some(f'{printable(f.name)}/' for f in folders)} hold folders of the same names ({some(inside)})"
        fix = "give one of them; or call them train, val and test if they are splits; or list the images in a CSV"
        raise DataError(what, show(here), fix)
    if inside:
        notes.append(f"every class folder holds the same folders ({some(inside)})")
    notes += [
        f"{printable(folder.name)}/ is taken for a class, as it holds images and no class folders"
        for folder in folders
        if split_word(folder.name)
    ]
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


def _refuse_boxes(here: Path, layout: dict[str, Folder], names: set[str], search: Search) -> None:
    """Raise a DataError for pictures with boxes, which lie in split folders too."""
    if {name.lower() for name in names} in ({"images", "labels"}, {"images", "annotations"}, {"images"}):
        folder = next(iter(layout.values()))
        deeper = any(search.folders(inner.path) for inner in search.folders(folder.path))
        what = (
            f"{printable(folder.name)}/ holds {some(f'{printable(name)}/' for name in sorted(names))}, no class folders"
        )
        fix = "move the class folders up" if deeper else "one folder per class is needed; boxes must be cut out first"
        raise DataError(what, show(here), fix)


def _no_classes(here: Path, folders: Sequence[Folder], search: Search) -> DataError:
    """Split folders with images and no classes: pictures with boxes, or with a table of labels."""
    names = " and ".join(f"{printable(folder.name)}/" for folder in folders)
    tables = [*_tables(here, search), *(table for folder in folders for table in _tables(Path(folder.path), search))]
    fix = "make one folder per class in each, and put the images in"
    return DataError(f"no class folders in {names}", show(here), _give(tables) or fix)


def _no_folders(here: Path, search: Search) -> DataError:
    """Why a folder without folders is no data set."""
    archives = [printable(entry.name) for entry in search.files(here) if entry.name.lower().endswith(ARCHIVES)]
    loose = len(search.loose(here))
    if archives and not loose:
        return DataError(f"no images in it, but archives: {some(archives)}", show(here), "unpack them")
    what = f"no class folders in it, but {_images(loose)}" if loose else "no class folders in it"
    above = f", or give {show(here.absolute().parent)} if it is one of the class folders" if loose else ""
    fix = _give(_tables(here, search)) or f"make one folder per class and put the images in{above}"
    return DataError(what, show(here), fix)


def one_class(root: Path, search: Search) -> str:
    """What to do about a single class folder: a table beside it may hold the labels; "" where there is none."""
    return _give(_tables(root, search))


def _tables(folder: Path, search: Search) -> list[str]:
    return [show(entry.path) for entry in search.files(folder) if entry.name.lower().endswith(_TABLES)]


def _give(tables: Sequence[str]) -> str:
    return f"if a table holds the labels, give it: {some(tables)}" if tables else ""


def _images(count: int) -> str:
    return f"{count:,} image{'s' if count > 1 else ''}"


def _short(part: Part) -> str:
    return show(Path(*Path(part.folder).parts[-2:]))


def class_name(folder: Folder) -> str:
    """A folder's name as that of its class. Raises DataError where it is no text: two such could not be told apart."""
    try:
        folder.name.encode()
    except UnicodeEncodeError as error:
        raise DataError("the name of the class folder is not UTF-8", show(folder.path), "rename it") from error
    return printable(folder.name)

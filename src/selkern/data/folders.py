"""How people lay out images in folders: which folders are splits, and which are classes."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from selkern.data.advice import Folder, count_images, folder_name, no_classes, no_folders, refuse_parts
from selkern.data.decode import show
from selkern.data.labels import same_text
from selkern.data.listing import (
    VAGUE,
    Search,
    assign_splits,
    some,
    split_word,
    split_words,
)
from selkern.errors import DataError, printable

_MAX_DEPTH = 8  # folders that hold one folder each, as archives are packed
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


def find_parts(root: Path, search: Search, known: Collection[str] = ()) -> tuple[list[Part], list[str]]:
    """The folders that hold the images of each class and split, and notes on what was assumed.

    Args:
        root: train/ [val/] [test/] of class folders, class folders, or a folder that holds one of these.
        search: keeps account of what is left out.
        known: class names that are known already.

    Raises:
        DataError: no class folders, or folders that could be splits as well as classes.
    """
    here = root
    notes: list[str] = []
    for _ in range(_MAX_DEPTH):
        inner = None if _are_known(here, search, known) or _has_splits(here, search) else _inner(here, search, known)
        if inner is None:
            break
        notes += _loose(here, search, f"{folder_name(inner)} in {show(here)}/")
        here = Path(inner.path)
    if here != root:
        notes.append(f"the images are taken from {show(here.relative_to(root))}/")
    folders = search.folders(here)
    if not folders:
        raise no_folders(here, search)
    are_known = _are_known(here, search, known)
    notes += _loose(here, search, f"the {'split' if not are_known and _has_splits(here, search) else 'class'} folders")
    if are_known:
        plain = [Part("", class_name(folder), folder.path) for folder in folders]
        return _of_splits_in_classes(folders, search, notes) or plain, notes
    parts = (
        _of_splits(here, folders, search, known, notes)
        or _of_splits_in_classes(folders, search, notes)
        or _of_classes(here, folders, search, notes)
    )
    if not any(part.split for part in parts):
        notes += _beside(root, search)
    return parts, notes


def _beside(root: Path, search: Search) -> list[str]:
    """A note where only the training part of the data was given."""
    if not split_word(root.name).startswith("train"):
        return []
    try:
        others = search.folders(root.absolute().parent)
    except DataError:
        return []
    words = split_words([folder.name for folder in others])
    meant = assign_splits(words.values())
    named = some(folder_name(folder) for folder in others if meant.get(words[folder.name]) in ("val", "test"))
    return [f"not used: {named} beside {show(root.name)}/ (give {show(root.parent)} to use it)"] if named else []


def _are_known(folder: Path, search: Search, known: Collection[str]) -> bool:
    """Whether the folders in it are classes that are known."""
    return {class_name(inner) for inner in search.folders(folder)} <= set(known) and bool(search.folders(folder))


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
        fix = f"give {show(inner.path)}, or move {folder_name(inner)} away if the other folders are classes"
        raise DataError(
            f"{folder_name(inner)} holds splits, and {some(map(folder_name, others))} beside it images", show(here), fix
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
    places = _unwrap(layout, search, known, notes)
    classes = {split: search.folders(place) for split, place in places.items()}
    if not any(classes.values()):
        raise no_classes(here, list(layout.values()), search)
    names = {entry.name for inside in classes.values() for entry in inside}
    refuse_parts(Path(next(iter(layout.values())).path), names, search, here)
    _note_others(here, layout, others, names, search, notes)
    parts = []
    learned = {_plain(entry) for entry in classes.get("train", ())}
    for split, folder in layout.items():
        where, inside = places[split], classes[split]
        if not inside and split == "train":
            fix = "make one folder per class and put the images in"
            raise DataError("no class folders in it", show(folder.path), fix)
        if learned and len(inside) == 1 and _plain(inside[0]) not in learned and not search.folders(inside[0].path):
            where, inside = Path(inside[0].path), []  # such as test/images
        if learned and inside and not any(_plain(entry) in learned for entry in inside):
            what = f"train and {split} have no class in common ({some(map(folder_name, inside))} in {split})"
            raise DataError(what, show(folder.path), "call the folders of a class alike in every split")
        loose = len(search.loose(where))
        if not inside:
            notes.append(_unlabelled(split, where, loose, is_inner=where != places[split]))
        elif loose:
            notes.append(
                f"left out: {count_images(loose)} beside the class folders in {show(where.relative_to(here))}/"
            )
        parts += [Part(split, class_name(entry), entry.path) for entry in inside]
    return parts


def _unwrap(layout: dict[str, Folder], search: Search, known: Collection[str], notes: list[str]) -> dict[str, Path]:
    """{split: where its class folders are}, which may be a folder of their own: train/train/cat."""
    inside = [search.folders(folder.path) for folder in layout.values()]
    known = {*known, *(entry.name for entries in inside if len(entries) > 1 for entry in entries)}
    places = {split: _innermost(folder, search, known) for split, folder in layout.items()}
    for split, place in places.items():
        outer = Path(layout[split].path)
        if place != outer:
            notes.append(f"the {split} split is taken from {show(place.relative_to(outer.parent))}/")
    return places


def _innermost(folder: Folder, search: Search, known: Collection[str] = ()) -> Path:
    """A folder, or the one in it that all its images are in: train/train."""
    place = Path(folder.path)
    for _ in range(_MAX_DEPTH):
        inside = search.folders(place)
        if not _is_wrapped(place, inside, search, known):
            break
        place = Path(inside[0].path)
    return place


def _unlabelled(split: str, folder: Path, images: int, is_inner: bool) -> str:
    """A note on a split without class folders; `is_inner`: its folder is the one in the split's."""
    if not images:
        return f"no {split} split in {show(folder)}: it holds no images"
    why = "which is no class of train" if is_inner else "without class folders"
    names = f"`selkern predict RUN {shlex.quote(show(folder))}` names their classes"
    return f"no {split} split: {count_images(images)} in {show(folder)}, {why}, have no labels; {names}"


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
            what = f"two {split} folders: {folder_name(layout[split])} and {folder_name(folder)}"
            raise DataError(what, show(here), "keep one of them, or rename them if they are classes")
        layout[split] = folder
        if word in VAGUE:
            notes.append(f"{folder_name(folder)} is taken for the {split} split")
    return layout, [folder for folder in folders if folder not in layout.values()]


def _note_others(
    here: Path, layout: dict[str, Folder], others: Sequence[Folder], names: set[str], search: Search, notes: list[str]
) -> None:
    """Add notes on folders beside the splits. Raises DataError where the one split could be a class among others."""
    holding = [folder for folder in others if search.has_images(folder.path)]
    apart = [folder for folder in holding if not names & {inner.name for inner in search.folders(folder.path)}]
    if len(layout) == 1 and len(apart) > 1:
        (split,) = layout.values()
        what = f"{folder_name(split)} could be a split, or a class like {some(map(folder_name, apart))}"
        raise DataError(what, show(here), "rename it if it is a class, else move the other folders away")
    for folder in others:
        if folder not in holding:
            notes.append(f"ignored: {folder_name(folder)} (not a split)")
        elif folder in apart:
            notes.append(f"ignored: {folder_name(folder)}, which holds images (not a split)")
        else:
            notes.append(f"ignored: {folder_name(folder)}, which holds class folders (to use it, call it val or test)")


def _of_splits_in_classes(folders: Sequence[Folder], search: Search, notes: list[str]) -> list[Part]:
    """The split folders in class folders (cat/train, cat/test); empty where the layout is not so."""
    parts: list[Part] = []
    loose: list[str] = []
    for folder in folders:
        inside = search.folders(folder.path)
        meant = _splits_among([inner.name for inner in inside])
        if not inside or len(set(meant.values())) < len(inside) or any(search.folders(inner.path) for inner in inside):
            return []
        parts += [Part(meant[inner.name], class_name(folder), inner.path) for inner in inside]
        loose += _loose(folder.path, search, f"the split folders in {folder_name(folder)}")
    if len(folders) < 2 or len(parts) == len(folders):  # one folder in each says nothing
        return []
    notes += [f"the splits are taken from the folders in the class folders (such as {_short(parts[0])}/)", *loose]
    return parts


def _splits_among(names: Sequence[str]) -> dict[str, str]:
    """{name of a folder that is called as a split: train, val or test}."""
    words = split_words(names)
    meant = assign_splits(words.values())
    return {name: meant[word] for name, word in words.items() if word}


def _refuse_mixed(here: Path, folders: Sequence[Folder], inside: dict[str, list[str]]) -> None:
    """Raise DataError where a class folder holds splits, which would be mixed into one."""
    for folder in folders:
        splits = _splits_among(inside[folder.name])
        if "train" in splits.values() and len(set(splits.values())) > 1:
            what = f"{folder_name(folder)} holds {some(f'{printable(name)}/' for name in splits)}"
            fix = "give every class folder split folders and no others; or rename them if they are no splits"
            raise DataError(f"{what}, but not every class folder holds such folders alone", show(here), fix)


def _loose(folder: str | Path, search: Search, beside: str) -> list[str]:
    """A note where images lie in a folder itself, beside others that hold the images."""
    loose = len(search.loose(folder))
    return [f"left out: {count_images(loose)} beside {beside}"] if loose else []


def _of_classes(here: Path, folders: Sequence[Folder], search: Search, notes: list[str]) -> list[Part]:
    """One folder for each class."""
    refuse_parts(here, {folder.name for folder in folders}, search)
    inside = {folder.name: [inner.name for inner in search.folders(folder.path)] for folder in folders}
    copies = [folder for folder in folders if _is_copy(folder, inside)]
    notes += [f"ignored: {folder_name(copy)}, which holds folders of the same names as beside it" for copy in copies]
    folders = [folder for folder in folders if folder not in copies]
    same = _same_inside(folders, search)
    if same and len(folders) <= _MOST_SPLITS:
        what = f"{some(map(folder_name, folders))} hold folders of the same names ({some(same)}): splits or classes?"
        fix = "give one of them; or call them train, val and test; or move the images up, into the class folders"
        raise DataError(what, show(here), fix)
    _refuse_mixed(here, folders, inside)
    words = split_words([folder.name for folder in folders])
    notes += [f"{folder_name(folder)} is taken for a class" for folder in folders if words[folder.name]]
    deep = [folder for folder in folders if len(inside[folder.name]) > 1]
    if deep:
        held = some(f"{folder_name(folder)}: {some(map(printable, inside[folder.name]))}" for folder in deep[:1])
        notes.append(f"folders in class folders make no difference ({held})")
    return [Part("", class_name(folder), folder.path) for folder in folders]


def _is_copy(folder: Folder, inside: dict[str, list[str]]) -> bool:
    """Whether a folder holds again what lies beside it, as some archives do."""
    others = inside.keys() - {folder.name}
    return len(others & set(inside[folder.name])) > 1 and set(inside[folder.name]) <= inside.keys()


def _same_inside(folders: Sequence[Folder], search: Search) -> list[str]:
    """The names of the folders that each of these folders holds; empty where they differ, or are fewer than two."""
    first: list[str] = []
    for folder in folders:
        place = _innermost(folder, search)
        names = [printable(inner.name) for inner in search.folders(place)]
        first = first or names
        if len(folders) < 2 or len(names) < 2 or names != first or search.loose(place):
            return []
    return first


def _plain(folder: Folder) -> str:
    return same_text(folder.name).casefold().strip()


def _short(part: Part) -> str:
    return show(Path(*Path(part.folder).parts[-2:]))


def class_name(folder: Folder) -> str:
    """A folder's name as that of its class. Raises DataError where it is no text: two such could look alike."""
    try:
        folder.name.encode()
    except UnicodeEncodeError as error:
        raise DataError("the name of the class folder is not UTF-8", show(folder.path), "rename it") from error
    return printable(folder.name)

"""Folders and files that are no data set as they are: what they may be, and what to do."""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from selkern.data.decode import IMAGE_SUFFIXES, show
from selkern.data.listing import ARROW, Search, some
from selkern.errors import DataError, printable

ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".rar", ".7z")
PACKED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_PACKED = "unpack it and give the folder; shards with labels are read as .tar, uncompressed (gzip -d)"
_TABLES = (".csv", ".tsv", ".parquet")
_BOXES = ("labels", "annotations")  # folders beside those of images that hold boxes
_PICTURES = frozenset({"images", "image", "imgs", "img", "jpegimages", "pictures"})
_MARKS = frozenset({*_BOXES, "masks", "mask", "segmentation", "segmentations", "trimaps", "groundtruth", "gt"})
_FOLDERS = "make one folder per class and put the images in"
_OFTEN = 5  # images whose names begin alike, from which on this may be their class

Folder = os.DirEntry[str]


def refuse_parts(folder: Path, names: Collection[str], search: Search, root: Path | None = None) -> None:
    """Raise a DataError for pictures with boxes or masks.

    Args:
        folder: where folders lie that could be those of classes.
        names: of these.
        search: looks into them.
        root: of all the pictures, `folder` by default.
    """
    lower = {name.lower() for name in names}
    if len(lower) < 2 or not lower & _PICTURES or not lower <= _PICTURES | _MARKS:
        return
    pictures = next(inner for inner in search.folders(folder) if inner.name.lower() in _PICTURES)
    inside = some(f"{printable(name)}/" for name in sorted(names))
    fix = _by_names(search.loose(pictures.path)) or _cut(root or folder, folder, search) or _FOLDERS
    raise DataError(f"{inside} are no classes", show(folder), fix)


def one_class(here: Path, search: Search) -> str:
    """What to do about data whose images are all in one class folder."""
    folders = [folder for folder in search.folders(here) if search.has_images(folder.path)]
    tables = [*_tables(here, search), *(table for folder in folders for table in _tables(folder.path, search))]
    deeper = [folder for folder in folders if len(search.folders(folder.path)) > 1]
    if deeper:
        return f"if the folders in {folder_name(deeper[0])} are the classes, give {show(deeper[0].path)}"
    by_names = next(filter(None, (_by_names(search.loose(folder.path)) for folder in folders)), "")
    return _give(tables) or by_names or _cut(here, here, search) or "give images of at least 2 classes"


def no_classes(here: Path, folders: Sequence[Folder], search: Search) -> DataError:
    """Split folders with images and no classes: pictures with boxes, or with a table of labels."""
    tables = [*_tables(here, search), *(table for folder in folders for table in _tables(folder.path, search))]
    above = here.absolute().parent
    cut = _cut(here, here, search) or (_cut(above, above, search) if here.name.lower() == "images" else "")
    by_names = next(filter(None, (_by_names(search.loose(folder.path)) for folder in folders)), "")
    arrow = any(file.name.endswith(".arrow") for folder in folders for file in search.files(folder.path))
    fix = (
        _give(tables) or cut or by_names or ARROW * arrow or "make one folder per class in each, and put the images in"
    )
    return DataError(f"no class folders in {' and '.join(map(folder_name, folders))}", show(here), fix)


def no_folders(here: Path, search: Search) -> DataError:
    """Why a folder without folders is no data set."""
    archives = [printable(entry.name) for entry in search.files(here) if entry.name.lower().endswith(ARCHIVES)]
    loose = len(search.loose(here))
    if archives and not loose:
        fix = _PACKED if all(archive.lower().endswith(PACKED_TARS) for archive in archives) else "unpack them"
        return DataError(f"no images in it, but archives: {some(archives)}", show(here), fix)
    what = f"no class folders in it, but {count_images(loose)}" if loose else "no class folders in it"
    above = f", or give {show(here.absolute().parent)} if this is one of the class folders" if loose else ""
    above += (
        f"; `selkern predict RUN {shlex.quote(show(here))}` names classes of images without labels" if loose else ""
    )
    fix = _give(_tables(here, search)) or _by_names(search.loose(here)) or f"{_FOLDERS}{above}"
    return DataError(what, show(here), fix)


def _tables(folder: str | Path, search: Search) -> list[str]:
    """Tables that may hold labels; a competition's sample submission holds invented ones."""
    names = {entry.path: entry.name.lower() for entry in search.files(folder)}
    return [show(path) for path, name in names.items() if name.endswith(_TABLES) and "submission" not in name]


def _give(tables: Sequence[str]) -> str:
    return f"if a table holds the labels, give it: {some(tables)}" if tables else ""


def _cut(root: Path, folder: str | Path, search: Search) -> str:
    """What to do about pictures with boxes; empty where nothing in the folder is called so.

    Args:
        root: of all the pictures.
        folder: in it or the same, with a folder of boxes.
    """
    for inner in search.folders(folder):
        if inner.name.lower() in _BOXES:
            coco = any(file.name.lower().endswith(".json") for file in search.files(inner.path))
            form = "yolo" if inner.name.lower() == "labels" else "coco" if coco else "voc"
            command = f"`selkern data import {form} {shlex.quote(show(root))} --to crops`"
            return f"if these are pictures with boxes, cut the objects out: {command}"
    return ""


def _by_names(files: Sequence[str]) -> str:
    """What to do about images whose names begin with their class (cat.12.jpg); empty where they do not."""
    starts = Counter(re.split(r"[^a-z]", Path(file).name.lower())[0] for file in files)
    common = [start for start, count in starts.most_common() if start and count >= _OFTEN]
    if len(common) < 2 or len(common) * _OFTEN > sum(starts.values()) or "" in starts:
        return ""
    return f"make a folder for each class ({some(common)}, by the files' names) and put its images in"


def count_images(count: int) -> str:
    """3 -> "3 images"."""
    return f"{count:,} image{'s' if count > 1 else ''}"


def folder_name(folder: Folder) -> str:
    """A folder for messages."""
    return f"{printable(folder.name)}/"


_TABLE = "save it as CSV (UTF-8) with the columns path,label"
_ARRAY = "write its images to files, in one folder per class"
_SINGLE = "give a folder of class folders; `selkern predict RUN IMAGE` names the class of an image"
_KINDS = {
    **dict.fromkeys((".xlsx", ".xls", ".xlsm", ".ods"), ("a spreadsheet", _TABLE)),
    **dict.fromkeys(
        (".json",), ("a JSON file", "give a CSV, or .jsonl with one object in each line: file_name, label")
    ),
    **dict.fromkeys((".arrow", ".feather", ".ipc"), ("an Arrow file", "write it as Parquet")),
    **dict.fromkeys((".npz", ".npy"), ("a file of NumPy arrays", _ARRAY)),
    **dict.fromkeys((".h5", ".hdf5", ".mat"), ("a file of arrays (HDF5 or MATLAB)", _ARRAY)),
    **dict.fromkeys((".tfrecord", ".tfrecords"), ("a file of TensorFlow records", _ARRAY)),
    **dict.fromkeys((".lmdb", ".mdb", ".db", ".sqlite"), ("a database", _ARRAY)),
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".pth"), ("a pickle, which can run code and is not opened", _ARRAY)),
    ".safetensors": ("a file of weights", "give images"),
    **dict.fromkeys((".txt", ".lst"), ("a text file", "if it lists images, make it a .csv that begins path,label")),
    **dict.fromkeys((".yaml", ".yml"), ("a YAML file", "give the folder of the images, or their table")),
    ".xml": ("an XML file", "if it holds boxes, cut them out by `selkern data import`"),
    **dict.fromkeys(ARCHIVES, ("an archive, whose images cannot be read in place", "unpack it and give the folder")),
    **dict.fromkeys(IMAGE_SUFFIXES, ("a single image", _SINGLE)),
}


def not_data(path: Path, accepted: str) -> DataError:
    """The error for a file that is no data set."""
    what, fix = _KINDS.get(path.suffix.lower(), ("unknown kind of data", accepted))
    if path.name.lower().endswith(PACKED_TARS):
        what, fix = "an archive: a compressed tar, whose images cannot be read in place", _PACKED
    return DataError(what, show(path), fix)

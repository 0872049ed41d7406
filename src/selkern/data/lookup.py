"""Where the files are that a table names: beside it, or where people's programs wrote the names from."""

from __future__ import annotations

import contextlib
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from selkern.data.decode import show
from selkern.data.listing import Search, is_file
from selkern.data.split_names import split_word
from selkern.errors import DataError

_SAMPLE = 100  # names that are looked for in every place
_PARENTS, _CHILDREN = 3, 50  # folders above the table's, and in it
_SUFFIXES = ("", ".jpg", ".jpeg", ".png", ".JPG", ".tif", ".bmp", ".webp")  # some tables have names without
_URL = re.compile(r"(https?|s3|gs|ftp)://", flags=re.IGNORECASE)
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
Way = Literal["", "exact", "slash", "alike"]


@dataclass(frozen=True, kw_only=True)
class Lookup:
    """How the names of a table lead to files."""

    folder: Path
    """What they are relative to."""
    suffix: str = ""
    """What they lack."""
    drop: int = 0
    """How many parts at their beginning mean nothing here: whole paths of another machine."""
    note: str = ""
    """For the user, where any of these is not as it is with most tables."""

    names: dict[str, dict[str, list[str]]] = field(default_factory=dict, compare=False)
    """{folder: {a file's name without case and in one Unicode form: its names}}, of folders that lacked a file."""

    def __call__(self, name: str) -> tuple[str, Way]:
        """The file that a name stands for, and how it leads there; "" where there is none."""
        file = str(self.folder / (self._rest(name) + self.suffix))
        if is_file(file):
            return file, "exact"
        if "\\" in name:  # a table from Windows
            other = str(self.folder / (self._rest(name).replace("\\", "/") + self.suffix))
            if is_file(other):
                return other, "slash"
        alike = self._alike(file)
        return (alike, "alike") if alike else (file, "")

    def _rest(self, name: str) -> str:
        """A name as the file system has it."""
        name = name.removeprefix("file://")
        if self.drop:
            return "/".join(_parts_of(name)[self.drop :])
        return str(Path(name).expanduser()) if name.startswith("~/") else name

    def _alike(self, file: str) -> str:
        """The one file beside it that a file system of macOS or Windows would have taken; "" without one."""
        folder, name = os.path.split(file)
        if folder not in self.names:
            self.names[folder] = {}
            with contextlib.suppress(OSError, ValueError):
                for there in Path(folder).iterdir():
                    self.names[folder].setdefault(_form(there.name), []).append(there.name)
        alike = self.names[folder].get(_form(name), [])
        path = str(Path(folder) / alike[0]) if len(alike) == 1 else ""
        return path if is_file(path) else ""

    def missing(self, name: str) -> str:
        """What to say of a name whose file is not there."""
        if _URL.match(name):
            return f"a URL, not a file: {name[:200]!r}"
        return f"no such image file: {name[:200]!r}"

    def advice(self, name: str) -> str:
        """What to do where the files are not there: of one of them, where it was looked for and where it is."""
        if _URL.match(name):
            return "download the images, and name the files"
        if os.sep != "\\" and _WINDOWS.match(name):
            return "these are paths of a Windows machine: write them relative to the table's folder"
        if Path(name).is_absolute():
            return "correct the paths, or write them relative to the table's folder"
        looked = show(Path(self(name)[0]).absolute())
        if is_file(name):
            here = f"it is in {show(Path.cwd())}, but paths are relative to the table's folder"
            return f"{looked} was looked for; {here}: move the table, or write whole paths"
        return f"{looked} was looked for: correct the paths, or move the table"


def find_lookup(table: Path, names: Sequence[str]) -> Lookup:
    """How the names in a table are meant: relative to its folder, else to one near it where they are.

    Raises:
        DataError: the names are in several folders alike.
    """
    step = max(1, len(names) // _SAMPLE)
    sample = [name for name in names[::step] if name][:_SAMPLE]
    plain = Lookup(folder=table.parent)
    if not sample or any(plain(name)[1] for name in sample):
        return plain
    best: dict[Path, Lookup] = {}  # by folder, the likelier before
    most = 0
    for lookup in _others(table.parent, sample):
        hits = sum(lookup(name)[1] != "" for name in sample)
        if hits > most:
            best, most = {}, hits
        if hits and hits == most:
            best.setdefault(lookup.folder, lookup)
    if not best:
        return plain
    inside = [folder for folder in best if folder.parent == table.parent]
    if len(inside) == 1 or len(inside) < len(best):
        return next(iter(best.values()))
    words = {split_word(piece) for piece in re.split(r"[\W_]+", table.stem)} - {""}
    own = [folder for folder in inside if split_word(folder.name) in words]  # train.csv lists train/
    if len(own) != 1:
        where = " and ".join(f"{show(folder.name)}/" for folder in inside[:2])
        raise DataError(f"files of such names are in {where}", show(table), "write the folder before the names")
    return best[own[0]]


def _others(folder: Path, names: Sequence[str]) -> Iterator[Lookup]:
    """The other ways to understand names, the likelier before."""
    above = [Path(path) for path in folder.absolute().parents[:_PARENTS]]
    inside = [Path(entry.path) for entry in Search().folders(folder)][:_CHILDREN]
    whole = all(_is_whole(name) for name in names)
    for drop in range(1, len(_parts_of(names[0]))) if whole else ():
        if len({tuple(_parts_of(name)[drop:]) for name in names}) == len(set(names)):
            note = f"paths are taken relative to {show(folder)}, without their beginning {_beginning(names[0], drop)}"
            yield Lookup(folder=folder, drop=drop, note=note)
    bare = not any(re.search(r"\.[A-Za-z]{3,5}$", name) for name in names)
    for suffix in _SUFFIXES if bare else ("",):
        for place in (folder, *above, *inside):
            notes = [f"paths are relative to {show(place)}, where the files are"] if place != folder else []
            notes += [f"{suffix} is added to the names in the table"] if suffix else []
            yield Lookup(folder=place, suffix=suffix, note="; ".join(notes))


def _is_whole(name: str) -> bool:
    return Path(name).is_absolute() or _WINDOWS.match(name) is not None


def _parts_of(name: str) -> list[str]:
    """The folders of a path and its name, whichever system it is of; first what a whole path begins with."""
    return re.split(r"[/\\]+", name)


def _beginning(name: str, parts: int) -> str:
    return repr("/".join(_parts_of(name)[:parts]) or "/")


def _form(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()

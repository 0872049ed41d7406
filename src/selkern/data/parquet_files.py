"""Which Parquet files make a data set, and of which split each is: by their names and folders, as on the Hub."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

from selkern.data.decode import IMAGE_SUFFIXES, show
from selkern.data.listing import Search, assign_splits, is_file, split_word, vague_notes
from selkern.data.parquet_columns import may_hold_images
from selkern.data.split import SPLITS
from selkern.errors import DataError

PARQUET = (".parquet", ".parq", ".pq")
_DEEPEST = 3  # folders below the one that is given
_ENTRIES, _FOLDERS = 1000, 30  # of a folder that are looked at: class folders of many images are none of ours


def find_parquet(root: Path) -> list[Path]:
    """The Parquet files in a folder; where it has none, those in folders below, if these hold no images.

    Tables of something else beside folders do not count.
    """
    search = Search()
    files = [Path(entry.path) for entry in search.files(root) if entry.name.lower().endswith(PARQUET)]
    if files and (not search.folders(root) or any(map(may_hold_images, files[:_FOLDERS]))):
        return files
    below: list[Path] = []
    for path in _walk(root, _DEEPEST):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            return []
        if path.suffix.lower() in PARQUET:
            below.append(path)
    return sorted(below)


def by_split(root: Path, files: list[Path]) -> tuple[dict[str, list[str]], tuple[str, ...]]:
    """({split, "" where none is named: the files}, notes).

    Raises:
        DataError: they are of several data sets.
    """
    _require_one_set(root, files)
    notes = _beside(root, files)
    words = {file: _word_of(file.relative_to(root)) for file in files}
    meant = {"": "", **assign_splits(set(words.values()))}
    groups = {split: [str(file) for file in files if meant[words[file]] == split] for split in (*SPLITS, "")}
    notes += vague_notes(meant)
    groups = {split: group for split, group in groups.items() if group}
    plain = groups.get("", [])
    if len(groups) > 1 and plain:
        del groups[""]
        more = f" and {len(plain) - 1:,} more" if len(plain) > 1 else ""
        return groups, (*notes, f"ignored: {Path(plain[0]).name}{more} (no split in the name)")
    if len(plain) > 1:
        return groups, (*notes, f"{len(plain):,} Parquet files without a split in their names are one set")
    return groups, notes


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    """Some of the files in a folder and below."""
    try:
        with os.scandir(folder) as entries:
            some = [e for e in itertools.islice(entries, _ENTRIES) if not e.name.startswith(".")]
    except OSError:
        return
    folders = sorted(e.path for e in some if e.is_dir(follow_symlinks=False))
    yield from (Path(entry.path) for entry in some if is_file(entry))
    if depth:
        for path in folders[:_FOLDERS]:
            yield from _walk(Path(path), depth - 1)


def _word_of(file: Path) -> str:
    """The word for a split in a file's name ("train-00000-of-00003", "cifar10_test"), else in its folders."""
    for part in (file.stem, *reversed(file.parent.parts)):
        words = {word for piece in re.split(r"[\W_\d]+", part.lower()) if (word := split_word(piece))}
        if len(words) == 1:
            return words.pop()
        if starts := next((split for split in SPLITS if part.lower().startswith(split)), None):
            return starts
    return ""


def _require_one_set(root: Path, files: list[Path]) -> None:
    """Raise DataError where folders hold data sets beside each other, as the Hub's configurations do."""
    sets = {
        "/".join(part for part in file.relative_to(root).parent.parts if part != "data" and not split_word(part))
        for file in files
    }
    if len(sets) > 1:
        names = ", ".join(f"{name or '.'}/" for name in sorted(sets)[:5])
        raise DataError(f"several data sets: {names}", show(root), "give one of these folders")


def _beside(root: Path, files: list[Path]) -> tuple[str, ...]:
    """A note on folders beside Parquet files, which might hold images too."""
    if any(file.parent != root for file in files):
        return ()
    folders = [entry.name for entry in Search().folders(root)]
    more = f" and {len(folders) - 1:,} more folders" if len(folders) > 1 else ""
    return (f"ignored: {show(folders[0])}/{more} beside the Parquet files",) if folders else ()

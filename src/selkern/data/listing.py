"""What lies in a folder: its entries, and the images below it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from selkern.data.decode import IMAGE_SUFFIXES, show
from selkern.errors import DataError

_DEEPEST, _OFTENEST = 100, 100  # folders below each other, and ways that lead into one folder


def find_images(folder: Path) -> list[Path]:
    """Every image file below ``folder`` by suffix, in lexical order.

    Names that start with a dot are skipped; links are followed, but never back into a folder above.
    """
    return [Path(path) for path in _walk(str(folder), (), Counter())]


def is_file(path: str | Path) -> bool:
    """Whether there is such a file; False also for a name that none can have, a link to itself, a pipe, a device."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: str | Path | os.DirEntry[str]) -> bool:
    """Whether there is such a folder; False also for a name that none can have, or a link to itself."""
    try:
        return path.is_dir() if isinstance(path, os.DirEntry) else Path(path).is_dir()
    except (OSError, ValueError):
        return False


def list_folder(folder: str | Path) -> list[os.DirEntry[str]]:
    """The entries of a folder without the dot names, in lexical order; DataError where it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise DataError(
            f"cannot read the folder ({error.strerror})", show(folder), "check the name and rights"
        ) from error


def _walk(folder: str, above: tuple[tuple[int, int], ...], ways: Counter[tuple[int, int]]) -> Iterator[str]:
    """Image files below a folder; `above` are the folders it lies in, `ways` how often each was entered."""
    told = Path(folder).stat()
    here = (told.st_dev, told.st_ino)
    if here in above:  # a link back up: its images are listed already
        return
    ways[here] += 1
    if ways[here] > _OFTENEST:  # links in n folders can lead 2^n ways
        raise DataError(f"links lead into this folder over {_OFTENEST} times", show(folder), "remove the links")
    if len(above) > _DEEPEST:
        raise DataError(f"folders lie more than {_DEEPEST} deep", show(folder)[-200:], "move the images up")
    for entry in list_folder(folder):
        if is_folder(entry):
            yield from _walk(entry.path, (*above, here), ways)
        elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES and is_file(entry.path):
            yield entry.path

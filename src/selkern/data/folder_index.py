"""The images of a large folder as arrays, kept so that the next start looks at its folders' times alone."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from selkern.data.columns import Files, Texts
from selkern.data.folders import Part
from selkern.data.kept import Arrays, cache_folder, find_index, keep_index
from selkern.data.split import LeftOut, Note, kind_of

if TYPE_CHECKING:
    from typing_extensions import Self

_LARGE = 10_000  # images from which on an index is kept: fewer are listed in a tenth of a second
_SETTLED = 3.0  # s that a folder has to be unchanged: within them a further change may leave its time as it is


@dataclass(frozen=True, kw_only=True)
class FolderImages:
    """Every image below a folder, with the class and split that its place says."""

    parts: tuple[Part, ...]
    """The folders of classes and splits."""
    folders: tuple[str, ...]
    """Those that hold images."""
    part_of_folder: NDArray[np.int32]
    """(folders,) the place in ``parts`` of each."""
    within: NDArray[np.int32]
    """(n,) the place in ``folders`` of each image."""
    names: Texts
    """The n files in their folders."""
    notes: tuple[str, ...]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def files(self) -> Files:
        """Their paths."""
        return Files(self.folders, self.within, self.names)

    @cached_property
    def of_part(self) -> NDArray[np.int32]:
        """(n,) the place in ``parts`` of each image."""
        return self.part_of_folder[self.within]

    def noting(self, notes: Sequence[str]) -> Self:
        """With further notes."""
        return replace(self, notes=(*self.notes, *notes))

    def to_arrays(self, times: dict[str, int]) -> Arrays:
        """For an index; `times` are those of all folders that were looked into."""
        rest = {
            "parts": [astuple(part) for part in self.parts],
            "folders": self.folders,
            "notes": [(note, kind_of(note)) for note in self.notes],
            "left_out": [astuple(row) for row in self.left_out],
            "times": times,
        }
        return {
            "rest": np.frombuffer(json.dumps(rest).encode(), dtype=np.uint8),
            "part_of_folder": self.part_of_folder,
            "within": self.within,
            "names": self.names.data,
            "ends": self.names.ends,
        }

    @classmethod
    def of_arrays(cls, arrays: Arrays) -> tuple[Self, dict[str, int]]:
        """The inverse of `to_arrays`."""
        rest = json.loads(arrays["rest"].tobytes())
        images = cls(
            parts=tuple(Part(*part) for part in rest["parts"]),
            folders=tuple(rest["folders"]),
            part_of_folder=arrays["part_of_folder"],
            within=arrays["within"],
            names=Texts(arrays["names"], arrays["ends"]),
            notes=tuple(Note(text, kind) for text, kind in rest["notes"]),
            left_out=tuple(LeftOut(*row) for row in rest["left_out"]),
        )
        return images, rest["times"]


def find_kept(root: Path, classes: Sequence[str] | None) -> FolderImages | None:
    """The images of a folder as they were listed before, if none of the folders has changed since.

    Args:
        root: as it is given now.
        classes: that are known already: an index serves them where it has no others.
    """
    index = find_index(_name_of(root))
    if index is None:
        return None
    images, times = FolderImages.of_arrays(index.arrays)
    if times != _times(times) or not (classes is None or {part.name for part in images.parts} <= set(classes)):
        return None
    return images


def keep(root: Path, images: FolderImages, visited: Sequence[str]) -> FolderImages:
    """Keep the images of a folder, if they are many -> the same, in arrays that all processes share.

    Args:
        root: as it is given.
        images: that lie in it.
        visited: folders that were looked into.
    """
    times = _times(visited)
    # Of a link that leads nowhere, the folder's time does not say when it begins to lead somewhere.
    if len(images.names) < _LARGE or images.left_out or len(times) < len(visited):
        return images
    if max(times.values()) > time.time_ns() - _SETTLED * 1e9:
        return images
    arrays, notes = keep_index(_name_of(root), "", images.to_arrays(times))
    if not notes:
        notes = (f"an index of {len(images.names):,} images is kept in {cache_folder()}: the next start is faster",)
    return FolderImages.of_arrays(arrays)[0].noting(notes)


def _name_of(root: Path) -> str:
    return f"folder\0{root}\0{root.resolve()}"


def _times(folders: Sequence[str] | dict[str, int]) -> dict[str, int]:
    """{folder: when its list of files was changed last, ns}, without those that are gone."""
    times = {}
    for folder in folders:
        with suppress(OSError):
            times[folder] = Path(folder).stat().st_mtime_ns
    return times

"""The pictures of a session: some of the run's, and those that were uploaded, which are kept in memory alone."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from selkern.data.decode import decode
from selkern.data.preprocess import Preprocess
from selkern.data.split import Split
from selkern.errors import DataError
from selkern.explore.view import Picture

MOST_BYTES = 256 << 20  # of decoded pictures that are kept; the newest always is
_OFFERED = 48  # pictures of the run on the page


class Pictures:
    """Pictures by name: r12 is image 12 of the run's split, u and a digest an uploaded one or a file's.

    Attributes:
        offered: numbers of the run's that are on the page.
        files: pictures of the user's that are on the page from the start.

    Args:
        preprocess: of the network.
        split: the run's images; None where there are none.
        classes: of the split's labels.
    """

    def __init__(self, preprocess: Preprocess, split: Split | None, classes: tuple[str, ...]) -> None:
        self.preprocess, self.split, self.classes = preprocess, split, classes
        self.offered = () if split is None else _spread(split)
        self.files: dict[str, Path] = {}
        self._kept: OrderedDict[str, Picture] = OrderedDict()
        self._lock = Lock()

    def add(self, data: bytes, where: str = "the picture") -> str:
        """Decode an uploaded picture, and give its name.

        Raises:
            DataError: it cannot be read, or is too large.
        """
        name = "u" + hashlib.sha256(data).hexdigest()[:16]
        image = decode(data, where, self.preprocess.reading())
        self._keep(name, Picture.of(image, self.preprocess))
        return name

    def add_file(self, path: Path) -> str:
        """A picture file of the user's, read once to see that it can be. Raises DataError where it cannot."""
        self._keep(name := "u" + hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16], self._read(path))
        self.files[name] = path
        return name

    def get(self, name: str) -> Picture:
        """A picture by its name. Raises DataError where there is none, or it cannot be read."""
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
        if name in self.files:
            self._keep(name, picture := self._read(self.files[name]))
            return picture
        index = self.index_of(name)
        if index is None or self.split is None:
            raise DataError(
                "no such picture is kept", name[:40], "add it again: uploads are kept in memory, not for ever"
            )
        picture = Picture.of(self.split.read(index, reading=self.preprocess.reading()), self.preprocess)
        self._keep(name, picture)
        return picture

    def index_of(self, name: str) -> int | None:
        """The number of one of the run's in its split; None for any other name."""
        if self.split is None or not (name[:1] == "r" and name[1:].isdecimal() and len(name) < 12):
            return None
        index = int(name[1:])
        return index if index < len(self.split) else None

    def to_list(self) -> list[dict[str, Any]]:
        """The run's pictures that the page offers: name, class, and the file's name without its folder."""
        if self.split is None:
            return []
        labels, files = self.split.labels, [Path(self.split.where(i)).name for i in self.offered]
        return [
            {"name": f"r{i}", "class": self.classes[labels[i]], "file": file}
            for i, file in zip(self.offered, files, strict=True)
        ]

    def _read(self, path: Path) -> Picture:
        return Picture.of(decode(path, reading=self.preprocess.reading()), self.preprocess)

    def _keep(self, name: str, picture: Picture) -> None:
        with self._lock:
            self._kept[name] = picture
            self._kept.move_to_end(name)
            total = sum(each.nbytes for each in self._kept.values())
            while total > MOST_BYTES and len(self._kept) > 1:
                total -= self._kept.popitem(last=False)[1].nbytes


def _spread(split: Split) -> tuple[int, ...]:
    """Numbers of images, evenly over the classes."""
    order = np.argsort(split.labels, kind="stable")
    places = np.linspace(0, len(order) - 1, min(_OFFERED, len(order))).round().astype(int)
    return tuple(int(order[place]) for place in dict.fromkeys(places.tolist()))

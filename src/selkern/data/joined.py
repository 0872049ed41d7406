"""All images of a source as one split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from selkern.data.decode import Header
from selkern.data.identity import fingerprint
from selkern.data.levels import Reading, Used
from selkern.data.split import WHOLE, Source, Split


class Joined:
    """Some splits one after the other.

    Args:
        name: of the whole.
        parts: the splits, which share no image.
    """

    def __init__(self, name: str, parts: Sequence[Split]) -> None:
        self.name, self.parts = name, tuple(parts)
        self.ends = np.cumsum([len(part) for part in self.parts])
        self.labels: NDArray[np.int64] = np.concatenate([part.labels for part in self.parts])

    def __len__(self) -> int:
        return len(self.labels)

    def find(self, index: int) -> tuple[Split, int]:
        """The part that an image is of, and its number there."""
        at = int(np.searchsorted(self.ends, index, side="right"))
        return self.parts[at], index - int(self.ends[at]) + len(self.parts[at])

    def read(self, index: int, epoch: int = 0) -> Image.Image:
        """As its part reads it."""
        part, at = self.find(index)
        return part.read(at, epoch)

    def read_as(self, index: int, reading: Reading, epoch: int = 0) -> Image.Image:
        """As its part reads it."""
        part, at = self.find(index)
        return part.read_as(at, reading, epoch)

    def used(self, index: int) -> Used | None:
        """As its part has it."""
        part, at = self.find(index)
        return part.used(at)

    def header(self, index: int) -> Header:
        """As its part reads it."""
        part, at = self.find(index)
        return part.header(at)

    def fingerprint(self, index: int) -> str:
        """As its part has it."""
        return fingerprint(*self.find(index))

    def where(self, index: int) -> str:
        """As its part has it."""
        part, at = self.find(index)
        return part.where(at)


def whole(source: Source) -> Split:
    """Every image of a source as one split, called "all"."""
    parts = [part for part in source.parts if len(part)]
    return parts[0] if len(parts) == 1 and parts[0].name == WHOLE else Joined(WHOLE, parts or [source.train])

"""``survey``: what the headers of some images of a split say of all of them, before anything is decided."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from selkern.data.decode import Header
from selkern.data.split import Split
from selkern.errors import DataError

WIDE = 4 / 3 - 0.005  # ratio of the sides from which a centre crop leaves out a quarter and more; 500 x 376 too
LIMIT = 500  # images looked at: a header takes a fraction of a millisecond where the file is near


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The headers of an even sample of a split; images that cannot be read are left out."""

    headers: tuple[Header, ...]
    """In the order of the split."""
    indices: tuple[int, ...] = ()
    """The number of each image in the split."""

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(n, 2) width and height, px."""
        return np.array([(header.width, header.height) for header in self.headers], dtype=np.int64).reshape(-1, 2)

    @property
    def short_side(self) -> float:
        """Median of the shorter side, px; 0 where no image can be read."""
        return float(np.median(self.sizes.min(axis=1))) if self.headers else 0.0

    @property
    def wide(self) -> tuple[float, tuple[int, int]]:
        """The share of images whose sides have a ratio from ``WIDE`` on, and width and height of a middling one."""
        sizes = self.sizes
        ratios = sizes.max(axis=1) / sizes.min(axis=1)
        there = np.flatnonzero(ratios > WIDE)
        if not there.size:
            return 0.0, (0, 0)
        width, height = sizes[there[np.argsort(ratios[there], kind="stable")[there.size // 2]]].tolist()
        return there.size / len(sizes), (width, height)


def survey(split: Split, limit: int = LIMIT) -> Survey:
    """Read the headers of up to ``limit`` images, spread evenly over the split."""
    return survey_of(len(split), split.header, limit)


def survey_of(count: int, header: Callable[[int], Header], limit: int) -> Survey:
    """The same of ``count`` images, given what reads the header of one by its number."""
    seen: dict[int, Header] = {}
    for index in evenly(count, limit):
        with suppress(DataError, MemoryError):  # it is named when its turn to be decoded comes
            seen[index] = header(index)
    return Survey(headers=tuple(seen.values()), indices=tuple(seen))


def evenly(count: int, limit: int) -> list[int]:
    """Up to ``limit`` of the numbers below ``count``, spread evenly."""
    numbers: list[int] = np.unique(np.linspace(0, count - 1, min(limit, count)).astype(int)).tolist()
    return numbers

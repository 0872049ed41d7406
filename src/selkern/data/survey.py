"""``survey``: what the headers of some images of a split say of all of them, before anything is decided."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from selkern.data.decode import Header
from selkern.data.split import Split
from selkern.errors import DataError

LIMIT = 500  # images looked at: a header takes a fraction of a millisecond where the file is near


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The headers of an even sample of a split; images that cannot be read are left out."""

    headers: tuple[Header, ...]
    """In the order of the split."""

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(n, 2) width and height, px."""
        return np.array([(header.width, header.height) for header in self.headers], dtype=np.int64).reshape(-1, 2)

    @property
    def short_side(self) -> float:
        """Median of the shorter side, px; 0 where no image can be read."""
        return float(np.median(self.sizes.min(axis=1))) if self.headers else 0.0


def survey(split: Split, limit: int = LIMIT) -> Survey:
    """Read the headers of up to ``limit`` images, spread evenly over the split."""
    return Survey(headers=tuple(_headers(split, limit)))


def _headers(split: Split, limit: int) -> Iterator[Header]:
    for index in np.unique(np.linspace(0, len(split) - 1, min(limit, len(split))).astype(int)).tolist():
        try:
            yield split.header(index)
        except DataError:  # it is named when its turn to be decoded comes
            continue

"""``survey``: what the headers of some images of a split say of all of them, before anything is decided."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from selkern.data.decode import Header
from selkern.data.levels import Levels, Span, whole_bits
from selkern.data.split import Split
from selkern.errors import DataError

_MEASURED = 100  # deep images whose pixels are decoded for the range in use
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
    seen = list(_headers(split, limit))
    return Survey(headers=tuple(header for _, header in seen), indices=tuple(index for index, _ in seen))


def settle_levels(split: Split, asked: Levels | Literal["auto"], limit: int = LIMIT) -> tuple[Levels, tuple[str, ...]]:
    """The levels for the images of a split, and what the user should know of that and of further pages.

    Args:
        asked: auto takes the range that up to 100 deep images use, widened to whole bits.

    Raises:
        DataError: deep images of several kinds, which no one range can fit.
    """
    seen = survey(split, limit)
    notes = page_notes(seen.headers)
    deep = {index: header.deep for index, header in zip(seen.indices, seen.headers, strict=True) if header.deep}
    if not deep:
        return "full" if asked == "auto" else asked, notes
    share = f"{_share(len(deep), len(seen.headers))} {'/'.join(sorted(set(deep.values())))}"
    if asked != "auto":
        return asked, notes
    spans = _spans(split, list(deep))
    if not spans:
        return "full", (*notes, f"{share}: their range in use cannot be measured; white is that of their kind")
    floats = {"float" in kind for kind in deep.values()}
    if len(floats) > 1:
        fix = "save them as one kind, or give --white-level percentile"
        raise DataError("integer and float pixels in one data set", split.where(next(iter(deep))), fix)
    low, high = min(span[0] for span in spans), max(span[1] for span in spans)
    black, white = whole_bits(low, high)
    used = f"{_number(low)} to {_number(high)}"
    if (black, white) == (0, 65535) and set(deep.values()) == {"16-bit"}:
        return "full", notes
    choice = (
        "--white-level full for 65,535" if set(deep.values()) == {"16-bit"} else "--white-level BLACK:WHITE for others"
    )
    ends = f"white is {_number(white)}" if not black else f"black is {_number(black)}, white {_number(white)}"
    return (black, white), (*notes, f"{share} and use {used}: {ends}; {choice}")


def header_notes(headers: Sequence[Header], levels: Levels) -> tuple[str, ...]:
    """What the user should know of images that a network is shown which was trained with these levels."""
    deep = [header.deep for header in headers if header.deep]
    notes = page_notes(headers)
    if deep and levels == "full":
        share = f"{_share(len(deep), len(headers))} {'/'.join(sorted(set(deep)))}"
        notes += (
            f"{share}: white is 65,535, since the network learned no range; where they use less, save them as 8 bits",
        )
    return notes


def page_notes(headers: Sequence[Header]) -> tuple[str, ...]:
    """A remark on images of which only the first page or frame is read, if there are any."""
    more = sum(header.pages for header in headers)
    return (f"{_share(more, len(headers))} of several pages or frames: the first is read",) if more else ()


def _share(count: int, looked_at: int) -> str:
    """ "3 of 500 images looked at are"."""
    of = "all" if count == looked_at else f"{count:,} of {looked_at:,}"
    return f"{of} images looked at are"


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:.4g}"


def _spans(split: Split, indices: Sequence[int]) -> list[Span]:
    """The ranges of some images, spread evenly, that can be read."""
    found = []
    for position in spread(len(indices), _MEASURED):
        try:
            span = split.span(indices[position])
        except (DataError, MemoryError):  # as below
            continue
        if span is not None:
            found.append(span)
    return found


def spread(count: int, limit: int) -> list[int]:
    """Up to ``limit`` of the numbers below ``count``, spread evenly."""
    numbers: list[int] = np.unique(np.linspace(0, count - 1, min(limit, count)).astype(int)).tolist()
    return numbers


def _headers(split: Split, limit: int) -> Iterator[tuple[int, Header]]:
    for index in spread(len(split), limit):
        try:
            yield index, split.header(index)
        except (DataError, MemoryError):  # it is named when its turn to be decoded comes
            continue

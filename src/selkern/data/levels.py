"""Levels: which values of deep pixels are shown as black and as white.

Eight bits say it themselves, 0 and 255. Deep pixels (16-bit and 32-bit integers, floats) often use a part of the range:
a 12-bit camera in a 16-bit file is black where 65,535 is white, and a float has no white at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from selkern.errors import UsageError

Span: TypeAlias = "tuple[float, float]"  # the values shown as black and as white
# full: the range of the file's kind; percentile: each image by its own values.
Levels: TypeAlias = "Literal['full', 'percentile'] | Span"

SIXTEEN: Span = (0.0, 65535.0)  # of 16 bits that all are used
_TAILS = (0.1, 99.9)  # % of an image's values below and above which single pixels decide nothing
_MEASURED = 1 << 20  # values of an image that its bulk is measured on, about
_NARROW = 8  # a range in use that is so much narrower than that from 0 to white has a black of its own
_BLOCK = 1 << 22  # values worked on at once, so that float64 takes little memory
_FLAG = "--white-level"
_FIX = "give auto, full, percentile, the value that is white, or BLACK:WHITE"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How an image is decoded."""

    levels: Levels = "full"
    """How deep pixels become 8 bits."""
    least: int | Callable[[int, int], int] = 0
    """The shorter side that suffices, px: a larger JPEG may come smaller, but not below it. 0 takes all pixels. Or what
    gives it from the width and height of the whole, upright image, px."""
    rows: Callable[[int, int], int] | None = None
    """What gives the rows from the top that suffice, from the same. A plain JPEG may then come as a
    ``data.jpeg.PlainJpeg``, without those below."""


@dataclass(frozen=True, kw_only=True)
class Used:
    """The values of one image of deep pixels."""

    ends: Span
    """Smallest and largest."""
    bulk: Span
    """The same without the 0.1 % at either end, such as a camera's hot pixels."""
    middle: float
    """The median."""

    def is_lost(self, levels: Span) -> bool:
        """Whether half of the pixels lie beyond black or beyond white."""
        return not levels[0] <= self.middle <= levels[1]


PLAIN = Reading()
# In the info of an image
SHRUNK = "selkern_shrunk"  # that is decoded smaller: (whole width, whole height, divisor)
LOST = "selkern_lost"  # half of whose pixels lie beyond black or beyond white: True


def parse_levels(text: str) -> Levels | Literal["auto"]:
    """``auto | full | percentile | WHITE | BLACK:WHITE`` -> levels. Raises UsageError for anything else."""
    if text in ("auto", "full", "percentile"):
        return text  # type: ignore[return-value]  # one of the three
    low, colon, high = text.partition(":")
    try:
        return check_levels((float(low), float(high)) if colon else (0.0, float(low)))
    except ValueError as error:  # UsageError is one
        raise UsageError(f"white level {text[:40]!r}", _FLAG, _FIX) from error


def show_levels(levels: Levels) -> str:
    """What ``parse_levels`` reads back to an equal value."""
    if isinstance(levels, str):
        return levels
    low, high = (repr(int(value) if value == int(value) else value) for value in levels)
    return high if low == "0" else f"{low}:{high}"


def check_levels(levels: object) -> Levels:
    """Levels as a card holds them. Raises UsageError for anything else."""
    if levels in ("full", "percentile"):
        return levels
    if isinstance(levels, (tuple, list)) and len(levels) == 2:
        low, high = (float(value) for value in levels)
        if math.isfinite(high - low) and low < high:
            return low, high
    raise UsageError(f"levels {levels!r}"[:60], "Preprocess.levels", "give full, percentile, or black and white")


def whole_bits(low: float, high: float) -> Span:
    """A range in use, each end widened to a whole number of bits: 3200 -> 4095, 0.3 -> 0.5, -5 -> -8."""
    black = 0.0 if low >= 0 else -(2.0 ** math.ceil(math.log2(-low)))
    if high <= 0:
        return black, 0.0 if black else 1.0
    if high > 1:
        return black, 2.0 ** math.ceil(math.log2(high + 1)) - 1
    return black, 2.0 ** math.ceil(math.log2(high))


def fit(low: float, high: float) -> Span:
    """Black and white for values from low to high: whole bits from 0, or where that leaves few greys, the range itself.

    320 to 3200 -> 0 and 4095; 30048 to 30828 -> 29824 and 30976, with some room at either end.
    """
    black, white = whole_bits(low, high)
    if low == high or (high - low) * _NARROW >= white - black:
        return black, white
    unit = 2.0 ** (math.floor(math.log2(high - low)) - 2)
    return (math.floor(low / unit) - 1) * unit, (math.ceil(high / unit) + 1) * unit


def used_by(values: NDArray[Any]) -> Used:
    """What the finite ones of (H, W) or (H, W, 3) values are; zeros where none is."""
    step = max(1, math.ceil(math.sqrt(values.size / _MEASURED)))
    some = _finite(values[::step, ::step])
    values = _finite(values)
    if not values.size:
        return Used(ends=(0.0, 0.0), bulk=(0.0, 0.0), middle=0.0)
    ends = float(values.min()), float(values.max())
    some = some if some.size else values
    # Inward to a value that is there: of few pixels even one may be a hot one.
    low = float(np.percentile(some, _TAILS[0], method="higher"))
    high = float(np.percentile(some, _TAILS[1], method="lower"))
    # Small objects on an empty ground are more than single pixels.
    return Used(ends=ends, bulk=(low, high) if low < high else ends, middle=float(np.median(some)))


def are_lost(values: NDArray[Any], levels: Span) -> bool:
    """Whether half of some values or more lie beyond black or beyond white."""
    low, high = levels
    return bool(2 * max(np.count_nonzero(values > high), np.count_nonzero(values < low)) >= values.size > 0)


def _finite(values: NDArray[Any]) -> NDArray[Any]:
    return values[np.isfinite(values)] if values.dtype.kind == "f" else values


def to_bytes(values: NDArray[np.generic], levels: Literal["percentile"] | Span) -> NDArray[np.uint8]:
    """Values of any shape -> 0 to 255 of that shape. What is no number becomes black."""
    low, high = _own_span(values) if isinstance(levels, str) else levels
    if values.dtype == np.uint16:
        table = _scaled(np.arange(1 << 16), low, high)
        return table[values]
    flat, out = values.reshape(-1), np.empty(values.size, dtype=np.uint8)
    for start in range(0, flat.size, _BLOCK):
        out[start : start + _BLOCK] = _scaled(flat[start : start + _BLOCK], low, high)
    return out.reshape(values.shape)


def _scaled(values: NDArray[np.generic], low: float, high: float) -> NDArray[np.uint8]:
    share = (np.nan_to_num(values.astype(np.float64), nan=low) - low) * (255 / (high - low))
    return np.rint(share.clip(0, 255)).astype(np.uint8)


def _own_span(values: NDArray[np.generic]) -> Span:
    finite = _finite(values)
    if not finite.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(finite, _TAILS))
    return (low, high) if high > low else (low, low + 1)

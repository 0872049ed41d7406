"""``survey``: what the headers of some images of a split say of all of them, before anything is decided."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from selkern.data.decode import Header
from selkern.data.levels import SIXTEEN, Levels, Span, Used, fit
from selkern.data.split import Split, prefetch
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
    prefetch(split, evenly(len(split), limit))
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


_MEASURED = 100  # deep images whose pixels are decoded
_ODD = 10  # one in so many images may be odd,
_FAR = 3  # if it is so many ranges of the others away from them
_FEW = 32  # of 256 grey levels: a typical image that is shown in fewer gets a note
_OTHERS = "save them as the others are, leave them out, or give --white-level percentile"


def settle_levels(split: Split, asked: Levels | Literal["auto"], limit: int = LIMIT) -> tuple[Levels, tuple[str, ...]]:
    """The levels for the images of a split, and what the user should know of that and of further pages.

    Args:
        asked: auto takes the range that up to 100 deep images use, widened to whole bits from 0 or, where it is narrow
            and far from 0, by some room.

    Raises:
        DataError: integer and float pixels, which no one range can fit.
    """
    seen = survey(split, limit)
    notes, deep = page_notes(seen.headers), _deep(seen)
    if not deep or asked == "percentile":
        return "full" if asked == "auto" else asked, notes
    share = _share(tuple(deep.values()), len(seen.headers))
    measured = _measure(split.used, list(deep))
    if asked == "auto" and measured and len({"float" in kind for kind in deep.values()}) > 1:
        fix = "save them as one kind, or give --white-level percentile"
        raise DataError("integer and float pixels in one data set", split.where(next(iter(deep))), fix)
    if not measured:
        unknown = f"{share}: their range in use cannot be measured; white is that of their kind"
        return ("full", (*notes, unknown)) if asked == "auto" else (asked, notes)
    low, high = _range(list(measured.values()))
    sixteen = set(deep.values()) == {"16-bit"}
    levels: Levels = fit(low, high) if asked == "auto" else asked
    if levels == SIXTEEN and sixteen:
        levels = "full"
    shown = _span_of(levels, deep.values())
    if shown is None:
        return levels, (*notes, f"{share}: black and white are those that each file declares")
    ends = f"white is {_number(shown[1])}"
    if shown[0]:
        ends = f"black is {_number(shown[0])}, white {_number(shown[1])}"
    others = "--white-level full for 65,535" if sixteen else "--white-level BLACK:WHITE for others"
    choice = f"; {others}" if asked == "auto" and levels != "full" else ""
    line = f"{share} and use {_number(low)} to {_number(high)}: {ends}{choice}"
    return levels, (*notes, line, *_range_notes(measured, shown, split.where, asked))


def split_notes(split: Split, levels: Levels) -> tuple[str, ...]:
    """What the user should know of a split that a network is shown which was trained with these levels."""
    seen = survey(split)
    return images_notes(seen, levels, split.used, split.where)


def images_notes(
    seen: Survey, levels: Levels, used: Callable[[int], Used | None], where: Callable[[int], str]
) -> tuple[str, ...]:
    """The same of any images: their headers, and what measures and names the image of a number."""
    deep, notes = _deep(seen), page_notes(seen.headers)
    if not deep or levels == "percentile":
        return notes
    if levels == "full":
        share = _share(tuple(deep.values()), len(seen.headers))
        fix = "since the network learned no range; where they use less, save them as 8 bits"
        notes += (f"{share}: white is 65,535, {fix}",)
    shown = _span_of(levels, deep.values())
    return notes if shown is None else (*notes, *_range_notes(_measure(used, list(deep)), shown, where, None))


def page_notes(headers: Sequence[Header]) -> tuple[str, ...]:
    """A remark on images of which only the first page or frame is read, if there are any."""
    more = sum(header.pages for header in headers)
    of = "all" if more == len(headers) else f"{more:,} of {len(headers):,}"
    return (f"{of} images looked at are of several pages or frames: the first is read",) if more else ()


def _deep(seen: Survey) -> dict[int, str]:
    """{number of a deep image: its kind}."""
    pairs = zip(seen.indices, seen.headers, strict=True)
    return {index: header.deep for index, header in pairs if header.deep}


def _share(kinds: Sequence[str], looked_at: int) -> str:
    """ "3 of 500 images looked at are 16-bit"."""
    of = "all" if len(kinds) == looked_at else f"{len(kinds):,} of {looked_at:,}"
    return f"{of} images looked at are {'/'.join(sorted(set(kinds)))}"


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:.4g}"


def _span_of(levels: Levels, kinds: Iterable[str]) -> Span | None:
    """Black and white of levels for pixels of some kinds; None where each image has its own."""
    if not isinstance(levels, str):
        return levels
    return SIXTEEN if levels == "full" and set(kinds) == {"16-bit"} else None


def _measure(used: Callable[[int], Used | None], numbers: Sequence[int]) -> dict[int, Used]:
    """The values of some images, spread evenly, that can be read."""
    measured = {}
    for position in evenly(len(numbers), _MEASURED):
        try:
            one = used(numbers[position])
        except (DataError, MemoryError):  # it is named when its turn to be decoded comes
            continue
        if one is not None:
            measured[numbers[position]] = one
    return measured


def _range(measured: Sequence[Used]) -> Span:
    """The values in use, but for those of a few images that lie far from all others."""
    lows, highs = (sorted(one.bulk[end] for one in measured) for end in (0, 1))
    odd = len(measured) // _ODD
    low, high = lows[odd], highs[-1 - odd]
    far = _FAR * (high - low)
    if far > 0:
        lows = [value for value in lows if value >= low - far]
        highs = [value for value in highs if value <= high + far]
    return lows[0], highs[-1]


def _range_notes(
    measured: Mapping[int, Used], shown: Span, where: Callable[[int], str], asked: Levels | Literal["auto"] | None
) -> tuple[str, ...]:
    """What is lost of the images measured where these are black and white."""
    black, white = shown
    notes = []
    lost = [index for index, one in measured.items() if one.is_lost(shown)]
    beyond = [i for i, one in measured.items() if i not in lost and not black <= one.bulk[0] <= one.bulk[1] <= white]
    if lost or beyond:
        counts = f"{len(lost) + len(beyond):,} of {len(measured):,} images measured use values beyond black or white"
        fix = _OTHERS if 2 * len(lost) < len(measured) else "give --white-level percentile, or other values"
        if asked is None:
            fix = f"the network learned {_number(black)} to {_number(white)}; save them in that range"
        nearly = f", {len(lost):,} of them for half of their pixels and more" if lost else ""
        notes.append(f"{counts}{nearly}, such as {where((lost or beyond)[0])}: {fix}")
    single = [one.ends for i, one in measured.items() if i not in lost and i not in beyond]
    single = [(low, high) for low, high in single if low < black or high > white]
    if single:
        low, high = min(low for low, _ in single), max(high for _, high in single)
        ends = [f"down to {_number(low)}"] * (low < black) + [f"up to {_number(high)}"] * (high > white)
        pixels = f"single pixels (at most 0.1 % of an image) of {len(single):,} of {len(measured):,} images measured"
        notes.append(f"{pixels} lie beyond, {' and '.join(ends)}: they become black or white")
    widths = [min(one.bulk[1], white) - max(one.bulk[0], black) for one in measured.values()]
    greys = float(np.median(widths)) / (white - black) * 256 if widths else 256.0
    if greys >= 0 and round(greys) < _FEW:  # below 0 they are lost, which is said
        from_, to = (_number(float(np.median([one.bulk[end] for one in measured.values()]))) for end in (0, 1))
        fix = "save them as 8 bits" if asked is None else "--white-level BLACK:WHITE or percentile shows more"
        notes.append(f"a typical image uses {from_} to {to}, which are {greys:.0f} of 256 grey levels: {fix}")
    return tuple(notes)

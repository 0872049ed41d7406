"""``draw_sheet``: what a network will see of a data set, image by image, after decoding, resizing and colours.

Every cell shows the very pixels of an input, each as a square of whole pixels; of inputs above 448 px a fraction.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from PIL.ImageFont import FreeTypeFont, truetype

from selkern.data.loader import Samples
from selkern.data.preprocess import Preprocess
from selkern.data.split import Source, Split
from selkern.errors import DataError, ResourceError, printable

_LONGEST = 400  # letters of a text that is to be cut


def font(text: str, size: int) -> FreeTypeFont:
    """A font that has all letters of a text; the usual one where there is none."""
    return _font(_path(frozenset(text)), size)


def shown(label: str, number: int) -> str:
    """A class name; its number in front where the machine has no letters for it."""
    label = printable(label)
    lacking = set(map(ord, label)) - _letters(_path(frozenset(label)))
    return f"{number}: {label}" if lacking else label


def shortened(text: str, width: int, size: int) -> str:
    """A text cut to a width, in its middle: names differ at either end."""
    letters = font(text, size)
    if len(text) <= _LONGEST and letters.getlength(text) <= width:
        return text
    options = (_cut(text, keep) for keep in range(min(len(text), _LONGEST), 1, -1))
    return next((option for option in options if letters.getlength(option) <= width), "")


def wrapped(text: str, width: int, size: int) -> list[str]:
    """A text in lines of a width."""
    lines = [""]
    for word in printable(text).split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if font(longer, size).getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(shortened(word, width, size))
    return [line for line in lines if line]


def _cut(text: str, keep: int) -> str:
    tail = keep // 2
    return f"{text[: keep - tail]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - tail :]}"


@cache
def _font(path: str, size: int) -> FreeTypeFont:
    return truetype(path, size)


@cache
def _usual() -> str:
    """Of Latin, Greek, Cyrillic, Hebrew and Arabic letters; it comes with matplotlib."""
    import matplotlib as mpl

    return str(Path(mpl.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))


@cache
def _path(letters: frozenset[str]) -> str:
    """The font for some letters."""
    wanted = set(map(ord, letters))
    if wanted <= _letters(_usual()):
        return _usual()
    return next((path for path in _installed() if wanted <= _letters(path)), _usual())


@cache
def _installed() -> tuple[str, ...]:
    from matplotlib.font_manager import fontManager

    # The font of last resort has a box for every letter there is.
    return tuple(sorted({entry.fname for entry in fontManager.ttflist if "LastResort" not in entry.fname}))


@cache
def _letters(path: str) -> frozenset[int]:
    """The letters that a font has; none where it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        truetype(path, 10)
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


LIMIT = 48  # images
_LEAST, _MOST = 112, 448  # px of a cell: smaller inputs are enlarged by a whole number, larger ones reduced
_WIDTH = 1920  # px of a sheet, about
_NARROWEST = 720  # px that the heading has
_COLUMNS, _ROWS = 8, 8
_GAP, _PAGE = 12, 16  # px between cells, and around them
_TEXT, _HEADING = 12, 15  # px
_LINE = 1.35  # heights of a letter from line to line
_INK, _MUTED, _PAPER, _FAULT, _FAULT_PAPER = "#1c2733", "#66717c", "#ffffff", "#b3261e", "#fbe9e7"


@dataclass(frozen=True, kw_only=True)
class _Cell:
    """One image of the sheet."""

    label: str
    number: int
    """Of the class."""
    place: str
    pixels: NDArray[np.uint8] | None
    """(3, size, size); None where the image cannot be read."""
    reason: str = ""


def draw_sheet(source: Source, preprocess: Preprocess, heading: Sequence[str], limit: int = LIMIT) -> bytes:
    """A PNG of up to ``limit`` images as the network is shown them in evaluation, each with class, split and file.

    Args:
        source: whose images; as many of each class and split as there is room for, spread evenly.
        preprocess: how an image becomes the input.
        heading: lines above the images.
        limit: of images.
    """
    factor = max(1, math.ceil(_LEAST / preprocess.size))
    side = min(preprocess.size, _MOST) * factor
    columns = min(_COLUMNS, (_WIDTH + _GAP) // (side + _GAP))
    cells = [_cell(source, split, index, preprocess) for split, index in pick(source, min(limit, columns * _ROWS))]
    width = max(min(columns, len(cells)) * (side + _GAP) - _GAP, _NARROWEST)
    scale = f"each pixel is drawn as {factor} x {factor}"
    if preprocess.size > _MOST:
        scale = f"reduced here from {preprocess.size} to {_MOST} px"
    texts = (*heading, *([] if side == preprocess.size else [scale]))
    lines = [line for text in texts for line in wrapped(text, width, _HEADING)]
    top = _PAGE + round(len(lines) * _HEADING * _LINE) + _GAP
    step = side + round(2 * _TEXT * _LINE) + _GAP + 4
    height = top + -(-len(cells) // columns) * step + _PAGE
    sheet = Image.new("RGB", (width + 2 * _PAGE, height), _PAPER)
    drawing = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        where = (_PAGE, _PAGE + round(number * _HEADING * _LINE))
        drawing.text(where, line, fill=_INK if not number else _MUTED, font=font(line, _HEADING))
    for number, cell in enumerate(cells):
        row, column = divmod(number, columns)
        _draw(sheet, drawing, cell, (_PAGE + column * (side + _GAP), top + row * step), side)
    data = io.BytesIO()
    sheet.save(data, "PNG", compress_level=2)
    return data.getvalue()


def draw_grid(images: Sequence[NDArray[np.uint8]], captions: Sequence[str]) -> bytes:
    """A PNG of images (3, size, size) of one size, each with its caption below."""
    size = images[0].shape[-1]
    side = min(size, _MOST) * max(1, math.ceil(_LEAST / size))
    columns = min(_COLUMNS, max(1, (_WIDTH + _GAP) // (side + _GAP)), len(images))
    step = side + round(_TEXT * _LINE) + _GAP + 4
    rows = -(-len(images) // columns)
    grid = Image.new("RGB", (columns * (side + _GAP) - _GAP + 2 * _PAGE, rows * step + 2 * _PAGE), _PAPER)
    drawing = ImageDraw.Draw(grid)
    for number, (pixels, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(number, columns)
        at = (_PAGE + column * (side + _GAP), _PAGE + row * step)
        _draw_pixels(grid, drawing, pixels, at, side)
        line = shortened(printable(caption), side, _TEXT)
        drawing.text((at[0], at[1] + side + 4), line, fill=_INK, font=font(line, _TEXT))
    data = io.BytesIO()
    grid.save(data, "PNG", compress_level=2)
    return data.getvalue()


def pick(source: Source, limit: int) -> list[tuple[Split, int]]:
    """Images of every class and split in turn until there are ``limit``, in the order of classes and splits.

    Of more classes than that, an even sample.
    """
    pools: dict[int, list[list[tuple[Split, int]]]] = {}
    for split in source.parts:
        labels = np.asarray(split.labels)
        order = np.argsort(labels, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
            if members.size:
                spread = members[np.linspace(0, members.size - 1, min(limit, members.size)).round().astype(int)]
                pools.setdefault(int(labels[members[0]]), []).append([(split, int(i)) for i in spread])
    classes = sorted(pools)
    if len(classes) > limit:
        classes = [classes[at] for at in np.linspace(0, len(classes) - 1, limit).round().astype(int)]
    shares = [limit // max(len(classes), 1) + (number < limit % max(len(classes), 1)) for number in range(len(classes))]
    return [image for label, share in zip(classes, shares, strict=True) for image in _in_turn(pools[label], share)]


def _in_turn(pools: Sequence[list[tuple[Split, int]]], count: int) -> list[tuple[Split, int]]:
    """So many of the images of some splits: from each as many as from the others, as long as it has them."""
    counts = [0] * len(pools)
    for _ in range(min(count, sum(map(len, pools)))):
        at = min((n for n, pool in enumerate(pools) if counts[n] < len(pool)), key=counts.__getitem__)
        counts[at] += 1
    chosen = []
    for pool, n in zip(pools, counts, strict=True):
        chosen += [pool[at] for at in np.unique(np.linspace(0, len(pool) - 1, n).round().astype(int))] if n else []
    return chosen


def _cell(source: Source, split: Split, index: int, preprocess: Preprocess) -> _Cell:
    sample = Samples(split, preprocess, None, 0)[0, index]
    if isinstance(sample, ResourceError):
        raise sample
    label = int(split.labels[index])
    file = PurePath(split.where(index)).name
    name, place = source.classes[label], f"{split.name}  {file}"
    if isinstance(sample, DataError):
        return _Cell(label=name, number=label, place=place, pixels=None, reason=sample.what)
    return _Cell(label=name, number=label, place=place, pixels=sample.pixels)


def _draw_pixels(
    sheet: Image.Image, drawing: ImageDraw.ImageDraw, pixels: NDArray[np.uint8], at: tuple[int, int], side: int
) -> None:
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
    larger = side >= image.width
    sheet.paste(image.resize((side, side), Image.Resampling.NEAREST if larger else Image.Resampling.BOX), at)
    x, y = at
    drawing.rectangle((x - 1, y - 1, x + side, y + side), outline="#c5ced6")


def _draw(sheet: Image.Image, drawing: ImageDraw.ImageDraw, cell: _Cell, at: tuple[int, int], side: int) -> None:
    x, y = at
    if cell.pixels is not None:
        _draw_pixels(sheet, drawing, cell.pixels, at, side)
    else:
        drawing.rectangle((x, y, x + side - 1, y + side - 1), fill=_FAULT_PAPER, outline=_FAULT)
        room = side - 16
        lines = wrapped(f"cannot be read: {cell.reason}", room, _TEXT)[: int(room / _TEXT / _LINE)]
        for number, line in enumerate(lines):
            where = (x + 8, y + 8 + round(number * _TEXT * _LINE))
            drawing.text(where, line, fill=_FAULT, font=font(line, _TEXT))
    label = shown(cell.label, cell.number)
    for number, (text, colour) in enumerate(((label, _INK), (printable(cell.place), _MUTED))):
        line = shortened(text, side, _TEXT)
        where = (x, y + side + 4 + round(number * _TEXT * _LINE))
        drawing.text(where, line, fill=colour, font=font(line, _TEXT))

"""Texts on pictures: letters of any script that the machine has a font for, cut or wrapped to a width in px."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from PIL.ImageFont import FreeTypeFont, truetype

from selkern.errors import printable

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

"""How a picture is shown to the network: enlarged about a point, turned, blurred, darkened."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from PIL import Image, ImageFilter

from selkern.data.levels import SHRUNK
from selkern.data.preprocess import Preprocess, whole_size
from selkern.errors import UsageError

RANGES = {"size": (0.5, 3.0), "x": (0.0, 1.0), "y": (0.0, 1.0), "turn": (-180.0, 180.0), "blur": (0.0, 0.1)}
RANGES["light"] = (0.0, 1.5)


@dataclass(frozen=True, kw_only=True)
class View:
    """What is done to a picture before the network sees it, in this order.

    Attributes:
        size: enlargement: above 1 as `Preprocess` enlarges a centre, below 1 what lies around it comes in.
        x, y: the point that is enlarged about, as shares of the unenlarged input; without effect at size 1 and below.
        turn: degrees, clockwise.
        blur: standard deviation of a Gaussian, as a share of the input's side.
        light: factor on every grey level.
    """

    size: float = 1.0
    x: float = 0.5
    y: float = 0.5
    turn: float = 0.0
    blur: float = 0.0
    light: float = 1.0

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and math.isfinite(value) and low <= value <= high):
                raise UsageError(
                    f"{name} is {str(value)[:40]}", f"view.{name}", f"give a number from {low:g} to {high:g}"
                )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> View:
        """Of the fields that are given. Raises UsageError for others."""
        names = {field.name for field in fields(cls)}
        if unknown := sorted(set(values) - names):
            raise UsageError(f"unknown {str(unknown[0])[:40]!r}", "view", f"one of {', '.join(sorted(names))}")
        return cls(**values)


@dataclass(frozen=True)
class Picture:
    """A picture that is kept: what the network sees of it, and as much of the whole as an enlargement below 1 shows.

    Attributes:
        cut: the input at size 1, as `Preprocess` makes it.
        whole: all of it, of fewer pixels where it has more than needed.
    """

    cut: Image.Image
    whole: Image.Image

    @classmethod
    def of(cls, image: Image.Image, preprocess: Preprocess) -> Picture:
        """A decoded picture."""
        cut = preprocess.show(image, preprocess.region(*whole_size(image)))
        by = min(image.size) // preprocess.enough
        if by < 2:
            return cls(cut, image)
        smaller = image.reduce(by)
        smaller.info[SHRUNK] = (*whole_size(image), by * image.info.get(SHRUNK, (0, 0, 1))[2])
        return cls(cut, smaller)

    @property
    def nbytes(self) -> int:
        """Bytes of its pixels."""
        return sum(3 * image.width * image.height for image in (self.cut, self.whole))


def show(picture: Picture, view: View, preprocess: Preprocess) -> Image.Image:
    """The RGB image of (size, size) px that the network is given."""
    side = preprocess.size
    image = picture.cut
    if view.size > 1:
        wide = side / view.size
        left, top = (min(max((side - wide) / 2 + (at - 0.5) * side, 0), side - wide) for at in (view.x, view.y))
        image = image.resize((side, side), Image.Resampling.BICUBIC, box=(left, top, left + wide, top + wide))
    elif view.size < 1:
        left, top, right, bottom = preprocess.region(*whole_size(picture.whole))
        x, y = (left + right) / 2, (top + bottom) / 2
        wide, high = (right - left) / 2 / view.size, (bottom - top) / 2 / view.size
        image = preprocess.show(picture.whole, (x - wide, y - high, x + wide, y + high))
    if view.turn:
        image = image.rotate(-view.turn, Image.Resampling.BICUBIC, fillcolor=preprocess.mean_colour)
    if view.blur:
        image = image.filter(ImageFilter.GaussianBlur(view.blur * side))
    if view.light != 1:
        image = image.point([min(255, round(level * view.light)) for level in range(256)] * 3)
    return image

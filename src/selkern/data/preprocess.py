"""Image -> the array a network sees when it is evaluated: resize, centre crop, normalise.

The three ways to make a square of an image that is none, with a picture of 400 x 200 px and an input of 100 px:

- crop: the short side becomes 100 px, the centre is cut out: the outer 100 px at either end are not shown
- squash: all of it, 400 px and 200 px both becoming 100: its proportions are not kept
- pad: all of it, the long side becoming 100 px, with 25 px of the mean colour above and below

A `crop` below 1 shows so much less of each side in every mode: with 0.875, the centre of what 114 px would show. These
are timm's crop modes center, squash and border.

Shapes: N batch, H and W both ``size`` in px.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from selkern.data.levels import SHRUNK, Levels, Reading, check_levels
from selkern.errors import UsageError

if TYPE_CHECKING:
    import torch  # only here, so that recipes and their help come without it
    from PIL import Image  # which the core is installed without, and cards of weights are made without

Resize = Literal["crop", "squash", "pad"]
Box = tuple[float, float, float, float]
_LATER = ("resize", "levels")  # fields that versions before do not know: written where they are not the default
# A JPEG may be decoded at a smaller scale with so many px for each px that it is resized to, and no fewer than these on
# its shorter side: photographs then come within 3 grey levels of those decoded whole (docs/log.md).
_ENOUGH, _FEWEST = 4, 512
_ENOUGH_TO_LEARN = 2  # the same for training, of which 1 in 100 values is 4 grey levels away (docs/log.md)


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """What evaluation does to an image. It is stored in every checkpoint beside the weights."""

    size: int
    """Height and width of the network's input, px."""
    crop: float = 1.0
    """Share of each side of the resized image that the centre crop keeps, in (0, 1]; ImageNet's usual one is 0.875."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Mean of each colour, in 0..1 units."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Standard deviation of each colour, in 0..1 units."""
    resize: Resize = "crop"
    """How an image that is no square becomes one, see above."""
    levels: Levels = "full"
    """How pixels of more than 8 bits become 8 (``data.levels``): full, percentile, or the values of black and white."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UsageError(f"size {self.size} px", "Preprocess.size", "give a whole number from 1")
        if not 0 < self.crop <= 1:
            raise UsageError(f"crop {self.crop}", "Preprocess.crop", "give a share in (0, 1]")
        if len(self.mean) != 3 or not all(0 <= value <= 1 for value in self.mean):
            raise UsageError(f"mean {self.mean}", "Preprocess.mean", "give three numbers in 0..1")
        if len(self.std) != 3 or not all(0 < value <= 1 for value in self.std):
            raise UsageError(f"std {self.std}", "Preprocess.std", "give three numbers in (0, 1]")
        if self.resize not in get_args(Resize):
            raise UsageError(f"resize {self.resize!r}", "Preprocess.resize", "give crop, squash or pad")
        check_levels(self.levels)

    def __call__(self, image: Image.Image, zoom: float = 1.0) -> NDArray[np.uint8]:
        """RGB image -> (3, size, size) uint8.

        Args:
            image: of any size.
            zoom: from 1; above it, the centre 1/zoom of what is shown, enlarged to ``size`` (the paper's sweep).
        """
        from PIL.Image import Resampling

        if not zoom >= 1:
            raise UsageError(f"zoom {zoom}", "zoom", "give a number from 1")
        cut = self.show(image, self.region(*whole_size(image)))
        if zoom > 1:
            edge = (self.size - self.size / zoom) / 2
            box = (edge, edge, self.size - edge, self.size - edge)
            cut = cut.resize((self.size, self.size), Resampling.BICUBIC, box=box)
        return np.ascontiguousarray(np.asarray(cut).transpose(2, 0, 1))

    @property
    def target(self) -> int:
        """What the side that decides is resized to before the crop, px; an image of this side is not resized."""
        return max(self.size, round(self.size / self.crop))

    @property
    def enough(self) -> int:
        """Px of the shorter side from which on more are not seen: an image may be decoded, or kept, as small."""
        return max(_FEWEST, _ENOUGH * self.target)

    def reading(self) -> Reading:
        """How to decode an image for this."""
        return Reading(levels=self.levels, least=self.enough)

    def reading_of(self, region: Callable[[int, int], Box]) -> Reading:
        """How to decode an image to learn from, of which a region, given from the whole's size, will fill the input."""

        def least(width: int, height: int) -> int:
            left, top, right, bottom = region(width, height)
            part = min(right - left, bottom - top) / min(width, height)
            return math.ceil(_ENOUGH_TO_LEARN * self.size / part)

        def rows(width: int, height: int) -> int:
            return int(region(width, height)[3])

        # Only there a region's edges are those of pixels, and none beyond them is looked at.
        return Reading(levels=self.levels, least=least, rows=rows if self.resize == "crop" else None)

    def region(self, width: int, height: int) -> Box:
        """The part of a (width, height) image that fills the input: (left, top, right, bottom), px of that image.

        With ``resize="pad"`` it reaches beyond the image.
        """
        target = self.target
        wide = high = target  # px of the whole image once it is resized
        if self.resize != "squash":
            side = (min if self.resize == "crop" else max)(width, height)
            wide, high = (max(1, round(length * target / side)) for length in (width, height))
        left, top = (int((length - self.size) / 2) for length in (wide, high))  # towards 0, as torchvision's
        x, y = width / wide, height / high
        return left * x, top * y, (left + self.size) * x, (top + self.size) * y

    def to_input(self, box: Box, width: int, height: int) -> Box:
        """A box of a (width, height) image, px of that image, in px of the input (unzoomed).

        What the input does not show lies below 0 or above ``size``.
        """
        left, top, right, bottom = self.region(width, height)
        x, y = self.size / (right - left), self.size / (bottom - top)
        return (box[0] - left) * x, (box[1] - top) * y, (box[2] - left) * x, (box[3] - top) * y

    @property
    def mean_colour(self) -> tuple[int, int, int]:
        """What normalises to 0, in grey levels: an area filled with it says nothing to the network."""
        red, green, blue = (round(255 * value) for value in self.mean)
        return red, green, blue

    def show(self, image: Image.Image, region: Box) -> Image.Image:
        """A region of an image (px of the whole image), resized to the input; the mean colour where it lies beyond."""
        from PIL import Image

        width, height = whole_size(image)
        (left, right), (x0, x1) = _visible(region[0], region[2], width, self.size)
        (top, bottom), (y0, y1) = _visible(region[1], region[3], height, self.size)
        by = image.info[SHRUNK][2] if SHRUNK in image.info else 1
        # Resize just the region: equal to resizing all, and no memory for a long, thin image.
        box = (left / by, top / by, right / by, bottom / by)
        part = image.resize((x1 - x0, y1 - y0), Image.Resampling.BICUBIC, box=box)
        if part.size == (self.size, self.size):
            return part
        canvas = Image.new("RGB", (self.size, self.size), self.mean_colour)
        canvas.paste(part, (x0, y0))
        return canvas

    def normalise(self, batch: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) uint8 -> float32 with ``mean`` 0 and ``std`` 1, on the batch's device."""
        import torch

        mean = torch.tensor(self.mean, device=batch.device).view(3, 1, 1) * 255
        std = torch.tensor(self.std, device=batch.device).view(3, 1, 1) * 255
        return (batch.float() - mean) / std

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, as JSON keeps them."""
        values = asdict(self)
        for name in _LATER:
            if values[name] == getattr(Preprocess, name):
                del values[name]
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """The inverse of ``to_dict``; an unknown or missing key is a UsageError."""
        try:
            mean, std = (tuple(float(value) for value in values[key]) for key in ("mean", "std"))
            given: dict[str, Any] = {"size": int(values["size"]), "crop": float(values["crop"])}
            if "levels" in values:  # JSON has no tuples
                given["levels"] = check_levels(values["levels"])
            return cls(**{**values, **given, "mean": mean, "std": std})
        except (KeyError, TypeError) as error:
            fix = f"give size, crop, mean and std, and no more than {', '.join(_LATER)} beside them"
            raise UsageError(f"preprocessing that cannot be read ({error})", "Preprocess", fix) from error


def whole_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of an image, px; of one that was decoded smaller, those of the whole image."""
    width, height, _ = image.info.get(SHRUNK, (*image.size, 1))
    return width, height


def _visible(low: float, high: float, length: int, size: int) -> tuple[tuple[float, float], tuple[int, int]]:
    """One axis of a region of an image: what of it lies in the image, and the px of the input that show that."""
    inside = max(0.0, low), min(high, length)
    first, last = (round((edge - low) * size / (high - low)) for edge in inside)
    first = min(first, size - 1)
    return inside, (first, max(last, first + 1))

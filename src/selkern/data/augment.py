"""The random changes of training images. Each draws from the sample's own random numbers, in a fixed order.

Shapes: images are (3, S, S) uint8, S = ``preprocess.size`` in px.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from selkern.data.jpeg import PlainJpeg
from selkern.data.levels import SHRUNK, Reading
from selkern.data.preprocess import Box, Preprocess, Resize, whole_size
from selkern.errors import UsageError

Pixels = NDArray[np.uint8]

_ERASE_AREA = (0.02, 0.33)  # share of the image, and height / width, of the random-erasing paper
_ERASE_RATIO = (0.3, 1 / 0.3)
_TRIES = 10  # as torchvision's RandomResizedCrop, before it gives up and takes the centre
_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R 601 luma, as Pillow's "L"


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Which random changes training images get. The default changes nothing."""

    crop: Literal["none", "pad", "resized"] = "none"
    """none: as in evaluation; pad: shift by up to `pad` px; resized: a random part, enlarged."""
    pad: int = 4
    """Largest shift of crop=pad, px of the network's input."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Smallest and largest share of the image's area that crop=resized takes."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width / height of the part that crop=resized takes."""
    flip: float = 0.0
    """Probability of a left-right mirror image."""
    colour: float = 0.0
    """Strength of brightness, contrast and saturation jitter: factors in 1 - colour .. 1 + colour."""
    erase: float = 0.0
    """Probability of a random rectangle in the mean colour."""
    mixup: float = 0.0
    """Alpha of mixup (two images blended); 0 switches it off."""
    cutmix: float = 0.0
    """Alpha of cutmix (a rectangle of another image pasted in); 0 switches it off."""

    def __post_init__(self) -> None:
        if self.crop not in ("none", "pad", "resized"):
            raise UsageError(f"crop {self.crop!r}", "--crop", "choose none, pad or resized")
        if self.pad < 0:
            raise UsageError(f"pad {self.pad} px", "--pad", "give a whole number from 0")
        for field, top in (("crop_scale", 1.0), ("crop_ratio", math.inf)):
            low, high = getattr(self, field)
            self._require(field, 0 < low <= high <= top, f"0 < low <= high <= {top}")
        for field in ("flip", "colour", "erase"):
            self._require(field, 0 <= getattr(self, field) <= 1, "give a number in 0..1")
        for field in ("mixup", "cutmix"):
            self._require(field, 0 <= getattr(self, field) < math.inf, "give an alpha from 0")

    def _require(self, field: str, fine: bool, fix: str) -> None:
        if not fine:
            raise UsageError(f"{field} {getattr(self, field)}", "--" + field.replace("_", "-"), fix)


def reading(spec: Augment, preprocess: Preprocess, rng: np.random.Generator) -> Reading:
    """How to decode an image for ``augment`` with the same ``rng``, which is left as it is."""
    if spec.crop != "resized":
        return preprocess.reading()

    @cache
    def region(width: int, height: int) -> Box:
        state = rng.bit_generator.state
        box = _random_region(width, height, spec, preprocess.resize, rng)
        rng.bit_generator.state = state
        return box

    return preprocess.reading_of(region)


def augment(image: Image.Image, spec: Augment, preprocess: Preprocess, rng: np.random.Generator) -> Pixels:
    """One training image -> (3, S, S) uint8: crop, flip, colour, erase, drawn from ``rng`` in this order."""
    if spec.crop == "resized":
        region = _random_region(*whole_size(image), spec, preprocess.resize, rng)
        pixels = _resized(image, region, preprocess)
    else:
        pixels = preprocess(image)
        if spec.crop == "pad" and spec.pad:
            pixels = _shift(pixels, spec.pad, preprocess, rng)
    if spec.flip and rng.random() < spec.flip:
        pixels = pixels[:, :, ::-1]
    pixels = np.ascontiguousarray(pixels)
    if spec.colour:
        pixels = _jitter(pixels, spec.colour, rng)
    if spec.erase and rng.random() < spec.erase:
        pixels = _erase(pixels, preprocess, rng)
    return pixels


def mix(
    pixels: Pixels,
    label: int,
    spec: Augment,
    rng: np.random.Generator,
    partner: Callable[[], tuple[Pixels, int]],
) -> tuple[Pixels, int, int, float]:
    """Mixup or cutmix of one sample with another -> (pixels, label, partner's label, weight of ``label``).

    Where both are on, ``rng`` picks one for this sample. Pixels stay uint8: the rounding is at most half a
    grey level.

    Args:
        pixels: (3, S, S) uint8, the sample.
        label: its class.
        spec: mixup and cutmix alphas; both 0 returns the sample as it is.
        rng: the sample's own random numbers for mixing.
        partner: loads the other sample, (pixels, label), choosing it by the same ``rng``.
    """
    if not (spec.mixup or spec.cutmix):
        return pixels, label, label, 1.0
    blend = bool(spec.mixup) and (not spec.cutmix or rng.random() < 0.5)
    alpha = spec.mixup if blend else spec.cutmix
    weight = float(rng.beta(alpha, alpha))
    corner = rng.random(2)
    other, other_label = partner()
    if blend:
        mixed = np.rint(weight * pixels.astype(np.float32) + (1 - weight) * other.astype(np.float32))
        return mixed.astype(np.uint8), label, other_label, weight
    top, bottom, left, right = _cut_box(pixels.shape[1], weight, corner)
    pasted = pixels.copy()
    pasted[:, top:bottom, left:right] = other[:, top:bottom, left:right]
    shown = 1 - (bottom - top) * (right - left) / pixels.shape[1] ** 2
    return pasted, label, other_label, shown


def _cut_box(size: int, weight: float, centre: NDArray[np.float64]) -> tuple[int, int, int, int]:
    """A square of area (1 - weight) around ``centre``, clipped at the rim: (top, bottom, left, right) px."""
    half = size * math.sqrt(1 - weight) / 2
    y, x = centre * size
    low = [max(0, round(v - half)) for v in (y, x)]
    high = [min(size, round(v + half)) for v in (y, x)]
    return low[0], high[0], low[1], high[1]


def _mean_colour(preprocess: Preprocess) -> Pixels:
    """(3, 1, 1): what normalises to 0, so that a filled area carries no signal."""
    return np.array(preprocess.mean_colour, dtype=np.uint8)[:, None, None]


def _shift(pixels: Pixels, pad: int, preprocess: Preprocess, rng: np.random.Generator) -> Pixels:
    size = pixels.shape[1]
    canvas = np.empty((3, size + 2 * pad, size + 2 * pad), dtype=np.uint8)
    canvas[:] = _mean_colour(preprocess)
    canvas[:, pad : pad + size, pad : pad + size] = pixels
    top, left = rng.integers(0, 2 * pad + 1, 2)
    return canvas[:, top : top + size, left : left + size]


def _random_region(width: int, height: int, spec: Augment, resize: Resize, rng: np.random.Generator) -> Box:
    """A random part of a (width, height) image, of the shapes that it has once it is resized, px of the image."""
    if resize == "crop":
        return _crop_box(width, height, spec, rng)
    side = max(width, height)
    left, top, right, bottom = _crop_box(side, side, spec, rng)
    if resize == "squash":
        x, y = width / side, height / side
        return left * x, top * y, right * x, bottom * y
    # The image lies in the middle of a padded square. The part's centre is moved onto it, so that it shows something.
    x, y = (
        min(max(0.0, (low + high - side + length) / 2), length) - (low + high) / 2
        for low, high, length in ((left, right, width), (top, bottom, height))
    )
    return left + x, top + y, right + x, bottom + y


def _crop_box(width: int, height: int, spec: Augment, rng: np.random.Generator) -> Box:
    """A random part of a (width, height) image: (left, top, right, bottom) px."""
    low, high = spec.crop_ratio
    for _ in range(_TRIES):
        area = width * height * rng.uniform(*spec.crop_scale)
        ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
        wide, tall = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < wide <= width and 0 < tall <= height:
            left, top = int(rng.integers(0, width - wide + 1)), int(rng.integers(0, height - tall + 1))
            return left, top, left + wide, top + tall
    # No such part in a long, thin image: its centre, as near to the wanted shape as it goes.
    wide, tall = min(width, max(1, round(height * high))), min(height, max(1, round(width / low)))
    left, top = (width - wide) // 2, (height - tall) // 2
    return left, top, left + wide, top + tall


def _resized(image: Image.Image, region: Box, preprocess: Preprocess) -> Pixels:
    """A part of an image, px of the whole image, cut out and then resized to the input."""
    if preprocess.resize != "crop":  # its edges are not those of pixels
        return np.asarray(preprocess.show(image, region)).transpose(2, 0, 1)
    # Here, since recipes come without torch. Its bicubic filter is Pillow's, within a grey level, and four times as
    # fast; its arithmetic is in whole numbers, so that no machine rounds otherwise.
    import torch

    by = image.info[SHRUNK][2] if SHRUNK in image.info else 1
    left, top, right, bottom = (round(edge / by) for edge in region)  # at most half a decoded pixel away
    if isinstance(image, PlainJpeg):
        part = np.array(image.pixels[top:bottom, left:right])
    else:
        part = np.array(image.crop((left, top, right, bottom)))
    channels_last = torch.from_numpy(part)[None].permute(0, 3, 1, 2)  # which the filter takes as they are
    size = (preprocess.size, preprocess.size)
    return torch.nn.functional.interpolate(channels_last, size, mode="bicubic", antialias=True)[0].numpy()


def _jitter(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Brightness, saturation about each pixel's grey, contrast about the mean grey: together one linear map."""
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3)
    x = pixels.astype(np.float32)
    grey, part = x[0] * _GREY[0], np.empty_like(x[0])
    for colour in (1, 2):
        grey += np.multiply(x[colour], _GREY[colour], out=part)
    middle = float(grey.mean()) * brightness
    grey *= np.float32(contrast * brightness * (1 - saturation))
    grey += np.float32((1 - contrast) * middle)
    x *= np.float32(contrast * brightness * saturation)
    x += grey
    np.rint(x, out=x)
    return np.minimum(np.maximum(x, 0, out=x), 255, out=x).astype(np.uint8)


def _erase(pixels: Pixels, preprocess: Preprocess, rng: np.random.Generator) -> Pixels:
    size = pixels.shape[1]
    area = size * size * rng.uniform(*_ERASE_AREA)
    ratio = math.exp(rng.uniform(math.log(_ERASE_RATIO[0]), math.log(_ERASE_RATIO[1])))
    tall = min(size, max(1, round(math.sqrt(area * ratio))))
    wide = min(size, max(1, round(math.sqrt(area / ratio))))
    top, left = int(rng.integers(0, size - tall + 1)), int(rng.integers(0, size - wide + 1))
    erased = pixels.copy()
    erased[:, top : top + tall, left : left + wide] = _mean_colour(preprocess)
    return erased

"""Digit scenes: real handwritten digits at a known random scale, position and contrast, among fragments.

The data set inside the box. Because the true scale of every object is known, "neurons choose their receptive
field by the object's size" can be measured and not only drawn.

The 1,797 digits of scikit-learn's ``load_digits`` (8 x 8 px) are split once and for all, so that no digit is
seen in two splits. A scene is a pure function of (seed, split, epoch, index). All arithmetic on pixels is in
integers (Pillow's), so scenes are equal on every machine.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from selkern.data.decode import Header
from selkern.data.levels import PLAIN, Reading, Used
from selkern.data.order import CUT, SCENES, sample_rng
from selkern.data.split import SPLITS, Options, Source
from selkern.errors import DataError, UsageError

CANVAS = 48  # height and width of a scene, px
SIZES = {"train": 12_000, "val": 1_000, "test": 3_000}  # scenes per epoch
CLASSES = tuple("0123456789")

_DIGIT = 8  # height and width of an original digit, px
_SHARES = (0.70, 0.15, 0.15)  # of the original digits, in the order of SPLITS
_SCALES = (1.0, 4.0)  # smallest and largest scale, unless a range within is asked for
_MOST_SCENES = 10_000_000  # per split: a slip of the keyboard is not to fill the memory with labels
_FRAGMENTS = (2, 5)  # fewest and most per scene
_CROPS = (3, 4)  # smallest and largest edge of a fragment before it is enlarged, px
_PLACES = 4  # places tried per fragment; the one that covers the digit's box least is taken
_NUMBERS = 6 + _FRAGMENTS[1] * (6 + 2 * _PLACES)  # random numbers that a scene uses at most


@dataclass(frozen=True, kw_only=True)
class SceneTruth:
    """What is in a scene."""

    label: int
    """0 to 9."""
    digit: int
    """Number of the original digit (0 to 1,796): scenes that share it are not independent."""
    scale: float
    """Size of the digit over its original 8 px, 1 to 4."""
    contrast: float
    """Brightness of its ink, 0.5 to 1 of white."""
    left: int
    """First column of its box, px."""
    top: int
    """First row of its box, px."""
    size: int
    """Height and width of its box, px."""


class SceneSplit:
    """Scenes of one split's digits. Train draws new scenes each epoch; evaluation reads epoch 0.

    Args:
        name: train, val or test.
        scenes: how many, per epoch.
        seed: draws them.
        scales: smallest and largest scale of its digits and of the fragments around them, which would otherwise
            teach that whatever lies outside the range is no digit.
    """

    def __init__(self, name: str, scenes: int, seed: int, scales: tuple[float, float] = _SCALES) -> None:
        if name not in SPLITS:
            raise UsageError(f"split {name!r}", "SceneSplit.name", f"choose {', '.join(SPLITS)}")
        if scenes < 1:
            raise UsageError(f"{scenes} scenes", "SceneSplit.scenes", "give a whole number from 1")
        low, high = scales
        if not _SCALES[0] <= low <= high <= _SCALES[1]:
            fix = f"give two rising numbers from {_SCALES[0]:g} to {_SCALES[1]:g}"
            raise UsageError(f"scales {low:g}-{high:g}", "SceneSplit.scales", fix)
        images, targets = load_digits()
        self.name, self.scenes, self.seed, self.scales = name, scenes, seed, scales
        self.digits = split_digits(targets)[name]
        self._images = [Image.fromarray(grey) for grey in images]
        # Scene i always shows the same digit, so labels are known without drawing and digits appear evenly.
        self._shown = self.digits[np.arange(scenes) % len(self.digits)]
        self.labels: NDArray[np.int64] = targets[self._shown]

    def __len__(self) -> int:
        return self.scenes

    def where(self, index: int) -> str:
        """``digit scene 12``."""
        return f"digit scene {index}"

    def truth(self, index: int, epoch: int = 0) -> SceneTruth:
        """What the scene shows, without drawing it."""
        return self._truth(index, _numbers(self._rng(index, epoch)))

    def read(self, index: int, epoch: int = 0, reading: Reading = PLAIN) -> Image.Image:  # noqa: ARG002  always whole
        """The scene as RGB, 48 x 48 px, the three colours equal."""
        rng = self._rng(index, epoch)
        numbers = _numbers(rng)
        truth = self._truth(index, numbers)
        canvas = _background(rng, next(numbers))
        for _ in range(_between(_FRAGMENTS, next(numbers))):
            self._draw_fragment(canvas, truth, index, numbers)
        ink = self._images[truth.digit].resize((truth.size, truth.size), Image.Resampling.BICUBIC)
        canvas.paste(round(255 * truth.contrast), (truth.left, truth.top), ink)
        return canvas.convert("RGB")

    def used(self, index: int) -> Used | None:  # noqa: ARG002  all scenes are alike
        """None: scenes have 8 bits."""
        return None

    def header(self, index: int) -> Header:  # noqa: ARG002  all scenes are alike
        """Of any scene."""
        return Header(width=CANVAS, height=CANVAS, format="", mode="RGB")

    def _rng(self, index: int, epoch: int) -> np.random.Generator:
        return sample_rng(self.seed, epoch, index, SCENES + SPLITS.index(self.name))

    def _truth(self, index: int, numbers: Iterator[float]) -> SceneTruth:
        size = round(_DIGIT * self._scale(next(numbers)))
        return SceneTruth(
            label=int(self.labels[index]),
            digit=int(self._shown[index]),
            scale=size / _DIGIT,
            contrast=0.5 + 0.5 * next(numbers),
            left=_between((0, CANVAS - size), next(numbers)),
            top=_between((0, CANVAS - size), next(numbers)),
            size=size,
        )

    def _scale(self, number: float) -> float:
        """Within the range, uniform in its logarithm: as many scenes from 1 to 2 as from 2 to 4."""
        low, high = self.scales
        return float(low * (high / low) ** number)

    def _draw_fragment(self, canvas: Image.Image, truth: SceneTruth, index: int, numbers: Iterator[float]) -> None:
        """A piece of another digit, at a scale of its own, beneath the digit and mostly beside it."""
        count = len(self.digits)
        other = self._images[self.digits[(index + _between((1, count - 1), next(numbers))) % count]]
        edge = _between(_CROPS, next(numbers))
        x, y = (_between((0, _DIGIT - edge), next(numbers)) for _ in "xy")
        size = round(edge * self._scale(next(numbers)))
        ink = other.resize((size, size), Image.Resampling.BICUBIC, box=(x, y, x + edge, y + edge))
        rim = (0, CANVAS - size)
        places = [(_between(rim, next(numbers)), _between(rim, next(numbers))) for _ in range(_PLACES)]
        place = min(places, key=lambda place: _overlap(place, size, truth))
        canvas.paste(round(255 * truth.contrast * (0.4 + 0.6 * next(numbers))), place, ink)


def open_digits(options: Options, asked: str | None = None) -> Source:
    """The digit scenes as a source. Val and test scenes are the same whatever the seed, so runs compare.

    Args:
        asked: comma-separated settings: `scale=1.5-3` draws the digits of train and val in that range, while the test
            scenes stay those of all; `train=`, `val=` and `test=` set how many scenes there are.
    """
    name = "digits" if asked is None else f"digits:{asked}"
    if options.classes is not None and options.classes != CLASSES:
        known = ", ".join(options.classes[:5])
        raise DataError(f"the model's classes ({known}) are not the ten digits", name, "give other data")
    sizes, scales = _settings(asked, name)
    train, val, test = (
        SceneSplit(n, sizes[n], options.seed if n == "train" else 0, _SCALES if n == "test" else scales) for n in SPLITS
    )
    return Source(name=name, kind="digits", classes=CLASSES, train=train, val=val, test=test)


def _settings(asked: str | None, name: str) -> tuple[Mapping[str, int], tuple[float, float]]:
    """({split: scenes}, (smallest, largest scale)). Raises DataError for words that are none of ours."""
    sizes, scales = dict(SIZES), _SCALES
    for word in [] if asked is None else asked.split(","):
        key, _, value = word.partition("=")
        if key in SIZES and re.fullmatch("[0-9]{1,9}", value) and 0 < int(value) <= _MOST_SCENES:
            sizes[key] = int(value)
            continue
        result = re.fullmatch(r"([0-9](?:\.[0-9]{1,6})?)-([0-9](?:\.[0-9]{1,6})?)", value) if key == "scale" else None
        if result is None or not _SCALES[0] <= float(result[1]) <= float(result[2]) <= _SCALES[1]:
            low, high = (f"{scale:g}" for scale in _SCALES)
            fix = f"give such as digits:scale=1.5-3 (within {low}-{high}) or digits:train=2000,val=200,test=500"
            raise DataError(f"unknown setting {word!r} of the digit scenes", name, fix)
        scales = float(result[1]), float(result[2])
    return sizes, scales


def load_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """scikit-learn's digits: (1797, 8, 8) grey 0 to 255, and (1797,) labels."""
    from sklearn.datasets import load_digits as load

    images, targets = load(return_X_y=True)
    grey = np.rint(images.reshape(-1, _DIGIT, _DIGIT) * (255 / 16)).astype(np.uint8)
    return grey, targets.astype(np.int64)


def split_digits(targets: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    """{split: numbers of its original digits}, 70/15/15 % of every class, the same in every run."""
    parts: dict[str, list[NDArray[np.int64]]] = {name: [] for name in SPLITS}
    for label in range(len(CLASSES)):
        members = np.flatnonzero(targets == label)
        raw = sample_rng(0, 0, label, CUT).bit_generator.random_raw(members.size)
        members = members[np.argsort(raw, kind="stable")]
        ends = np.rint(np.cumsum(_SHARES) * members.size).astype(int)
        for name, part in zip(SPLITS, np.split(members, ends[:-1]), strict=True):
            parts[name].append(part)
    return {name: np.sort(np.concatenate(part)) for name, part in parts.items()}


def _numbers(rng: np.random.Generator) -> Iterator[float]:
    """All the random numbers of a scene but its noise, uniform in [0, 1): one draw is faster than many."""
    return iter(rng.random(_NUMBERS).tolist())


def _between(limits: tuple[int, int], number: float) -> int:
    """A whole number from limits[0] to limits[1], both included, from a uniform one in [0, 1)."""
    return limits[0] + int(number * (limits[1] - limits[0] + 1))


def _background(rng: np.random.Generator, level: float) -> Image.Image:
    """Dim noise around a dim level: 0 to 62 of 255."""
    noise = np.frombuffer(rng.bytes(CANVAS * CANVAS), dtype=np.uint8) & 31
    return Image.frombytes("L", (CANVAS, CANVAS), (noise + np.uint8(32 * level)).tobytes())


def _overlap(place: tuple[int, int], size: int, truth: SceneTruth) -> int:
    """Pixels that a (size, size) box at place (left, top) shares with the digit's box."""
    wide = min(place[0] + size, truth.left + truth.size) - max(place[0], truth.left)
    high = min(place[1] + size, truth.top + truth.size) - max(place[1], truth.top)
    return max(0, wide) * max(0, high)

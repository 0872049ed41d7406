"""Image -> the array a network sees when it is evaluated: resize, centre crop, normalise.

Shapes: N batch, H and W both ``size`` in px.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from selkern.errors import UsageError

if TYPE_CHECKING:
    import torch  # only here, so that recipes and their help come without it
    from PIL import Image  # which the core is installed without, and cards of weights are made without


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """What evaluation does to an image. It is stored in every checkpoint beside the weights."""

    size: int
    """Height and width of the network's input, px."""
    crop: float = 1.0
    """Share of the resized image that the centre crop keeps, in (0, 1]; 0.875 is usual for ImageNet."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Mean of each colour, in 0..1 units."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Standard deviation of each colour, in 0..1 units."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UsageError(f"size {self.size} px", "Preprocess.size", "give a whole number from 1")
        if not 0 < self.crop <= 1:
            raise UsageError(f"crop {self.crop}", "Preprocess.crop", "give a share in (0, 1]")
        if len(self.mean) != 3 or not all(0 <= value <= 1 for value in self.mean):
            raise UsageError(f"mean {self.mean}", "Preprocess.mean", "give three numbers in 0..1")
        if len(self.std) != 3 or not all(0 < value <= 1 for value in self.std):
            raise UsageError(f"std {self.std}", "Preprocess.std", "give three numbers in (0, 1]")

    def __call__(self, image: Image.Image, zoom: float = 1.0) -> NDArray[np.uint8]:
        """RGB image -> (3, size, size) uint8.

        Args:
            image: any size; its short side becomes round(size / crop), then the centre is cut out.
            zoom: from 1; above it, the centre 1/zoom of that crop enlarged to ``size`` (the paper's sweep).
        """
        from PIL.Image import Resampling

        if not zoom >= 1:
            raise UsageError(f"zoom {zoom}", "zoom", "give a number from 1")
        full = (self.size, self.size)
        # Resize just the crop's region: equal to resizing all, and no memory for a long, thin image.
        cut = image.resize(full, Resampling.BICUBIC, box=self._region(image.width, image.height))
        if zoom > 1:
            edge = (self.size - self.size / zoom) / 2
            box = (edge, edge, self.size - edge, self.size - edge)
            cut = cut.resize(full, Resampling.BICUBIC, box=box)
        return np.ascontiguousarray(np.asarray(cut).transpose(2, 0, 1))

    def _region(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The part of a (width, height) image that the centre crop shows, px of that image."""
        target = max(self.size, round(self.size / self.crop))
        short = min(width, height)
        wide, high = round(width * target / short), round(height * target / short)
        left, top = (wide - self.size) // 2, (high - self.size) // 2
        x, y = width / wide, height / high
        return left * x, top * y, min((left + self.size) * x, width), min((top + self.size) * y, height)

    def normalise(self, batch: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) uint8 -> float32 with ``mean`` 0 and ``std`` 1, on the batch's device."""
        import torch

        mean = torch.tensor(self.mean, device=batch.device).view(3, 1, 1) * 255
        std = torch.tensor(self.std, device=batch.device).view(3, 1, 1) * 255
        return (batch.float() - mean) / std

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, as JSON keeps them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """The inverse of ``to_dict``; an unknown or missing key is a UsageError."""
        try:
            mean, std = (tuple(float(value) for value in values[key]) for key in ("mean", "std"))
            given = {"size": int(values["size"]), "crop": float(values["crop"])}
            return cls(**{**values, **given, "mean": mean, "std": std})
        except (KeyError, TypeError) as error:
            fix = "give size, crop, mean and std, nothing else"
            raise UsageError(f"preprocessing that cannot be read ({error})", "Preprocess", fix) from error

"""Images on their way through a study, a batch at a time: what is kept does not grow with their number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from selkern.data.loader import Batch
from selkern.data.preprocess import Preprocess
from selkern.data.split import Split
from selkern.evaluation import OnBad, batches_of, to_input

_BATCH = 100  # images of up to _SIDE px; fewer of larger ones, so that a study does not grow with them
_SIDE = 64
_LEAST = 2  # of one image alone the selection cannot be exchanged with another's


@dataclass(frozen=True)
class Pictures:
    """A batch of images as a network gets them.

    Attributes:
        x: (N, 3, H, W) normalised input.
        labels: (N,) class of each image; -1 where it is not known.
        indices: (N,) its number in its source.
        light: (N, 2) mean and standard deviation of its pixels, 0 to 1: intensity and contrast.
    """

    x: Tensor
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]
    light: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.x)

    @classmethod
    def of(cls, batch: Batch, preprocess: Preprocess, device: torch.device) -> Pictures:
        """A loader's batch."""
        return cls(
            to_input(batch.images, preprocess, device),
            batch.labels.numpy(),
            batch.indices.numpy(),
            light_of(batch.images),
        )


def light_of(images: Tensor) -> NDArray[np.float64]:
    """Mean and standard deviation (N, 2) of the pixels of images (N, 3, H, W) of uint8, 0 to 1."""
    pixels = images.float().flatten(1) / 255
    return torch.stack([pixels.mean(dim=1), pixels.std(dim=1)], dim=1).double().numpy()


def stream(
    split: Split,
    preprocess: Preprocess,
    indices: Sequence[int] | None = None,
    *,
    zooms: Sequence[float] = (1.0,),
    device: torch.device | None = None,
    workers: int = 0,
    on_bad: OnBad = "error",
    part: int = 1,
    seen: Callable[[int], object] = lambda _n: None,
) -> Iterator[tuple[Pictures, ...]]:
    """Batches of a split, each at every enlargement of the centre: one `Pictures` per zoom, of the same images.

    Args:
        indices: which images; None for all, in their order.
        on_bad: "skip" leaves out images that cannot be read.
        part: so many times fewer images in a batch than usual, for passes that keep a graph for gradients.
        seen: called with the number of images of each batch, for a progress bar.

    Raises:
        DataError: an image cannot be read, where that is an error.
    """
    chosen = range(len(split)) if indices is None else indices
    size = max(_LEAST, min(_BATCH, _BATCH * _SIDE**2 // preprocess.size**2) // part)
    keys = [[(0, int(index)) for index in chosen[i : i + size]] for i in range(0, len(chosen), size)]
    device = device or torch.device("cpu")
    loaders = [batches_of(split, preprocess, keys, zoom=zoom, workers=workers, on_bad=on_bad) for zoom in zooms]
    for together in zip(*loaders, strict=True):
        if len(together[0].labels):
            yield tuple(Pictures.of(batch, preprocess, device) for batch in together)
        seen(len(together[0].labels))

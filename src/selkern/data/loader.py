"""Samples and batches for torch's ``DataLoader``.

Shapes: N batch, H and W both ``preprocess.size`` in px.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, default_collate

from selkern.data.augment import Augment, augment, mix, reading
from selkern.data.order import AUGMENT, MIX, Key, sample_rng
from selkern.data.preprocess import Preprocess
from selkern.data.split import OnBad, Split, prefetch
from selkern.errors import DataError, ResourceError


@dataclass(frozen=True)
class Batch:
    """One batch, as the loop gets it. Samples that could not be read are absent and named in ``bad``."""

    images: torch.Tensor
    """(N, 3, H, W) uint8."""
    labels: torch.Tensor
    """(N,) int64, the class of each sample."""
    partners: torch.Tensor
    """(N,) int64, the class of the sample mixed in; equal to ``labels`` where nothing was."""
    lam: torch.Tensor
    """(N,) float32, weight of ``labels``; 1 where nothing was mixed in."""
    indices: torch.Tensor
    """(N,) int64, number of each sample in its split."""
    bad: tuple[DataError, ...]
    """One error for each sample that could not be read."""
    gone: ResourceError | None = None
    """Why no more samples can be read: their store does not answer."""

    def pin_memory(self) -> Batch:
        """A copy in page-locked memory; the ``DataLoader`` calls it where there is CUDA."""
        tensors = (self.images, self.labels, self.partners, self.lam, self.indices)
        images, labels, partners, lam, indices = (tensor.pin_memory() for tensor in tensors)
        return Batch(images, labels, partners, lam, indices, self.bad, self.gone)


@dataclass(frozen=True)
class Sample:
    """One sample on its way into a batch."""

    pixels: NDArray[np.uint8]  # (3, H, W)
    label: int
    partner: int
    lam: float
    index: int


class Samples(Dataset["Sample | DataError | ResourceError"]):
    """A split as the network is to see it. Items are named by (epoch, index) and are pure in it and the seed.

    For an image that cannot be read the error is returned, not raised: it must not end the worker, and only the loop
    knows whether to skip or to stop.

    Args:
        split: where images and labels come from.
        preprocess: resize and crop to the network's input.
        augment: random changes for training; None for evaluation.
        seed: the run's seed.
        zoom: enlargement of the centre (``Preprocess``), for evaluation only.
    """

    def __init__(
        self, split: Split, preprocess: Preprocess, augment: Augment | None, seed: int, zoom: float = 1.0
    ) -> None:
        self.split, self.preprocess, self.augment, self.seed, self.zoom = (
            split,
            preprocess,
            augment,
            seed,
            zoom,
        )

    def __len__(self) -> int:
        return len(self.split)

    def __getitems__(self, keys: Sequence[Key]) -> list[Sample | DataError | ResourceError]:
        """A batch, as the DataLoader asks for it: what lies far away is fetched at once."""
        prefetch(self.split, [index for _, index in keys])
        samples: list[Sample | DataError | ResourceError] = []
        for key in keys:
            samples.append(self[key])
            if isinstance(samples[-1], ResourceError):  # the others would each wait as long for the same answer
                break
        return samples

    def __getitem__(self, key: Key) -> Sample | DataError | ResourceError:
        try:
            return self._sample(*key)
        except ResourceError as error:  # of a store: the run is to end with its line, not with a worker's traceback
            return error.bare()

    def _sample(self, epoch: int, index: int) -> Sample | DataError:
        label = int(self.split.labels[index])
        try:
            if self.augment is None:
                image = self.split.read(index, epoch, self.preprocess.reading())
                pixels = self.preprocess(image, self.zoom)
            else:
                pixels = self._augmented(index, epoch, sample_rng(self.seed, epoch, index, AUGMENT))
        except DataError as error:
            return error.bare()
        if self.augment is None or not (self.augment.mixup or self.augment.cutmix):
            return Sample(pixels, label, label, 1.0, index)
        return self._mixed(pixels, label, index, epoch)

    def _augmented(self, index: int, epoch: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        assert self.augment is not None
        image = self.split.read(index, epoch, reading(self.augment, self.preprocess, rng))
        return augment(image, self.augment, self.preprocess, rng)

    def _mixed(self, pixels: NDArray[np.uint8], label: int, index: int, epoch: int) -> Sample:
        assert self.augment is not None
        rng = sample_rng(self.seed, epoch, index, MIX)

        def partner() -> tuple[NDArray[np.uint8], int]:
            other = int(rng.integers(len(self.split)))
            return self._augmented(other, epoch, rng), int(self.split.labels[other])

        try:
            return Sample(*mix(pixels, label, self.augment, rng, partner), index)
        except DataError:
            # The partner is broken and is reported when its own turn comes; this sample goes unmixed.
            return Sample(pixels, label, label, 1.0, index)


class Collate:
    """List of samples -> ``Batch``; ``size`` in px shapes a batch in which no sample could be read."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, samples: Sequence[Sample | DataError | ResourceError]) -> Batch:
        """Stack what could be read."""
        good = [sample for sample in samples if isinstance(sample, Sample)]
        pixels = [torch.from_numpy(sample.pixels) for sample in good]
        empty = torch.empty((0, 3, self.size, self.size), dtype=torch.uint8)
        return Batch(
            images=default_collate(pixels) if pixels else empty,  # a worker's into memory that is shared already
            labels=torch.tensor([sample.label for sample in good], dtype=torch.int64),
            partners=torch.tensor([sample.partner for sample in good], dtype=torch.int64),
            lam=torch.tensor([sample.lam for sample in good], dtype=torch.float32),
            indices=torch.tensor([sample.index for sample in good], dtype=torch.int64),
            bad=tuple(sample for sample in samples if isinstance(sample, DataError)),
            gone=next((sample for sample in samples if isinstance(sample, ResourceError)), None),
        )


def require_going(batch: Batch, on_bad: OnBad) -> None:
    """Raise the error of a batch that ends the run: a store is gone, or, with "error", an image cannot be read."""
    if batch.gone is not None:
        raise batch.gone
    if batch.bad and on_bad == "error":
        raise batch.bad[0]


def make_loader(samples: Samples, batches: Iterable[list[Key]], workers: int) -> DataLoader[Batch]:
    """A loader that reads ``samples`` in the order of ``batches`` (a ``TrainOrder``, or ``eval_shards``).

    Args:
        samples: what to read.
        batches: lists of (epoch, index), iterated anew by every ``iter`` of the loader.
        workers: processes that read ahead (torch gives each one thread); 0 reads in this one.
    """
    if workers > 0 and len(samples):
        samples[(0, 0)]  # what the split keeps in memory is loaded here once, and shared by forked workers
    return DataLoader(
        samples,  # type: ignore[arg-type]  # torch types a loader by its samples, we by its batches
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=Collate(samples.preprocess.size),
        persistent_workers=workers > 0,
        worker_init_fn=_leave_signals,
        pin_memory=torch.cuda.is_available(),
        # Its own: the loader draws a seed per iterator, which must not advance the model's random numbers.
        generator=torch.Generator(),
    )


def _leave_signals(_worker: int) -> None:
    """Ctrl+C in a terminal and a cluster's SIGTERM go to the whole process group: the loop decides when all end."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)

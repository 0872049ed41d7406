"""How well a network does on a split: every prediction kept small, every figure computed from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from selkern.data.loader import Batch, Samples, make_loader, require_going
from selkern.data.order import eval_shards
from selkern.data.preprocess import Preprocess
from selkern.data.split import Split
from selkern.errors import DataError, NumericsError
from selkern.layers.parts import evaluating

OnBad = Literal["error", "skip"]  # what becomes of images that cannot be read
TOP = 5  # predictions kept per image
MATRIX = 1000  # classes up to which a confusion matrix is written and drawn; of more there are the pairs that occur


@dataclass(frozen=True)
class Evaluation:
    """Predictions on n images, in the order of the split.

    Attributes:
        classes: class names.
        indices: (n,) the images' numbers in the split.
        labels: (n,) true classes.
        losses: (n,) cross-entropy, nats.
        top: (n, k) the k likeliest classes, k = min(5, classes), best first.
        top_p: (n, k) their probabilities.
        skipped: an error for each image that could not be read and is not among the n.
    """

    classes: tuple[str, ...]
    indices: NDArray[np.int64]
    labels: NDArray[np.int64]
    losses: NDArray[np.float32]
    top: NDArray[np.int64]
    top_p: NDArray[np.float32]
    skipped: tuple[DataError, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def right(self) -> NDArray[np.bool_]:
        """(n,) whether the likeliest class is the true one."""
        return self.top[:, 0] == self.labels

    @property
    def top1(self) -> float:
        """Share of images whose likeliest class is right."""
        return float(self.right.mean())

    @property
    def top5(self) -> float:
        """Share of images whose class is among the five likeliest."""
        return float((self.top == self.labels[:, None]).any(axis=1).mean())

    @property
    def loss(self) -> float:
        """Mean cross-entropy, nats."""
        return float(self.losses.mean())

    def confusion(self) -> NDArray[np.int64]:
        """(K, K) counts: row the true class, column the predicted one. Its memory grows with K^2: see `confused`."""
        k = len(self.classes)
        return np.bincount(self.labels * k + self.top[:, 0], minlength=k * k).reshape(k, k)

    def confused(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """The entries of `confusion` that are not 0, by rows: true classes, predicted ones, and counts."""
        k = len(self.classes)
        pairs, counts = np.unique(self.labels * k + self.top[:, 0], return_counts=True)
        return pairs // k, pairs % k, counts

    def mistaken(self, most: int) -> list[tuple[str, str, int]]:
        """(true class, predicted one, images) of the pairs that are confused most often."""
        true, predicted, counts = self.confused()
        wrong = np.flatnonzero(true != predicted)
        first = wrong[np.argsort(-counts[wrong], kind="stable")[:most]]
        return [(self.classes[true[i]], self.classes[predicted[i]], int(counts[i])) for i in first]

    def per_class(self) -> list[tuple[str, int, float]]:
        """(class, images, share right) of every class; NaN where there is no image."""
        k = len(self.classes)
        counts = np.bincount(self.labels, minlength=k).tolist()
        right = np.bincount(self.labels[self.right], minlength=k).tolist()
        rows = zip(self.classes, counts, right, strict=True)
        return [(name, n, r / n if n else math.nan) for name, n, r in rows]

    @property
    def top1_interval(self) -> tuple[float, float]:
        """95 % interval of top-1."""
        return wilson(int(self.right.sum()), len(self))

    @property
    def largest(self) -> tuple[str, float]:
        """The class with most images, and the share it has of all: the top-1 of always naming it."""
        counts = np.bincount(self.labels, minlength=len(self.classes))
        return self.classes[int(counts.argmax())], float(counts.max() / len(self))

    @property
    def above_chance(self) -> bool:
        """Whether the network is better than one that does not look: in top-1, or in the mean share over classes.

        The first holds where the interval of top-1 lies above what always naming the largest class gives. The second,
        for classes of unequal size, where the mean of the classes' lower ends lies above what no such network exceeds.
        """
        counts = [(round(n * share), n) for _, n, share in self.per_class() if n]
        lows = [wilson(right, n)[0] for right, n in counts]
        return self.top1_interval[0] > self.largest[1] or sum(lows) / len(lows) > 1 / len(lows)

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain values, for JSON."""
        low, high = self.top1_interval
        classes = [{"class": name, "images": n, "right": right if n else None} for name, n, right in self.per_class()]
        figures: dict[str, Any] = {
            "top1": self.top1,
            "top1_low": low,
            "top1_high": high,
            "top5": self.top5,
            "loss": self.loss,
        }
        name, share = self.largest
        figures |= {"largest_class": name, "largest_class_share": share, "above_chance": self.above_chance}
        return {"images": len(self), "skipped": len(self.skipped), **figures, "classes": classes}

    def require_numbers(self, split: Split) -> None:
        """Raise NumericsError where the network gave an image anything but finite numbers."""
        bad = self.indices[~np.isfinite(self.top_p[:, 0])]
        if len(bad):
            what = f"the network gives no finite numbers for {len(bad):,} of {len(self):,} images"
            raise NumericsError(what, f"{split.where(int(bad[0]))}, the first", "look for NaN in its weights")

    @classmethod
    def merge(cls, parts: Sequence[Evaluation]) -> Evaluation:
        """Evaluations of disjoint parts of a split (the ranks' shares) as one, in the order of the split."""
        order = np.argsort(np.concatenate([part.indices for part in parts]), kind="stable")
        names = ("indices", "labels", "losses", "top", "top_p")
        columns = (np.concatenate([getattr(part, name) for part in parts])[order] for name in names)
        skipped = tuple(error for part in parts for error in part.skipped)
        return cls(parts[0].classes, **dict(zip(names, columns, strict=True)), skipped=skipped)


def wilson(right: int, n: int) -> tuple[float, float]:
    """95 % interval of a share of n (Wilson's score interval, which stays inside 0..1)."""
    z, p = 1.959964, right / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return middle - half, middle + half


def batches_of(
    split: Split,
    preprocess: Preprocess,
    batches: list[list[tuple[int, int]]],
    *,
    zoom: float = 1.0,
    workers: int = 0,
    on_bad: OnBad = "error",
) -> Iterator[Batch]:
    """Batches of a split for evaluation; with `on_bad="skip"` each names the images that it lacks.

    Raises:
        DataError: an image cannot be read, where that is an error.
    """
    for batch in make_loader(Samples(split, preprocess, None, 0, zoom), batches, workers):
        require_going(batch, on_bad)
        yield batch


def to_input(images: Tensor, preprocess: Preprocess, device: torch.device) -> Tensor:
    """uint8 (N, 3, H, W) to the normalised channels_last input on `device`."""
    images = images.to(device, non_blocking=True)
    return preprocess.normalise(images).contiguous(memory_format=torch.channels_last)


def device_of(model: nn.Module) -> torch.device:
    """Where a model computes; the CPU for one without parameters, as an exported one is."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


@torch.inference_mode()
def evaluate(
    model: nn.Module,
    split: Split,
    classes: tuple[str, ...],
    preprocess: Preprocess,
    *,
    device: torch.device | None = None,
    batch_size: int = 100,
    workers: int = 0,
    share: tuple[int, int] = (0, 1),
    autocast: AbstractContextManager[object] | None = None,
    on_bad: OnBad = "error",
    between: Callable[[], None] = lambda: None,
    seen: Callable[[int], object] = lambda _images: None,
    after: Callable[[Batch], object] = lambda _batch: None,
) -> Evaluation:
    """Run a model over a split, in eval mode, and put it back into the mode it was in.

    Args:
        model: (N, 3, H, W) to logits (N, K), K at least 2.
        share: (rank, ranks): this process takes every ranks-th image; see `Evaluation.merge`.
        autocast: context of the forward passes.
        on_bad: "skip" leaves out images that cannot be read, and names them; an error is the default, since figures
            on other images than meant are wrong figures.
        between: called before every batch; what it raises ends the evaluation.
        seen: called with the number of images of every batch that is read, for a line of progress.
        after: called with every batch after its forward pass, so that others record what they need of the same pass.

    Raises:
        DataError: an image cannot be read, or there is none.
    """
    device = device or device_of(model)
    kept: list[tuple[NDArray[Any], ...]] = []
    skipped: list[DataError] = []
    shards = eval_shards(len(split), batch_size, *share)
    with evaluating(model):
        for batch in batches_of(split, preprocess, shards, workers=workers, on_bad=on_bad):
            between()
            skipped += batch.bad
            seen(len(batch.labels) + len(batch.bad))
            if not len(batch.labels):
                continue
            with autocast or nullcontext():
                logits = model(to_input(batch.images, preprocess, device)).float()
            after(batch)
            labels = batch.labels.to(device)
            top_p, top = logits.softmax(dim=1).topk(min(TOP, logits.shape[1]), dim=1)
            losses = F.cross_entropy(logits, labels, reduction="none")
            # Copies: torch's own small results lie between the logits in the heap, which then cannot be used again: of
            # 50,000 images and 10,000 classes 4.8 GB (benchmarks/evaluation.py).
            kept.append(tuple(part.cpu().numpy().copy() for part in (batch.indices, labels, losses, top, top_p)))
    if kept:
        columns = [np.concatenate(column) for column in zip(*kept, strict=True)]
        return Evaluation(classes, *columns, skipped=tuple(skipped))  # type: ignore[arg-type, misc]
    if share == (0, 1):
        what = f"none of {len(skipped)} images can be read" if skipped else "no images to evaluate"
        raise DataError(what, split.name, "give a split that has some")
    empty, none = np.zeros((0, min(TOP, len(classes))), np.float32), np.zeros(0, np.int64)
    return Evaluation(
        classes, none, none, none.astype(np.float32), empty.astype(np.int64), empty, skipped=tuple(skipped)
    )

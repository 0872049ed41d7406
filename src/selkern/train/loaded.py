"""Trained weights ready to be used, by run or by file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from selkern.data.decode import show
from selkern.data.listing import is_file
from selkern.data.preprocess import Preprocess
from selkern.data.sources import Source
from selkern.errors import CheckpointError, UsageError
from selkern.models import hub
from selkern.models.registry import create_model
from selkern.models.weights import Card, find_boxed, read_card
from selkern.train.distributed import pick_device
from selkern.train.run_folder import RunFolder

TORCH = (".pth", ".pt", ".bin", ".caffemodel")
LARGEST = 8192  # px: side of the images that a card may ask for, 200 MB each


@dataclass(frozen=True)
class Loaded:
    """Weights ready to be used: the model in eval mode, its card, and the run they lie in, if any.

    Attributes:
        source: the data, where they had to be opened to make the network.
    """

    model: nn.Module
    card: Card
    path: Path
    run: RunFolder | None
    source: Source | None = None

    @property
    def preprocess(self) -> Preprocess:
        """How images become the inputs these weights expect."""
        return Preprocess.from_dict(self.card.preprocess)


def find_weights(given: str) -> Path:
    """The weights file of a run (its best), a weights file as it is, weights in the box by name, or "hf-hub:user/name".

    Raises:
        CheckpointError: none of these.
        UsageError: as `hub.fetch` says, which alone needs a network.
    """
    if not given:
        raise CheckpointError("no run is named", "RUN", "give a run's folder; they lie in runs/train/")
    if hub.is_reference(given):
        return hub.fetch(given)
    if Path(given).suffix == ".safetensors":
        return Path(given)
    if (inside := find_boxed(None, given)) is not None:
        return inside
    if Path(given).suffix in TORCH and is_file(given):
        raise CheckpointError("weights of another program", show(given), "turn them into ours by `selkern convert`")
    try:
        best = RunFolder.find(given).best
    except OSError as error:  # a name that none can have
        reason = f"no such run ({error.strerror})"
        raise CheckpointError(reason, show(given)[:100], "give a run's folder; they lie in runs/train/") from error
    if not best.is_file():
        raise CheckpointError("the run has no weights yet", str(best.parent), "resume it until an epoch ends")
    return best


def load(given: str, device: str = "auto") -> Loaded:
    """Weights by run or file, on a device, in eval mode.

    Raises:
        CheckpointError: not found, damaged, or without a word on preprocessing.
    """
    path = find_weights(given)
    model = create_model(weights=path).eval().to(pick_device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    card = model.card or read_card(path)
    require_preprocess(card, path)
    inside = path.parent.parent
    return Loaded(model, card, path, RunFolder(inside) if (inside / "config.yaml").is_file() else None)


def require_preprocess(card: Card, path: Path) -> None:
    """Raise CheckpointError unless the card tells how to prepare images, in a way that can be."""
    if not card.preprocess:
        raise CheckpointError("the file does not tell how to prepare images", str(path), "use weights of a run")
    try:
        size = Preprocess.from_dict(card.preprocess).size
        if size > LARGEST:
            raise ValueError(f"size {size} px is above {LARGEST}")
    except (ValueError, TypeError, OverflowError) as error:  # UsageError is a ValueError
        what = error.what if isinstance(error, UsageError) else str(error)
        raise CheckpointError(f"tells no way to prepare images ({what})", str(path), "use weights of a run") from error


def require_named(data: str | None) -> str:
    """The name of the data. Raises UsageError where none is given."""
    if data is None:
        raise UsageError("no data to evaluate on", "--data", "give a folder, .csv, .parquet, or digits")
    return data

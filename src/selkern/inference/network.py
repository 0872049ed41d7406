"""Networks that lie in no weights file of ours, made ready to be studied: timm's, and classes of the user's own."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selkern.convert import hub
from selkern.convert.foreign import CROP_MODES
from selkern.data.decode import show
from selkern.data.preprocess import Preprocess
from selkern.data.sources import Source, open_source
from selkern.data.split import OnBad
from selkern.data.table_options import TableOptions
from selkern.errors import UsageError
from selkern.inference.subject import find_subject
from selkern.layers.parts import evaluating
from selkern.models.registry import create_model
from selkern.models.weights import Card, read_card
from selkern.train.distributed import pick_device
from selkern.train.run_folder import RunFolder, find_weights, require_preprocess


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


def load(given: str, device: str = "auto") -> Loaded:
    """Weights by run or file, on a device, in eval mode.

    Raises:
        CheckpointError: not found, damaged, or without a description of the preprocessing.
    """
    path = find_weights(given)
    model = create_model(weights=path).eval().to(pick_device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    card = model.card or read_card(path)
    require_preprocess(card, path)
    inside = path.parent.parent
    return Loaded(model, card, path, RunFolder(inside) if (inside / "config.yaml").is_file() else None)


def require_named(data: str | None) -> str:
    """The name of the data. Raises UsageError where none is given."""
    if data is None:
        raise UsageError("no data to evaluate on", "--data", "give a folder, .csv, .parquet, or digits")
    return data


_SIDE = 224  # px: what most third-party networks are made for


def is_other(word: str) -> bool:
    """Whether a word names no weights or run, but timm:NAME, FILE.py:NAME or package.module:NAME."""
    home, colon, name = word.rpartition(":")
    if not colon or hub.is_reference(word) or Path(word).exists():
        return False
    return name.isidentifier() or home == "timm"


def load_other(
    word: str,
    data: str | None,
    *,
    arguments: str = "",
    size: int | None = None,
    device: str = "auto",
    on_bad: OnBad = "error",
    table: TableOptions | None = None,
) -> Loaded:
    """A network as its code makes it, in eval mode, with the classes of the data it will be studied on.

    Args:
        word: as `analysis.subject.find_subject` takes it. timm's get as many outputs as the data have classes, unless
            `arguments` say otherwise.
        data: where the classes are read from.
        arguments: for what makes it, "pretrained=True" among them.
        size: side of the images it is shown, px; None takes timm's own word, else 224.
        on_bad, table: as for `open_source`.

    Raises:
        UsageError: no data, no such network, or it does not give one number per class for such images.
        DataError: as `open_source` says.
    """
    source = open_source(require_named(data), cut=False, on_bad=on_bad, table=table)
    classes = source.classes
    is_timm = word.startswith("timm:")
    if is_timm and "num_classes" not in arguments:
        arguments = ", ".join(filter(None, (arguments, f"num_classes={len(classes)}")))
    model = find_subject(word, arguments).eval().to(pick_device(device))
    preprocess = _preprocess(model, size, is_timm=is_timm)
    _try(model, word, preprocess.size, len(classes))
    card = Card(model=word, classes=classes, preprocess=preprocess.to_dict())
    return Loaded(model, card, Path(word), None, source)


def _preprocess(model: nn.Module, size: int | None, *, is_timm: bool) -> Preprocess:
    """How images become inputs: as timm has it, else resized and scaled to -1..1."""
    if not is_timm:
        return Preprocess(size=size or _SIDE)
    config: dict[str, Any] = sys.modules["timm"].data.resolve_model_data_config(model)
    side = size or int(config["input_size"][-1])
    colours = {name: tuple(config[name]) for name in ("mean", "std")}
    values = {"size": side, "crop": config["crop_pct"], **colours, "resize": CROP_MODES.get(config["crop_mode"])}
    return Preprocess.from_dict(values)


def _try(model: nn.Module, word: str, side: int, classes: int) -> None:
    """Raise UsageError unless the model gives (2, classes) for two images."""
    first = next(model.parameters(), None)
    if first is None:
        raise UsageError("has no parameters", show(word), "name a network")
    x = torch.zeros(2, 3, side, side, device=first.device)
    try:
        with torch.inference_mode(), evaluating(model):
            given = model(x)
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise UsageError(
            f"does not run on (2, 3, {side}, {side}) ({reason})", show(word), "give another --image-size or --with"
        ) from error
    if not isinstance(given, Tensor) or given.shape != (2, classes):
        shape = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise UsageError(
            f"gives {shape} for two images, and the data have {classes} classes",
            show(word),
            f'make it with as many outputs: --with "num_classes={classes}"',
        )

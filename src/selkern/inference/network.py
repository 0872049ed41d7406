"""Networks that lie in no weights file of ours, made ready to be studied: timm's, and classes of the user's own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from selkern.convert.subject import preprocess_of
from selkern.data import LARGEST_IMAGE
from selkern.data.decode import show
from selkern.data.preprocess import Preprocess
from selkern.data.sources import Source, open_source
from selkern.data.split import OnBad
from selkern.data.table_options import TableOptions
from selkern.errors import CheckpointError, SelkernError, UsageError, first_line, ran_out_of_memory
from selkern.evaluation import device_of
from selkern.models.weights import Card, is_exported, require_not_exported
from selkern.runtimes.network import ExportedNetwork
from selkern.train.distributed import pick_device
from selkern.train.network import bare, open_network
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


def at_size(loaded: Loaded, size: int | None, crop: float | None) -> Loaded:
    """The same weights shown images of another size, or cut out otherwise; None leaves either as it is.

    Args:
        size: side of the input, px.
        crop: share of each side of the resized image that is kept, as `Preprocess.crop`.

    Raises:
        UsageError: a size or a crop that cannot be, or a network that takes no images of that size.
    """
    if size is None and crop is None:
        return loaded
    before = loaded.preprocess
    if size is not None and size > LARGEST_IMAGE:
        raise UsageError(f"image_size is {size}", "--image-size", f"must be at most {LARGEST_IMAGE}")
    try:
        now = replace(before, size=before.size if size is None else size, crop=before.crop if crop is None else crop)
    except UsageError as error:
        flag = {"Preprocess.crop": "--eval-crop"}.get(error.where, "--image-size")
        raise UsageError(error.what, flag, error.fix) from error
    if now.size != before.size:
        probe = torch.zeros(1, 3, now.size, now.size, device=device_of(loaded.model))
        try:
            with torch.inference_mode():
                loaded.model(probe)
        except (RuntimeError, ValueError, SelkernError) as error:  # of a fixed size, or too small for its strides
            if ran_out_of_memory(error):
                raise
            reason = error.what if isinstance(error, SelkernError) else first_line(error)[:120]
            fix = f"give another size, or leave it out: {before.size} px"
            raise UsageError(f"takes no images of {now.size} px ({reason})", "--image-size", fix) from error
    return replace(loaded, card=replace(loaded.card, preprocess=now.to_dict()))


def load(given: str, device: str = "auto", code: str = "", *, exported: bool = False) -> Loaded:
    """Weights by run or file, on a device, in eval mode.

    Args:
        code: the user's own code that makes the network, where the weights name such: it is run only if named here.
        exported: whether a file of `selkern export` will do, which is computed by its own runtime.

    Raises:
        UsageError: the weights' network is made by code that is not named.
        CheckpointError: not found, damaged, or without a description of the preprocessing.
    """
    if is_exported(given):
        if not exported:
            require_not_exported(given)
        return _load_exported(given, device)
    path = find_weights(given)
    network, card = open_network(path, code)
    model = network.eval().to(pick_device(device), memory_format=torch.channels_last)  # type: ignore[call-overload]
    require_preprocess(card, path)
    return Loaded(model, card, path, _run_around(path))


def _run_around(path: Path) -> RunFolder | None:
    """The run that a file lies in, as RUN/weights/best.safetensors and RUN/exports/RUN.onnx do."""
    inside = path.resolve().parent.parent
    return RunFolder(inside) if (inside / "config.yaml").is_file() else None


def _load_exported(given: str, device: str) -> Loaded:
    """A file of `selkern export`, computed by its own runtime on the CPU."""
    if device not in ("auto", "cpu"):
        raise UsageError("exported networks run on the CPU here", f"--device {device}", "leave it out")
    network = ExportedNetwork(given)
    if network.card is None:
        raise CheckpointError("the file does not say how to prepare images", show(given), "make it by selkern export")
    require_preprocess(network.card.network, network.path)
    return Loaded(network.eval(), network.card.network, network.path, _run_around(network.path))


def require_named(data: str | None) -> str:
    """The name of the data. Raises UsageError where none is given."""
    if data is None:
        raise UsageError("no data to evaluate on", "--data", "give a folder, .csv, .parquet, or digits")
    return data


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
    preprocess = preprocess_of(word, size)
    model = bare(word, len(classes), preprocess.size, arguments).eval().to(pick_device(device))
    card = Card(model=word, classes=classes, preprocess=preprocess.to_dict())
    return Loaded(model, card, Path(word), None, source)

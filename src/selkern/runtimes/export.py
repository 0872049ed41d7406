"""`export`: a network as a file of another runtime, which is compared with the PyTorch network before it is kept."""

from __future__ import annotations

import copy
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from selkern.data.preprocess import Preprocess
from selkern.deploy.fold import fold
from selkern.errors import UsageError
from selkern.io import cannot_write, require_new, sync_folder
from selkern.models.backbone import Backbone
from selkern.models.weights import Card, numbered
from selkern.runtimes.files import BATCH, PACKAGES, RUNNABLE, ExportCard, beside, format_of, need, write_card
from selkern.runtimes.graph import Graph, quiet, write
from selkern.runtimes.network import as_entering
from selkern.runtimes.quantize import Int8, quantise
from selkern.runtimes.trial import TOLERANCE, Comparison, Trial, require_any_size, require_resized
from selkern.selection.record import find_units


def export(
    model: nn.Module,
    path: str | Path,
    *,
    example: Tensor | None = None,
    images: Tensor | None = None,
    labels: Tensor | None = None,
    int8: Int8 | None = None,
    card: Card | None = None,
    dynamic_size: bool = False,
    selections: bool = False,
    with_preprocessing: bool = False,
    compiled: bool = False,
    tolerance: float = TOLERANCE,
) -> Comparison:
    """Write a network as .onnx, .xml (OpenVINO), .pt2 (torch.export) or .pte (ExecuTorch), with its norms folded.

    It takes any number of images at once, a .pte one.

    The file is written elsewhere first, loaded by its own runtime and compared with `model` on `images`; only then it
    takes its place, with a `.json` of the same card beside it. Classes, preprocessing and source are in both.

    Args:
        model: a classifier, (N, C, H, W) to (N, K): ours, one that `selectify` changed, or a third-party one. It is
            left as it is.
        path: a new file; its suffix is the format.
        example: a batch of two images or more that the model takes; networks with a card or of `create_model` need
            none.
        images: what to compare on, normalised; by default `example`. Give real ones: random images are no test of
            classes.
        labels: (N,) their classes; with them the comparison has accuracies.
        int8: how to quantise weights and activations; None keeps float32. Of .onnx and .xml.
        card: what goes with the file; by default the model's own.
        dynamic_size: take images of any height and width too, where the network does.
        selections: give what every selective-kernel unit chose, (N, M, C), as further outputs.
        with_preprocessing: take uint8 images (N, H, W, 3) of any size, and resize, crop and normalise them in the graph
            as `Preprocess` does.
        compiled: a .pt2 of machine code for this kind of processor (AOTInductor), which needs a C++ compiler.
        tolerance: largest difference of the float32 logits, as a share of the largest, at which the file is kept.

    Returns:
        The comparison.

    Raises:
        UsageError: a file that exists already, another suffix, a model that gives no logits, or one that cannot be
            traced.
        PackageError: a package of the format is missing.
        NumericsError: the file does not compute what the model does, or int8 costs more accuracy than allowed; none is
            written.
        ResourceError: the disk is full.

    Example:
        >>> import selkern
        >>> model = selkern.create_model("sknet_mini", weights="digits")
        >>> selkern.export(model, "digits.onnx").agreement  # doctest: +SKIP
        1.0
    """
    path = Path(path)
    _require_possible(path, int8, compiled, dynamic_size or with_preprocessing)
    card = card or getattr(model, "card", None)
    preprocess = Preprocess.from_dict(card.preprocess) if card is not None and card.preprocess else None
    if with_preprocessing and preprocess is None:
        raise UsageError("the model has no preprocessing", "with_preprocessing", "give card=, or leave it out")
    x = example_of(model, example, card, preprocess)
    shown = x if images is None else images_like(x, images, dynamic_size)
    inside = preprocess if with_preprocessing else None
    if inside is not None and x.shape[1] != 3:
        raise UsageError(f"images of {x.shape[1]} channels", "with_preprocessing", "it is of three: leave it out")
    model = copy.deepcopy(model).cpu().float().eval()
    trial = Trial.of(model, shown, None if labels is None else torch.as_tensor(labels), inside)
    if card is not None and len(card.classes) != trial.logits.shape[1]:
        what = f"{len(card.classes)} classes, and the model gives {trial.logits.shape[1]} numbers an image"
        raise UsageError(what, "card", "give the card of this network")
    graph = _graph(model, x, selections, inside)
    with staging(path) as folder:
        staged = folder / path.name
        write(graph, as_entering(x, inside), staged, dynamic_size=dynamic_size, compiled=compiled)
        result = trial.compare(path, staged, tolerance)
        if inside is not None:
            require_resized(path, staged, graph)
        elif dynamic_size:
            require_any_size(path, staged, model, shown, tolerance)
        if int8 is not None:
            entering = replace(int8, calibration=as_entering(int8.calibration, inside))
            with quiet():
                quantise(staged, entering, trial.entering, trial.labels, trial.logits.argmax(1))
            result = trial.compare(path, staged, math.inf, int8.max_drop, int8.min_agreement)
        size: tuple[int | str, ...] = ("height", "width") if dynamic_size else tuple(x.shape[2:])
        batch = 1 if format_of(path) == "executorch" else BATCH
        described = ExportCard(
            network=card or Card(model=type(model).__name__, classes=numbered(trial.logits.shape[1])),
            images=(batch, "height", "width", 3) if with_preprocessing else (batch, x.shape[1], *size),
            outputs=graph.outputs,
            layout="NHWC" if with_preprocessing else "NCHW",
            int8=int8 is not None,
            compared=result.figures(),
        )
        write_card(staged, described)
        install(folder, path)
    return result


def _require_possible(path: Path, int8: Int8 | None, compiled: bool, any_size: bool) -> None:
    """Raise unless a file of this name can be made."""
    kind = format_of(path)
    weights = [path.with_suffix(".bin")] if kind == "openvino" else []
    for file in (path, beside(path), *weights):
        require_new(file, "path")
    if int8 is not None and not isinstance(int8, Int8):
        raise UsageError(f"int8 is {int8!r}", "int8", "give Int8(calibration=images)")
    if int8 is not None and path.suffix not in RUNNABLE:
        raise UsageError("int8 is of ONNX and OpenVINO", str(path), "give .onnx or .xml")
    if compiled and kind != "pt2":
        raise UsageError("compiled is of torch.export", str(path), "give .pt2")
    if any_size and kind == "executorch":
        raise UsageError("ExecuTorch plans its memory for images of one size", str(path), "give .onnx, .xml or .pt2")
    for package in (*PACKAGES[kind], *(["nncf"] if int8 is not None else [])):
        need(package, f"export to {path.name}")


def example_of(model: nn.Module, example: Tensor | None, card: Card | None, preprocess: Preprocess | None) -> Tensor:
    """Two images to trace a model with. Raises UsageError where their size is not known."""
    if example is not None:
        if not isinstance(example, Tensor) or example.ndim != 4 or len(example) < 2:
            shape = tuple(example.shape) if isinstance(example, Tensor) else type(example).__name__
            raise UsageError(f"example is {shape}", "export", "give a tensor (N, C, H, W), N >= 2")
        return example.detach().cpu().float()
    if preprocess is None and not isinstance(model, Backbone):
        raise UsageError("the size of the images is not known", "export", "give example=a batch of two images")
    side: int = preprocess.size if preprocess is not None else model.arch.input_size  # type: ignore[union-attr, assignment]
    channels = int(getattr(model, "in_chans", 3 if card is None else card.in_chans))
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))


def images_like(x: Tensor, images: Tensor, any_size: bool) -> Tensor:
    """Images to compare on. Raises UsageError for a shape that the file would not take."""
    if not isinstance(images, Tensor) or images.ndim != 4 or not len(images):
        shape = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise UsageError(f"images are {shape}", "images", "give a tensor (N, C, H, W)")
    same = images.shape[1] == x.shape[1] if any_size else images.shape[1:] == x.shape[1:]
    if not same:
        what = f"images are {tuple(images.shape[1:])}, the example {tuple(x.shape[1:])}"
        raise UsageError(what, "images", "give images of the example's size, or dynamic_size=True")
    return images.detach().cpu().float()


def _graph(model: nn.Module, x: Tensor, selections: bool, preprocess: Preprocess | None) -> Graph:
    """What is exported of a model: a folded copy."""
    network = fold(model, example=x, micro_batch=None)
    units = list(find_units(network.net).values()) if selections else []
    if selections and not units:
        raise UsageError("no selective-kernel unit in it", type(model).__name__, "leave selections out")
    return Graph(network, units, preprocess).eval()


@contextmanager
def staging(path: Path) -> Iterator[Path]:
    """A folder beside a file that is going to be made, gone afterwards. Raises ResourceError where the disk is full."""
    folder = None
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        yield folder
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def install(folder: Path, path: Path) -> None:
    """Move what was staged into place: the file itself last, so that it is never there without the rest."""
    for file in sorted(folder.iterdir(), key=lambda file: file.name == path.name):
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
        file.replace(path.with_name(file.name))
    sync_folder(path.parent)

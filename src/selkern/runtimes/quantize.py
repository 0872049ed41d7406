"""int8: weights and activations of an exported network quantised after training, by NNCF, with control of accuracy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selkern.errors import UsageError, first_line
from selkern.runtimes.files import format_of, need
from selkern.runtimes.network import function_of

_BATCH = 32
LEAST = 16  # images: of fewer, the ranges of activations are those of single images


@dataclass(frozen=True, kw_only=True)
class Int8:
    """How a network is quantised.

    Attributes:
        calibration: (n, C, H, W) images that the ranges of activations are taken from, normalised: some hundred of
            those it was trained on, and none that it is tested on.
        max_drop: how much top-1 on the compared images may fall, as a share. Where it falls by more, operators are
            left in float, those that cost most first, until it does not.
        min_agreement: share of the compared images for which the likeliest class must stay the same; operators are left
            in float for that too, and top-1 is then only checked. 0 asks for none.
    """

    calibration: Tensor
    max_drop: float = 0.005
    min_agreement: float = 0.0

    def __post_init__(self) -> None:
        if len(self.calibration) < LEAST:
            what = f"{len(self.calibration)} images to calibrate with, fewer than {LEAST}"
            raise UsageError(what, "calibration", "give some hundred images of the training split")
        if not 0 <= self.max_drop <= 1:
            raise UsageError(f"max_drop is {self.max_drop}", "max_drop", "give a share from 0 to 1")
        if not 0 <= self.min_agreement <= 1:
            raise UsageError(f"min_agreement is {self.min_agreement}", "min_agreement", "give a share from 0 to 1")


def quantise(path: Path, int8: Int8, images: Tensor, labels: Tensor, answers: Tensor) -> None:
    """Replace an exported float file by one with int8 operators.

    Args:
        path: .onnx or .xml, written in place.
        images: (n, C, H, W) to control the accuracy on, as the file takes them.
        labels: (n,) of these.
        answers: (n,) what the PyTorch network says of them.

    Raises:
        UsageError: NNCF cannot quantise it.
        PackageError: NNCF is missing.
    """
    nncf = need("nncf", f"int8 of {path.name}")
    nncf.set_log_level(40)
    model, name = _opened(path)
    arrays = [image[None].contiguous().numpy() for image in int8.calibration]
    items = [{name: array} for array in arrays] if format_of(path) == "onnx" else arrays
    dataset = nncf.Dataset(items)
    drop = int8.max_drop
    if int8.min_agreement:
        labels, drop = answers, 1 - int8.min_agreement
    want = (answers == labels).double().mean().item()
    try:
        quantised = nncf.quantize(model, dataset, subset_size=len(items))
        if _top1(quantised, images, labels) < want - drop:
            control = nncf.Dataset(list(zip(images, labels, strict=True)), lambda pair: pair)
            quantised = nncf.quantize_with_accuracy_control(
                model,
                calibration_dataset=dataset,
                validation_dataset=control,
                validation_fn=_right,
                max_drop=drop,
                drop_type=nncf.DropType.ABSOLUTE,
                subset_size=len(items),
            )
    except Exception as error:
        what = f"NNCF cannot quantise it ({first_line(error)[:200]})"
        raise UsageError(what, path.name, "export it without int8") from error
    _save(path, quantised)


def _opened(path: Path) -> tuple[Any, str]:
    """The network as NNCF takes it, and the name of its input."""
    if format_of(path) == "onnx":
        proto = need("onnx", path.name).load(str(path))
        return proto, str(proto.graph.input[0].name)
    network = need("openvino", path.name).Core().read_model(str(path))
    return network, str(network.inputs[0].get_any_name())


def _save(path: Path, model: Any) -> None:
    if format_of(path) == "onnx":
        need("onnx", path.name).save(model, str(path))
    else:
        path.with_suffix(".bin").unlink(missing_ok=True)
        need("openvino", path.name).save_model(model, str(path), compress_to_fp16=False)


def _top1(model: Any, images: Tensor, labels: Tensor) -> float:
    """Of a network of NNCF's that is in no file yet."""
    return _right(model, zip(images, labels, strict=True))[0]


def _right(model: Any, pairs: Iterable[tuple[Tensor, Tensor]]) -> tuple[float, list[float]]:
    """What NNCF's accuracy control asks: top-1 on some of the images, and whether each is right."""
    run, each = function_of(model), []
    items = iter(pairs)
    while part := list(itertools.islice(items, _BATCH)):
        images, labels = (torch.stack(column) for column in zip(*part, strict=True))
        each += (torch.from_numpy(run(images.numpy())[0]).argmax(1) == labels).float().tolist()
    return (sum(each) / len(each) if each else math.nan), each

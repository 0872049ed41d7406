"""Weights of others into a file of ours: timm's SK networks, the authors' Caffe models, plain state dicts.

The only place that opens a pickle, and only as torch's restricted loader does: tensors and plain containers, no code.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from selkern.data.preprocess import Preprocess
from selkern.errors import CheckpointError, UsageError
from selkern.models import skresnet
from selkern.models.registry import architecture
from selkern.models.weights import Card, require_fit, save_weights

# What timm evaluates its SK networks with, and nearly everybody else.
IMAGENET = Preprocess(size=224, crop=0.875, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))

# Caffe's custom: 0 to 255, no division, these means. The authors' own are nowhere written down.
CAFFE = Preprocess(size=224, crop=0.875, mean=(123 / 255, 117 / 255, 104 / 255), std=(1 / 255,) * 3)


def convert(source: Path, target: Path, model: str, *, classes: tuple[str, ...] | None = None) -> Card:
    """Read `source` as weights of `model` and write them as a file that describes itself.

    Args:
        source: `.safetensors`, a torch `.pth`/`.pt`/`.bin` (restricted loading), or a `.caffemodel`; with our
            names, with timm's for its SK networks, or in the authors' order for Caffe. A Caffe file does not
            tell its colours: BGR and Caffe's customary means are assumed, and said on the card.
        target: the `.safetensors` file to write; never one that exists.
        model: architecture name.
        classes: names of the outputs; None numbers them.

    Returns:
        The card of the new file.

    Raises:
        UsageError: the target exists, or the number of class names is not the number of outputs.
        CheckpointError: the source cannot be read, or is of another architecture.
    """
    row = architecture(model)
    if target.exists() or target.suffix != ".safetensors":
        raise UsageError("the target must be a new .safetensors file", str(target), "give another name")
    if not source.is_file():
        raise CheckpointError("no such file", str(source), "check the path")
    caffe = source.suffix == ".caffemodel"
    state = _from_caffe(source, model) if caffe else _from_torch(source, model)
    if "fc.weight" not in state or "fc.bias" not in state:
        raise CheckpointError("the classifier fc is missing", str(source), f"give weights of {model}")
    outputs = len(state["fc.weight"])
    names = classes or tuple(str(number) for number in range(outputs))
    if len(names) != outputs:
        raise UsageError(f"{len(names)} class names for {outputs} outputs", "--classes", f"give {outputs}")
    with torch.device("meta"):  # names and shapes are all that is asked of it
        expected = row.build(outputs, 3, False).state_dict()
    require_fit(state, expected, str(source), f"give weights of {model}")
    notes = {"assumed": "BGR images with Caffe's customary means; the stem was turned to RGB"} if caffe else {}
    card = Card(
        model=model,
        classes=names,
        preprocess=replace(CAFFE if caffe else IMAGENET, size=row.input_size).to_dict(),
        source={"converted from": source.name, **notes},
    )
    save_weights(target, state, card)
    return card


def _from_caffe(source: Path, model: str) -> dict[str, Tensor]:
    from selkern.models.caffe import from_caffe, read_caffemodel

    state = from_caffe(read_caffemodel(source), model)
    # Caffe reads images as BGR, everything here as RGB.
    return {**state, "stem.0.weight": state["stem.0.weight"].flip(1)}


def _from_torch(source: Path, model: str) -> dict[str, Tensor]:
    state = _tensors(source)
    if model in skresnet.ARCHITECTURES and any(name.startswith("layer1.") for name in state):
        from selkern.models.from_timm import from_timm

        return from_timm(state, model)
    return state


def _tensors(source: Path) -> dict[str, Tensor]:
    """The state dict in a file, out of the wrappings that training programs put round it."""
    fix = "give a state dict of tensors; a file that needs code to load is not opened"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of odd pickles that it then refuses
            found: Any = load_file(source) if source.suffix == ".safetensors" else _restricted(source)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"cannot be read ({reason})", str(source), fix) from error
    for key in ("state_dict_ema", "state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
            break
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError("not a state dict of tensors", str(source), fix)
    state = {str(name).removeprefix("module."): tensor for name, tensor in found.items()}
    # How often BatchNorm was updated: some programs leave it out, and nothing here depends on it.
    counts = [name.replace("running_mean", "num_batches_tracked") for name in state if name.endswith("running_mean")]
    return {**{name: torch.zeros((), dtype=torch.int64) for name in counts}, **state}


def _restricted(source: Path) -> Any:
    return torch.load(source, map_location="cpu", weights_only=True)

"""State dicts of others: torch files and safetensors opened, timm's SK networks under our names.

The only place that opens a pickle, and only as torch's restricted loader does: tensors and plain containers, no code.
"""

from __future__ import annotations

import json
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
from selkern.errors import CheckpointError
from selkern.models import hub, skresnet
from selkern.models.from_timm import from_timm
from selkern.models.weights import Card, numbered

# What timm evaluates its SK networks with, and nearly everybody else.
IMAGENET = Preprocess(size=224, crop=0.875, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def read_state(source: Path, model: str) -> dict[str, Tensor]:
    """The tensors of a torch or safetensors file, under our names where timm's of its SK networks are recognised.

    Raises:
        CheckpointError: the file cannot be read, holds something else, or is of another network of timm's.
    """
    state = _tensors(source)
    return from_timm(state, model) if model in skresnet.ARCHITECTURES and _is_timm(state) else state


def read_timm(path: Path, name: str | None) -> tuple[Card, dict[str, Tensor]] | None:
    """A file of timm's as one of ours would be read: its card and its tensors under our names.

    Args:
        path: a safetensors file without our card.
        name: the network; None takes what the `config.json` beside it tells.

    Returns:
        None for a file that is not of one of timm's SK networks.

    Raises:
        CheckpointError: the file cannot be read, or is of another network.
    """
    told = _config(path).get("architecture")
    model = told if told in skresnet.ARCHITECTURES else name
    if model not in skresnet.ARCHITECTURES or not _is_timm(state := _tensors(path)):
        return None
    state = from_timm(state, model)
    preprocess, notes = preparation(path, model, skresnet.ARCHITECTURES[model].input_size)
    card = Card(
        model=model,
        classes=numbered(len(state.get("fc.weight", ()))),
        preprocess=preprocess.to_dict(),
        source={"converted from": hub.origin(path), **notes},
    )
    return card, state


def preparation(path: Path, model: str, size: int) -> tuple[Preprocess, dict[str, str]]:
    """How images are prepared for weights of others, and what is to be noted of it on their card.

    As the `config.json` that timm puts beside its weights tells, where there is one for this model; else as nearly
    everybody does for ImageNet, at `size` px.

    Raises:
        CheckpointError: a config.json that cannot be read.
    """
    usual = replace(IMAGENET, size=size).to_dict()
    config = _config(path)
    given = config.get("pretrained_cfg")
    if config.get("architecture") != model or not isinstance(given, dict):
        return Preprocess.from_dict(usual), {}
    names = {"crop": "crop_pct", "mean": "mean", "std": "std"}
    told = {ours: given[theirs] for ours, theirs in names.items() if theirs in given}
    try:
        _, height, width = given.get("input_size", (3, size, size))
        if height != width:
            raise ValueError(f"input_size {height} x {width} px is not square")
        preprocess = Preprocess.from_dict({**usual, **told, "size": height})
    except (TypeError, ValueError) as error:
        raise _unreadable(path, error) from error
    way = given.get("interpolation", "bicubic")
    return preprocess, {} if way == "bicubic" else {"resized by timm": f"{way}; here always bicubic"}


def _config(path: Path) -> dict[str, Any]:
    """The config.json beside a model.safetensors, as in repositories of the Hub; empty without one."""
    file = path.with_name(hub.CONFIG)
    if path.name != hub.WEIGHTS or not file.is_file():
        return {}
    try:
        config = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    return config if isinstance(config, dict) else {}


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    reason = str(error).replace(" | ", ": ")
    return CheckpointError(
        f"{hub.CONFIG} cannot be read ({reason})", str(path.with_name(hub.CONFIG)), "mend or remove it"
    )


def _is_timm(state: Mapping[str, Tensor]) -> bool:
    return any(name.startswith("layer1.") for name in state)


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

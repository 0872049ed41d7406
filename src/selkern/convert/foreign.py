"""State dicts of others: torch files and safetensors opened, timm's SK networks under our names.

The only place that opens a pickle, and only as torch's restricted loader does: tensors and plain containers, no code.
What it asks for is looked through before: torch allows a few calls that make any amount of memory out of a few bytes.
"""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selkern.convert import hub
from selkern.convert.timm import from_timm
from selkern.data.preprocess import Preprocess
from selkern.errors import CheckpointError
from selkern.models import skresnet
from selkern.models.weights import Card, numbered, read_tensors

# What timm evaluates its SK networks with, and nearly everybody else.
IMAGENET = Preprocess(size=224, crop=0.875, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
# timm's names of the ways to make an image square, and ours.
CROP_MODES = {"center": "crop", "squash": "squash", "border": "pad"}

_CONFIG_BYTES, _PICKLE_BYTES = 1 << 20, 16 << 20  # of a config.json, of the part of a torch file that is a pickle
# All that a state dict is made of.
_NAMES = re.compile(
    r"collections OrderedDict|_codecs encode|(__builtin__|builtins) set|torch Size|torch device|torch \w+Storage"
    r"|torch\.storage (Untyped|Typed)Storage|torch\._utils _rebuild_(tensor(_v[23])?|parameter(_with_state)?)"
    r"|torch (b?float\w+|half|double|u?int\d+|long|short|char|bool|complex\d+)|torch\.nn\.parameter Parameter"
    r"|torch\.serialization _get_layout"
)
_CALLS = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "DUP"}  # torch writes none
_TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
_SHARED_TUPLES = 20  # torch writes none; tuples of tuples of tuples take 2^n steps where they are a key


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
        name: the network; None takes what the `config.json` beside it says.

    Returns:
        None for a file that is not of one of timm's SK networks.

    Raises:
        CheckpointError: the file cannot be read, or is of another network.
    """
    named = _config(path).get("architecture")
    model = named if isinstance(named, str) and named in skresnet.ARCHITECTURES else name
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
    """How images are prepared for third-party weights, and what is to be noted of it on their card.

    As the `config.json` that timm puts beside its weights says, where there is one for this model; else as nearly
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
    known = {ours: given[theirs] for ours, theirs in names.items() if theirs in given}
    known["resize"] = CROP_MODES.get(given.get("crop_mode") or "center")
    try:
        _, height, width = given.get("input_size", (3, size, size))
        if height != width:
            raise ValueError(f"input_size {height} x {width} px is not square")
        preprocess = Preprocess.from_dict({**usual, **known, "size": height})
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
        if file.stat().st_size > _CONFIG_BYTES:
            raise ValueError(f"larger than {_CONFIG_BYTES:,} bytes")
        config = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
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
            result: Any = read_tensors(source) if source.suffix == ".safetensors" else _restricted(source)
    except CheckpointError:
        raise
    except Exception as error:  # a broken pickle makes its loader raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"cannot be read ({reason})", str(source), fix) from error
    for key in ("state_dict_ema", "state_dict", "model"):
        if isinstance(result, Mapping) and isinstance(result.get(key), Mapping):
            result = result[key]
            break
    if not isinstance(result, Mapping) or not all(isinstance(k, str) and _is_plain(v) for k, v in result.items()):
        raise CheckpointError("not a state dict of tensors", str(source), fix)
    state = {name.removeprefix("module."): tensor for name, tensor in result.items()}
    # How often BatchNorm was updated: some programs leave it out, and nothing here depends on it.
    counts = [name.replace("running_mean", "num_batches_tracked") for name in state if name.endswith("running_mean")]
    return {**{name: torch.zeros((), dtype=torch.int64) for name in counts}, **state}


def _is_plain(value: Any) -> bool:
    """Whether this is a tensor whose every number is in the file: not one number repeated a billion times."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.device.type != "cpu":
        return False
    if value.is_quantized or value.is_nested:
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _restricted(source: Path) -> Any:
    for pickled in _pickles(source):
        _require_plain(pickled)
    return torch.load(source, map_location="cpu", weights_only=True)


def _pickles(source: Path) -> Iterator[bytes]:
    """The pickles of a torch file: of its archive, or those at its start if it is of the old kind.

    Raises:
        UnpicklingError: an archive that unpacks to more than it is, or a pickle that is too large.
    """
    size = source.stat().st_size
    with source.open("rb") as file:
        if not zipfile.is_zipfile(file):
            file.seek(0)
            start = io.BytesIO(file.read(_PICKLE_BYTES))
            for _ in range(5):  # magic number, version, system, the state dict, the names of its storages
                before = start.tell()
                for _ in pickletools.genops(start):
                    pass
                yield start.getvalue()[before : start.tell()]
            return
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            unpacked = sum(entry.file_size for entry in entries)
            if unpacked > size or len({entry.filename for entry in entries}) < len(entries):  # torch packs nothing
                raise pickle.UnpicklingError(f"its archive unpacks to {unpacked:,} bytes, the file has {size:,}")
            for entry in entries:
                if entry.filename.endswith(".pkl"):
                    if entry.file_size > _PICKLE_BYTES:
                        raise pickle.UnpicklingError(f"{entry.filename} has {entry.file_size:,} bytes")
                    yield archive.read(entry)


def _require_plain(pickled: bytes) -> None:
    """Raise UnpicklingError where a pickle asks for anything that no state dict is made of."""
    last, tuples, shared = "", set[Any](), 0
    for code, value, _ in pickletools.genops(pickled):
        if code.name in _CALLS or (code.name == "GLOBAL" and not _NAMES.fullmatch(str(value))):
            asked = f" {value}" if isinstance(value, str) else ""
            raise pickle.UnpicklingError(f"it asks for {code.name}{asked}"[:200])
        if code.name in ("BINPUT", "LONG_BINPUT", "PUT") and last in _TUPLES:
            tuples.add(value)
        shared += code.name in ("BINGET", "LONG_BINGET", "GET") and value in tuples
        if shared > _SHARED_TUPLES:
            raise pickle.UnpicklingError("it has tuples within tuples without end")
        last = code.name

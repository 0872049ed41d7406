"""The state of a run on disk: one folder per checkpoint, whole or absent, and checked when it is read.

    state/step-000123/{model,optimizer[,ema]}.safetensors   tensors by name
                      progress.json                          where the run stands
                      manifest.json                          size and SHA-256 of each of the above, written last
    state/LAST                                               name of the newest, and its manifest's SHA-256

A folder is written beside its place, synced and renamed, so a kill leaves the previous states untouched. The newest two
are kept: where one is damaged, the other is taken.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from selkern.errors import CheckpointError, ResourceError
from selkern.io import sync_folder, write_atomic

_SMALL = 64 << 20  # bytes; no list of numbers or names of ours comes near it


@dataclass(frozen=True)
class State:
    """What a run needs to go on: named groups of tensors, and plain numbers."""

    tensors: Mapping[str, Mapping[str, Tensor]]
    progress: Mapping[str, Any]


@dataclass(frozen=True)
class Found:
    """A state that was read.

    Attributes:
        state: what it holds.
        folder: where it lies.
        damaged: why newer ones could not be taken, a line for each.
    """

    state: State
    folder: Path
    damaged: tuple[str, ...]


def save_state(root: Path, step: int, state: State) -> Path:
    """Write a state as `root/step-...`, point LAST to it, and drop all but it and the one before.

    Raises:
        ResourceError: the disk is full or not writable; the states before are untouched.
    """
    files = {f"{group}.safetensors": _encode(tensors) for group, tensors in state.tensors.items()}
    files["progress.json"] = json.dumps(state.progress, indent=1).encode()
    entries = {file: {"bytes": len(data), "sha256": _digest(data)} for file, data in files.items()}
    files["manifest.json"] = _as_json(entries)
    try:
        return _write(root, f"step-{step:06d}", files)
    except OSError as error:
        fix = "free space or choose another folder"
        raise ResourceError(f"cannot write ({error.strerror})", str(root), fix) from error


def _write(root: Path, name: str, files: Mapping[str, bytes]) -> Path:
    root.mkdir(exist_ok=True)
    before = pointed_to(root)
    for leftover in root.glob(".*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)
    while (root / name).exists():  # the same step again, as at an epoch's end: LAST may point there, so it stays
        name += "b"
    staged = root / f".{name}.tmp"
    staged.mkdir()
    for file, data in files.items():
        write_atomic(staged / file, data)
    target = root / name
    os.rename(staged, target)  # noqa: PTH104 - the atomic step, named as such
    sync_folder(root)
    write_atomic(root / "LAST", _pointer(name, files["manifest.json"]))
    for old in root.glob("step-*"):
        if old.name not in (before, name):
            shutil.rmtree(old, ignore_errors=True)
    return target


def _pointer(name: str, manifest: bytes) -> bytes:
    return f"{name} {_digest(manifest)}\n".encode()


def pointed_to(root: Path) -> str:
    """Name of the folder that LAST points to; empty where it points to none."""
    try:
        words = (root / "LAST").read_bytes()[:1000].decode("ascii").split()
    except (OSError, ValueError):
        return ""
    name = words[0] if words else ""
    return name if name.startswith("step-") and (root / Path(name).name).is_dir() else ""


def load_state(root: Path, largest: int = 1 << 40) -> Found:
    """The newest state of a run that is as it was written: every file is checked against its SHA-256.

    Args:
        largest: bytes that a file of tensors may have; a larger one is not read.

    Raises:
        CheckpointError: there is none, or none that is sound.
    """
    pointer, first = root / "LAST", pointed_to(root)
    damaged: list[str] = []
    others = sorted(root.glob("step-*"), key=lambda folder: (len(folder.name.rstrip("b")), folder.name), reverse=True)
    if not others:
        raise CheckpointError("no saved state to resume from", str(root), "start the run anew")
    for name in dict.fromkeys([*filter(None, [first]), *(folder.name for folder in others)]):
        try:
            state, manifest = _read(root / name, largest)
        except CheckpointError as error:
            damaged.append(f"{error.where}: {error.what}")
            continue
        # No pointer at all is what a kill before the first one was written leaves.
        if not damaged and pointer.is_file() and pointer.read_bytes() != _pointer(name, manifest):
            damaged.append(f"{pointer}: differs from what was written")
        return Found(state, root / name, tuple(damaged))
    fix = "start anew, with --weights from the run's weights/"
    raise CheckpointError(f"no saved state is sound ({damaged[0]})", str(root), fix)


def point_to(folder: Path) -> None:
    """Make LAST point to a state, as after newer ones were found damaged: the next save then keeps it."""
    write_atomic(folder.parent / "LAST", _pointer(folder.name, (folder / "manifest.json").read_bytes()))


def _read(folder: Path, largest: int) -> tuple[State, bytes]:
    """A state, and its manifest as it lies there."""
    try:
        raw = _read_file(folder / "manifest.json", _SMALL)
        manifest = json.loads(raw)
        if raw != _as_json(manifest):
            raise _differs(folder / "manifest.json")
        data = {}
        for file, entry in manifest.items():
            path = folder / Path(file).name
            data[file] = _read_file(path, _SMALL if file.endswith(".json") else largest)
            if len(data[file]) != entry["bytes"] or _digest(data[file]) != entry["sha256"]:
                raise _differs(path)
        groups = {file.removesuffix(".safetensors"): load(data[file]) for file in data if file.endswith(".safetensors")}
        return State(groups, json.loads(data["progress.json"])), raw
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"cannot be read ({error})", str(folder), "the state is damaged") from error


def _read_file(path: Path, largest: int) -> bytes:
    if path.stat().st_size > largest:
        raise CheckpointError("larger than it can be", str(path), "the state is damaged")
    return path.read_bytes()


def _differs(path: Path) -> CheckpointError:
    return CheckpointError("differs from what was written", str(path), "the state is damaged")


def _as_json(value: Any) -> bytes:
    return json.dumps(value, indent=1).encode()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _encode(tensors: Mapping[str, Tensor]) -> bytes:
    return save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimizer's state as flat tensors, `{parameter number}.{name}`; its settings come from the recipe."""
    return {
        f"{number}.{name}": value
        for number, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

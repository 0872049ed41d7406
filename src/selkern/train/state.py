"""The state of a run on disk: one folder per checkpoint, whole or absent, and checked when it is read.

    state/step-000123/{model,optimizer[,ema]}.safetensors   tensors by name
                      progress.json                          where the run stands
                      manifest.json                          SHA-256 of each of the above, written last
    state/LAST                                               name of the newest

A folder is written beside its place, synced and renamed, so a kill leaves the previous state untouched.
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
from selkern.files import sync_folder, write_atomic


@dataclass(frozen=True)
class State:
    """What a run needs to go on: named groups of tensors, and plain numbers."""

    tensors: Mapping[str, Mapping[str, Tensor]]
    progress: Mapping[str, Any]


def save_state(root: Path, step: int, state: State) -> Path:
    """Write a state as `root/step-...`, point LAST to it, and drop all but it and the one before.

    Raises:
        ResourceError: the disk is full or not writable; the states before are untouched.
    """
    files = {f"{group}.safetensors": _encode(tensors) for group, tensors in state.tensors.items()}
    files["progress.json"] = json.dumps(state.progress, indent=1).encode()
    manifest = {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}
    files["manifest.json"] = json.dumps(manifest, indent=1).encode()
    try:
        return _write(root, f"step-{step:06d}", files)
    except OSError as error:
        fix = "free space or choose another folder"
        raise ResourceError(f"cannot write ({error.strerror})", str(root), fix) from error


def _write(root: Path, name: str, files: Mapping[str, bytes]) -> Path:
    pointer = root / "LAST"
    before = pointer.read_text().strip() if pointer.is_file() else ""
    root.mkdir(exist_ok=True)
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
    write_atomic(pointer, name)
    for old in root.glob("step-*"):
        if old.name not in (before, name):
            shutil.rmtree(old, ignore_errors=True)
    return target


def load_state(root: Path) -> State:
    """The newest state of a run, every file checked against its SHA-256.

    Raises:
        CheckpointError: there is none, or a file is missing or differs from what was written.
    """
    pointer = root / "LAST"
    if not pointer.is_file():
        raise CheckpointError("no saved state to resume from", str(root), "start the run anew")
    folder = root / pointer.read_text(errors="replace").strip()
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        data = {file: (folder / file).read_bytes() for file in manifest}
        for file, digest in manifest.items():
            if hashlib.sha256(data[file]).hexdigest() != digest:
                raise CheckpointError("differs from what was written", str(folder / file), "the file is damaged")
        groups = {file.removesuffix(".safetensors"): load(data[file]) for file in data if file.endswith(".safetensors")}
        return State(groups, json.loads(data["progress.json"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"cannot be read ({error})", str(folder), "the state is damaged") from error


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

"""`record`: see the selection of every selective-kernel unit without touching the model.

A forward hook on each softmax over branches is all it takes; weights, outputs and gradients stay as they are.
Units are found in our own models and layers, in timm's SK models, and in any module that follows the pattern of the
circulating code: a list of convolutions, one per branch, beside an `nn.Softmax`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from selkern.layers.gate import Gate, Selection


@dataclass(frozen=True)
class UnitInfo:
    """One selective-kernel unit of a model.

    Attributes:
        name: path of its module in the model.
        label: the paper's way to call it, SK_3_4 for the fourth unit of stage 3 (the stem is stage 1), with the last
            part of its name where a block has several; the name where the path names no stage.
        extents: side of the window each branch sees, in the unit's input positions; empty if unknown.
        axis: of the branches in what its softmax gives; the images' is the other one of the first two.
    """

    name: str
    label: str
    extents: tuple[int, ...]
    axis: int = 1

    @property
    def ordered(self) -> bool:
        """Whether its branches see windows of different sizes, so that one can be called the larger."""
        return len(set(self.extents)) > 1

    def canonical(self, output: Tensor) -> Tensor:
        """What the softmax gave, as (N, M, C)."""
        a = output if self.axis == 1 else output.movedim(self.axis, 1)
        return a.flatten(2) if a.ndim > 3 else a

    def as_given(self, a_NMC: Tensor, output: Tensor) -> Tensor:
        """The inverse of `canonical`, in the shape of what the softmax gave."""
        shape = output.shape if self.axis == 1 else output.movedim(self.axis, 1).shape
        a = a_NMC.reshape(shape)
        return a if self.axis == 1 else a.movedim(1, self.axis)


def label_of(path: str) -> str:
    """SK_3_4 for `stages.1.3.mixer` (ours) or `layer2.3.conv2` (timm, torchvision); else the path."""
    if result := re.search(r"(?:^|\.)stages\.(\d+)\.(\d+)(?:\.|$)", path):
        return f"SK_{int(result[1]) + 2}_{int(result[2]) + 1}"
    if result := re.search(r"(?:^|\.)layer(\d+)\.(\d+)(?:\.|$)", path):
        return f"SK_{int(result[1]) + 1}_{int(result[2]) + 1}"
    return path


_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _extents(branches: Iterable[nn.Module]) -> tuple[int, ...]:
    """Side of the window of each branch, by its first convolution; empty where one has none."""
    convs = [next((m for m in branch.modules() if isinstance(m, _CONVS)), None) for branch in branches]
    return tuple((conv.kernel_size[0] - 1) * conv.dilation[0] + 1 for conv in convs if conv is not None)


def _branches(owner: nn.Module) -> tuple[int, ...]:
    """Extents of the branches that a module holds beside its softmax: its first list of two or more convolutions."""
    for child in owner.children():
        if isinstance(child, nn.ModuleList) and len(child) > 1 and len(extents := _extents(child)) == len(child):
            return extents
    return ()


def as_written(model: nn.Module) -> nn.Module:
    """A model that torch.compile has wrapped, without its wrapper; any other as it is."""
    inside = getattr(model, "_orig_mod", None)
    return inside if isinstance(inside, nn.Module) else model


@contextmanager
def hooked(model: nn.Module, hooks: Iterable[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    """Within the block some modules of a model have forward hooks.

    Compiled code passes hooks by, so a model that torch.compile has wrapped runs as it was written meanwhile.
    """
    handles = [module.register_forward_hook(hook) for module, hook in hooks]
    eager = nullcontext() if as_written(model) is model else torch.compiler.set_stance("force_eager")
    try:
        with eager:
            yield
    finally:
        for handle in handles:
            handle.remove()


def find_units(model: nn.Module) -> dict[str, tuple[UnitInfo, nn.Module]]:
    """Every selective-kernel unit of a model by name, with the module whose output is its selection."""
    units: dict[str, tuple[UnitInfo, nn.Module]] = {}
    modules = dict(as_written(model).named_modules())
    for path, module in modules.items():
        if isinstance(module, Selection):
            owner = path.rpartition(".")[0]
            if isinstance(modules[owner], Gate):  # which belongs to the layer around it
                owner = owner.rpartition(".")[0]
            extents = tuple(getattr(modules[owner], "extents", ()))
        elif type(module).__name__ == "SelectiveKernelAttn":  # timm, which we do not import
            owner = path.rpartition(".")[0]
            extents = _extents(modules[owner].paths)
        elif isinstance(module, nn.Softmax) and module.dim in (0, 1):
            owner = path.rpartition(".")[0]
            extents = _branches(modules[owner])
            if not extents:
                continue
        else:
            continue
        name = owner or type(modules[owner]).__name__
        axis = module.dim or 0 if isinstance(module, nn.Softmax) else 1
        units[name] = (UnitInfo(name, label_of(name), extents, axis), module)
    seen = Counter(unit.label for unit, _ in units.values())
    return {
        name: (replace(unit, label=f"{unit.label}_{name.rpartition('.')[2]}") if seen[unit.label] > 1 else unit, module)
        for name, (unit, module) in units.items()
    }


class Selections(Mapping[str, Tensor]):
    """What `record` gives: unit name to the selection (N, M, C) of the latest forward pass, detached."""

    def __init__(self, units: Mapping[str, UnitInfo]) -> None:
        self.units = dict(units)
        self._latest: dict[str, Tensor] = {}

    def keep(self, name: str, output: Tensor) -> None:
        """Store one unit's selection as (N, M, C)."""
        self._latest[name] = self.units[name].canonical(output.detach())

    def __getitem__(self, name: str) -> Tensor:
        return self._latest[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._latest)

    def __len__(self) -> int:
        return len(self._latest)


@contextmanager
def record(model: nn.Module) -> Iterator[Selections]:
    """Within the block, every forward pass of `model` leaves its selections in the mapping that this gives.

    Yields:
        `Selections`: unit name to a (N, M, C), the softmax weights of the latest pass, detached, on the
        model's device. `.units` has each unit's label and the window of each of its branches. A model
        without selective-kernel units gives an empty mapping. A model that torch.compile has wrapped runs
        uncompiled within the block: compiled code passes hooks by.

    Example:
        >>> import torch, selkern
        >>> model = selkern.create_model("sknet_mini", num_classes=10).eval()
        >>> with selkern.record(model) as selection:
        ...     logits = model(torch.randn(4, 3, 48, 48))
        >>> {name: tuple(a.shape) for name, a in selection.items()}["stages.0.0.mixer"]
        (4, 2, 32)
    """
    result = find_units(model)
    selections = Selections({name: unit for name, (unit, _) in result.items()})

    def hook_for(name: str) -> Any:
        return lambda _module, _inputs, output: selections.keep(name, output)

    with hooked(model, [(module, hook_for(name)) for name, (_, module) in result.items()]):
        yield selections

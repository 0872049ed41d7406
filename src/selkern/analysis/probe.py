"""`record`: see the selection of every selective-kernel unit without touching the model.

A forward hook on each softmax over branches is all it takes; weights, outputs and gradients stay as they are.
Units are found in our own models and layers, and in timm's SK models.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from selkern.layers.gate import Gate, Selection


@dataclass(frozen=True)
class UnitInfo:
    """One selective-kernel unit of a model.

    Attributes:
        name: path of its module in the model.
        label: the paper's way to call it, SK_3_4 for the fourth unit of stage 3 (the stem is stage 1);
            the name where the path tells no stage.
        extents: side of the window each branch sees, in the unit's input positions; empty if unknown.
    """

    name: str
    label: str
    extents: tuple[int, ...]

    @property
    def ordered(self) -> bool:
        """Whether its branches see windows of different sizes, so that one can be called the larger."""
        return len(set(self.extents)) > 1


def label_of(path: str) -> str:
    """SK_3_4 for `stages.1.3.mixer` (ours) or `layer2.3.conv2` (timm, torchvision); else the path."""
    if found := re.search(r"(?:^|\.)stages\.(\d+)\.(\d+)(?:\.|$)", path):
        return f"SK_{int(found[1]) + 2}_{int(found[2]) + 1}"
    if found := re.search(r"(?:^|\.)layer(\d+)\.(\d+)(?:\.|$)", path):
        return f"SK_{int(found[1]) + 1}_{int(found[2]) + 1}"
    return path


def _timm_extents(unit: nn.Module) -> tuple[int, ...]:
    convs = [next(m for m in path.modules() if isinstance(m, nn.Conv2d)) for path in unit.paths]  # type: ignore[union-attr]
    return tuple((conv.kernel_size[0] - 1) * conv.dilation[0] + 1 for conv in convs)


def find_units(model: nn.Module) -> dict[str, tuple[UnitInfo, nn.Module]]:
    """Every selective-kernel unit of a model by name, with the module whose output is its selection."""
    units: dict[str, tuple[UnitInfo, nn.Module]] = {}
    modules = dict(model.named_modules())
    for path, module in modules.items():
        if isinstance(module, Selection):
            owner = path.rpartition(".")[0]
            if isinstance(modules[owner], Gate):  # which belongs to the layer around it
                owner = owner.rpartition(".")[0]
            extents = tuple(getattr(modules[owner], "extents", ()))
        elif type(module).__name__ == "SelectiveKernelAttn":  # timm, which we do not import
            owner = path.rpartition(".")[0]
            extents = _timm_extents(modules[owner])
        else:
            continue
        name = owner or type(modules[owner]).__name__
        units[name] = (UnitInfo(name, label_of(name), extents), module)
    return units


class Selections(Mapping[str, Tensor]):
    """What `record` gives: unit name to the selection (N, M, C) of the latest forward pass, detached."""

    def __init__(self, units: Mapping[str, UnitInfo]) -> None:
        self.units = dict(units)
        self._latest: dict[str, Tensor] = {}

    def keep(self, name: str, output: Tensor) -> None:
        """Store one unit's selection; timm's (N, M, C, 1, 1) loses its last two axes."""
        self._latest[name] = output.detach().flatten(2) if output.ndim > 3 else output.detach()

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
        model's device. `.units` tells each unit's label and the window of each of its branches. A model
        without selective-kernel units gives an empty mapping.

    Example:
        >>> import torch, selkern
        >>> model = selkern.create_model("sknet_mini", num_classes=10).eval()
        >>> with selkern.record(model) as selection:
        ...     logits = model(torch.randn(4, 3, 48, 48))
        >>> {name: tuple(a.shape) for name, a in selection.items()}["stages.0.0.mixer"]
        (4, 2, 32)
    """
    found = find_units(model)
    selections = Selections({name: unit for name, (unit, _) in found.items()})

    def hook_for(name: str) -> Any:
        return lambda _module, _inputs, output: selections.keep(name, output)

    handles = [module.register_forward_hook(hook_for(name)) for name, (_, module) in found.items()]
    try:
        yield selections
    finally:
        for handle in handles:
            handle.remove()

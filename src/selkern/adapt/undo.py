"""`deselectify`: the network as it was before `selectify` and `insert`, as long as training has not moved it."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from selkern.adapt.exact import duplicate
from selkern.adapt.insert import Inserted, is_zero, take_out
from selkern.adapt.unit import SelectiveConv, is_untouched
from selkern.errors import UsageError

Model = TypeVar("Model", bound=nn.Module)


def deselectify(model: Model, *, inplace: bool = False) -> Model:
    """The network without its selective kernels, bit for bit as it was: names, weights, results.

    Args:
        model: what `selectify` or `insert` gave, or a network around it.
        inplace: change the model itself instead of a copy.

    Raises:
        UsageError: no such unit; or one that has been trained, and can no longer be left out. The model is left as it
            was.

    Example:
        >>> import torch, selkern
        >>> model, x = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()), torch.randn(2, 3, 8, 8)
        >>> selective = selkern.selectify(model, example=x, where="0")
        >>> selkern.deselectify(selective)
        Sequential(
          (0): Conv2d(3, 8, kernel_size=(3, 3), stride=(1, 1))
          (1): ReLU()
        )
    """
    _check(model)
    target = model if inplace else duplicate(model)
    for name, module in list(target.named_modules()):
        if isinstance(module, SelectiveConv):
            _restore(target, name, module)
    for name, module in list(target.named_modules()):
        if isinstance(module, Inserted):
            take_out(target, name, module)
    return target  # type: ignore[return-value]


def _check(model: nn.Module) -> None:
    units = {n: m for n, m in model.named_modules() if isinstance(m, (SelectiveConv, Inserted))}
    kind = type(model).__name__
    if not units:
        raise UsageError("holds no selective kernels of selectify or insert", kind, "there is nothing to undo")
    moved = [n for n, m in units.items() if not (is_untouched(m) if isinstance(m, SelectiveConv) else is_zero(m))]
    if moved:
        what = f"{len(moved)} of {len(units)} selective kernels have been trained: without them it is another network"
        raise UsageError(what, f"{kind}: {', '.join(moved[:3])}", "keep them; selkern.fold makes it fast")
    for name, module in units.items():
        if isinstance(module, SelectiveConv) and not f".{name}".endswith(f".{module.origin.conv}"):
            what = f"was made as {module.origin.conv}: the places of its norm and activation are not known"
            raise UsageError(what, name, "give the network that selectify gave, or one around it")


def _restore(model: nn.Module, name: str, unit: SelectiveConv) -> None:
    """Put the convolution, the norm and the activation of a unit back where they were."""
    around = name[: len(name) - len(unit.origin.conv)]
    parts = ((unit.origin.conv, unit.conv), (unit.origin.norm, unit.norm), (unit.origin.act, unit.act))
    for place, part in parts:
        if place is not None:
            parent, _, last = f"{around}{place}".rpartition(".")
            model.get_submodule(parent)._modules[last] = part

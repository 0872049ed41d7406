"""`deselectify`: the network as it was before `selectify` and `insert`, as long as training has not moved it."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from selkern.adapt.exact import check_flags, duplicate, not_a_network
from selkern.adapt.folded import FoldedBranches, FoldedSum
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
        UsageError: no such unit; a folded network; or a unit that has been trained, and can no longer be left out. The
            model is left as it was.

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
    check_flags("deselectify", inplace=inplace)
    _check(model)
    copied = duplicate(model)
    _undo(copied)  # on a copy first: a place that is not known leaves the model as it was
    if not inplace:
        return copied  # type: ignore[return-value]
    _undo(model)
    return model


def _check(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise not_a_network(model)
    # By name, as selkern.deploy, which holds that class, is not needed otherwise.
    if any(isinstance(m, (FoldedBranches, FoldedSum)) or type(m).__name__ == "Folded" for m in model.modules()):
        what = "is folded, which cannot be undone: the norms are gone into the convolutions"
        raise UsageError(what, type(model).__name__, "keep the network that was folded, and undo that one")
    units = {n: m for n, m in model.named_modules() if isinstance(m, (SelectiveConv, Inserted))}
    kind = type(model).__name__
    if not units:
        raise UsageError("holds no selective kernels of selectify or insert", kind, "there is nothing to undo")
    moved = [n for n, m in units.items() if not (is_untouched(m) if isinstance(m, SelectiveConv) else is_zero(m))]
    if moved:
        what = f"{len(moved)} of {len(units)} selective kernels have been trained: without them it is another network"
        raise UsageError(what, f"{kind}: {', '.join(moved[:3])}", "keep them; selkern.fold makes it fast")


def _undo(model: nn.Module) -> None:
    """Put everything back: units that have their names, insertions, and units that have their names without those."""
    _restore_units(model)
    while inserted := [(name, module) for name, module in model.named_modules() if isinstance(module, Inserted)]:
        take_out(model, *inserted[-1])
    _restore_units(model)
    left = [(name, module) for name, module in model.named_modules() if isinstance(module, SelectiveConv)]
    for name, unit in left:
        what = f"was made as {unit.origin.conv}: the places of its norm and activation are not known"
        raise UsageError(what, name, "give the network that selectify gave, or one around it")


def _restore_units(model: nn.Module) -> None:
    for name, module in list(model.named_modules()):
        if isinstance(module, SelectiveConv) and f".{name}".endswith(f".{module.origin.conv}"):
            _restore(model, name, module)


def _restore(model: nn.Module, name: str, unit: SelectiveConv) -> None:
    """Put the convolution, the norm and the activation of a unit back where they were."""
    around = name[: len(name) - len(unit.origin.conv)]
    parts = ((unit.origin.conv, unit.conv), (unit.origin.norm, unit.norm), (unit.origin.act, unit.act))
    for place, part in parts:
        if place is not None:
            parent, _, last = f"{around}{place}".rpartition(".")
            model.get_submodule(parent)._modules[last] = part

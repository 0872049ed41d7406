"""`param_groups`: what was there, and what `selectify` and `insert` have added, for an optimizer."""

from __future__ import annotations

from typing import Any

from torch import nn

from selkern.adapt.exact import not_a_network
from selkern.adapt.insert import Inserted
from selkern.adapt.unit import SelectiveConv
from selkern.errors import UsageError


def param_groups(
    model: nn.Module, lr: float, *, new_lr_factor: float = 0.1, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Parameter groups of a changed network for an optimizer of torch.

    Args:
        model: what `selectify` or `insert` gave; of any other network everything was there.
        lr: learning rate of what was there, the copies of its norms included.
        new_lr_factor: that of the further branches' convolutions, of the gates and of inserted modules is
            lr * new_lr_factor. At 1, short fine-tunings may lose by kernels that move as far as the trained ones do
            (docs/log.md).
        weight_decay: of weights with two axes or more; norms, biases and gamma have none.

    Returns:
        Groups with `params`, `lr`, `weight_decay` and `name` ("there", "there, not decayed", "new", "new, not
        decayed"); none is empty. Parameters that need no gradient are in none.

    Raises:
        UsageError: no network; a number below 0, or none; or no parameter that needs a gradient.

    Example:
        >>> import torch, selkern
        >>> model, x = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()), torch.randn(2, 3, 8, 8)
        >>> selective = selkern.selectify(model, example=x, where="0")
        >>> groups = selkern.param_groups(selective, lr=0.1, new_lr_factor=0.5)
        >>> [(group["name"], group["lr"]) for group in groups]
        [('there', 0.1), ('there, not decayed', 0.1), ('new', 0.05), ('new, not decayed', 0.05)]
        >>> optimizer = torch.optim.SGD(groups, momentum=0.9)
    """
    if not isinstance(model, nn.Module):
        raise not_a_network(model)
    for name, value in (("lr", lr), ("new_lr_factor", new_lr_factor), ("weight_decay", weight_decay)):
        if not _is_at_least_zero(value):
            raise UsageError(f"{name} must be a number of at least 0, got {value!r}", "param_groups")
    new = new_parameters(model)
    groups: list[dict[str, Any]] = []
    for added in (False, True):
        for decayed in (True, False):
            params = [
                p for p in model.parameters() if p.requires_grad and (p in new) == added and (p.ndim > 1) == decayed
            ]
            if params:
                name = f"{'new' if added else 'there'}{'' if decayed else ', not decayed'}"
                rate, decay = lr * (new_lr_factor if added else 1.0), weight_decay if decayed else 0.0
                groups.append({"params": params, "lr": rate, "weight_decay": decay, "name": name})
    if not groups:
        raise UsageError("no parameter needs a gradient", type(model).__name__, "call requires_grad_() first")
    return groups


def _is_at_least_zero(value: Any) -> bool:
    try:
        return bool(value >= 0)
    except (TypeError, RuntimeError):  # what has no order, or more than one number
        return False


def new_parameters(model: nn.Module) -> set[nn.Parameter]:
    """The parameters that were not there before `selectify` or `insert`."""
    new: set[nn.Parameter] = set()
    for module in model.modules():
        if isinstance(module, SelectiveConv):
            new.update(module.gate.parameters())
            for branch in module.further:
                new.update(branch.get_submodule("conv").parameters())
        elif isinstance(module, Inserted):
            new.update(module.parameters())
    return new

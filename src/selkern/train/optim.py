"""The optimizer and the moving average of a recipe."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from selkern.train.recipe import Recipe


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD or AdamW over three groups: decayed weights; norms and biases without decay; the classifier's bias.

    Each group keeps its factor on the recipe's learning rate as `lr_factor`.
    """
    head_bias = getattr(getattr(model, "fc", None), "bias", None)
    parameters = [p for p in model.parameters() if p.requires_grad and p is not head_bias]
    groups = [
        {
            "params": [p for p in parameters if p.ndim > 1],
            "weight_decay": recipe.weight_decay,
            "lr_factor": 1.0,
        },
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0, "lr_factor": 1.0},
    ]
    if head_bias is not None:
        groups.append({"params": [head_bias], "weight_decay": 0.0, "lr_factor": recipe.bias_lr})
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum)
    return torch.optim.AdamW(groups, lr=recipe.lr)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its share of the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def make_ema(model: nn.Module, recipe: Recipe) -> AveragedModel | None:
    """The moving average of weights and BatchNorm statistics, if the recipe wants one."""
    if not recipe.ema:
        return None
    average = get_ema_multi_avg_fn(recipe.ema)  # type: ignore[no-untyped-call]
    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)

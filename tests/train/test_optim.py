"""The groups of the optimizer, their shares of the learning rate, and the moving average."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from selkern.models.registry import create_model
from selkern.train.recipe import Recipe
from selkern.train.step import make_ema, make_optimizer, set_lr


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("name", ["sknet_mini", "seresnet_mini", "resnet_mini"])
def test_every_parameter_is_in_the_one_group_it_belongs_to(name: str, kind: str) -> None:
    model = create_model(name, num_classes=3)
    recipe = Recipe(optimizer=kind, weight_decay=0.3, bias_lr=2.0)  # type: ignore[arg-type]
    optimizer = make_optimizer(model, recipe)
    owners = {id(m_p): module for module in model.modules() for m_p in module.parameters(recurse=False)}
    grouped = [(id(p), group) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(number for number, _ in grouped) == sorted(id(p) for p in model.parameters())
    decays = (nn.Conv2d, nn.Linear)
    for name_, parameter in model.named_parameters():
        group = next(g for number, g in grouped if number == id(parameter))
        is_weight = isinstance(owners[id(parameter)], decays) and name_.endswith("weight")
        assert group["weight_decay"] == (0.3 if is_weight else 0.0), name_
        assert group["lr_factor"] == (2.0 if name_ == "fc.bias" else 1.0), name_
        assert group.get("momentum", 0.9) == 0.9
        assert not group.get("nesterov", False)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_the_classifiers_bias_steps_by_its_factor(kind: str) -> None:
    """One plain step of each parameter, computed by hand."""
    model = nn.Module()
    model.conv, model.fc = nn.Conv2d(2, 3, 1), nn.Linear(3, 2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, Recipe(optimizer=kind, bias_lr=2.0, weight_decay=0.5))  # type: ignore[arg-type]
    set_lr(optimizer, 0.1)
    for p in model.parameters():
        p.grad = torch.full_like(p, 0.25)
    optimizer.step()
    for name, p in model.named_parameters():
        rate = 0.2 if name == "fc.bias" else 0.1
        decay = 0.5 if name.endswith("weight") else 0.0
        if kind == "sgd":
            expected = before[name] - rate * (0.25 + decay * before[name])
        else:  # the first step of Adam is the sign of the gradient; the decay is apart from it
            expected = before[name] * (1 - rate * decay) - rate
        torch.testing.assert_close(p.detach(), expected, rtol=1e-5, atol=1e-6)


def test_parameters_without_gradient_are_left_out() -> None:
    model = create_model("sknet_mini", num_classes=2)
    model.stem.requires_grad_(False)
    frozen = {id(p) for p in model.stem.parameters()}
    assert not frozen & {id(p) for g in make_optimizer(model, Recipe()).param_groups for p in g["params"]}


def test_without_decay_there_is_no_average() -> None:
    assert make_ema(nn.Linear(2, 2), Recipe(ema=0.0)) is None

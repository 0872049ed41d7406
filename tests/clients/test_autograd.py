"""torch's own tools around autograd: transforms, higher derivatives, parametrisations, hooks, checkpoints.

One of them: `.venv-clients/bin/python -m pytest -m exhaustive tests/clients/test_autograd.py -k vmap`.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from clients import client
from subjects import (
    FEW,
    Subject,
    assert_close,
    assert_same_gradients,
    gradients,
    images,
    loss_of,
    plain_copy,
    subjects,
    train,
)
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import prune as torch_prune
from torch.utils.checkpoint import checkpoint

Weights = dict[str, Tensor]
prune: Any = torch_prune  # whose functions have no types


def exact(subject: Subject, training: bool = True) -> tuple[Any, Any, Tensor, Tensor]:
    """In float64: a network, its plain twin, and four images with their classes."""
    model = subject().double()
    model(images(6, seed=5)[0].double())  # statistics that are not 0 and 1
    x, y = images(4)
    model.train(training)
    return model, plain_copy(model), x.double(), y


def function_of(model: nn.Module, x: Tensor, y: Tensor) -> Callable[[Weights], Tensor]:
    """The loss as a function of the weights; the norms' statistics are put back at each call."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def loss(weights: Weights) -> Tensor:
        kept = {name: buffer.clone() for name, buffer in buffers.items()}
        return nn.functional.cross_entropy(functional_call(model, (weights, kept), (x,)), y)

    return loss


def weights_of(model: nn.Module) -> Weights:
    """The parameters, apart from the module."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def directions_of(model: nn.Module) -> Weights:
    """One direction per parameter, of its own size."""
    torch.manual_seed(3)
    return {name: torch.randn_like(p) * 0.1 * p.detach().abs().mean() for name, p in model.named_parameters()}


@client("torch.func.grad", "torch", "gradients of a training step as a function: those of autograd")
@subjects()
def test_functional_gradients(subject: Subject) -> None:
    model, plain, x, y = exact(subject)
    assert_same_gradients(grad(function_of(model, x, y))(weights_of(model)), gradients(plain, x, y), 1e-8)


@client("torch.func.vmap", "torch", "gradients of each image (eval mode), and an ensemble of three networks at once")
@subjects()
def test_gradients_of_each_image(subject: Subject) -> None:
    model, plain, x, y = exact(subject, training=False)

    def loss(weights: Weights, image: Tensor, label: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(model, weights, (image[None],)), label[None])

    got = vmap(grad(loss), in_dims=(None, 0, 0))(weights_of(model), x, y)
    for index in range(len(x)):
        want = gradients(plain, x[index : index + 1], y[index : index + 1])
        assert_same_gradients({name: g[index] for name, g in got.items()}, want, 1e-7)


@client("torch.func.vmap", "torch", "")
@subjects()
def test_an_ensemble(subject: Subject) -> None:
    model, _, x, _ = exact(subject, training=False)
    models = [copy.deepcopy(model) for _ in range(3)]
    with torch.no_grad():
        for index, each in enumerate(models):
            for p in each.parameters():
                p.mul_(1 + 0.1 * index)
    weights, buffers = stack_module_state(models)
    got = vmap(lambda w, b: functional_call(models[0], (w, b), (x,)))(weights, buffers)
    assert_close(got, torch.stack([each(x) for each in models]), 1e-8)


@client(
    "torch.func.jvp", "torch", "directional derivatives by forward mode, and Hessian-vector products over reverse mode"
)
@subjects()
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_jvp_and_hessian_vector_products(subject: Subject, training: bool) -> None:
    model, plain, x, y = exact(subject, training)
    weights, direction = weights_of(model), directions_of(model)
    loss = function_of(model, x, y)
    value, slope, *_ = jvp(loss, (weights,), (direction,))
    want = gradients(plain, x, y)
    assert_close(slope, sum((want[name] * direction[name]).sum() for name in want), 1e-7)
    assert_close(value, loss_of(plain, x, y), 1e-9)
    _, product, *_ = jvp(grad(loss), (weights,), (direction,))
    assert_same_gradients(product, hessian_vector(plain, x, y, direction), 1e-6)


def hessian_vector(model: nn.Module, x: Tensor, y: Tensor, direction: Weights) -> Weights:
    """By two backward passes."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    first = torch.autograd.grad(loss_of(model, x, y), parameters, create_graph=True)
    dot: Any = sum((g * direction[name]).sum() for name, g in zip(names, first, strict=True))
    return dict(zip(names, torch.autograd.grad(dot, parameters), strict=True))


@client(
    "second derivatives",
    "torch",
    "autograd.grad(create_graph=True): Hessian-vector product, a step with gradient penalty",
)
@subjects()
def test_second_derivatives(subject: Subject) -> None:
    # Of the maps of 1 x 1 that large networks end in here, the norms' second derivatives are mere rounding.
    model, plain, x, y = exact(subject, training=subject.name in FEW)
    direction = directions_of(model)
    assert_same_gradients(hessian_vector(model, x, y, direction), hessian_vector(plain, x, y, direction), 1e-7)
    penalties = []
    for each in (model, plain):
        image = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(loss_of(each, image, y), image, create_graph=True)
        torch.autograd.backward((g.flatten(1).norm(dim=1) - 1).square().mean())
        penalties.append({name: p.grad for name, p in each.named_parameters() if p.grad is not None})
    assert_same_gradients(penalties[0], penalties[1], 1e-7)


@client("forward-mode AD", "torch", "torch.autograd.forward_ad: the tangent of the logits along an image's change")
@subjects()
def test_forward_mode(subject: Subject) -> None:
    forward: Any = importlib.import_module("torch.autograd.forward_ad")

    model, plain, x, _ = exact(subject, training=subject.name in FEW)
    tangent = torch.randn_like(x)
    with forward.dual_level():
        got = forward.unpack_dual(model(forward.make_dual(x, tangent))).tangent
    step = 1e-8  # so small that few ReLU change sides
    with torch.no_grad():
        want = (plain(x + step * tangent) - plain(x - step * tangent)) / (2 * step)
    assert_close(got, want, 1e-5)


class Halved(nn.Module):
    """A parametrisation that is no identity."""

    def forward(self, weight: Tensor) -> Tensor:
        """Half the weight."""
        return weight / 2


class DropConnect(nn.Module):
    """Each weight at random, drawn anew at each evaluation."""

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with a fifth of it left out."""
        return weight * (torch.rand_like(weight) > 0.2)


PARAMETRISATIONS: dict[str, Callable[[nn.Module], Any]] = {
    "halved": lambda conv: parametrize.register_parametrization(conv, "weight", Halved()),
    "dropconnect": lambda conv: parametrize.register_parametrization(conv, "weight", DropConnect()),
    "spectral_norm": parametrizations.spectral_norm,
    "weight_norm": parametrizations.weight_norm,
    "old_weight_norm": torch.nn.utils.weight_norm,
    "old_spectral_norm": torch.nn.utils.spectral_norm,
}


@client(
    "torch.nn.utils.parametrize",
    "torch",
    "spectral_norm, weight_norm, DropConnect on every convolution: right gradients",
)
@subjects(FEW)
@pytest.mark.parametrize("kind", PARAMETRISATIONS)
def test_gradients_of_parametrised_convolutions_are_those_of_differences(subject: Subject, kind: str) -> None:
    model = subject().double()
    for module in [*model.modules()]:
        if isinstance(module, nn.Conv2d):
            PARAMETRISATIONS[kind](module)
            module.eval()  # spectral norms: no further steps of their power iteration, which no gradient knows
    x, y = images(4)
    x = x.double()
    state = copy.deepcopy(model.state_dict())

    def loss(step: float, direction: Weights) -> Tensor:
        model.load_state_dict(state)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.add_(direction[name], alpha=step)
        torch.manual_seed(11)
        return loss_of(model, x, y)

    direction = directions_of(model)
    step = 1e-8  # so small that few ReLU change sides
    slope = (loss(step, direction).item() - loss(-step, direction).item()) / (2 * step)
    names, parameters = zip(*model.named_parameters(), strict=True)
    got = torch.autograd.grad(loss(0, direction), parameters)
    assert sum((g * direction[n]).sum().item() for n, g in zip(names, got, strict=True)) == pytest.approx(
        slope, rel=1e-4
    )


@client("torch.nn.utils.prune", "torch", "prunes half of each convolution's weights, trains, makes it permanent")
@subjects(FEW)
def test_pruned_convolutions_train_and_stay_pruned(subject: Subject) -> None:
    model, plain = subject(), Subject(subject.name, "plain")()  # which torch cannot copy once they are pruned
    for module in [*model.modules(), *plain.modules()]:
        if isinstance(module, nn.Conv2d):
            prune.l1_unstructured(module, "weight", amount=0.5)
    x, y = images(4)
    assert_same_gradients(gradients(model, x, y), gradients(plain, x, y), 1e-3)
    losses = train(model)
    assert losses[-1] < losses[0]
    for conv in [module for module in model.modules() if isinstance(module, nn.Conv2d)]:
        prune.remove(conv, "weight")
        assert (conv.weight == 0).float().mean() >= 0.45


@client(
    "torch.utils.checkpoint",
    "torch",
    "a step with the network in a checkpoint, of either kind: the same gradients and norms",
)
@subjects()
@pytest.mark.parametrize("reentrant", [False, True], ids=["new", "reentrant"])
def test_checkpoint(subject: Subject, reentrant: bool) -> None:
    model = subject()
    plain, (x, y) = plain_copy(model), images(4)
    x.requires_grad_()
    got = checkpoint(model, x, use_reentrant=reentrant)
    torch.autograd.backward(nn.functional.cross_entropy(got, y))
    assert_same_gradients({n: p.grad for n, p in model.named_parameters()}, gradients(plain, x, y), 1e-3)


@client(
    "saved_tensors_hooks", "torch", "save_on_cpu, and hooks that keep what autograd saves as bytes: the same gradients"
)
@subjects()
def test_saved_tensors_hooks(subject: Subject) -> None:
    model = subject()
    plain, (x, y) = plain_copy(model), images(4)
    want, packed = gradients(plain, x, y), []

    def pack(tensor: Tensor) -> tuple[bytes, torch.dtype, torch.Size]:
        packed.append(tensor.numel())
        return tensor.detach().contiguous().numpy().tobytes(), tensor.dtype, tensor.shape

    def unpack(kept: tuple[bytes, torch.dtype, torch.Size]) -> Tensor:
        return torch.frombuffer(bytearray(kept[0]), dtype=kept[1]).view(kept[2])

    with torch.autograd.graph.save_on_cpu():
        assert_same_gradients(gradients(model, x, y), want, 1e-3)
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        assert_same_gradients(gradients(model, x, y), want, 1e-3)
    assert packed


@client(
    "torch.optim.swa_utils",
    "torch",
    "averages weights over steps, then update_bn's cumulative statistics: those of plain",
)
@subjects(FEW)
def test_averaged_weights_and_update_bn(subject: Subject) -> None:
    from torch.optim.swa_utils import AveragedModel, update_bn

    result = []
    for model in (subject(), plain_copy(subject())):
        averaged = AveragedModel(model)
        for _ in range(3):
            train(model, steps=2)
            averaged.update_parameters(model)
        update_bn([images(6, seed=s)[0] for s in range(3)], averaged)
        result.append(averaged.eval()(images(3)[0]))
    assert_close(result[0], result[1], 1e-2)


@client("forward hooks", "torch", "a hook on every module, containers too: each fires, and the gradients are plain's")
@subjects()
def test_hooks_fire_on_every_module(subject: Subject) -> None:
    model = subject()
    plain, (x, y) = plain_copy(model), images(4)
    waiting = {n for n, m in model.named_modules() if not isinstance(m, (nn.ModuleList, nn.Identity))}
    for name, module in model.named_modules():
        module.register_forward_hook(lambda *_, name=name: waiting.discard(name))
    assert_same_gradients(gradients(model, x, y), gradients(plain, x, y), 1e-3)
    assert not waiting

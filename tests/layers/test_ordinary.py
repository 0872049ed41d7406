"""Our layers and networks under other people's tools: parametrised weights, tracers, derivatives of any kind, hooks.

Each test runs every layer, and one network of each kind, in each memory mode.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.autograd import forward_ad
from torch.nn.utils import parametrizations, parametrize

from selkern import MLPAttention, SelectiveKernel, SKAttention, SKFusion, create_model, set_memory
from selkern.layers.gate import Selection
from selkern.layers.memory import Memory
from selkern.models.skresnet import SplitSelectiveKernel
from selkern.ops.spectral.plan import worthwhile

# torch's own rules for forward mode are written in it.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

MEMORY: tuple[Memory, ...] = ("plain", "default", "lean")


class Fusing(nn.Module):
    """A `SKFusion` of three maps made of one."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(3))
        self.fusion = SKFusion(8, branches=3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fusion([conv(x) for conv in self.convs])


# What makes the module, and an input of two images.
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "SelectiveKernel1d": (lambda: SelectiveKernel(8, groups=2, dims=1), (2, 8, 9)),
    "SelectiveKernel": (lambda: SelectiveKernel(8, 12, groups=2, stride=2), (2, 8, 7, 6)),
    "SelectiveKernel3d": (lambda: SelectiveKernel(8, kernels=(1, 3, 5), groups=2, dims=3), (2, 8, 4, 3, 5)),
    "SelectiveKernel summed": (lambda: SelectiveKernel(8, groups=2, fuse="sum"), (2, 8, 7, 6)),
    "SelectiveKernel silu": (lambda: SelectiveKernel(8, groups=2, activation="silu", norm="group"), (2, 8, 7, 6)),
    "SplitSelectiveKernel": (lambda: SplitSelectiveKernel(8, 8, groups=2), (2, 8, 7, 6)),
    "SKFusion": (Fusing, (2, 8, 5, 4)),
    "SKAttention": (lambda: SKAttention(8, kernels=(1, 3, 5)), (2, 8, 5, 6)),
    "SKAttention over the batch": (lambda: SKAttention(8, kernels=(1, 3), softmax_over="batch"), (2, 8, 5, 6)),
    "MLPAttention": (lambda: MLPAttention(8, 16, 4), (2, 5, 8)),
}
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    name: (lambda name=name: create_model(name, num_classes=5), (2, 3, side, side))  # type: ignore[misc]
    for name, side in {"sknet_mini": 24, "sknet26": 33, "sk_shufflenet_v2_x05": 64, "skresnet18": 64}.items()
}
every_layer = pytest.mark.parametrize("name", LAYERS)
# Of the networks two are in the fast tests.
SLOW = [pytest.param(name, marks=pytest.mark.exhaustive) for name in ("sk_shufflenet_v2_x05", "skresnet18")]
everything = pytest.mark.parametrize("name", [*LAYERS, "sknet_mini", "sknet26", *SLOW])
every_memory = pytest.mark.parametrize("memory", MEMORY)


def make(name: str, memory: Memory = "default") -> tuple[nn.Module, Tensor]:
    """A module in float64 with gates that choose, and its input."""
    torch.manual_seed(0)
    build, shape = {**LAYERS, **NETWORKS}[name]
    module = set_memory(build().double(), memory)
    for part in module.modules():
        if isinstance(part, nn.Linear):  # gates start near the middle, where their derivatives are hardly seen
            nn.init.normal_(part.weight, std=0.5)
    return module, torch.randn(shape, dtype=torch.float64)


def assert_same(got: Iterable[Tensor], want: Iterable[Tensor], tolerance: float = 1e-9) -> None:
    """The same, as a share of the largest value of each; what is 0 but for rounding has no size of its own."""
    pairs = list(zip(got, want, strict=True))
    largest = max(other.abs().max().item() for _, other in pairs)
    for one, other in pairs:
        scale = max(other.abs().max().item(), 1e-6 * largest)
        torch.testing.assert_close(one, other, rtol=0, atol=tolerance * scale)


def gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    """Those of x and every parameter, of a loss that is no multiple of the output."""
    x = x.clone().requires_grad_()
    trained = [p for p in module.parameters() if p.requires_grad]
    return list(torch.autograd.grad(module(x).sin().sum(), [x, *trained], materialize_grads=True))


class Drop(nn.Module):
    """A parametrisation that is another one at each evaluation: DropConnect."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight * torch.bernoulli(torch.full_like(weight, 0.7))


class LowRank(nn.Module):
    """What adapters put in a convolution's place: the layer, frozen, beside a trained path; none of its attributes."""

    def __init__(self, base: nn.Conv2d) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = deepcopy(base).requires_grad_(True)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 0.5 * self.down(x)


def convolutions(module: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """Every convolution, with its owner and its name there."""
    result = [(owner, name, child) for owner in module.modules() for name, child in owner.named_children()]
    return [each for each in result if isinstance(each[2], (nn.Conv1d, nn.Conv2d, nn.Conv3d))]


def parametrised(module: nn.Module, how: str) -> nn.Module:
    """The module with every convolution changed as people change them."""
    for owner, name, conv in convolutions(module):
        if how == "dropconnect":
            parametrize.register_parametrization(conv, "weight", Drop())
        elif how == "spectral_norm":
            parametrizations.spectral_norm(conv)
        elif isinstance(conv, nn.Conv2d):
            setattr(owner, name, LowRank(conv))
    return module


@pytest.mark.share(5)
@pytest.mark.parametrize(
    "how", ["dropconnect", "spectral_norm", pytest.param("low_rank", marks=pytest.mark.exhaustive)]
)
@everything
def test_parametrised_convolutions_have_the_gradients_of_plain_autograd(name: str, how: str) -> None:
    results = []
    for memory in MEMORY:
        module, x = make(name, memory)
        module = parametrised(module, how)
        torch.manual_seed(1)
        results.append(gradients(module, x))
    assert_same(results[1], results[0], 1e-7)
    assert_same(results[2], results[0], 1e-7)


def test_dropconnect_in_lean_has_the_gradient_of_finite_differences() -> None:
    model, x = make("sknet26", "lean")
    conv = model.get_submodule("stages.0.0.conv3")
    parametrize.register_parametrization(conv, "weight", Drop())

    def loss() -> Tensor:
        torch.manual_seed(3)
        out: Tensor = model.eval()(x)
        return out.sin().sum()

    weight = conv.get_parameter("parametrizations.weight.original")
    (gradient,) = torch.autograd.grad(loss(), weight)
    direction, step = torch.randn_like(weight), 1e-8
    ends = []
    with torch.no_grad():
        for way in (step, -2 * step):
            weight.add_(direction, alpha=way)
            ends.append(loss().item())
    assert (gradient * direction).sum().item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-4)


@pytest.mark.share(5)
@everything
@pytest.mark.parametrize("memory", MEMORY[1:])
def test_second_derivatives_are_those_of_plain_autograd(name: str, memory: Memory) -> None:
    results = []
    for kind in ("plain", memory):
        module, x = make(name, kind)
        x.requires_grad_()
        parameters = [x, *module.parameters()]
        first = torch.autograd.grad(module(x).sin().sum(), parameters, create_graph=True, materialize_grads=True)
        penalty = torch.stack([g.square().sum() for g in first]).sum()
        results.append(torch.autograd.grad(penalty, parameters, materialize_grads=True))
    assert_same(results[1], results[0], 1e-6)


def test_second_derivatives_are_those_of_finite_differences() -> None:
    unit, _ = make("SelectiveKernel1d")
    x = torch.randn(2, 8, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(unit, (x,))


@pytest.mark.exhaustive
def test_second_derivatives_of_convolutions_by_fourier_coefficients() -> None:
    assert worthwhile((8, 128, 20, 28), 128, (1, 3, 5, 7), training=True) is not None
    x = torch.randn(8, 128, 20, 28, dtype=torch.float64, requires_grad=True)
    module = SKAttention(128).double()
    results = []
    for memory in MEMORY[:2]:
        set_memory(module, memory)
        parameters = [x, *module.parameters()]
        first = torch.autograd.grad(module(x).sin().sum(), parameters, create_graph=True)
        results.append(torch.autograd.grad(torch.stack([g.square().sum() for g in first]).sum(), parameters))
    assert_same(results[0], results[1], 1e-6)


@pytest.mark.share(5)
@everything
@every_memory
def test_forward_mode_derivatives(name: str, memory: Memory) -> None:
    module, x = make(name, memory)
    module.eval()
    tangent = torch.randn_like(x)
    with forward_ad.dual_level():
        out = module(forward_ad.make_dual(x, tangent))  # type: ignore[no-untyped-call]
        got = forward_ad.unpack_dual(out).tangent  # type: ignore[no-untyped-call]
    cotangent = torch.randn_like(got)
    (gradient,) = torch.autograd.grad(module(x.requires_grad_()), x, cotangent)
    assert (got * cotangent).sum().item() == pytest.approx((gradient * tangent).sum().item(), rel=1e-8)


@pytest.mark.share(5)
@everything
@every_memory
def test_torch_func_gives_the_gradients_of_autograd(name: str, memory: Memory) -> None:
    module, x = make(name, memory)
    module.eval()
    parameters = {key: p.detach() for key, p in module.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(module, parameters, (x,)).sin().sum()

    got = torch.func.grad(loss)(parameters, x)
    assert_same(got.values(), gradients(module, x)[1:])
    if "over the batch" in name:  # an image alone is another function there
        return
    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, x[:, None])
    assert_same([g.sum(0) for g in each.values()], got.values(), 1e-8)


@every_layer
def test_hessians_by_torch_func(name: str) -> None:
    module, x = make(name)
    module.eval()
    x = x[:1]

    def loss(x: Tensor) -> Tensor:
        return module(x).sin().sum()

    direction = torch.randn_like(x)
    got = torch.func.jvp(torch.func.grad(loss), (x,), (direction,))[1]
    x = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(x), x, create_graph=True)
    assert_same([got], torch.autograd.grad(first, x, direction), 1e-8)


@contextmanager
def tracing() -> Iterator[None]:
    """torch.jit is deprecated, and says so. No value of ours is baked into a trace; BatchNorm bakes in its sizes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    baked = [w for w in caught if issubclass(w.category, torch.jit.TracerWarning) and "selkern" in w.filename]
    assert not baked, str(baked[0].message)


@pytest.mark.share(5)
@pytest.mark.parametrize("training", [True, False])
@everything
@every_memory
def test_a_trace_made_with_gradients_on_takes_another_batch(name: str, memory: Memory, training: bool) -> None:
    module, x = make(name, memory)
    module.train(training)
    with tracing():
        traced = torch.jit.trace(module, x, check_trace=False)  # type: ignore[no-untyped-call]
    other = torch.randn(5, *x.shape[1:], dtype=torch.float64)
    assert_same([traced(other)], [deepcopy(module)(other)])


@pytest.mark.share(5)
@everything
@every_memory
def test_symbolic_trace(name: str, memory: Memory) -> None:
    for training in (True, False):
        module, x = make(name, memory)
        module.train(training)
        traced = fx.symbolic_trace(deepcopy(module))
        other = torch.randn(5, *x.shape[1:], dtype=torch.float64)
        assert_same([traced(other)], [module(other)])


def test_symbolic_trace_of_a_fusion_alone() -> None:
    fusion = SKFusion(8).eval()
    traced, maps = fx.symbolic_trace(fusion), [torch.randn(2, 8, 5), torch.randn(2, 8, 5)]
    assert_same([traced(maps)], [fusion(maps)], 1e-6)


@pytest.mark.parametrize("kernels", [(3, 5), (1, 3, 5)])
def test_an_exported_select_is_multiplications_and_additions(kernels: tuple[int, ...]) -> None:
    unit = SelectiveKernel(8, kernels=kernels, groups=2).eval()
    program = torch.export.export(unit, (torch.randn(2, 8, 6, 6),))
    names = {str(node.target) for node in program.graph.nodes}
    assert not any("lerp" in name or "where" in name for name in names)


def test_a_hook_on_a_branch_of_the_articles_module_is_called() -> None:
    module, x = SKAttention(8), torch.randn(2, 8, 5, 6)
    want = module(x)
    backward: list[Any]
    for i, branch in enumerate(module.convs):
        seen: list[Tensor] = []
        handle = branch.register_forward_hook(lambda _m, _i, out: seen.append(out))  # noqa: B023
        got = module(x)
        handle.remove()
        assert len(seen) == 1, f"convs[{i}]"
        torch.testing.assert_close(got, want)
        backward = []
        handle = branch.register_full_backward_hook(lambda _m, _i, grads: backward.append(grads))  # noqa: B023
        module(x.requires_grad_()).sum().backward()
        handle.remove()
        assert len(backward) == 1


@pytest.mark.parametrize("name", ["SelectiveKernel", "SKAttention", "sknet_mini", "sknet26", "skresnet18"])
def test_a_loss_on_the_selections_reaches_the_branches(name: str) -> None:
    results = []
    for memory in MEMORY:
        module, x = make(name, memory)
        seen: list[Tensor] = []
        for part in module.modules():
            if isinstance(part, Selection):
                part.register_forward_hook(lambda _m, _i, a: seen.append(a))  # noqa: B023
        loss = module(x).sin().sum() + torch.stack([a.log().mean() for a in seen]).sum()
        results.append(torch.autograd.grad(loss, list(module.parameters()), materialize_grads=True))
    assert_same(results[1], results[0], 1e-7)
    assert_same(results[2], results[0], 1e-7)


def test_a_layer_whose_convolutions_were_narrowed_in_place_takes_what_they_take() -> None:
    unit, module, fusion = SelectiveKernel(8, groups=1), SKAttention(8, kernels=(1, 3)), SKFusion(8)
    for conv in [each for layer in (unit, module) for _, _, each in convolutions(layer)]:
        conv.weight, conv.in_channels = nn.Parameter(conv.weight[:, :4]), 4  # type: ignore[assignment, index]
    fusion.gate.fc1 = nn.Linear(4, 32, bias=False)
    fusion.gate.fc2 = nn.Linear(32, 8, bias=False)
    x = torch.randn(2, 4, 6, 6)
    assert unit(x).shape == module(x).shape == (2, 8, 6, 6)
    assert fusion([x, x]).shape == (2, 4, 6, 6)
    for layer in (unit, module):
        with pytest.raises(ValueError, match="built for 4 channels, got 8"):
            layer(torch.randn(2, 8, 6, 6))


def test_the_articles_module_takes_a_memory_mode() -> None:
    assert SKAttention(8, memory="plain").memory == "plain"
    with pytest.raises(ValueError, match="memory must be one of"):
        SKAttention(8, memory="little")  # type: ignore[arg-type]

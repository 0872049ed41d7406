"""Training that keeps little computes what training that keeps everything computes."""

from __future__ import annotations

import gc
import weakref
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from selkern import Branch, SelectiveKernel, SKAttention, create_model, set_memory
from selkern.layers.memory import Memory
from selkern.ops import reference
from selkern.ops.spectral_plan import worthwhile

# Share of the largest value; in float64 the order of sums is all that differs.
DOUBLE = 1e-10


def assert_close(got: Tensor, want: Tensor, tolerance: float, name: str = "") -> None:
    scale = max(want.abs().max().item(), 1e-3)  # a gradient that is 0 but for rounding has no size of its own
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance * scale, msg=lambda text: f"{name}: {text}")


def step(model: nn.Module, x: Tensor, passes: int = 1) -> dict[str, Tensor]:
    """Outputs, gradients and buffers of a training step of `passes` forward passes, each with its backward pass."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    found: dict[str, Tensor] = {}
    for i in range(passes):
        v = model(x * (i + 1))
        torch.autograd.backward(v, torch.linspace(-1, 1, v.numel(), dtype=v.dtype).reshape(v.shape).sin())
        found[f"output {i}"] = v.detach()
    assert x.grad is not None
    grads = {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(g is not None for g in grads.values())
    return {**found, "gradient of x": x.grad, **grads, **dict(model.named_buffers())}  # type: ignore[dict-item]


def assert_same_step(
    model: nn.Module, x: Tensor, memory: Memory = "default", tolerance: float = DOUBLE, passes: int = 1
) -> None:
    plain = set_memory(deepcopy(model), "plain")
    want, got = step(plain, x, passes), step(set_memory(model, memory), x, passes)
    assert got.keys() == want.keys()
    for name in want:
        assert_close(got[name], want[name], tolerance, name)


SIZES = {1: (13,), 2: (7, 9), 3: (5, 4, 6)}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kernels", [(3,), (3, 5), (1, 3, 5), (1, 3, 5, 7), (3, 3, 5, Branch(5, groups=1), 7)])
def test_a_unit_of_one_to_five_branches(kernels: tuple[Any, ...], dims: int, training: bool) -> None:
    torch.manual_seed(0)
    unit = SelectiveKernel(8, 12, kernels, groups=4, stride=2, dims=dims, dtype=torch.float64).train(training)
    for name, tensor in unit.state_dict().items():
        if "norm" in name and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
    assert_same_step(unit, torch.randn(3, 8, *SIZES[dims], dtype=torch.float64), passes=2)


@pytest.mark.parametrize("training", [True, False])
def test_the_article_s_module(training: bool) -> None:
    torch.manual_seed(12)
    module = SKAttention(8, kernels=(1, 3, 5, 7)).double().train(training)
    assert_same_step(module, torch.randn(3, 8, 7, 9, dtype=torch.float64), passes=2)


@pytest.mark.parametrize("training", [True, False])
def test_the_article_s_module_by_fourier_coefficients(training: bool) -> None:
    torch.manual_seed(13)
    module, x = SKAttention(128).double().train(training), torch.randn(8, 128, 20, 28, dtype=torch.float64)
    assert worthwhile((8, 128, 20, 28), 128, (1, 3, 5, 7), training=True) is not None
    assert_same_step(module, x, tolerance=1e-7)


def test_memory_held_by_the_article_s_module() -> None:
    module, x = SKAttention(32), torch.randn(4, 32, 28, 28)
    assert held(module, x) <= 0.6 * held(set_memory(module, "plain"), x)


def test_it_is_the_reference() -> None:
    torch.manual_seed(1)
    unit = SelectiveKernel(8, kernels=(3, 5, 7), groups=2, dtype=torch.float64)
    assert unit.gate is not None
    weight_MCD = unit.gate.fc2.weight.reshape(3, 8, -1)
    x = torch.randn(4, 8, 6, 5, dtype=torch.float64, requires_grad=True)
    other = deepcopy(unit)
    assert other.gate is not None
    v, _ = reference.selective_kernel(
        x,
        [lambda x, b=branch: b(x) for branch in unit.branches],  # type: ignore[misc]
        unit.gate.fc1.weight,
        unit.gate.norm,
        unit.gate.act,
        weight_MCD,
    )
    cotangent = torch.randn_like(v)
    want = torch.autograd.grad(v, [x, *unit.parameters()], cotangent)
    mine = other(x)
    assert_close(mine, v, DOUBLE)
    for got, expected in zip(torch.autograd.grad(mine, [x, *other.parameters()], cotangent), want, strict=True):
        assert_close(got, expected, DOUBLE)


def test_finite_differences() -> None:
    torch.manual_seed(2)
    unit = SelectiveKernel(4, kernels=(1, 3), groups=1, min_width=4, dtype=torch.float64)
    x = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unit, (x,))


@pytest.mark.parametrize(
    "options",
    [
        {"momentum": None},
        {"affine": False},
        {"track_running_stats": False},
        {"eps": 0.1, "momentum": 0.9},
    ],
)
def test_every_kind_of_batch_norm(options: dict[str, Any]) -> None:
    torch.manual_seed(3)
    unit = SelectiveKernel(8, groups=4, norm=lambda c: nn.BatchNorm2d(c, **options), gate_norm="batch").double()
    assert_same_step(unit, torch.randn(3, 8, 6, 6, dtype=torch.float64), passes=3)


def test_frozen_parts() -> None:
    torch.manual_seed(4)
    unit = SelectiveKernel(8, groups=4, dtype=torch.float64)
    unit.branches[0].eval()
    for p in unit.branches.parameters():
        p.requires_grad_(False)
    assert_same_step(unit, torch.randn(3, 8, 6, 6, dtype=torch.float64))


@pytest.mark.parametrize("memory", ["default", "lean"])
@pytest.mark.parametrize(
    "name", ["sknet_mini", "sknet_mini_sum", "seresnet_mini", "sk_shufflenet_v2_x05", "skresnet18"]
)
def test_networks(name: str, memory: Memory) -> None:
    torch.manual_seed(5)
    model = create_model(name, num_classes=5).double()
    assert_same_step(model, torch.randn(3, 3, 64, 70, dtype=torch.float64), memory, 1e-7, passes=2)


@pytest.mark.parametrize("memory", ["default", "lean"])
@pytest.mark.parametrize("name", ["sknet26", "skresnet50", "skresnext50_32x4d"])
def test_networks_of_bottlenecks(name: str, memory: Memory) -> None:
    torch.manual_seed(6)
    model = create_model(name, num_classes=5).double()
    assert_same_step(model, torch.randn(2, 3, 40, 40, dtype=torch.float64), memory, 1e-6)


@pytest.mark.parametrize("memory", ["default", "lean"])
def test_feature_maps(memory: Memory) -> None:
    torch.manual_seed(7)
    model = create_model("sknet26", features_only=True).double()
    x = torch.randn(2, 3, 40, 40, dtype=torch.float64)
    plain = set_memory(deepcopy(model), "plain")
    for got, want in zip(set_memory(model, memory)(x), plain(x), strict=True):
        assert_close(got, want, DOUBLE)


def test_channels_last() -> None:
    torch.manual_seed(8)
    unit = SelectiveKernel(64).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(4, 64, 15, 13).to(memory_format=torch.channels_last)
    assert_same_step(unit, x, tolerance=1e-5)
    assert unit(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("memory", ["default", "lean"])
def test_bfloat16_autocast(memory: Memory) -> None:
    """Its numbers have 8 bits, so gradients are compared with those of float32, and should be no worse than plain's."""
    torch.manual_seed(9)
    model = set_memory(create_model("sknet_mini", num_classes=5), "plain")
    x = torch.randn(8, 3, 48, 48)
    exact = step(deepcopy(model), x)
    errors = {}
    for kind in ("plain", memory):
        copy = set_memory(deepcopy(model), kind)
        with torch.autocast("cpu", torch.bfloat16):
            got = step(copy, x)
        assert {p.dtype for p in copy.parameters()} == {torch.float32}
        key = "gradient of stages.0.0.mixer.branches.0.conv.weight"
        errors[kind] = ((got[key] - exact[key]).norm() / exact[key].norm()).item()
        assert_close(
            got["stages.0.0.mixer.branches.0.norm.running_var"],
            exact["stages.0.0.mixer.branches.0.norm.running_var"],
            0.05,
        )
    assert errors[memory] < 1.3 * errors["plain"] + 0.02


@pytest.mark.parametrize("memory", ["default", "lean"])
def test_two_backward_passes_through_one_graph(memory: Memory) -> None:
    torch.manual_seed(10)
    model = set_memory(create_model("sknet_mini", num_classes=5).double(), memory)
    x = torch.randn(3, 3, 48, 48, dtype=torch.float64, requires_grad=True)
    loss = model(x).square().sum()
    first = torch.autograd.grad(loss, [x, *model.parameters()], retain_graph=True)
    for got, want in zip(torch.autograd.grad(loss, [x, *model.parameters()]), first, strict=True):
        assert torch.equal(got, want)


def test_inputs_stay_as_they_are() -> None:
    x = torch.randn(3, 8, 5, 5, requires_grad=True)
    before = x.detach().clone()
    v = SelectiveKernel(8, groups=4)(x)
    cotangent = torch.randn_like(v)
    kept = cotangent.clone()
    torch.autograd.backward(v, cotangent)
    assert torch.equal(x, before)
    assert torch.equal(cotangent, kept)


def test_a_hook_on_a_part_takes_autograds_own_path() -> None:
    unit = SelectiveKernel(8, groups=4)
    x = torch.randn(3, 8, 5, 5)
    for part in (unit.branches[0], unit.branches[1].get_submodule("norm"), unit.branches[0].get_submodule("act")):
        assert unit.path(x) == "recompute"
        seen: list[Tensor] = []
        handle = part.register_forward_hook(lambda _m, _i, out: seen.append(out))  # noqa: B023
        assert unit.path(x) == "autograd"
        unit(x)
        assert len(seen) == 1
        handle.remove()


def test_a_hook_on_all_modules_is_called_by_each() -> None:
    unit, x = SelectiveKernel(8, groups=4), torch.randn(3, 8, 5, 5)
    seen: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, _i, _o: seen.append(module))
    try:
        unit(x)
    finally:
        handle.remove()
    assert set(seen) == {module for module in unit.modules() if not isinstance(module, nn.ModuleList)}


def test_a_hook_on_the_stem_is_called_in_lean() -> None:
    model = set_memory(create_model("sknet_mini", num_classes=5), "lean")
    seen: list[Tensor] = []
    model.stem.register_forward_hook(lambda _m, _i, out: seen.append(out))
    model(torch.randn(2, 3, 32, 32))
    assert len(seen) == 1


def test_other_norms_and_activations_keep_everything() -> None:
    x = torch.randn(3, 8, 5, 5)
    assert SelectiveKernel(8, groups=4, norm="group").path(x) == "autograd"
    assert SelectiveKernel(8, groups=4, activation="silu").path(x) == "autograd"
    assert SelectiveKernel(8, groups=4, memory="plain").path(x) == "autograd"
    with torch.no_grad():
        assert SelectiveKernel(8, groups=4).path(x) == "autograd"


def test_a_map_changed_in_place_is_saved_as_it_is() -> None:
    """A hook that changes V in place: the convolution that reads it has the gradient of what it read."""
    torch.manual_seed(14)
    model = create_model("sknet_mini", num_classes=5).double()
    for unit in model.stages[0].children():
        unit.get_submodule("mixer").register_forward_hook(lambda _m, _i, out: out.mul_(0.5).add_(0.1))
    assert_same_step(model, torch.randn(3, 3, 48, 48, dtype=torch.float64), "lean", 1e-7)


def test_weights_changed_in_place_before_the_backward_pass_are_noticed() -> None:
    unit = SelectiveKernel(8, groups=4)
    v = unit(torch.randn(3, 8, 5, 5))
    bias = unit.branches[0].get_submodule("norm").bias
    with torch.no_grad():
        assert isinstance(bias, Tensor)
        bias.add_(1)
    with pytest.raises(RuntimeError, match="changed in place before the backward pass"):
        v.sum().backward()


def test_nothing_is_held_after_the_backward_pass() -> None:
    unit = SelectiveKernel(8, groups=4, memory="lean")
    kept: list[weakref.ref[Tensor]] = []
    unit.branches[0].get_submodule("conv").register_forward_hook(lambda _m, _i, out: kept.append(weakref.ref(out)))
    v = unit(torch.randn(3, 8, 5, 5, requires_grad=True))
    v.sum().backward()
    assert kept[0]() is None  # though V, and so its recipe, is still there


@pytest.mark.parametrize("memory", ["plain", "default", "lean"])
def test_nothing_is_held_of_a_pass_without_a_backward_pass(memory: Memory) -> None:
    model = set_memory(create_model("sknet_mini", num_classes=5), memory)
    kept: list[weakref.ref[Tensor]] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _m, _i, out: kept.append(weakref.ref(out)))
    gc.disable()  # no cycle is left to it either
    try:
        out = model(torch.randn(2, 3, 32, 32))
        assert any(each() is not None for each in kept)
        del out
        assert all(each() is None for each in kept)
    finally:
        gc.enable()


@pytest.mark.parametrize("memory", ["default", "lean"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_units_compute_and_hold_what_plain_ones_do(memory: Memory, reentrant: bool) -> None:
    torch.manual_seed(15)
    unit = SelectiveKernel(8, groups=4, dtype=torch.float64)
    x = torch.randn(3, 8, 16, 16, dtype=torch.float64, requires_grad=True)

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unit = deepcopy(unit)

        def forward(self, x: Tensor) -> Tensor:
            v: Tensor = checkpoint(self.unit, x, use_reentrant=reentrant)
            return v

    # One forward pass more moves the running statistics twice in either mode.
    assert_same_step(Checkpointed(), x, memory)
    assert held(set_memory(Checkpointed(), memory), x) <= 1.05 * held(set_memory(Checkpointed(), "plain"), x)


def test_saved_tensors_on_the_cpu_are_those_of_the_convolutions() -> None:
    unit = SelectiveKernel(8, groups=4, dtype=torch.float64)
    x = torch.randn(3, 8, 6, 6, dtype=torch.float64, requires_grad=True)
    (want,) = torch.autograd.grad(unit(x).square().sum(), x)
    with torch.autograd.graph.save_on_cpu():
        loss = unit(x).square().sum()
    assert_close(torch.autograd.grad(loss, x)[0], want, DOUBLE)


def test_words_are_checked() -> None:
    with pytest.raises(ValueError, match="memory must be one of plain, default, lean, got 'small'"):
        SelectiveKernel(8, memory="small")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="memory must be one of"):
        set_memory(nn.Identity(), "none")  # type: ignore[arg-type]


def held(model: nn.Module, x: Tensor) -> float:
    """MiB per image that a forward pass holds for the backward pass: x, and what it has allocated, less its output.

    Told by the allocator. Hooks on saved tensors would not see what hooks within the model save.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        output = model(x)
    assert output.requires_grad
    allocated = sum(event.self_cpu_memory_usage for event in profiler.events() or ())
    return (allocated + x.nbytes - output.nbytes) / 2**20 / len(x)


def test_memory_held_by_sknet50() -> None:
    model, x = create_model("sknet50"), torch.randn(2, 3, 224, 224)
    words: tuple[Memory, ...] = ("plain", "default", "lean")
    measured = {memory: held(set_memory(model, memory), x) for memory in words}
    assert measured["plain"] > 138
    assert measured["default"] <= 118
    assert measured["lean"] <= 90

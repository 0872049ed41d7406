"""Training that keeps little computes what training that keeps everything computes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from selkern import Branch, SelectiveKernel, SKAttention, create_model, set_memory
from selkern.layers.memory import Memory
from selkern.ops import reference
from selkern.ops.spectral.plan import worthwhile

# Share of the largest value; in float64 the order of sums is all that differs.
DOUBLE = 1e-10


def assert_close(got: Tensor, want: Tensor, tolerance: float, name: str = "") -> None:
    scale = max(want.abs().max().item(), 1e-3)  # a gradient that is 0 but for rounding has no size of its own
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance * scale, msg=lambda text: f"{name}: {text}")


def step(model: nn.Module, x: Tensor, passes: int = 1) -> dict[str, Tensor]:
    """Outputs, gradients and buffers of a training step of `passes` forward passes, each with its backward pass."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    result: dict[str, Tensor] = {}
    for i in range(passes):
        v = model(x * (i + 1))
        torch.autograd.backward(v, torch.linspace(-1, 1, v.numel(), dtype=v.dtype).reshape(v.shape).sin())
        result[f"output {i}"] = v.detach()
    assert x.grad is not None
    grads = {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(g is not None for g in grads.values())
    return {**result, "gradient of x": x.grad, **grads, **dict(model.named_buffers())}  # type: ignore[dict-item]


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


@pytest.mark.share(3)
@pytest.mark.parametrize("memory", ["default", "lean"])
@pytest.mark.parametrize(
    "name", ["sknet_mini", "sknet_mini_sum", "seresnet_mini", "sk_shufflenet_v2_x05", "skresnet18"]
)
def test_networks(name: str, memory: Memory) -> None:
    torch.manual_seed(5)
    model = create_model(name, num_classes=5).double()
    assert_same_step(model, torch.randn(3, 3, 64, 70, dtype=torch.float64), memory, 1e-7, passes=2)


@pytest.mark.share(3)
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


def test_the_bias_of_a_norm_may_change_before_the_backward_pass() -> None:
    """No gradient needs it, so autograd does not look at it either."""
    torch.manual_seed(18)
    unit = SelectiveKernel(8, groups=4, dtype=torch.float64)
    x, results = torch.randn(3, 8, 5, 5, dtype=torch.float64), []
    kinds: tuple[Memory, ...] = ("plain", "default")
    for memory in kinds:
        copy = set_memory(deepcopy(unit), memory)
        loss = copy(x).square().sum()
        with torch.no_grad():
            copy.get_parameter("branches.0.norm.bias").add_(3)
        results.append(torch.autograd.grad(loss, copy.get_parameter("branches.0.conv.weight"))[0])
    assert_close(results[1], results[0], DOUBLE)


@pytest.mark.parametrize("memory", ["plain", "default", "lean"])
@pytest.mark.parametrize("make", [lambda: SelectiveKernel(3, 6, groups=1), lambda: SKAttention(3, kernels=(1, 3))])
def test_an_empty_batch(make: Callable[[], nn.Module], memory: Memory) -> None:
    module = set_memory(make().eval(), memory)
    module(torch.randn(0, 3, 8, 8)).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in module.parameters())


def test_a_lean_map_read_where_nothing_can_be_left_out() -> None:
    first, second = (SelectiveKernel(8, groups=2, memory="lean", dtype=torch.float64).eval() for _ in range(2))
    first.in_unit = True  # as within one of our networks
    v = first(torch.randn(3, 8, 6, 6, dtype=torch.float64))
    parameters = dict(second.named_parameters())
    got = torch.func.grad(lambda p: torch.func.functional_call(second, p, (v,)).square().sum())(parameters)
    want = torch.autograd.grad(second(v).square().sum(), list(parameters.values()))
    for one, other in zip(got.values(), want, strict=True):
        assert_close(one, other, DOUBLE)
    with torch.autograd.graph.disable_saved_tensors_hooks("none here"):
        second(v)


@pytest.mark.parametrize("memory", ["default", "lean"])
def test_numbers_that_a_user_changes_between_two_layers_are_those_that_count(memory: Memory) -> None:
    torch.manual_seed(19)
    first, second = (SelectiveKernel(8, groups=2, memory=memory, dtype=torch.float64) for _ in range(2))
    v = first(torch.randn(3, 8, 6, 6, dtype=torch.float64))
    v.data.clamp_(max=0.1)
    weight = second.get_parameter("branches.0.conv.weight")
    (got,) = torch.autograd.grad(second(v).square().sum(), weight)
    (want,) = torch.autograd.grad(set_memory(second, "plain")(v).square().sum(), weight)
    assert_close(got, want, DOUBLE)


@pytest.mark.parametrize(
    "part", ["stages.0.0.conv3", "stages.0.0.mixer.branches.0.conv", "stages.0.0.mixer.gate.fc2", "fc"]
)
@pytest.mark.parametrize("memory", ["plain", "default", "lean"])
def test_a_weight_changed_in_place_before_the_backward_pass_is_noticed(memory: Memory, part: str) -> None:
    model = set_memory(create_model("sknet_mini", num_classes=3), memory)
    loss = model(torch.randn(3, 3, 48, 48)).square().sum()
    with torch.no_grad():
        model.get_parameter(f"{part}.weight").mul_(3)
    with pytest.raises(RuntimeError, match=r"inplace operation|changed in place"):
        loss.backward()


@pytest.mark.parametrize("memory", ["plain", "default", "lean"])
def test_a_hook_that_changes_a_map_behind_autograds_back(memory: Memory) -> None:
    torch.manual_seed(16)
    model, results = create_model("sknet_mini", num_classes=3), []
    x = torch.randn(3, 3, 48, 48)

    def clamp(_module: nn.Module, _inputs: tuple[Tensor, ...], out: Tensor) -> None:
        out.data.clamp_(max=0.1)

    model.get_submodule("stages.0.0.mixer").register_forward_hook(clamp)
    kinds: tuple[Memory, ...] = ("plain", memory)
    for kind in kinds:
        copy = set_memory(deepcopy(model), kind)
        weight = copy.get_parameter("stages.0.0.conv3.weight")
        results.append(torch.autograd.grad(copy(x).square().sum(), weight)[0])
    assert_close(results[1], results[0], 1e-4)


@pytest.mark.parametrize("memory", ["plain", "default", "lean"])
def test_an_output_can_be_saved(memory: Memory, tmp_path: Path) -> None:
    v = SelectiveKernel(8, groups=4, memory=memory)(torch.randn(3, 8, 5, 5))
    torch.save(v, tmp_path / "v.pt")
    torch.testing.assert_close(torch.load(tmp_path / "v.pt", weights_only=True), v)


@pytest.mark.share(2)
@pytest.mark.parametrize("memory", ["plain", "default", "lean"])
@pytest.mark.parametrize(
    "stem",
    [
        lambda: nn.Conv2d(3, 16, 3, 2, 1),
        lambda: nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1)),
        lambda: nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.BatchNorm2d(16)),
    ],
)
def test_a_stem_that_was_replaced_is_called_as_it_is(memory: Memory, stem: Callable[[], nn.Module]) -> None:
    torch.manual_seed(17)
    model = create_model("sknet26", num_classes=3)
    model.stem = stem()  # type: ignore[assignment]
    model.stages[0][0].conv1 = nn.Conv2d(16, 128, 1)  # type: ignore[index]
    model.stages[0][0].shortcut[0] = nn.Conv2d(16, 256, 1)  # type: ignore[index]
    assert_same_step(model.double(), torch.randn(2, 3, 40, 40, dtype=torch.float64), memory, 1e-6)


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

    Reported by the allocator. Hooks on saved tensors would not see what hooks within the model save.
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

"""Every kind of convolution, norm, activation and padding against the restatement, forward and every gradient."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import pytest
import torch
from parity import as_function, assert_parity
from torch import Tensor, nn
from torch.nn import functional as F

import selkern
from selkern.adapt.unit import SelectiveConv

from .restated import Behind, Case, FrozenBatchNorm, LayerNorm2d, NormAct, SameConv, Window, restated


def net(conv: nn.Module, norm: nn.Module | None = None, act: nn.Module | None = None, **more: nn.Module) -> nn.Module:
    parts = OrderedDict[str, nn.Module](more, conv=conv)
    parts |= {name: part for name, part in (("norm", norm), ("act", act)) if part is not None}
    return nn.Sequential(parts)


def conv2d(*args: Any, **kwargs: Any) -> nn.Module:
    return net(nn.Conv2d(*args, **kwargs), nn.BatchNorm2d(args[1]), nn.ReLU(inplace=True))


def with_norm(norm: nn.Module, act: nn.Module | None = None) -> nn.Module:
    return net(nn.Conv2d(8, 12, 3, padding=1, bias=False), norm, act)


MAP = (3, 8, 7, 6)
SQUARE = (Window((1,) * 4), Window((2,) * 4, 2, 4))  # a 3x3 of 8 to 12 channels, and its further branch
relu = torch.relu
BATCH: dict[str, Any] = {"norm": "batch", "act": relu}

CASES = {
    "3x3": Case(lambda: conv2d(8, 12, 3, padding=1, bias=False), MAP, SQUARE, **BATCH),
    "bias": Case(lambda: conv2d(8, 12, 3, padding=1), MAP, SQUARE, **BATCH),
    "stride 2": Case(lambda: conv2d(8, 12, 3, padding=1, stride=2), MAP, SQUARE, stride=2, **BATCH),
    "stride 3, 9x9": Case(
        lambda: conv2d(8, 12, 9, padding=4, stride=3), (3, 8, 13, 12), (Window((4,) * 4), Window((5,) * 4, 5, 4)),
        stride=3, **BATCH,
    ),
    "1x1": Case(
        lambda: conv2d(8, 12, 1), MAP, (Window((0,) * 4), Window((1,) * 4, 1, 4)), **BATCH, options={"pointwise": True}
    ),
    "depthwise 5x5": Case(
        lambda: conv2d(8, 8, 5, padding=2, groups=8), MAP, (Window((2,) * 4, 1, 8), Window((3,) * 4, 3, 8)), **BATCH
    ),
    "depthwise with multiplier": Case(
        lambda: conv2d(8, 16, 3, padding=1, groups=8), MAP, (Window((1,) * 4, 1, 8), Window((2,) * 4, 2, 8)), **BATCH
    ),
    "grouped": Case(
        lambda: conv2d(8, 12, 3, padding=1, groups=2), MAP, (Window((1,) * 4, 1, 2), Window((2,) * 4, 2, 4)), **BATCH
    ),
    "more groups than asked for": Case(
        lambda: conv2d(8, 8, 3, padding=1, groups=4), MAP, (Window((1,) * 4, 1, 4), Window((2,) * 4, 2, 4)), **BATCH,
        options={"groups": 2},
    ),
    "dilated": Case(
        lambda: conv2d(8, 12, 3, padding=2, dilation=2), MAP, (Window((2,) * 4, 2), Window((3,) * 4, 3, 4)), **BATCH
    ),
    "rectangular": Case(
        lambda: conv2d(8, 12, (1, 7), padding=(0, 3)), MAP, (Window((3, 3, 0, 0)), Window((4, 4, 1, 1), (1, 4), 4)),
        **BATCH,
    ),
    "valid": Case(lambda: conv2d(8, 12, 3), MAP, (Window((0,) * 4), Window((1,) * 4, 2, 4)), **BATCH),
    "padding same": Case(
        lambda: conv2d(8, 12, 5, padding="same"), MAP, (Window((2,) * 4), Window((3,) * 4, 3, 4)), **BATCH
    ),
    "more padding than needed": Case(
        lambda: conv2d(8, 12, 3, padding=3), MAP, (Window((3,) * 4), Window((4,) * 4, 2, 4)), **BATCH
    ),
    "circular": Case(
        lambda: conv2d(8, 12, 3, padding=1, padding_mode="circular"), MAP, SQUARE, mode="circular", **BATCH
    ),
    "reflect": Case(
        lambda: conv2d(8, 12, 3, padding=1, padding_mode="reflect"), MAP, SQUARE, mode="reflect", **BATCH
    ),
    "replicate, same": Case(
        lambda: conv2d(8, 12, 3, padding="same", padding_mode="replicate"), MAP, SQUARE, mode="replicate", **BATCH
    ),
    "ZeroPad2d in front": Case(
        lambda: net(nn.Conv2d(8, 12, 3, stride=2), nn.BatchNorm2d(12), nn.ReLU(), pad=nn.ZeroPad2d((0, 1, 0, 1))), MAP,
        (Window((0,) * 4), Window((1,) * 4, 2, 4)), stride=2, before=lambda x: F.pad(x, (0, 1, 0, 1)), **BATCH,
    ),
    "same by size, odd": Case(
        lambda: net(SameConv(8, 12, 3, stride=2), nn.BatchNorm2d(12), nn.ReLU()), (3, 8, 7, 7),
        (Window((1,) * 4), Window((2,) * 4, 2, 4)), stride=2, **BATCH,
    ),
    "same by size, odd and even": Case(
        lambda: net(SameConv(8, 12, 3, stride=2), nn.BatchNorm2d(12), nn.ReLU()), MAP,
        (Window((0, 1, 1, 1)), Window((1, 2, 2, 2), 2, 4)), stride=2, **BATCH,
    ),
    "1d": Case(
        lambda: net(nn.Conv1d(8, 12, 3, padding=1), nn.BatchNorm1d(12), nn.ReLU()), (3, 8, 9),
        (Window((1, 1)), Window((2, 2), 2, 4)), **BATCH,
    ),
    "3d": Case(
        lambda: net(nn.Conv3d(4, 4, 3, padding=1, stride=2), nn.BatchNorm3d(4), nn.ReLU()), (3, 4, 5, 6, 5),
        (Window((1,) * 6), Window((2,) * 6, 2, 4)), stride=2, **BATCH,
    ),
    "GroupNorm": Case(lambda: with_norm(nn.GroupNorm(2, 12), nn.ReLU()), MAP, SQUARE, norm="group", act=relu),
    "LayerNorm": Case(lambda: with_norm(LayerNorm2d(12, eps=1e-5), nn.GELU()), MAP, SQUARE, norm="layer", act=F.gelu),
    "SyncBatchNorm": Case(lambda: with_norm(nn.SyncBatchNorm(12), nn.ReLU()), MAP, SQUARE, **BATCH),
    "FrozenBatchNorm": Case(lambda: with_norm(FrozenBatchNorm(12), nn.ReLU()), MAP, SQUARE, norm="frozen", act=relu),
    "norm and activation in one": Case(lambda: with_norm(NormAct(12)), MAP, SQUARE, norm="batch", act=F.silu),
    "norm alone": Case(lambda: with_norm(nn.BatchNorm2d(12)), MAP, SQUARE, norm="batch"),
    "no norm": Case(lambda: net(nn.Conv2d(8, 12, 3, padding=1), None, nn.ReLU(inplace=True)), MAP, SQUARE, act=relu),
    "convolution alone": Case(lambda: net(nn.Conv2d(8, 12, 3, padding=1)), MAP, SQUARE),
    "ReLU6": Case(
        lambda: with_norm(nn.BatchNorm2d(12), nn.ReLU6()), MAP, SQUARE, norm="batch", act=lambda x: x.clamp(0, 6)
    ),
    "a function that clamps": Case(
        lambda: Behind(nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), F.relu6), MAP, SQUARE, norm="batch",
        act=lambda x: x.clamp(0, 6),
    ),
    "a function in place": Case(
        lambda: Behind(nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), F.relu_), MAP, SQUARE, **BATCH
    ),
    "a function that does not clamp": Case(
        lambda: Behind(nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), F.gelu), MAP, SQUARE, norm="batch",
        behind=F.gelu,
    ),
    "three branches": Case(
        lambda: conv2d(8, 12, 3, padding=1), MAP, (*SQUARE, Window((3,) * 4, 3, 4)), **BATCH, options={"branches": 3}
    ),
    "four branches, same by size": Case(
        lambda: net(SameConv(8, 8, 3, stride=2, groups=8), nn.BatchNorm2d(8), nn.ReLU()), MAP,
        (Window((0, 1, 1, 1), 1, 8), *(Window((m, m + 1, m + 1, m + 1), m + 1, 8) for m in (1, 2, 3))), stride=2,
        **BATCH, options={"branches": 4},
    ),
    "widened": Case(
        lambda: conv2d(8, 12, 3, padding=1), MAP, (Window((1,) * 4), Window((2,) * 4)), form="widened", **BATCH
    ),
    "widened, dilated, grouped, three branches": Case(
        lambda: conv2d(8, 12, 3, padding=2, dilation=2, stride=2, groups=2), (3, 8, 11, 12),
        tuple(Window((p,) * 4, 2, 2) for p in (2, 4, 6)), stride=2, form="widened", **BATCH, options={"branches": 3},
    ),
    "widened, same by size": Case(
        lambda: net(SameConv(8, 12, 3, stride=2), nn.BatchNorm2d(12), nn.ReLU()), MAP,
        (Window((0, 1, 1, 1)), Window((1, 2, 2, 2))), stride=2, form="widened", **BATCH,
    ),
}  # fmt: skip


def changed(case: Case, seed: int) -> tuple[nn.Module, nn.Module, Tensor]:
    torch.manual_seed(seed)
    model, x = case.make().double(), torch.randn(case.shape, dtype=torch.float64)
    options: dict[str, Any] = {"where": "conv", "form": case.form, **case.options}
    return model, selkern.selectify(model, example=x, **options), x


def stir(model: nn.Module) -> None:
    """Move everything away from where it starts, so that every branch matters and no two are equal."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point():
            noise = torch.randn_like(tensor)
            tensor.data.copy_(tensor + 0.3 * (noise.abs() if "var" in name else noise))


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", CASES)
def test_moved_units_are_the_formulas(name: str, training: bool, seed: int) -> None:
    case = CASES[name]
    _, selective, x = changed(case, seed)
    stir(selective)
    selective.train(training)
    used = dict(selective.named_parameters())
    assert_parity(as_function(selective), restated(case, selective), {**used, "x": x})


@pytest.mark.parametrize("name", CASES)
def test_units_compute_what_was_there_and_learn_from_the_first_step(name: str, seed: int) -> None:
    case = CASES[name]
    model, selective, x = changed(case, seed)
    unit = selective.get_submodule("conv")
    assert isinstance(unit, SelectiveConv)
    for training in (False, True):
        model.train(training)
        selective.train(training)
        ours, theirs = selective(x), model(x)
        if case.form == "residual":
            assert torch.equal(ours, theirs)
        torch.testing.assert_close(ours, theirs)
    for buffer, moved in zip(model.buffers(), unit.norm.buffers(), strict=True):
        assert torch.equal(buffer, moved)
    # The weights that were there learn as before: the gradients of the branches add up.
    out = torch.randn(theirs.shape, dtype=torch.float64)
    theirs.backward(out)
    selective.zero_grad()
    selective(x).backward(out)
    if case.form == "residual" and case.norm != "frozen":
        torch.testing.assert_close(unit.conv.weight.grad, model.get_submodule("conv").weight.grad)
    for branch in unit.further:
        for p in branch.get_submodule("conv").parameters():
            assert p.grad is not None
            assert p.grad.abs().max() > 1e-12 or (p.ndim == 1 and case.norm == "batch"), "nothing moves a new branch"


def test_the_restatement_can_fail(seed: int) -> None:
    case = CASES["3x3"]
    _, selective, x = changed(case, seed)
    stir(selective)
    broken = selective.get_submodule("conv.further.0.conv")
    assert isinstance(broken, nn.Conv2d)
    broken.padding, broken.dilation = (1, 1), (1, 1)
    with pytest.raises(AssertionError):
        assert_parity(as_function(selective), restated(case, selective), {**dict(selective.named_parameters()), "x": x})


@pytest.mark.parametrize("name", ["3x3", "bias", "stride 2", "three branches", "norm and activation in one", "no norm"])
@pytest.mark.parametrize("memory", ["default", "lean"])
def test_what_training_keeps_changes_no_number(name: str, memory: Any, seed: int) -> None:
    _, plain, x = changed(CASES[name], seed)
    stir(plain)
    less = selkern.set_memory(copy.deepcopy(plain), memory)
    assert [m.memory for net in (less, plain) for m in net.modules() if isinstance(m, SelectiveConv)] == [
        memory,
        "plain",
    ]
    assert_parity(as_function(less), as_function(plain), {**dict(plain.named_parameters()), "x": x})
    for ours, theirs in zip(less.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_gradcheck_of_a_unit(seed: int) -> None:
    torch.manual_seed(seed)
    model = conv2d(4, 4, 3, padding=1).double()
    x = torch.randn(3, 4, 4, 4, dtype=torch.float64)
    selective = selkern.selectify(model, example=x, where="conv", branches=3).eval()
    stir(selective)
    parameters = dict(selective.named_parameters())

    def function(*values: Tensor) -> Tensor:
        return torch.func.functional_call(selective, dict(zip(parameters, values[1:], strict=True)), values[0])

    assert torch.autograd.gradcheck(function, [x.requires_grad_(), *parameters.values()], fast_mode=True)

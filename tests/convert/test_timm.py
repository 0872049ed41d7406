"""timm's SK networks: with the same weights ours compute the same, and weights go both ways unchanged."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import torch
from shim import timm_or_skip
from torch import Tensor, nn

from selkern import create_model, record
from selkern.convert.timm import from_timm, to_timm
from selkern.errors import CheckpointError, UsageError
from selkern.models.skresnet import ARCHITECTURES, SKResNet, SplitSelectiveKernel

CLASSES = 10
# Share of the largest value. The largest differences seen are 2e-6 in eval mode; 7e-5 in train mode, where 50 layers
# of BatchNorm over few values enlarge each rounding; 1e-12 in float64, where gradients are compared: in float32 a
# rounding that turns one ReLU off moves them by percents.
EVAL, TRAIN, DOUBLE = 1e-5, 4e-4, 1e-9


def assert_close(got: Tensor, want: Tensor, tolerance: float, name: str = "") -> None:
    scale = want.abs().max().item() or 1.0
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance * scale, msg=lambda text: f"{name}: {text}")


class Pair(NamedTuple):
    """One network twice, with the same random weights and BatchNorm statistics."""

    name: str
    timm: Any
    ours: SKResNet


@pytest.fixture(scope="module")
def timm() -> ModuleType:
    return timm_or_skip()


def randomise_norms(model: nn.Module) -> None:
    """Move norms off 1 and 0, where mistakes hide, and little enough that 50 layers stay in range."""
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d)):
                assert m.running_mean is not None
                assert m.running_var is not None
                assert m.num_batches_tracked is not None
                m.weight.uniform_(0.5, 1.5)
                m.bias.normal_(std=0.2)
                m.running_mean.normal_(std=0.2)
                m.running_var.uniform_(0.5, 2)
                m.num_batches_tracked.fill_(7)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(timm: ModuleType, request: pytest.FixtureRequest) -> Pair:
    torch.manual_seed(3)
    theirs = timm.create_model(request.param, num_classes=CLASSES)
    randomise_norms(theirs)
    ours = ARCHITECTURES[request.param].build(CLASSES)
    ours.load_state_dict(from_timm(theirs.state_dict(), request.param))
    return Pair(request.param, theirs.eval(), ours.eval())


@pytest.mark.share(2)
def test_logits_and_selection_in_eval_mode(pair: Pair) -> None:
    x = torch.randn(2, 3, 64, 75)  # 75: odd maps, where pools that pad or reach over the edge in another way differ
    with torch.no_grad(), record(pair.ours) as got, record(pair.timm) as want:
        assert_close(pair.ours(x), pair.timm(x), EVAL)
    assert [unit.label for unit in got.units.values()] == [unit.label for unit in want.units.values()]
    assert [unit.extents for unit in got.units.values()] == [(3, 5)] * sum(pair.ours.arch.depths)
    assert [unit.extents for unit in want.units.values()] == [(3, 5)] * sum(pair.ours.arch.depths)
    for ours, theirs in zip(got.values(), want.values(), strict=True):
        assert_close(ours, theirs, EVAL)
        assert ours.std() > 0.02  # of a selection that does select


def step(model: nn.Module, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits in train mode, and the gradients of the images and of every parameter."""
    x = x.clone().requires_grad_()
    logits = model.train()(x)
    cotangent = torch.linspace(-1, 1, logits.numel(), dtype=x.dtype).reshape(logits.shape).sin()
    return logits.detach(), list(torch.autograd.grad(logits, [x, *model.parameters()], cotangent))


@pytest.mark.exhaustive
def test_a_training_step_in_float64(pair: Pair) -> None:
    theirs, ours = deepcopy(pair.timm).double(), deepcopy(pair.ours).double()
    x = torch.randn(3, 3, 64, 64, dtype=torch.float64)
    before = {name: b.clone() for name, b in ours.named_buffers()}
    want, want_grads = step(theirs, x)
    got, got_grads = step(ours, x)
    assert_close(got, want, DOUBLE)
    assert_close(got_grads[0], want_grads[0], DOUBLE)
    gradients = dict(zip((name for name, _ in theirs.named_parameters()), want_grads[1:], strict=True))
    renamed = from_timm({**theirs.state_dict(), **gradients}, pair.name)
    for (name, _), gradient in zip(ours.named_parameters(), got_grads[1:], strict=True):
        assert_close(gradient, renamed[name], DOUBLE, name)
    state = ours.state_dict()
    for name, b in from_timm(theirs.state_dict(), pair.name).items():
        assert_close(state[name], b, DOUBLE, name)
    assert not any(torch.equal(b, before[name]) for name, b in ours.named_buffers())


@pytest.mark.share(2)
def test_logits_and_running_statistics_in_train_mode(pair: Pair) -> None:
    theirs, ours = deepcopy(pair.timm).train(), deepcopy(pair.ours).train()
    x = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        assert_close(ours(x), theirs(x), TRAIN)
    state = ours.state_dict()
    for name, b in from_timm(theirs.state_dict(), pair.name).items():
        assert_close(state[name], b, TRAIN, name)


def test_weights_come_back_bit_for_bit(pair: Pair) -> None:
    state = pair.timm.state_dict()
    back = to_timm(from_timm(state, pair.name), pair.name)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[name], state[name]) for name in state)
    assert all(back[name].dtype == state[name].dtype for name in state)


def test_feature_info(pair: Pair) -> None:
    want = [(f["num_chs"], f["reduction"]) for f in pair.timm.feature_info]
    assert [(f.channels, f.stride) for f in pair.ours.feature_info] == want


@pytest.mark.parametrize("name", ["skresnet18", "skresnet50d"])
def test_feature_maps_of_one_channel_without_a_head(timm: ModuleType, name: str) -> None:
    theirs = timm.create_model(name, features_only=True, in_chans=1).eval()
    ours = ARCHITECTURES[name].build(in_chans=1, features_only=True).eval()
    ours.load_state_dict(from_timm(theirs.state_dict(), name))
    assert [f.channels for f in ours.feature_info] == theirs.feature_info.channels()
    assert [f.stride for f in ours.feature_info] == theirs.feature_info.reduction()
    x = torch.randn(1, 1, 64, 75)
    with torch.no_grad():
        maps = ours(x)
        for got, want in zip(maps, theirs(x), strict=True):
            assert_close(got, want, EVAL)
    assert [tuple(m.shape[1:]) for m in maps] == [
        (f.channels, -(-64 // f.stride), -(-75 // f.stride)) for f in ours.feature_info
    ]


@pytest.mark.parametrize("name", ["skresnet18", "skresnet50d"])
def test_weights_are_drawn_as_timm_s(timm: ModuleType, name: str) -> None:
    want = from_timm(timm.create_model(name).state_dict(), name)
    for key, ours in ARCHITECTURES[name].build().state_dict().items():
        if ours.numel() > 4000:
            assert ours.std().item() == pytest.approx(want[key].std().item(), rel=0.08), key
        elif ours.ndim == 1 and key != "fc.bias":
            assert torch.equal(ours, want[key]), key


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("skresnet18", 11_958_056),
        ("skresnet34", 22_282_376),
        ("skresnet50", 25_803_160),
        ("skresnet50d", 25_822_392),
        ("skresnext50_32x4d", 27_479_784),
    ],
)
def test_parameters(name: str, expected: int) -> None:
    with torch.device("meta"):
        model = ARCHITECTURES[name].build()
    assert sum(p.numel() for p in model.parameters()) == expected


def test_skresnext50_is_sknet50_but_for_the_padding_of_the_max_pool() -> None:
    ours, paper = ARCHITECTURES["skresnext50_32x4d"].build(CLASSES).eval(), create_model("sknet50", num_classes=10)
    randomise_norms(ours)
    paper.load_state_dict(ours.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.allclose(paper.eval()(x), ours(x), rtol=1e-3)
        paper.pool = ours.pool
        assert_close(paper(x), ours(x), EVAL)


def test_no_classes_gives_the_pooled_features() -> None:
    model = ARCHITECTURES["skresnet18"].build(num_classes=0).eval()
    assert model(torch.randn(2, 3, 40, 40)).shape == (2, 512) == (2, model.num_features)


def test_a_split_unit_refuses_what_it_cannot_share_out() -> None:
    with pytest.raises(ValueError, match=r"len\(kernels\)=2 must divide in_channels=7"):
        SplitSelectiveKernel(7, 8, groups=1)
    with pytest.raises(ValueError, match="SplitSelectiveKernel was built for 8 channels, got 4"):
        SplitSelectiveKernel(8, 8, groups=1)(torch.randn(2, 4, 5, 5))


@pytest.mark.parametrize("fuse", ["select", "sum"])
def test_each_branch_of_a_split_unit_sees_its_own_channels(fuse: Any) -> None:
    unit = SplitSelectiveKernel(6, 4, (1, 3, 5), groups=1, fuse=fuse).eval()
    x = torch.randn(2, 6, 7, 7)
    seen: list[Tensor] = []
    for branch in unit.branches:
        branch.register_forward_hook(lambda _m, inputs, _o: seen.append(inputs[0]))
    unit(x)
    assert torch.equal(torch.cat(seen, 1), x)
    assert [part.shape[1] for part in seen] == [2, 2, 2]


def _lacks_one(state: dict[str, Tensor]) -> None:
    del state["layer2.0.conv1.attn.fc_select.weight"]


def _has_one_too_many(state: dict[str, Tensor]) -> None:
    state["layer5.weight"] = torch.zeros(1)


def _has_a_linear_gate(state: dict[str, Tensor]) -> None:
    name = "layer1.0.conv1.attn.fc_reduce.weight"
    state[name] = state[name].flatten(1)


def _has_a_scalar_head(state: dict[str, Tensor]) -> None:
    state["fc.weight"] = torch.tensor(0.0)


def _is_wrapped(state: dict[str, Tensor]) -> None:
    for name in list(state):
        state[f"module.{name}"] = state.pop(name)


UNFIT: list[tuple[Callable[[dict[str, Tensor]], None], str]] = [
    (_lacks_one, "tensor layer2.0.conv1.attn.fc_select.weight is missing"),
    (_has_one_too_many, "tensor layer5.weight belongs to no layer"),
    (_has_a_linear_gate, "tensor layer1.0.conv1.attn.fc_reduce.weight has shape (16, 64), the network (16, 64, 1, 1)"),
    (_has_a_scalar_head, "tensor fc.weight belongs to no layer"),
    (_is_wrapped, "tensor conv1.weight is missing"),
]


@pytest.mark.parametrize(("change", "message"), UNFIT)
def test_tensors_that_do_not_fit_are_named(change: Callable[[dict[str, Tensor]], None], message: str) -> None:
    state = to_timm(ARCHITECTURES["skresnet18"].build(CLASSES).state_dict(), "skresnet18")
    change(state)
    with pytest.raises(CheckpointError) as error:
        from_timm(state, "skresnet18")
    assert str(error.value) == f"{message} | timm's skresnet18 | give the whole state dict of this very network"


def test_weights_of_another_network_are_refused_both_ways() -> None:
    state = ARCHITECTURES["skresnet34"].build(CLASSES).state_dict()
    with pytest.raises(CheckpointError, match=r"stages.0.2.mixer.branches.0.conv.weight belongs .* selkern's skr"):
        to_timm(state, "skresnet18")
    with pytest.raises(CheckpointError, match=r"layer1.0.conv1.conv.weight is missing | timm's skresnet50"):
        from_timm(to_timm(state, "skresnet34"), "skresnet50")


@pytest.mark.parametrize("convert", [from_timm, to_timm])
def test_another_name(convert: Callable[..., object]) -> None:
    with pytest.raises(UsageError, match="'sknet50' is not one of timm's SK networks"):
        convert({}, "sknet50")

"""SKNet-50 is what the authors' sknet50.prototxt defines, one test per line of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selkern.layers.selective_kernel import SelectiveKernel
from selkern.models.registry import create_model
from selkern.models.trunk import Trunk, Unit

STAGES = range(4)
MIDS, OUTS, WIDTHS, DEPTHS = (128, 256, 512, 1024), (256, 512, 1024, 2048), (32, 32, 32, 64), (3, 4, 6, 3)


@pytest.fixture(scope="module")
def net() -> Trunk:
    torch.manual_seed(0)
    model = create_model("sknet50").eval()
    assert isinstance(model, Trunk)
    return model


def units(net: Trunk, stage: int) -> list[Unit]:
    return [unit for unit in net.stages[stage].children() if isinstance(unit, Unit)]


def all_units(net: Trunk) -> list[Unit]:
    return [unit for stage in STAGES for unit in units(net, stage)]


def of_type(net: nn.Module, kind: type[nn.Module]) -> list[Any]:
    return [m for m in net.modules() if isinstance(m, kind)]


def test_stem_is_a_7x7_stride_2_convolution_with_64_channels_then_bn_and_relu(net: Trunk) -> None:
    conv, norm, act = net.stem
    assert isinstance(conv, nn.Conv2d)
    assert (conv.kernel_size, conv.stride, conv.padding, conv.out_channels) == ((7, 7), (2, 2), (3, 3), 64)
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(act, nn.ReLU)


def test_max_pool_3_stride_2_has_no_padding_and_ceil_mode(net: Trunk) -> None:
    x = torch.randn(1, 64, 112, 112)
    y = net.pool(x)
    assert y.shape == (1, 64, 56, 56)
    assert torch.equal(y[0, :, 0, 0], x[0, :, 0:3, 0:3].amax((1, 2)))  # the first window starts at pixel 0
    assert torch.equal(y[0, :, 55, 55], x[0, :, 110:, 110:].amax((1, 2)))  # the last one hangs over the edge


@pytest.mark.parametrize("stage", STAGES)
def test_units_and_channels_of_a_stage(net: Trunk, stage: int) -> None:
    result = units(net, stage)
    assert len(result) == DEPTHS[stage]
    for unit in result:
        assert (unit.conv1.kernel_size, unit.conv1.out_channels) == ((1, 1), MIDS[stage])
        assert (unit.mixer.in_channels, unit.mixer.out_channels) == (MIDS[stage], MIDS[stage])
        assert (unit.conv3.kernel_size, unit.conv3.out_channels) == ((1, 1), OUTS[stage])


def test_only_sk_convolutions_and_projections_of_stages_2_to_4_have_a_stride(net: Trunk) -> None:
    strided = {name for name, m in net.named_modules() if isinstance(m, nn.Conv2d) and m.stride != (1, 1)}
    parts = ("mixer.branches.0.conv", "mixer.branches.1.conv", "shortcut.0")
    assert strided == {"stem.0"} | {f"stages.{stage}.0.{part}" for stage in (1, 2, 3) for part in parts}


def test_only_first_units_have_a_projection_and_it_is_a_1x1_with_bn(net: Trunk) -> None:
    for stage in STAGES:
        first, *rest = units(net, stage)
        assert isinstance(first.shortcut, nn.Sequential)
        conv, norm = first.shortcut
        assert isinstance(conv, nn.Conv2d)
        assert (conv.kernel_size, conv.out_channels) == ((1, 1), OUTS[stage])
        assert isinstance(norm, nn.BatchNorm2d)
        assert all(isinstance(unit.shortcut, nn.Identity) for unit in rest)


@pytest.mark.parametrize(("branch", "dilation"), [(0, 1), (1, 2)])
def test_branch_0_is_a_plain_3x3_and_branch_1_a_dilated_one_both_of_32_groups(
    net: Trunk, branch: int, dilation: int
) -> None:
    for unit in all_units(net):
        assert len(unit.mixer.branches) == 2
        path: Any = unit.mixer.branches[branch]
        conv = path.conv
        assert (conv.kernel_size, conv.groups) == ((3, 3), 32)
        assert (conv.dilation, conv.padding) == ((dilation, dilation), (dilation, dilation))
        assert isinstance(path.norm, nn.BatchNorm2d)
        assert isinstance(path.act, nn.ReLU)


@pytest.mark.parametrize("stage", STAGES)
def test_the_gate_is_linear_bn_relu_linear_of_the_told_width_without_biases(net: Trunk, stage: int) -> None:
    for unit in units(net, stage):
        gate = unit.mixer.gate
        assert gate is not None
        assert gate.fc1.weight.shape == (WIDTHS[stage], MIDS[stage])
        assert gate.fc2.weight.shape == (2 * MIDS[stage], WIDTHS[stage])
        assert [n for n, _ in gate.named_parameters()] == [
            "fc1.weight",
            "norm.weight",
            "norm.bias",
            "fc2.weight",
        ]
        assert isinstance(gate.norm, nn.BatchNorm1d)
        assert isinstance(gate.act, nn.ReLU)


def test_no_convolution_has_a_bias(net: Trunk) -> None:
    assert [m for m in of_type(net, nn.Conv2d) if m.bias is not None] == []


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm2d])
def test_batch_norms_have_eps_1e_5_and_momentum_0_05(net: Trunk, kind: type[nn.Module]) -> None:
    assert {(m.eps, m.momentum) for m in of_type(net, kind)} == {(1e-5, 0.05)}


def test_the_norms_are_one_per_convolution_and_one_per_gate_none_after_the_sum(net: Trunk) -> None:
    assert len(of_type(net, nn.BatchNorm2d)) == len(of_type(net, nn.Conv2d))
    assert len(of_type(net, nn.BatchNorm1d)) == sum(DEPTHS)


def test_nothing_stands_between_the_selection_and_the_last_1x1(net: Trunk) -> None:
    unit = units(net, 0)[0]
    seen: dict[str, Tensor] = {}
    handles = [
        unit.mixer.register_forward_hook(lambda _m, _i, out: seen.update(v=out)),
        unit.conv3.register_forward_pre_hook(lambda _m, inputs: seen.update(conv3=inputs[0])),
    ]
    unit(torch.randn(1, 64, 8, 8))
    for handle in handles:
        handle.remove()
    assert seen["conv3"] is seen["v"]


def test_bn_and_relu_follow_the_first_1x1_and_bn_alone_the_last(net: Trunk) -> None:
    unit = units(net, 0)[1]
    x = torch.randn(2, 256, 8, 8)
    seen: list[Tensor] = []
    handle = unit.mixer.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0].clone()))
    y = unit(x)
    handle.remove()
    torch.testing.assert_close(seen[0], unit.norm1(unit.conv1(x)).clamp(min=0))
    torch.testing.assert_close(y, (unit.norm3(unit.conv3(unit.mixer(seen[0]))) + x).clamp(min=0))


@pytest.mark.parametrize("chosen", [0, 1])
def test_slice_0_of_the_gate_weighs_the_plain_branch_and_slice_1_the_dilated_one(net: Trunk, chosen: int) -> None:
    mixer = units(net, 0)[0].mixer
    assert mixer.gate is not None

    def all_for_one(_module: nn.Module, _inputs: Any, logits: Tensor) -> Tensor:
        forced = torch.full_like(logits, -100.0)
        forced[:, chosen * 128 : (chosen + 1) * 128] = 100.0
        return forced

    x = torch.randn(2, 128, 9, 9)
    handle = mixer.gate.fc2.register_forward_hook(all_for_one)
    v = mixer(x)
    handle.remove()
    torch.testing.assert_close(v, mixer.branches[chosen](x))
    assert not torch.allclose(v, mixer.branches[1 - chosen](x), rtol=0.1, atol=0.1)


def near(got: Tensor, want: float) -> bool:
    return abs(got.std().item() / want - 1) < 0.05 and abs(got.mean().item()) < 0.1 * want


def test_convolutions_start_as_he_over_fan_in(net: Trunk) -> None:
    for conv in of_type(net, nn.Conv2d):
        fan_in = conv.weight[0].numel()
        assert near(conv.weight, (2 / fan_in) ** 0.5), conv


def test_gate_weights_start_gaussian_with_std_0_01(net: Trunk) -> None:
    for unit in of_type(net, SelectiveKernel):
        assert near(unit.gate.fc1.weight, 0.01)
        assert near(unit.gate.fc2.weight, 0.01)


def test_the_classifier_starts_gaussian_with_std_0_01_and_bias_0(net: Trunk) -> None:
    assert isinstance(net.fc, nn.Linear)
    assert near(net.fc.weight, 0.01)
    assert net.fc.bias.abs().sum() == 0


def test_the_classifier_sees_the_mean_over_space(net: Trunk) -> None:
    seen: list[Tensor] = []
    handles = [
        net.stages[-1].register_forward_hook(lambda _m, _i, out: seen.append(out)),
        net.fc.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0])),
    ]
    with torch.no_grad():
        logits = net(torch.randn(1, 3, 64, 64))
    for handle in handles:
        handle.remove()
    assert seen[0].shape == (1, 2048, 2, 2)
    torch.testing.assert_close(seen[1], seen[0].mean((2, 3)))
    assert logits.shape == (1, 1000)

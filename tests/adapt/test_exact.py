"""Third-party networks compute, to the last bit, what they did: outputs and statistics, in eval and in train mode."""

from __future__ import annotations

import copy
import importlib
import warnings
from typing import Any

import pytest
import torch
from shim import timm_or_skip
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import selkern
from selkern.adapt.plan import Plan
from selkern.adapt.unit import SelectiveConv

timm = timm_or_skip()


def stirred(model: nn.Module, seed: int) -> nn.Module:
    """Scales, biases and statistics moved: random networks often have zeros in front of their sums."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if tensor.is_floating_point() and tensor.numel() in (1, max(tensor.shape, default=1)):
                noise = 0.1 * torch.randn(tensor.shape, generator=generator)
                tensor.add_(noise.abs() if "var" in name else noise)
    return model


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    torch.manual_seed(1)
    with torch.no_grad():
        return [leaf for leaf in tree_leaves(model(x.clone())) if isinstance(leaf, Tensor)]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def buffers_of_both(model: nn.Module, selective: nn.Module) -> list[tuple[str, Tensor, Tensor]]:
    """Every buffer of the unchanged network, and where it is in the changed one."""
    places = {name: f"{name}" for name, _ in model.named_modules()}
    for unit_name, unit in selective.named_modules():
        if isinstance(unit, SelectiveConv):
            for part in ("conv", "norm", "act"):
                origin = getattr(unit.origin, part)
                if origin is not None:
                    inner = [name for name in places if name == origin or name.startswith(f"{origin}.")]
                    places |= {name: f"{unit_name}.{part}{name[len(origin) :]}" for name in inner}
    moved = dict(selective.named_buffers())
    pairs = []
    for name, buffer in model.named_buffers():
        module, _, last = name.rpartition(".")
        place = places[module]
        pairs.append((name, buffer, moved[f"{place}.{last}" if place else last]))
    return pairs


def assert_exact(model: nn.Module, x: Tensor, seed: int, least: int, **options: Any) -> Plan:
    """Fail unless the network is equal to the bit when it is changed, and differs once the units are moved."""
    model = stirred(model, seed)
    before = copy.deepcopy(model.state_dict())
    plan = selkern.selectify_plan(model, example=x, **options)
    assert plan.differences.evaluating == 0
    assert plan.differences.training == 0
    selective = selkern.selectify(model, example=x, **options)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), "the model was changed"
    units = [module for module in selective.modules() if isinstance(module, SelectiveConv)]
    assert len(units) == len(plan.changed) >= least
    for training in (False, True, False):  # the last with the statistics of the second
        expected = outputs(model.train(training), x)
        assert all(t.isfinite().all() for t in expected if t.is_floating_point())
        assert equal(outputs(selective.train(training), x), expected)
    for name, one, other in buffers_of_both(model, selective):
        assert torch.equal(one, other), name
    with torch.no_grad():
        for unit in units:
            for p in (p for branch in unit.further for p in branch.get_submodule("conv").parameters()):
                p.add_(0.1 * torch.randn_like(p))
    assert not equal(outputs(selective, x), expected), "the outputs do not depend on the units"
    return plan


# name, side of the image, units at least
SMALL = [
    ("resnet18", 32, 17),
    ("mobilenetv3_small_050", 32, 12),
    ("tf_efficientnet_lite0", 32, 17),
    ("convnext_atto", 32, 12),
    ("regnetx_002", 32, 14),
    ("test_nfnet", 48, 12),
    ("lcnet_050", 32, 14),
    ("test_efficientnet_gn", 32, 6),
    ("test_efficientnet_ln", 32, 6),
    ("test_efficientnet_evos", 32, 6),
    ("test_byobnet", 32, 6),
]


@pytest.mark.share(3)
@pytest.mark.parametrize(("name", "side", "least"), SMALL, ids=[name for name, *_ in SMALL])
def test_timm_networks(name: str, side: int, least: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=5)
    assert_exact(model, torch.randn(2, 3, side, side), seed, least, where="*")


NAMES = """
bat_resnext26ts botnet26t_256 coatnet_nano_rw_224 convmixer_768_32 convnextv2_atto cspdarknet53 cspresnet50 darknet17
davit_tiny densenet121 dla34 dm_nfnet_f0 dpn48b eca_nfnet_l0 ecaresnet26t edgenext_xx_small efficientformer_l1
efficientnetv2_rw_t efficientvit_b0 efficientvit_m0 ese_vovnet19b_dw fastvit_t8 fbnetc_100 focalnet_tiny_srf gernet_s
ghostnet_050 ghostnetv2_100 halonet26t hardcorenas_a hgnet_tiny hgnetv2_b0 hrnet_w18_small inception_next_atto
inception_resnet_v2 inception_v3 inception_v4 lambda_resnet26t legacy_seresnet18 legacy_xception levit_128s
mambaout_femto mixnet_s mnasnet_small mobilenetv1_100 mobilenetv2_050 mobilenetv4_conv_small mobileone_s0
mobilevit_xxs mobilevitv2_050 nasnetalarge nextvit_small nf_regnet_b0 nf_resnet26 nfnet_l0 poolformer_s12 pvt_v2_b0
rdnet_tiny regnety_002 regnetz_b16 repvgg_a0 repvit_m0_9 res2net50_26w_4s resnest14d resnet10t resnet50 resnetv2_18
resnetv2_50 resnext50_32x4d rexnet_100 selecsls42 semnasnet_075 seresnet50 shvit_s1 skresnet18 starnet_s1
swiftformer_xs tf_efficientnet_b0 tf_efficientnetv2_b0 tiny_vit_5m_224 tinynet_e tresnet_m vgg11 vgg11_bn
visformer_tiny vovnet39a wide_resnet50_2 xception41 xception41p
"""
LARGE = NAMES.split()


@pytest.mark.exhaustive
@pytest.mark.share(8)
@pytest.mark.parametrize("name", LARGE)
def test_many_timm_networks(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=5)
    fixed = model.pretrained_cfg.get("fixed_input_size") or name in ("bat_resnext26ts", "halonet26t")
    side = model.pretrained_cfg["input_size"][-1] if fixed else 96 if "inception" in name or "nas" in name else 64
    plan = assert_exact(model, torch.randn(2, 3, side, side), seed, 3, where="*")
    print(name, len(plan.changed), set(plan.left_out.values()))


TORCHVISION = [("resnet18", 32, 17), ("mobilenet_v2", 32, 17), ("shufflenet_v2_x0_5", 32, 17), ("squeezenet1_1", 48, 9)]


def torchvision_model(name: str) -> nn.Module:
    models = importlib.import_module("torchvision.models")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two families announce another initialisation
        model: nn.Module = models.get_model(name, weights=None, num_classes=5)
    return model


@pytest.mark.parametrize(("name", "side", "least"), TORCHVISION, ids=[name for name, *_ in TORCHVISION])
def test_torchvision_networks(name: str, side: int, least: int, seed: int) -> None:
    torch.manual_seed(seed)
    assert_exact(torchvision_model(name), torch.randn(2, 3, side, side), seed, least, where="*")


# One of each family that has a convolution with a middle (ViT has none: its only one is 16x16).
FAMILIES = [
    ("alexnet", 96), ("convnext_tiny", 32), ("densenet121", 32), ("efficientnet_b0", 32), ("efficientnet_v2_s", 32),
    ("googlenet", 96), ("inception_v3", 299), ("maxvit_t", 224), ("mnasnet0_5", 32), ("mobilenet_v3_small", 32),
    ("regnet_x_400mf", 32), ("regnet_y_400mf", 32), ("resnext50_32x4d", 32), ("shufflenet_v2_x1_0", 32), ("vgg11", 32),
    ("vgg11_bn", 32), ("wide_resnet50_2", 32),
]  # fmt: skip


@pytest.mark.exhaustive
@pytest.mark.share(3)
@pytest.mark.parametrize(("name", "side"), FAMILIES, ids=[name for name, _ in FAMILIES])
def test_every_torchvision_family(name: str, side: int, seed: int) -> None:
    torch.manual_seed(seed)
    plan = assert_exact(torchvision_model(name), torch.randn(2, 3, side, side), seed, 3, where="*")
    print(name, len(plan.changed), set(plan.left_out.values()))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["swin_t", "vit_b_32"])
def test_networks_without_a_middle_are_left_as_they_are(name: str) -> None:
    plan = selkern.selectify_plan(torchvision_model(name), example=torch.randn(2, 3, 224, 224))
    assert not plan.changed
    assert any("even kernel" in reason for reason in plan.left_out.values())


def test_pointwise_convolutions_too(seed: int) -> None:
    torch.manual_seed(seed)
    model = timm.create_model("test_resnet", num_classes=5)
    plan = assert_exact(model, torch.randn(2, 3, 96, 96), seed, 15, where="*", pointwise=True, branches=3)
    assert not plan.left_out


@pytest.mark.parametrize(("name", "units"), [("test_resnet", 10), ("tf_efficientnet_lite0", 17)])
def test_widened_is_equal_up_to_rounding(name: str, units: int, seed: int) -> None:
    torch.manual_seed(seed)
    model = stirred(timm.create_model(name, num_classes=5), seed).double()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    plan = selkern.selectify_plan(model, example=x, where="*", form="widened")
    assert len(plan.changed) == units
    assert plan.differences.evaluating is not None
    assert plan.differences.evaluating < 1e-10


def test_weights_learn_as_before(seed: int) -> None:
    """The first step of what was there is the unchanged network's, as far as sums can be equal."""
    torch.manual_seed(seed)
    model = stirred(timm.create_model("resnet18", num_classes=5), seed).double()
    x = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    selective = selkern.selectify(model, example=x, where="*")
    for network in (model, selective):
        network(x).square().sum().backward()
    for name, p in model.named_parameters():
        if name.endswith("conv1.weight"):
            torch.testing.assert_close(selective.get_parameter(name.replace("conv1", "conv1.conv")).grad, p.grad)


FORMATS = [(torch.contiguous_format, torch.channels_last), (torch.channels_last, torch.contiguous_format)]


@pytest.mark.parametrize(("of_model", "of_images"), FORMATS, ids=str)
def test_whatever_the_memory_format(of_model: torch.memory_format, of_images: torch.memory_format, seed: int) -> None:
    torch.manual_seed(seed)
    model = timm.create_model("test_resnet", num_classes=5).to(memory_format=of_model)
    x = torch.randn(2, 3, 48, 48).contiguous(memory_format=of_images)
    plan = assert_exact(model, x, seed, 9, where="*")
    selective = selkern.selectify(model, example=x, where="*").to(memory_format=of_model)
    assert len(plan.changed) == 10
    assert equal(outputs(selective.eval(), x), outputs(model.eval(), x))

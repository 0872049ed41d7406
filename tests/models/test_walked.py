"""Networks in the hands of tracers, and of tools that call a network's children one after the other."""

from __future__ import annotations

import warnings

import pytest
import torch
from shim import fix_torchvision
from torch import Tensor, fx, nn

from selkern import create_model, set_memory
from selkern.models.backbone import Backbone

KINDS = ["sknet_mini", "resnet_mini", "seresnet_mini", "sknet_mini_sum", "sknet26", "sk_shufflenet_v2_x05"]
KINDS += ["se_shufflenet_v2_x05", "skresnet18", "skresnet50d"]
MEMORY = ["plain", "default", "lean"]


def network(name: str) -> Backbone:
    return create_model(name, num_classes=3).eval()


def assert_same(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * want.abs().max().item())


@pytest.mark.share(4)
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("name", KINDS)
def test_a_symbolic_trace_takes_any_batch_and_size_and_trains(name: str, memory: str) -> None:
    model = set_memory(network(name), memory)  # type: ignore[arg-type]
    graph = fx.symbolic_trace(model)
    for shape in ((1, 3, 64, 64), (3, 3, 40, 72)):
        x = torch.randn(shape)
        assert_same(graph(x), model(x))
    graph(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", ["sknet_mini", "sk_shufflenet_v2_x05", "skresnet18", "seresnet_mini"])
def test_a_trace_has_no_size_in_it(name: str) -> None:
    model = network(name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        traced = torch.jit.trace(model, torch.randn(2, 3, 64, 64), check_trace=False)  # type: ignore[no-untyped-call]
    x = torch.randn(3, 3, 40, 72)
    assert_same(traced(x), model(x))


def test_a_traced_drop_path_takes_any_batch() -> None:
    graph = fx.symbolic_trace(create_model("sknet_mini", num_classes=3, drop_path_rate=0.5))
    assert graph(torch.randn(5, 3, 32, 32)).shape == (5, 3)


@pytest.mark.parametrize("name", KINDS)
def test_the_children_in_turn_are_the_network(name: str) -> None:
    model = network(name)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(nn.Sequential(*model.children())(x), model(x))
    pooled = nn.Sequential(*list(model.children())[:-1])(x)
    assert torch.equal(model.fc(pooled), model(x))


def test_the_stages_can_be_called_and_cut() -> None:
    model = network("sknet_mini")
    maps = model.forward_features(torch.randn(1, 3, 48, 48))
    assert torch.equal(model.stages(maps[0]), maps[-1])
    assert torch.equal(model.stages[:2](maps[0]), maps[2])
    assert next(name for name in model.state_dict() if name.startswith("stages.")) == "stages.0.0.conv1.weight"


@pytest.mark.parametrize("name", ["sknet_mini", "sk_shufflenet_v2_x05", "skresnet18"])
def test_torchvision_takes_the_maps_out(name: str) -> None:
    fix_torchvision()
    extraction = pytest.importorskip("torchvision.models.feature_extraction", reason="torchvision is not installed")
    getter = pytest.importorskip("torchvision.models._utils").IntermediateLayerGetter
    model = network(name)
    x = torch.randn(2, 3, 64, 64)
    want = model.forward_features(x)
    nodes = {feature.module: str(index) for index, feature in enumerate(model.feature_info)}
    for got, map_ in zip(extraction.create_feature_extractor(model, nodes)(x).values(), want, strict=True):
        assert_same(got, map_)
    assert torch.equal(getter(model, {"stages": "last"})(x)["last"], want[-1])


@pytest.mark.parametrize("name", ["sknet_mini", "resnet_mini"])
def test_fx_quantises_a_network(name: str) -> None:
    quantise_fx = pytest.importorskip("torch.ao.quantization.quantize_fx")
    from torch.ao.quantization import get_default_qconfig_mapping

    model, x = network(name), torch.randn(2, 3, 64, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch recommends torchao
        prepared = quantise_fx.prepare_fx(network(name), get_default_qconfig_mapping("x86"), (x,))
        prepared.load_state_dict(model.state_dict(), strict=False)
        prepared(x)
        quantised = quantise_fx.convert_fx(prepared)
    y = quantised(x)
    assert y.shape == (2, 3)
    assert torch.nn.functional.cosine_similarity(y, model(x)).min() > 0.9


@pytest.mark.share(4)
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("name", KINDS)
def test_a_hook_on_every_part_is_called(name: str, memory: str) -> None:
    model, seen = set_memory(network(name).train(), memory), set()  # type: ignore[arg-type]
    for part, module in model.named_children():
        module.register_forward_hook(lambda _m, _i, _o, part=part: seen.add(part))
    model(torch.randn(2, 3, 64, 64))
    assert seen == {part for part, _ in model.named_children()}

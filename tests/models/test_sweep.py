"""The small models really run: gradients, classes, channels, feature maps, input sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from selkern.errors import UsageError
from selkern.models.registry import create_model, list_models
from selkern.models.trunk import Architecture, SqueezeExcite

MINI = list_models("*mini*")
SMALL = [*((name, 48) for name in MINI), ("sknet26", 64), *((name, 64) for name in list_models("*shufflenet*x05"))]


@pytest.mark.parametrize(("name", "side"), SMALL)
def test_backward_reaches_every_parameter(name: str, side: int) -> None:
    model = create_model(name, num_classes=7)
    logits = model(torch.randn(2, 3, side, side))
    assert isinstance(logits, Tensor)
    assert logits.shape == (2, 7)
    torch.autograd.backward(nn.functional.cross_entropy(logits, torch.tensor([1, 5])))
    for path, p in model.named_parameters():
        assert p.grad is not None, path
        assert p.grad.isfinite().all(), path
        assert p.grad.abs().sum() > 0, path


@pytest.mark.parametrize("side", [32, 48, 57])
@pytest.mark.parametrize("name", MINI)
def test_another_input_size_and_one_channel(name: str, side: int) -> None:
    model = create_model(name, num_classes=3, in_chans=1).eval()
    logits = model(torch.randn(1, 1, side, side + 5))
    assert isinstance(logits, Tensor)
    assert logits.shape == (1, 3)
    assert logits.isfinite().all()


@pytest.mark.parametrize("side", [64, 75])
@pytest.mark.parametrize("name", [*MINI, "sknet26", *list_models("*shufflenet*x05")])
def test_feature_maps_are_as_told(name: str, side: int) -> None:
    model = create_model(name, features_only=True).eval()
    with torch.no_grad():
        maps = model(torch.randn(1, 3, side, side))
    assert isinstance(maps, list)
    assert [tuple(m.shape[1:]) for m in maps] == [
        (f.channels, -(-side // f.stride), -(-side // f.stride)) for f in model.feature_info
    ]
    assert not any(n.startswith("fc.") for n in model.state_dict())


def test_feature_info_names_the_modules_that_make_the_maps() -> None:
    model = create_model("sknet_mini", features_only=True).eval()
    seen: list[Tensor] = []
    for feature in model.feature_info:
        model.get_submodule(feature.module).register_forward_hook(lambda _m, _i, out: seen.append(out))
    maps = model(torch.randn(1, 3, 48, 48))
    assert all(a is b for a, b in zip(seen, maps, strict=True))


def test_no_classes_gives_the_pooled_features() -> None:
    model = create_model("sknet_mini", num_classes=0).eval()
    x = torch.randn(2, 3, 48, 48)
    pooled = model(x)
    assert isinstance(pooled, Tensor)
    torch.testing.assert_close(pooled, model.forward_features(x)[-1].mean((2, 3)))
    assert pooled.shape == (2, model.num_features)


def test_training_on_one_image_says_what_to_do() -> None:
    with pytest.raises(ValueError, match="BatchNorm cannot train on a batch of 1"):
        create_model("sknet_mini")(torch.randn(1, 3, 48, 48))


def test_squeeze_excite_is_its_definition() -> None:
    se = SqueezeExcite(32, reduction=4)
    x = torch.randn(2, 32, 5, 6)
    s = torch.relu(x.mean((2, 3)) @ se.fc1.weight.T + se.fc1.bias) @ se.fc2.weight.T + se.fc2.bias
    torch.testing.assert_close(se(x), x / (1 + (-s).exp())[:, :, None, None])


def test_an_architecture_checks_its_row() -> None:
    with pytest.raises(UsageError, match="one depth, mid, out and stride per stage"):
        Architecture(depths=(2, 2), mids=(8,), outs=(8, 8), strides=(1, 2))
    with pytest.raises(UsageError, match="unknown mixer 'cbam'"):
        Architecture(depths=(1,), mids=(8,), outs=(8,), strides=(1,), mixer="cbam")  # type: ignore[arg-type]

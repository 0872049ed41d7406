"""Backbones with units of `selectify` in networks of other packages: equal at the start, and they learn."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from shim import fix_torchvision, timm_or_skip
from torch import Tensor, nn
from torch.nn import functional as F

import selkern
from selkern.adapt.unit import SelectiveConv

timm = timm_or_skip()


def assert_equal(got: Any, expected: Any) -> None:
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def assert_learns(model: nn.Module, loss: Callable[[], Tensor], lr: float = 2e-3, steps: int = 8) -> None:
    """The loss falls, and the further kernels and the gates of all units move."""
    units = {name: unit for name, unit in model.named_modules() if isinstance(unit, SelectiveConv)}
    assert units
    groups = selkern.param_groups(model, lr)
    assert any(str(group["name"]).startswith("new") for group in groups)
    optimizer = torch.optim.AdamW(groups)
    first = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = []
    for _ in range(steps):
        value = loss()
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(value.item())
    assert min(losses[-2:]) < 0.9 * losses[0], losses
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, first[name])}
    for name in units:
        assert any(key.startswith(f"{name}.further.0") for key in moved), name
        assert f"{name}.gate.fc2.weight" in moved


def squares(count: int = 4, side: int = 64) -> tuple[Tensor, Tensor]:
    """Images (N, 3, S, S) with a bright square, and masks (N, 1, S, S)."""
    masks = torch.zeros(count, 1, side, side)
    for i in range(count):
        masks[i, 0, 8 * i : 8 * i + 24, 16:40] = 1.0
    return masks + 0.3 * torch.randn(count, 3, side, side), masks


@pytest.mark.parametrize("name", [pytest.param("resnet18", marks=pytest.mark.exhaustive), "mobilenetv3_small_050"])
def test_timms_features(name: str) -> None:
    plain = timm.create_model(name, features_only=True, out_indices=(2, 3, 4))
    x, masks = squares()
    model = selkern.selectify(plain, example=x, where="last 2 stages")
    assert model.feature_info.channels() == plain.feature_info.channels()
    assert_equal(model.eval()(x), plain.eval()(x))
    heads = nn.ModuleList(nn.Conv2d(channels, 1, 1) for channels in model.feature_info.channels())
    whole = nn.ModuleList([model.train(), heads])

    def loss() -> Tensor:
        maps: Iterable[tuple[nn.Module, Tensor]] = zip(heads, model(x), strict=True)
        drawn = [F.interpolate(head(u), size=masks.shape[2:], mode="bilinear") for head, u in maps]
        return F.binary_cross_entropy_with_logits(sum(drawn[1:], start=drawn[0]), masks)

    assert_learns(whole, loss)


@pytest.mark.exhaustive
def test_an_encoder_of_segmentation_models() -> None:
    how = "pip install -c constraints.txt segmentation-models-pytorch"
    smp = pytest.importorskip("segmentation_models_pytorch", reason=f"it is not installed: {how}")
    model = smp.Unet("resnet18", encoder_weights=None, classes=1, decoder_channels=(32, 32, 16, 16, 8))
    x, masks = squares()
    expected = model.eval()(x)
    selkern.selectify(model.encoder, example=x, where=["layer3", "layer4"], inplace=True)
    assert torch.equal(model(x), expected)
    model.train()
    assert_learns(model, lambda: F.binary_cross_entropy_with_logits(model(x), masks))


@pytest.mark.exhaustive
def test_a_detector_of_torchvision() -> None:
    fix_torchvision()
    detection: Any = importlib.import_module("torchvision.models.detection")
    utils: Any = importlib.import_module("torchvision.models.detection.backbone_utils")
    x, _ = squares()
    body = utils.resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=5)
    selective = selkern.selectify(body, example=x, where=["body.layer3", "body.layer4"])
    assert_equal(selective.eval()(x).values(), body.eval()(x).values())
    model = detection.RetinaNet(selective, num_classes=2, min_size=64, max_size=64)
    boxes = [torch.tensor([[16.0, 8.0 * i, 40.0, 8.0 * i + 24]]) for i in range(len(x))]
    targets = [{"boxes": box, "labels": torch.ones(1, dtype=torch.int64)} for box in boxes]
    model.train()

    def loss() -> Tensor:
        parts: dict[str, Tensor] = model(list(x), targets)
        return torch.stack(list(parts.values())).sum()

    assert_learns(model, loss, lr=2e-4)  # from random weights, with the norms of a trained backbone: frozen

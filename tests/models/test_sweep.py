"""Every registered model really runs, on small images: gradients, sizes, channels, feature maps, weights files.

`test_compile.py` has the other half of the sweep, `torch.compile` and `torch.export`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from selkern.errors import UsageError
from selkern.models.backbone import Backbone
from selkern.models.registry import architecture, create_model, list_models
from selkern.models.trunk import Architecture, SqueezeExcite
from selkern.models.weights import Card, save_weights

CLASSES = ("cat", "dog", "eel")
# By the size a network was designed for: the side it trains on here, and an odd, oblong image. Sides are one less
# than a multiple of 4: the max-pool without padding drops the last position of an odd map.
SIDE = {224: 31, 48: 23, 32: 7}
OBLONG = {224: (35, 51), 48: (27, 35), 32: (7, 11)}


@pytest.fixture(scope="module", params=list_models())
def named(request: pytest.FixtureRequest) -> tuple[str, Backbone]:
    """A name and its network, made once for all checks on it: pytest runs these together."""
    torch.manual_seed(0)
    model = create_model(request.param, num_classes=len(CLASSES))
    for buffer in model.buffers():
        if buffer.is_floating_point():  # a running statistic, which starts as that of any other network
            buffer.uniform_(0.5, 1.5)
    return request.param, model


@contextmanager
def undrawn() -> Iterator[None]:
    """Weights of networks made in here are NaN: to draw millions and replace them takes long, and what is not replaced
    is now seen."""
    with pytest.MonkeyPatch.context() as patch:
        for draw in ("normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_"):
            patch.setattr(nn.init, draw, lambda tensor, *_, **__: tensor.detach().fill_(torch.nan))
        yield


def variant(name: str, model: Backbone, *, in_chans: int, features_only: bool = False) -> Backbone:
    """The network made with other arguments, on the weights of `model`; a stem of other channels is random."""
    with undrawn(), torch.device("meta"):
        made = create_model(name, num_classes=len(CLASSES), in_chans=in_chans, features_only=features_only)
    own = model.state_dict()
    state = {n: own[n] for n in made.state_dict()}
    stem = made.get_parameter("stem.0.weight")
    if state["stem.0.weight"].shape != stem.shape:
        state["stem.0.weight"] = torch.randn(stem.shape)
    made.load_state_dict(state, assign=True)
    return made.eval()


@pytest.mark.share(3)
def test_backward_reaches_every_parameter(named: tuple[str, Backbone]) -> None:
    name, model = named
    side = SIDE[architecture(name).input_size]
    logits = model.train()(torch.randn(3, 3, side, side))
    assert isinstance(logits, Tensor)
    assert logits.shape == (3, 3)
    torch.autograd.backward(nn.functional.cross_entropy(logits, torch.tensor([2, 0, 1])))
    for path, p in model.named_parameters():
        assert p.grad is not None, path
        assert 0 < p.grad.norm(torch.inf) < torch.inf, path  # the largest; a NaN is neither
    model.zero_grad()


@pytest.mark.share(3)
def test_another_size_and_other_channels_and_maps_as_told(named: tuple[str, Backbone]) -> None:
    name, model = named
    height, width = OBLONG[architecture(name).input_size]
    x = torch.randn(2, 4, height, width)
    scorer = variant(name, model, in_chans=4)
    mapper = variant(name, scorer, in_chans=4, features_only=True)
    with torch.no_grad():
        logits, maps = scorer(x), mapper(x)
    assert isinstance(logits, Tensor)
    assert logits.shape == (2, 3)
    assert logits.isfinite().all()
    assert isinstance(maps, list)
    assert [tuple(m.shape) for m in maps] == [
        (2, f.channels, -(-height // f.stride), -(-width // f.stride)) for f in mapper.feature_info
    ]
    assert not any(n.startswith(("fc.", "last.")) for n in mapper.state_dict())
    with torch.no_grad():
        assert torch.equal(scorer.forward_head(maps[-1]), logits)


@pytest.mark.share(3)
def test_a_weights_file_gives_the_same_logits(
    named: tuple[str, Backbone], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, model = named
    side = SIDE[architecture(name).input_size]
    monkeypatch.setattr(os, "fsync", lambda _: None)  # 5 GB in all, which no disk needs to keep
    file = tmp_path / "w.safetensors"
    save_weights(file, model.state_dict(), Card(model=name, classes=CLASSES))
    with undrawn():
        loaded = create_model(weights=file)
    file.unlink()
    state = loaded.state_dict()
    assert all(torch.equal(state.pop(path), tensor) for path, tensor in model.state_dict().items())
    assert not state
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(x), model.eval()(x))


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

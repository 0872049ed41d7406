"""A folded network gives what the network gives."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import selkern
from selkern import SelectiveKernel, SKAttention, SKFusion, create_model, fold
from selkern.deploy.fold import FoldedSKAttention
from selkern.errors import NumericsError, UsageError


def trained(model: nn.Module) -> nn.Module:
    """Norms off 1 and 0, where mistakes hide."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and ("norm" in name or "running" in name or ".bn" in name):
            tensor.uniform_(0.5, 1.5)
    return model.eval()


def assert_close(got: Tensor, want: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=tolerance * want.abs().max().item())


NETWORKS = ["sknet_mini", "resnet_mini", "seresnet_mini", "sknet_mini_sum", "sk_shufflenet_v2_x05", "skresnet18"]


class Nested(nn.Module):
    """Gives what detectors give: tensors and numbers, nested."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())

    def forward(self, x: Tensor) -> Any:
        y = self.net(x)
        return y.mean(dim=(2, 3)), {"maps": [y], "stride": 8}


def test_outputs_may_be_nested() -> None:
    model, x = trained(Nested()), torch.randn(5, 3, 9, 9)
    fast = fold(model, example=x, micro_batch=2)
    (mean, more), (want, expected) = fast(x), model(x)
    assert_close(mean, want.detach())
    assert_close(more["maps"][0], expected["maps"][0].detach())
    assert more["stride"] == 8


@pytest.mark.parametrize("name", [*NETWORKS, "sknet26", "skresnet50d"])
def test_networks(name: str) -> None:
    torch.manual_seed(0)
    model = trained(create_model(name, num_classes=7))
    state = deepcopy(model.state_dict())
    fast = fold(model)
    assert not [m for m in fast.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
    with torch.no_grad():
        for shape in ((1, 3, 64, 64), (10, 3, 48, 75)):  # more than one micro-batch, odd maps
            x = torch.randn(shape)
            assert_close(fast(x), model(x))
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())


def test_feature_maps_and_channels() -> None:
    model = trained(create_model("sknet_mini", features_only=True, in_chans=1))
    x = torch.randn(10, 1, 48, 48)
    with torch.no_grad():
        for got, want in zip(fold(model)(x), model(x), strict=True):
            assert_close(got, want)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (SelectiveKernel(16, 24, groups=4, stride=2), (2, 16, 9, 9)),
        (SelectiveKernel(16, kernels=(1, 3, 5), groups=4, dims=1), (2, 16, 11)),
        (SelectiveKernel(8, groups=4, dims=3), (2, 8, 5, 6, 7)),
        (SelectiveKernel(16, groups=4, norm="group"), (2, 16, 9, 9)),
        (SelectiveKernel(16, groups=4, activation="silu"), (2, 16, 9, 9)),
        (SKAttention(16), (2, 16, 9, 9)),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), SelectiveKernel(8, groups=4)), (2, 3, 9, 9)),
    ],
)
def test_layers(layer: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    trained(layer)
    x = torch.randn(shape)
    fast = fold(layer, example=x)
    y = torch.randn(shape[0] + 8, *shape[1:])
    with torch.no_grad():
        assert_close(fast(y), layer(y))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_article_s_module_by_fourier_coefficients(layout: torch.memory_format) -> None:
    torch.manual_seed(3)
    module = trained(SKAttention(128))
    x = torch.randn(8, 128, 20, 28).contiguous(memory_format=layout)
    fast = fold(module, example=x, micro_batch=None)
    assert isinstance(fast.net, FoldedSKAttention)
    assert len(fast.net._spectra) == 1
    with torch.no_grad():
        assert_close(fast(x), module(x))
        assert_close(fast(x[:, :, :7, :7]), module(x[:, :, :7, :7]))
        assert_close(fast(x), module(x))
    direct = fold(trained(SKAttention(128, spectral=False)), example=x)
    assert isinstance(direct.net, FoldedSKAttention)
    assert not len(direct.net._spectra)


def test_bfloat16() -> None:
    model = create_model("sknet_mini", weights="digits").eval()
    fast = fold(model, dtype=torch.bfloat16)
    x = torch.rand(64, 3, 48, 48)
    with torch.no_grad():
        want, got = model(x), fast(x)
    assert got.dtype == torch.float32
    exact = {name for name, p in fast.named_parameters() if p.dtype != torch.bfloat16}
    assert exact == {"net.stem.0.weight", "net.stem.0.bias"}, "the first convolution alone stays float32"
    first = "net.stem.0.weight"
    assert torch.equal(fast.state_dict()[first], fold(model).state_dict()[first]), "and is not rounded on the way"
    assert_close(got, want, 0.1)


def test_selections_can_be_recorded() -> None:
    model = trained(create_model("sknet_mini"))
    x = torch.randn(2, 3, 48, 48)
    fast = fold(model)
    with torch.no_grad(), selkern.record(model) as want, selkern.record(fast) as got:
        model(x)
        fast(x)
    assert [unit.label for unit in got.units.values()] == [unit.label for unit in want.units.values()]
    for a, b in zip(got.values(), want.values(), strict=True):
        assert_close(a, b)


def test_state_is_saved_and_loaded() -> None:
    model = trained(create_model("sknet_mini"))
    fast, other = fold(model), fold(create_model("sknet_mini"))
    x = torch.randn(2, 3, 48, 48)
    assert not torch.equal(other(x), fast(x))
    other.load_state_dict(fast.state_dict())
    assert torch.equal(other(x), fast(x))


def test_it_stays_in_eval_mode() -> None:
    fast = fold(trained(create_model("sknet_mini")))
    fast.train()
    assert not any(module.training for module in fast.modules())
    assert not any(p.requires_grad for p in fast.parameters())


def test_a_training_model_is_folded_as_it_evaluates_and_left_in_training() -> None:
    model = create_model("sknet_mini").train()
    fold(model)
    assert all(module.training for module in model.modules())


class Reused(nn.Module):
    """Uses the norm of a Sequential a second time, which no fold of the Sequential can know."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x) + self.layers[1](x)
        return out


def test_a_fold_that_differs_is_not_given() -> None:
    with pytest.raises(NumericsError, match=r"the fold differs by .* of the largest value \| Reused"):
        fold(trained(Reused()), example=torch.randn(2, 3, 5, 5))


def test_a_layer_needs_an_example() -> None:
    with pytest.raises(UsageError, match="give example="):
        fold(SKFusion(8))


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")  # torch's own, inside inductor
def test_compiled() -> None:
    torch.manual_seed(2)
    layer: Any = trained(SelectiveKernel(8, groups=4))
    x = torch.randn(2, 8, 9, 9)
    fast, other = fold(layer, example=x, compile=True), fold(trained(SelectiveKernel(8, groups=4)), example=x)
    with torch.no_grad():
        assert_close(fast(x), layer(x))
    fast.load_state_dict(other.state_dict())
    assert_close(fast(x), other(x))
    again = pickle.loads(pickle.dumps(fast))
    assert again.compiled
    assert "_compiled" in vars(fast)
    assert "_compiled" not in vars(again), "it compiles itself at its first call"
    assert list(fast.state_dict()) == list(other.state_dict())


class Adapted(nn.Module):
    """What adapters put in a convolution's place."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        return y * 1.5


@pytest.mark.parametrize(
    "make", [lambda: create_model("sknet26", num_classes=3), lambda: SKAttention(8, kernels=(1, 3))]
)
@pytest.mark.parametrize("how", ["weight_norm", "adapted", "hooked"])
def test_what_others_have_changed_is_left_as_it_is(make: Callable[[], nn.Module], how: str) -> None:
    torch.manual_seed(0)
    model = make().eval()
    convs = [
        (owner, name) for owner in model.modules() for name, m in owner.named_children() if isinstance(m, nn.Conv2d)
    ]
    for owner, name in convs[::2]:
        conv = owner.get_submodule(name)
        if how == "weight_norm":
            parametrizations.weight_norm(conv)
        elif how == "adapted":
            setattr(owner, name, Adapted(conv))
        else:
            conv.register_forward_hook(lambda _m, _i, out: out * 1.5)
    x = torch.randn(2, 8 if isinstance(model, SKAttention) else 3, 40, 40)
    with torch.no_grad():
        want = model(x)
    torch.testing.assert_close(fold(model, example=x)(x), want, rtol=1e-3, atol=1e-4 * want.abs().max().item())

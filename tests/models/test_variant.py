"""Networks of other norms and with stochastic depth: what they compute, and that their weights files say so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tiny import make_folder, make_options, tiny_model, train
from torch import Tensor, nn

from selkern import create_model, fold, from_pretrained, set_memory
from selkern.errors import CheckpointError, UsageError
from selkern.layers.gate import Gate
from selkern.models.backbone import Backbone, DropPath, Variant
from selkern.models.registry import architecture
from selkern.models.weights import Card, read_card, save_weights
from selkern.train.recipe import Recipe

KINDS = ["sknet_mini", "resnet_mini", "seresnet_mini", "sknet_mini_sum", "sk_shufflenet_v2_x05", "se_shufflenet_v2_x05"]
KINDS += ["skresnet18", "skresnet50d"]
SIDE = 64


def norms_of(model: nn.Module) -> tuple[set[type], set[type]]:
    """Kinds of the norms of maps, and of gates."""
    gates = {type(gate.norm) for gate in model.modules() if isinstance(gate, Gate)}
    known = (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d)
    inside = {id(gate.norm) for gate in model.modules() if isinstance(gate, Gate)}
    return {type(m) for m in model.modules() if isinstance(m, known) and id(m) not in inside}, gates


@pytest.mark.share(2)
@pytest.mark.parametrize("name", KINDS)
def test_norms_by_name(name: str) -> None:
    with torch.device("meta"):
        has_gates = any(isinstance(m, Gate) for m in create_model(name).modules())
    for options, maps, gates in (
        ({}, {nn.BatchNorm2d}, {nn.BatchNorm1d}),
        ({"norm": "group"}, {nn.GroupNorm}, {nn.GroupNorm}),
        ({"norm": "none"}, set(), {nn.Identity}),
        ({"norm": "layer", "gate_norm": "batch"}, {nn.GroupNorm}, {nn.BatchNorm1d}),
        ({"gate_norm": "none"}, {nn.BatchNorm2d}, {nn.Identity}),
    ):
        with torch.device("meta"):
            model = create_model(name, num_classes=3, **options)  # type: ignore[arg-type]
        assert norms_of(model) == (maps, gates if has_gates else set())


@pytest.mark.parametrize("name", KINDS)
def test_a_network_of_group_norms_trains_on_one_image_without_a_warning(name: str) -> None:
    model = create_model(name, num_classes=3, norm="group")
    logits = model(torch.randn(1, 3, SIDE, SIDE))
    assert isinstance(logits, Tensor)
    torch.autograd.backward(logits.square().sum())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_a_norm_by_function() -> None:
    model = create_model("sknet_mini", norm=lambda c: nn.InstanceNorm2d(c, affine=True), gate_norm="none")
    assert norms_of(model) == ({nn.InstanceNorm2d}, {nn.Identity})


@pytest.mark.parametrize("name", ["sknet_mini", "sk_shufflenet_v2_x05", "skresnet18"])
def test_the_default_draws_the_same_numbers_and_has_the_same_names(name: str) -> None:
    torch.manual_seed(0)
    want = create_model(name).state_dict()
    torch.manual_seed(0)
    got = create_model(name, norm="batch", gate_norm="batch", drop_path_rate=0.3).state_dict()
    assert list(got) == list(want)
    assert all(torch.equal(got[key], want[key]) for key in want)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "bach"}, "norm is 'bach'"),
        ({"gate_norm": 3}, "gate_norm is 3"),
        ({"drop_path_rate": 1.0}, "drop_path_rate is 1.0"),
        ({"drop_path_rate": -0.1}, "drop_path_rate is -0.1"),
    ],
)
def test_a_variant_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create_model("sknet_mini", **options)


# Stochastic depth


@pytest.mark.parametrize("name", KINDS)
def test_rates_rise_linearly_over_the_units(name: str) -> None:
    with torch.device("meta"):
        model, plain = create_model(name, drop_path_rate=0.2), create_model(name)
    units = [unit for stage in model.stages.children() for unit in stage.children()]
    rates = [getattr(unit.get_submodule("drop_path"), "rate", 0.0) for unit in units]
    assert rates == pytest.approx([0.2 * unit / (len(units) - 1) for unit in range(len(units))])
    assert not any(isinstance(m, DropPath) for m in plain.modules())


@pytest.mark.parametrize("name", KINDS)
def test_stochastic_depth_is_nothing_in_eval_mode(name: str) -> None:
    plain = create_model(name, num_classes=3).eval()
    model = create_model(name, num_classes=3, drop_path_rate=0.9).eval()
    model.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, SIDE, SIDE)
    assert torch.equal(model(x), plain(x))


def test_a_dropped_path_is_left_out_image_by_image_and_the_rest_is_scaled() -> None:
    drop = DropPath(0.25)
    out = drop(torch.ones(4000, 2, 3, 3))
    kept = out[:, 0, 0, 0] > 0
    assert torch.equal(out, out[:, :1, :1, :1].expand_as(out))
    assert out.unique().tolist() == pytest.approx([0, 4 / 3])
    assert abs(kept.double().mean().item() - 0.75) < 0.03
    assert torch.equal(drop.eval()(out), out)


@pytest.mark.parametrize("name", ["sknet_mini", "skresnet18"])
def test_a_unit_whose_path_is_dropped_is_its_shortcut(name: str) -> None:
    unit = create_model(name, drop_path_rate=0.5).stages[-1][-1]  # type: ignore[index]
    unit.drop_path.rate = 1 - 1e-9
    x = torch.rand(2, 512 if name == "skresnet18" else 192, 4, 4)
    assert torch.equal(unit(x), x)


@pytest.mark.parametrize("memory", ["default", "lean"])
def test_stochastic_depth_has_the_same_gradients_in_every_memory_mode(memory: Any) -> None:
    model = create_model("sknet_mini", num_classes=3, drop_path_rate=0.5)
    gradients = []
    for mode in ("plain", memory):
        torch.manual_seed(1)
        logits = set_memory(model, mode)(torch.ones(4, 3, 32, 32))
        gradients.append(torch.autograd.grad(logits.square().sum(), list(model.parameters())))
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want)


def test_a_shuffle_unit_whose_path_is_dropped_passes_the_other_half() -> None:
    unit: Any = create_model("sk_shufflenet_v2_x05", drop_path_rate=0.5).stages[-1][-1]  # type: ignore[index]
    unit.drop_path.rate = 1 - 1e-9
    x = torch.rand(2, 192, 4, 4)
    y = unit(x)
    assert torch.equal(y[:, 0::2], x[:, :96])
    assert not y[:, 1::2].any()


@pytest.mark.parametrize("name", ["sknet_mini", "seresnet_mini", "skresnet18"])
@pytest.mark.parametrize("options", [{"norm": "group"}, {"norm": "none"}, {"gate_norm": "layer"}])
def test_norms_that_do_not_fold_stay_in_a_fold(name: str, options: dict[str, Any]) -> None:
    model = create_model(name, num_classes=3, drop_path_rate=0.1, **options).eval()
    x = torch.randn(2, 3, SIDE, SIDE)
    want = model(x)
    torch.testing.assert_close(fold(model)(x), want, rtol=0, atol=1e-4 * want.abs().max().item())


# Weights files


@pytest.mark.share(4)
@pytest.mark.parametrize("name", ["sknet_mini", "resnet_mini", "sk_shufflenet_v2_x05"])
@pytest.mark.parametrize("options", [{"norm": "group"}, {"norm": "layer", "gate_norm": "batch"}, {"gate_norm": "none"}])
def test_a_saved_network_of_other_norms_is_itself_again(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    model = create_model(name, num_classes=3, **options).eval()
    model.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path).eval()
    assert again.card == model.card == read_card(tmp_path / "model.safetensors")
    assert f"gate_norm={model.variant.norms['gate_norm']!r}." in (tmp_path / "README.md").read_text()
    assert again.variant.norms == model.variant.norms != {}
    x = torch.randn(2, 3, SIDE, SIDE)
    assert torch.equal(again(x), model(x))
    asked = from_pretrained(tmp_path, **options, num_classes=2, drop_path_rate=0.1)
    assert asked.variant == replace(again.variant, drop_path_rate=0.1)
    assert asked.card is not None
    assert asked.card.norms == again.variant.norms


def test_another_norm_than_the_weights_have_is_one_line(tmp_path: Path) -> None:
    create_model("sknet_mini", norm="group").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"network with norm='group', not 'layer' \| .* \| use norm='group'"):
        from_pretrained(tmp_path, norm="layer")  # whose tensors have the same names and shapes
    with pytest.raises(CheckpointError, match="gate_norm='batch', not 'none'"):
        create_model("sknet_mini", weights="digits", gate_norm="none")
    with pytest.raises(CheckpointError, match=r"tensor .* belongs to no layer"):
        create_model("sknet_mini", weights="digits", norm=lambda c: nn.GroupNorm(1, c))


def test_weights_fit_a_function_whose_tensors_have_their_names() -> None:
    model = create_model("sknet_mini", weights="digits", norm=nn.BatchNorm2d)
    assert model.stem.get_submodule("1").momentum == 0.1
    assert torch.equal(
        model.state_dict()["stem.1.weight"], create_model("sknet_mini", weights="digits").state_dict()["stem.1.weight"]
    )


def test_a_network_whose_norm_no_card_can_tell_is_not_saved(tmp_path: Path) -> None:
    model = create_model("sknet_mini", norm=nn.BatchNorm2d, gate_norm="none")
    with pytest.raises(UsageError, match="a norm that is a function has no name"):
        model.save_pretrained(tmp_path)
    by_hand: Backbone = architecture("sknet_mini").build(3, 3, False, Variant(norm="group"))
    by_hand.card = Card(model="sknet_mini", classes=("a", "b", "c"))
    with pytest.raises(UsageError, match=r"the card says norms \{\}, the network has \{'norm': 'group'"):
        by_hand.save_pretrained(tmp_path)
    assert not [*tmp_path.iterdir()]


def test_a_file_of_batch_norms_has_the_card_it_always_had(tmp_path: Path) -> None:
    create_model("sknet_mini").save_pretrained(tmp_path)
    with safe_open(str(tmp_path / "model.safetensors"), framework="pt") as file:
        assert "norms" not in json.loads(file.metadata()["card"])


@pytest.mark.parametrize("norms", [{"norm": "bach"}, {"norms": "group"}, {"norm": ["group"]}, "group"])
def test_a_card_with_norms_that_nobody_knows_is_damaged(tmp_path: Path, norms: Any) -> None:
    state = create_model("sknet_mini", num_classes=2).state_dict()
    save_weights(tmp_path / "x.safetensors", state, Card(model="sknet_mini", classes=("a", "b"), norms=norms))
    with pytest.raises(CheckpointError, match="its card has no norms that can be used"):
        create_model(weights=tmp_path / "x.safetensors")


def test_a_run_that_starts_from_other_norms_says_so_in_its_weights(tmp_path: Path) -> None:
    with tiny_model():
        create_model("sk_tiny", num_classes=2, norm="group").save_pretrained(tmp_path / "net")
        recipe = Recipe(epochs=1, batch_size=8, image_size=16)
        options = make_options(
            make_folder(tmp_path / "data"),
            tmp_path,
            recipe,
            model="sk_tiny",
            weights=str(tmp_path / "net" / "model.safetensors"),
        )
        weights = train(options).best
        assert read_card(weights).norms == {"norm": "group", "gate_norm": "group"}
        assert isinstance(create_model(weights=weights).stem.get_submodule("1"), nn.GroupNorm)

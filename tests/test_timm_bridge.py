"""`import selkern.timm`: our networks as timm's, with our tensor names, and as encoders of segmentation models."""

from __future__ import annotations

import doctest
import importlib
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from shim import timm_or_skip
from torch import Tensor, nn

import selkern
from selkern.convert.timm import from_timm
from selkern.errors import PackageError, UsageError
from selkern.models.backbone import Backbone
from selkern.models.registry import architecture
from selkern.models.weights import Card, bundled, read_card, save_weights

timm = timm_or_skip()
bridge = importlib.import_module("selkern.timm")

NAMES = timm.list_models(module="timm")  # timm calls a module by the last part of its name
SMALL = ["sknet_mini", "seresnet_mini", "sk_shufflenet_v2_x05", "sknet26"]
THEIRS = ["resnext101_32x4d", "resnext50_32x4d", "seresnext101_32x4d", "seresnext50_32x4d"]
THEIRS += ["skresnet18", "skresnet34", "skresnet50", "skresnet50d", "skresnext50_32x4d"]


def randomise_norms(model: nn.Module) -> None:
    """Norms that do something: at 1 and 0 a wrong place of one would not show."""
    with torch.no_grad():
        for norm in model.modules():
            if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
                assert norm.running_var is not None
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(std=0.2)
                norm.running_var.uniform_(0.5, 2)


def pair(name: str, **options: Any) -> tuple[Backbone, Any]:
    """One network twice in eval mode, ours and timm's, with the same weights: they went over as a state dict."""
    ours = selkern.create_model(name, num_classes=6, **options)
    randomise_norms(ours)
    theirs = timm.create_model(name, num_classes=6, **options)
    assert not theirs.load_state_dict(ours.state_dict()).missing_keys
    return ours.eval(), theirs.eval()


def assert_close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 * (want.abs().max().item() or 1.0))


# Names


def test_what_timm_has_stays_timm_s_and_the_rest_is_ours() -> None:
    assert sorted(NAMES) == sorted(set(selkern.list_models()) - set(THEIRS))
    assert all(timm.models.model_entrypoint(name).__module__ == "selkern.timm" for name in NAMES)
    assert all(timm.models.model_entrypoint(name).__module__.startswith("timm.models.") for name in THEIRS)
    assert timm.list_models("sknet*") == [name for name in NAMES if name.startswith("sknet")]
    assert bridge.sknet26 is timm.models.model_entrypoint("sknet26")


def test_weights_in_the_box_are_tags() -> None:
    assert sorted(set(timm.list_pretrained()) & {f"{n}.digits" for n in NAMES}) == sorted(bundled())
    assert timm.list_models("sknet_mini", pretrained=True) == ["sknet_mini.digits"]


def test_importing_again_changes_nothing() -> None:
    before = {name: timm.models.model_entrypoint(name) for name in timm.list_models()}
    with warnings.catch_warnings(record=True) as caught:
        importlib.reload(bridge)
        del sys.modules["selkern.timm"]
        importlib.import_module("selkern.timm")
    sys.modules["selkern.timm"] = bridge
    assert not caught
    assert {name: timm.models.model_entrypoint(name) for name in timm.list_models()} == before
    assert timm.create_model("sknet_mini").pretrained_cfg["tag"] == "digits"


def test_the_example_of_the_docstring() -> None:
    result = doctest.testmod(bridge)
    assert result.failed == 0
    assert result.attempted == 4


# Every network, on shapes alone


@pytest.mark.share(4)
@pytest.mark.parametrize("name", NAMES)
def test_names_and_shapes_of_tensors_and_maps(name: str) -> None:
    size, side = architecture(name).input_size, 64
    with torch.device("meta"):
        ours = selkern.create_model(name, num_classes=4).state_dict()
        model = timm.create_model(name, num_classes=4)
        assert model.default_cfg == model.pretrained_cfg
        assert model.forward_head(torch.empty(2, model.num_features, 2, 2)).shape == (2, 4)
        features = timm.create_model(name, features_only=True).eval()
        maps = features(torch.empty(2, 3, side, side))
    state = model.state_dict()
    assert [(k, v.shape, v.dtype) for k, v in state.items()] == [(k, v.shape, v.dtype) for k, v in ours.items()]
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, size, size)
    with torch.device("meta"):
        last = model.forward_features(torch.empty(2, 3, size, size))
    assert last.shape[2:] == model.pretrained_cfg["pool_size"]
    assert model.get_submodule(model.pretrained_cfg["first_conv"]).in_channels == 3
    assert model.get_submodule(model.pretrained_cfg["classifier"]) is model.get_classifier()
    info = features.feature_info
    strides = info.reduction()
    assert strides == [strides[0] * 2**level for level in range(len(strides))]  # as users of timm expect
    assert [tuple(m.shape[1:]) for m in maps] == [
        (c, side // r, side // r) for c, r in zip(info.channels(), strides, strict=True)
    ]


def test_the_data_config_of_a_network_without_weights_is_imagenet_s_and_small_images_are_seen_whole() -> None:
    with torch.device("meta"):
        large, small = (timm.data.resolve_model_data_config(timm.create_model(n)) for n in ("sknet50", "sknet29"))
    assert large["mean"] == small["mean"] == (0.485, 0.456, 0.406)
    assert (large["crop_pct"], large["interpolation"]) == (0.875, "bicubic")
    assert (small["input_size"], small["crop_pct"]) == ((3, 32, 32), 1.0)


# The same numbers as ours


@pytest.mark.parametrize("name", SMALL)
def test_logits_maps_and_selections_are_ours(name: str) -> None:
    ours, theirs = pair(name, in_chans=2)
    x = torch.randn(2, 2, 64, 50)
    with torch.no_grad(), selkern.record(ours) as want, selkern.record(theirs) as got:
        assert_close(theirs(x), ours(x))
        maps = dict(zip((f.module for f in ours.feature_info), ours.forward_features(x), strict=True))
        maps["stem.2"], maps["pool"] = maps["stem"], ours.pool(maps["stem"])
        final, taken = theirs.forward_intermediates(x)
        assert torch.equal(final, theirs.forward_features(x))
    assert want.units == got.units
    assert bool(got) == ("sk" in name)
    assert all(torch.equal(got[unit], want[unit]) for unit in want)
    assert all(torch.equal(m, maps[f["module"]]) for m, f in zip(taken, theirs.feature_info, strict=True))
    assert final.shape[1] == theirs.num_features == ours.num_features
    back = selkern.create_model(name, num_classes=6, in_chans=2)
    back.load_state_dict(theirs.state_dict())


@pytest.mark.parametrize("name", ["sknet_mini", "sk_shufflenet_v2_x05"])
def test_weights_are_drawn_as_ours(name: str) -> None:
    torch.manual_seed(3)
    want = selkern.create_model(name, num_classes=10).state_dict()
    torch.manual_seed(3)
    got = timm.create_model(name, num_classes=10).state_dict()
    assert all(torch.equal(got[key], want[key]) for key in want)


def test_features_only_takes_our_weights_and_gives_them_back() -> None:
    ours, _ = pair("sknet_mini")
    features = timm.create_model("sknet_mini", features_only=True, out_indices=(1, 2)).eval()
    state = {name: tensor for name, tensor in ours.state_dict().items() if not name.startswith("fc.")}
    features.model.load_state_dict(state)
    assert features.feature_info.module_name() == ["stages.1", "stages.2"]
    x = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(features(x), ours.forward_features(x)[2:], strict=True))
    assert features.model.state_dict().keys() == state.keys()


@pytest.mark.parametrize(("indices", "stages"), [((0,), 0), ((0, 1), 0), ([-1], 3), (2, 3), (None, 3)])
def test_features_only_keeps_no_module_that_it_does_not_need(indices: Any, stages: int) -> None:
    name = "sk_shufflenet_v2_x05"
    features = timm.create_model(name, features_only=True, out_indices=indices)
    assert len(features.model.stages) == stages
    sum(m.sum() for m in features(torch.randn(2, 3, 64, 64))).backward()
    assert all(p.grad is not None for p in features.parameters())
    assert [m.shape[1] for m in features(torch.randn(2, 3, 64, 64))] == features.feature_info.channels()


def test_features_by_timm_s_hooks_are_the_same() -> None:
    maps = []
    for way in ("getter", "hook"):
        torch.manual_seed(0)
        model = timm.create_model("sknet_mini", features_only=True, feature_cls=way, out_indices=(0, 2)).eval()
        maps.append(model(torch.ones(1, 3, 48, 48)))
    assert all(torch.equal(a, b) for a, b in zip(*maps, strict=True))


@pytest.mark.parametrize("name", SMALL)
def test_features_by_every_way_of_timm_s_are_the_same(name: str) -> None:
    x = torch.randn(1, 3, 64, 64)
    torch.manual_seed(0)
    model = timm.create_model(name, features_only=True).eval()
    want = model(x)
    assert len(want) == len(model.feature_info.channels()) == (3 if "mini" in name else 5)
    for way in ("list", "dict", "fx", "hook"):
        torch.manual_seed(0)
        other = timm.create_model(name, features_only=True, feature_cls=way).eval()
        got = other(x)
        for a, b in zip(got.values() if way == "dict" else got, want, strict=True):
            assert_close(a, b)
        assert other.feature_info.channels() == model.feature_info.channels()


def test_a_network_cut_at_its_stem_ends_there() -> None:
    model = timm.create_model("sknet26").eval()
    x = torch.randn(1, 3, 64, 64)
    stem = model.forward_intermediates(x, indices=[0], intermediates_only=True)[0]
    model.prune_intermediate_layers([0])
    assert torch.equal(model.forward_features(x), stem)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("name", SMALL)
def test_the_children_in_turn_are_the_network(name: str) -> None:
    model = timm.create_model(name, num_classes=3).eval()
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(nn.Sequential(*model.children())(x), model(x))


@pytest.mark.parametrize("name", SMALL)
def test_a_symbolic_trace_is_the_network_and_can_be_scripted(name: str) -> None:
    model = timm.create_model(name, num_classes=3).eval()
    x = torch.randn(2, 3, 64, 64)
    graph = torch.fx.symbolic_trace(model)
    assert_close(graph(x), model(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of all that is scripted
        assert_close(torch.jit.script(graph)(x), model(x))


def test_intermediates() -> None:
    model = timm.create_model("sk_shufflenet_v2_x05").eval()
    x = torch.randn(1, 3, 64, 64)
    maps = model.forward_intermediates(x, intermediates_only=True)
    final, some = model.forward_intermediates(x, indices=[0, 2], stop_early=True)
    assert torch.equal(final, maps[2])
    assert all(torch.equal(a, b) for a, b in zip(some, (maps[0], maps[2]), strict=True))
    assert len(model.forward_intermediates(x, indices=2, intermediates_only=True)) == 2
    with pytest.raises(UsageError, match="output_fmt is 'NLC'"):
        model.forward_intermediates(x, output_fmt="NLC")


# Weights


@pytest.mark.parametrize("tagged", sorted(bundled()))
def test_pretrained(tagged: str) -> None:
    card = read_card(bundled()[tagged])
    model = timm.create_model(tagged, pretrained=True).eval()
    ours = selkern.create_model(weights=bundled()[tagged]).eval()
    x = torch.randn(2, 3, 48, 48)
    assert_close(model(x), ours(x))
    assert torch.equal(timm.create_model(card.model, pretrained=True).eval()(x), model(x))  # the default tag
    assert (model.num_classes, model.pretrained_cfg["label_names"]) == (10, card.classes)
    config = timm.data.resolve_model_data_config(model)
    assert config["input_size"] == (3, 48, 48)
    assert [config["mean"], config["std"]] == [tuple(card.preprocess[key]) for key in ("mean", "std")]
    assert (config["crop_pct"], config["interpolation"]) == (card.preprocess["crop"], "bicubic")


def test_pretrained_with_another_head_other_channels_or_maps_alone() -> None:
    whole = timm.create_model("sknet_mini", pretrained=True).eval()
    x = torch.randn(2, 1, 48, 48).expand(2, 3, 48, 48)
    gray = timm.create_model("sknet_mini", pretrained=True, in_chans=1).eval()
    assert_close(gray(x[:, :1]), whole(x))  # timm adds the colours' weights up
    three = timm.create_model("sknet_mini", pretrained=True, num_classes=3).eval()
    assert three(x).shape == (2, 3)
    assert torch.equal(three.forward_features(x), whole.forward_features(x))
    features = timm.create_model("sknet_mini.digits", pretrained=True, features_only=True).eval()
    assert torch.equal(features(x)[-1], whole.forward_features(x))


def test_without_weights_pretrained_is_timm_s_error() -> None:
    with torch.device("meta"), pytest.raises(RuntimeError, match="No pretrained weights exist for sknet50"):
        timm.create_model("sknet50", pretrained=True)
    with pytest.raises(RuntimeError, match=r"Invalid pretrained tag \(in1k\) for sknet_mini"):
        timm.create_model("sknet_mini.in1k")


def test_a_weights_file_of_ours_is_a_checkpoint_of_timm_s(tmp_path: Path) -> None:
    ours, _ = pair("sk_shufflenet_v2_x05")
    path = tmp_path / "mine.safetensors"
    save_weights(path, ours.state_dict(), Card(model="sk_shufflenet_v2_x05", classes=tuple("abcdef")))
    x = torch.randn(1, 3, 64, 64)
    cfg = {"num_classes": 6, "input_size": (3, 64, 64), "first_conv": "stem.0", "classifier": "fc"}
    overlay = {"file": str(path)}
    for options in ({"checkpoint_path": path}, {"pretrained": True, "pretrained_cfg_overlay": overlay}):
        model = timm.create_model("sk_shufflenet_v2_x05", pretrained_cfg=cfg, **options).eval()
        assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 64, 64)
        assert_close(model(x), ours(x))


def test_a_folder_that_timm_saved_is_a_model_again(tmp_path: Path) -> None:
    model = timm.create_model("sknet_mini", num_classes=3, in_chans=1, global_pool="max").eval()
    timm.models.save_for_hf(model, tmp_path)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = torch.randn(1, 1, 48, 48)
    assert torch.equal(again(x), model(x))


# Head and training


@pytest.mark.parametrize("name", ["sknet_mini", "shufflenet_v2_x05"])
def test_norms_and_stochastic_depth(name: str) -> None:
    model = timm.create_model(name, norm="group", gate_norm="none", drop_path_rate=0.1)
    ours = selkern.create_model(name, norm="group", gate_norm="none", drop_path_rate=0.1)
    assert [repr(stage) for stage in model.stages] == [repr(stage) for stage in ours.stages]
    frozen = timm.create_model(name, norm_layer="frozenbatchnorm2d")
    norms = {type(m).__name__ for m in frozen.modules() if "BatchNorm" in type(m).__name__}
    assert norms == {"FrozenBatchNorm2d", *(["BatchNorm1d"] if name == "sknet_mini" else [])}
    with pytest.raises(UsageError, match="drop_path_rate is 2"):
        timm.create_model(name, drop_path_rate=2)


@pytest.mark.parametrize("training", [False, True])
def test_a_new_classifier_is_in_the_mode_of_its_network(training: bool) -> None:
    model = timm.create_model("sknet_mini").train(training)
    model.reset_classifier(3, "max")
    assert all(module.training == training for module in model.modules())


def test_the_head() -> None:
    model = timm.create_model("sknet_mini", num_classes=4).eval()
    x = torch.randn(2, 3, 48, 48)
    last = model.forward_features(x)
    pooled = model.forward_head(last, pre_logits=True)
    assert_close(pooled, last.mean((2, 3)))
    assert torch.equal(model.forward_head(last), model.get_classifier()(pooled))
    assert model.get_classifier(name_only=True) == "fc"
    model.reset_classifier(7)
    assert (model.num_classes, model(x).shape) == (7, (2, 7))
    model.reset_classifier(0)
    assert_close(model(x), pooled)
    assert isinstance(model.get_classifier(), nn.Identity)
    model.reset_classifier(0, "")
    assert torch.equal(model(x), last)
    model.reset_classifier(5, "catavgmax")
    assert (model.head_hidden_size, model(x).shape) == (2 * model.num_features, (2, 5))


@pytest.mark.parametrize(("pool", "shape"), [("avg", (2, 192)), ("max", (2, 192)), ("", (2, 192, 6, 6))])
def test_no_classes(pool: str, shape: tuple[int, ...]) -> None:
    model = timm.create_model("sknet_mini", num_classes=0, global_pool=pool)
    assert model(torch.randn(2, 3, 48, 48)).shape == shape


def test_dropout_is_of_training_alone() -> None:
    model = timm.create_model("sknet_mini", drop_rate=0.5)
    last = torch.ones(4, 192, 2, 2)
    assert set(model.forward_head(last, pre_logits=True).unique().tolist()) == {0.0, 2.0}
    assert set(model.eval().forward_head(last, pre_logits=True).unique().tolist()) == {1.0}


def test_on_another_device_and_in_another_dtype() -> None:
    model = timm.create_model("sknet_mini", device="meta", dtype=torch.bfloat16)
    model.reset_classifier(3)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}


@pytest.mark.parametrize("name", ["sknet_mini", "sk_shufflenet_v2_x05"])
def test_checkpointing_changes_no_gradient(name: str) -> None:
    model = timm.create_model(name, num_classes=3).double()
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        gradients.append(torch.autograd.grad(model(x).square().sum(), list(model.parameters())))
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("coarse", [False, True])
def test_layer_wise_learning_rates(coarse: bool) -> None:
    model = timm.create_model("sknet_mini")
    groups = timm.models.group_parameters(model, model.group_matcher(coarse=coarse))
    assert len(groups) == 1 + (3 if coarse else 6) + 1  # stem, stages or units, head
    assert sorted(n for names in groups.values() for n in names) == sorted(n for n, _ in model.named_parameters())
    assert all(name.startswith("stem.") for name in groups[0])
    assert groups[len(groups) - 1] == ["fc.weight", "fc.bias"]


# Output stride


@pytest.mark.parametrize("stride", [8, 16])
def test_dilated_as_timm_dilates(stride: int) -> None:
    """skresnext50_32x4d is both timm's and ours: with the same weights, its maps are the same."""
    theirs = timm.create_model("skresnext50_32x4d", output_stride=stride, num_classes=4)
    randomise_norms(theirs)
    ours = bridge.TimmNetwork(architecture("skresnext50_32x4d"), 4, output_stride=stride)
    ours.load_state_dict(from_timm(theirs.state_dict(), "skresnext50_32x4d"))
    assert [f["reduction"] for f in ours.feature_info] == [f["reduction"] for f in theirs.feature_info]
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad(), selkern.record(ours.eval()) as got, selkern.record(theirs.eval()) as want:
        for a, b in zip(*(m.forward_intermediates(x, intermediates_only=True) for m in (ours, theirs)), strict=True):
            assert_close(a, b)
    assert [unit.extents for unit in got.units.values()] == [unit.extents for unit in want.units.values()]
    assert {unit.extents for unit in got.units.values()} == {(3, 5), (5, 9), *([(9, 17)] if stride == 8 else [])}


@pytest.mark.parametrize("name", ["resnet_mini", "shufflenet_v2_x05"])
def test_without_gates_dilation_keeps_every_value(name: str) -> None:
    plain = timm.create_model(name).eval()
    stride = plain.feature_info[-1]["reduction"] // 4
    dilated = timm.create_model(name, output_stride=stride).eval()
    dilated.load_state_dict(plain.state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert dilated.feature_info[-1]["reduction"] == stride
    assert_close(dilated.forward_features(x)[..., ::4, ::4], plain.forward_features(x))


@pytest.mark.parametrize(("name", "stride"), [("sknet26", 2), ("sknet26", 12), ("sknet_mini", 1), ("sknet_mini", 0)])
def test_an_output_stride_that_cannot_be(name: str, stride: int) -> None:
    reported = f"output_stride is {stride} .* a power of two, at least"
    with torch.device("meta"), pytest.raises(UsageError, match=reported):
        timm.create_model(name, output_stride=stride)


# Where timm is not


def import_in_another_process(before: str) -> str:
    """The error of `import selkern.timm` after some other code, in words."""
    code = f"""
{before}
try:
    import selkern.timm
except ImportError as error:
    cause = error.__cause__
    print(type(error).__name__, error.exit_code, type(cause).__name__, sep=",")
    print(error)
"""
    path = os.pathsep.join(filter(None, [str(Path(selkern.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment, timeout=120
    )
    return done.stdout


def test_where_timm_is_absent_one_line_says_so() -> None:
    kind, line = import_in_another_process("import sys; sys.modules['timm'] = None").splitlines()
    assert kind == "PackageError,1,ModuleNotFoundError"
    assert line.startswith("timm cannot be imported (")
    assert line.endswith(") | selkern.timm | pip install 'selkern[timm]'")
    assert issubclass(PackageError, ImportError)


def test_where_torchvision_is_of_another_torch_one_line_says_so() -> None:
    lines = import_in_another_process("").splitlines()
    if not lines:
        pytest.skip("torchvision can be imported here")
    kind, line = lines
    assert kind == "PackageError,1,RuntimeError"
    assert line == (
        "timm cannot be imported (operator torchvision::nms does not exist) | selkern.timm | "
        f"install the torchvision that was built for torch {torch.__version__}"
    )


# Segmentation


@pytest.fixture(scope="module")
def smp() -> ModuleType:
    how = "pip install -c constraints.txt segmentation-models-pytorch"
    return pytest.importorskip("segmentation_models_pytorch", reason=f"it is not installed: {how}")


def test_a_unet_learns(smp: ModuleType) -> None:
    model = smp.Unet("tu-sknet26", encoder_weights=None, classes=1, decoder_channels=(64, 32, 16, 16, 8))
    x = torch.randn(2, 3, 64, 64)
    target = (torch.arange(64) < 24).float().expand(2, 1, 64, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _step in range(3):
        optimizer.zero_grad()
        loss = nn.functional.binary_cross_entropy_with_logits(model(x), target)
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    for path, p in model.encoder.named_parameters():
        assert p.grad is not None, path
        assert p.grad.abs().sum() > 0, path
    assert losses[2] < losses[1] < losses[0]


SEGMENTERS: list[tuple[str, str, dict[str, Any]]] = [
    ("Unet", "sknet_mini", {"encoder_depth": 3, "decoder_channels": (32, 16, 8), "in_channels": 1}),
    ("Unet", "sknet29", {"encoder_depth": 2, "decoder_channels": (16, 8)}),
    ("Unet", "sk_shufflenet_v2_x05", {"encoder_depth": 4, "decoder_channels": (32, 32, 16, 8)}),
    ("FPN", "sknet26", {}),
    ("FPN", "sknet26", {"encoder_depth": 4, "upsampling": 2, "in_channels": 1}),
    ("DeepLabV3Plus", "sknet26", {}),
    ("DeepLabV3Plus", "sknet26", {"encoder_output_stride": 8, "encoder_depth": 4}),
    ("DeepLabV3Plus", "sknet_mini", {"encoder_depth": 3, "in_channels": 1}),
]


@pytest.mark.parametrize(("decoder", "name", "options"), SEGMENTERS)
def test_encoders_of_segmentation(smp: ModuleType, decoder: str, name: str, options: dict[str, Any]) -> None:
    model = getattr(smp, decoder)(f"tu-{name}", encoder_weights=None, classes=2, **options)
    side = 16 if name == "sknet29" else 64
    with selkern.record(model.encoder) as selection:
        masks = model(torch.randn(2, options.get("in_channels", 3), side, side))
    assert masks.shape == (2, 2, side, side)
    masks.sum().backward()
    assert all(p.grad is not None for p in model.encoder.parameters())
    assert selection.keys() == selection.units.keys() != set()
    assert all(unit.label.startswith("SK_") for unit in selection.units.values())
    assert all(a.shape[0] == 2 and torch.allclose(a.sum(1), torch.ones(())) for a in selection.values())


@pytest.mark.parametrize(("stride", "extents"), [(16, {(3, 5), (5, 9)}), (8, {(3, 5), (5, 9), (9, 17)})])
def test_deeplab_s_output_stride(smp: ModuleType, stride: int, extents: set[tuple[int, ...]]) -> None:
    with torch.device("meta"):
        model = smp.DeepLabV3Plus("tu-sknet50", encoder_weights=None, encoder_output_stride=stride)
        maps = model.encoder(torch.empty(2, 3, 64, 64))
        assert model(torch.empty(2, 3, 64, 64)).shape == (2, 1, 64, 64)
    assert [m.shape[-1] for m in maps] == [max(64 >> level, 64 // stride) for level in range(6)]
    with selkern.record(model.encoder) as selection:
        assert {unit.extents for unit in selection.units.values()} == extents


def test_a_pretrained_encoder(smp: ModuleType) -> None:
    options = {"encoder_depth": 3, "decoder_channels": (16, 8, 8)}
    model = smp.Unet("tu-sknet_mini.digits", encoder_weights=True, **options).eval()
    whole = timm.create_model("sknet_mini", pretrained=True).eval()
    x = torch.randn(1, 3, 48, 48)
    assert torch.equal(model.encoder(x)[-1], whole.forward_features(x))
    params = smp.encoders.get_preprocessing_params("tu-sknet_mini.digits")
    assert (params["mean"], params["std"]) == ([0.5] * 3, [0.25] * 3)


def test_an_encoder_deeper_than_the_network(smp: ModuleType) -> None:
    with pytest.raises(AssertionError, match="feature index 3 is out of range"):
        smp.Unet("tu-sknet_mini", encoder_weights=None)

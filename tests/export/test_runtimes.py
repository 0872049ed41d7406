"""OpenVINO and int8, and every network of the zoo as ONNX: long, or of packages that only `make clients` installs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from shim import timm_or_skip
from tiny import ENVIRONMENT, PROGRAM, make_options, train
from torch import nn

import selkern
from selkern import cli, list_models
from selkern.errors import CheckpointError
from selkern.runtimes import quantize
from selkern.runtimes.network import ExportedNetwork
from selkern.runtimes.quantize import Int8

pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.filterwarnings("ignore", "error:::selkern"),  # other people's code warns about itself
]


def moved(model: nn.Module) -> nn.Module:
    """Norms off 1 and 0, where mistakes hide, with statistics of images: else maps grow through a hundred layers."""
    torch.manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and ("norm" in name or ".bn" in name):
            tensor.uniform_(0.5, 1.5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.randn(8, 3, 64, 64))
    return model.eval()


@pytest.mark.share(26)
@pytest.mark.parametrize("name", list_models())
def test_every_network_as_onnx(name: str, tmp_path: Path) -> None:
    model = moved(selkern.create_model(name, num_classes=7))
    x = torch.randn(3, 3, 64, 64)
    result = selkern.export(model, tmp_path / "net.onnx", example=x, images=x)
    assert result.difference < 1e-4


@pytest.fixture(scope="module")
def openvino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled network with selections, for OpenVINO."""
    pytest.importorskip("openvino")
    path = tmp_path_factory.mktemp("openvino") / "digits.xml"
    selkern.export(selkern.create_model("sknet_mini", weights="digits"), path, selections=True, dynamic_size=True)
    return path


def test_openvino_gives_logits_and_selections(openvino: Path) -> None:
    model, file = selkern.create_model("sknet_mini", weights="digits").eval(), ExportedNetwork(openvino)
    x = torch.randn(5, 3, 64, 80)
    with selkern.record(model) as selections, torch.no_grad():
        want = model(x)
    for output, expected in zip(file.outputs(x), (want, *selections.values()), strict=True):
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)
    assert file.card is not None
    assert file.card.network == model.card
    assert file.card.images == ("batch", 3, "height", "width")


def test_weights_of_another_file_are_noticed(openvino: Path, tmp_path: Path) -> None:
    model = moved(selkern.create_model("sknet_mini", num_classes=10))
    selkern.export(model, tmp_path / "a,b.xml")  # OpenVINO would take the comma for a list
    assert ExportedNetwork(tmp_path / "a,b.xml")(torch.zeros(1, 3, 48, 48)).shape == (1, 10)
    (tmp_path / "a,b.bin").write_bytes(openvino.with_suffix(".bin").read_bytes())
    with pytest.raises(CheckpointError, match=r"is damaged, or belongs to another \.xml"):
        ExportedNetwork(tmp_path / "a,b.xml")
    (tmp_path / "c.xml").write_text("<a/>")
    with pytest.raises(CheckpointError, match="not a network of OpenVINO"):
        ExportedNetwork(tmp_path / "c.xml")


def test_bfloat16_is_another_arithmetic(openvino: Path) -> None:
    x = torch.randn(5, 3, 48, 48)
    exact, rounded = ExportedNetwork(openvino)(x), ExportedNetwork(openvino, "bf16")(x)
    assert (exact - rounded).abs().max() < 0.1 * exact.abs().max()


def test_int8_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("nncf")
    data = "digits:train=200,val=150,test=50"
    words = ["export", "sknet_mini.digits", "--to", "onnx", "--int8", "--data", data, "--output", str(tmp_path)]
    assert cli.main([*words, "--calibration-images", "100", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["compared"]["agreement"] >= 0.97
    assert answer["compared"]["exported_top1"] >= answer["compared"]["top1"] - 0.005
    assert answer["compared"]["difference"] > 1e-4  # of float32 it would be less
    file = ExportedNetwork(answer["file"])
    assert file.card is not None
    assert file.card.int8
    assert answer["bytes"] < 700_000  # 720 kB of float32 weights alone
    assert cli.main(["evaluate", answer["file"], "--data", data, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] > 0.9


def test_accuracy_control_leaves_operators_in_float(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ranges that fit no image int8 alone changes most answers, and the file that is kept does not."""
    pytest.importorskip("nncf")
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)).eval()
    images = torch.randn(60, 3, 16, 16) + 4 * torch.randn(60, 3, 1, 1)  # of colours that the answers follow
    measured, top1 = [], quantize._top1

    def watched(*given: Any) -> float:
        measured.append(top1(*given))
        return measured[-1]

    monkeypatch.setattr(quantize, "_top1", watched)
    for number, least in enumerate(({"max_drop": 0.02}, {"max_drop": 1.0, "min_agreement": 0.98})):
        int8 = Int8(calibration=images[:16] / 50, **least)
        result = selkern.export(model, tmp_path / f"{number}.xml", example=images[:2], images=images, int8=int8)
        assert measured[-1] < 0.8
        assert result.agreement >= 0.98


def test_machine_code_of_torch(tmp_path: Path) -> None:
    """In a process of its own, where the command loads and compares it: beside OpenVINO a worker was lost here."""
    words = ["export", "sknet_mini.digits", "--to", "pt2", "--compiled", "--output", str(tmp_path / "digits.pt2")]
    done = subprocess.run([*PROGRAM, *words], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert "aoti_load_package" in done.stdout
    assert "same likeliest class          100.00%" in done.stdout


def test_a_program_for_devices(tmp_path: Path) -> None:
    """ExecuTorch is in no extra: without it this is skipped."""
    runtime = pytest.importorskip("executorch.runtime")
    model, path = selkern.create_model("sknet_mini", weights="digits").eval(), tmp_path / "digits.pte"
    selkern.export(model, path, selections=True)
    x = torch.randn(1, 3, 48, 48)
    with selkern.record(model) as selections, torch.no_grad():
        want = model(x)
    outputs = runtime.Runtime.get().load_program(path).load_method("forward").execute([x])
    for output, expected in zip(outputs, (want, *selections.values()), strict=True):
        torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-5)


def test_a_third_party_network(tmp_path: Path) -> None:
    timm = timm_or_skip()
    model = moved(timm.create_model("tf_efficientnet_lite0", num_classes=5))
    x = torch.randn(4, 3, 64, 64)
    changed = moved(selkern.selectify(model, example=x, where="last 2 stages"))
    for number, network in enumerate((model, changed)):
        result = selkern.export(network, tmp_path / f"{number}.onnx", example=x[:2], images=x, selections=number == 1)
        assert result.difference < 1e-4


@pytest.mark.usefixtures("tiny_networks")
def test_a_run_is_measured_on_its_own_images(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("nncf")
    run = train(make_options(data, tmp_path / "runs", model="sk_tiny"))
    capsys.readouterr()
    assert cli.main(["bench", str(run.path), "--budget", "0.3", "--batch-size", "2", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert " val images of " in answer["compared"]
    rows = {row["runtime"]: row for row in answer["rows"]}
    assert list(rows) == ["PyTorch", "folded", "ONNX Runtime", "OpenVINO float32", "OpenVINO bfloat16", "OpenVINO int8"]
    assert all(rows[name]["difference"] < 1e-4 for name in ("folded", "ONNX Runtime", "OpenVINO float32"))

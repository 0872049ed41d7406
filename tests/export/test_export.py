"""Exported files give what the network gives, say what they are, and are opened by `predict` and `evaluate`."""

from __future__ import annotations

import importlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import selkern
from selkern import cli
from selkern.cli.bench import _runtimes_table
from selkern.data.preprocess import Preprocess
from selkern.errors import CheckpointError, NumericsError, PackageError, UsageError
from selkern.inference.export import pictures_of
from selkern.inference.network import load
from selkern.measure.timing import Spread
from selkern.models.weights import EXPORTED, Card, bundled
from selkern.runtimes.bench import Row
from selkern.runtimes.files import SUFFIXES, ExportCard
from selkern.runtimes.network import ExportedNetwork
from selkern.runtimes.quantize import Int8
from selkern.runtimes.trial import Trial

pytestmark = pytest.mark.filterwarnings("ignore", "error:::selkern")  # torch's exporter warns about itself
SIDE = 48


class Small(nn.Module):
    """A network of the user's own, whose convolution `selectify` changes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.act(self.norm(self.conv(x))).mean(dim=(2, 3)))
        return logits


def moved(model: nn.Module) -> nn.Module:
    """As after training: norms off 1 and 0, branches that differ."""
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.05 * torch.rand_like(tensor))
    return model.eval()


def images(n: int = 12) -> Tensor:
    return torch.randn(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return selkern.create_model("sknet_mini", weights="digits").eval()


@pytest.fixture(scope="module")
def onnx(tmp_path_factory: pytest.TempPathFactory, network: nn.Module) -> Path:
    """The bundled network with selections, as ONNX, for images of any size."""
    path = tmp_path_factory.mktemp("onnx") / "digits.onnx"
    result = selkern.export(network, path, images=images(), selections=True, dynamic_size=True)
    assert result.images == 12
    assert result.difference < 1e-5
    assert result.agreement == 1
    return path


def test_the_file_gives_the_logits_of_the_network(onnx: Path, network: nn.Module) -> None:
    file = ExportedNetwork(onnx)
    with torch.no_grad():
        for shape in ((1, 3, SIDE, SIDE), (7, 3, 64, 80)):
            x = torch.randn(shape)
            torch.testing.assert_close(file(x), network(x), rtol=1e-4, atol=1e-4)


def test_selections_are_what_record_sees(onnx: Path, network: nn.Module) -> None:
    x = images(3)
    with selkern.record(network) as selections, torch.no_grad():
        network(x)
    file = ExportedNetwork(onnx)
    assert file.card is not None
    labels = [selections.units[name].label for name in selections]
    assert list(file.card.outputs) == ["logits", *labels]
    for output, a in zip(file.outputs(x)[1:], selections.values(), strict=True):
        torch.testing.assert_close(output, a, rtol=1e-4, atol=1e-5)


def test_the_card_is_in_the_file_and_beside_it(onnx: Path, network: nn.Module) -> None:
    card = ExportedNetwork(onnx).card
    beside = ExportCard.from_json(onnx.with_name("digits.onnx.json").read_text(), "test")
    assert card == beside
    assert card is not None
    assert card.network == network.card
    assert card.images == ("batch", 3, "height", "width")
    assert card.compared["agreement"] == 1
    assert sorted(file.name for file in onnx.parent.iterdir()) == ["digits.onnx", "digits.onnx.json"]


def test_the_model_stays_as_it_is(network: nn.Module) -> None:
    fresh = selkern.create_model("sknet_mini", weights="digits")
    assert all(torch.equal(p, q) for p, q in zip(fresh.parameters(), network.parameters(), strict=True))
    assert all(p.requires_grad for p in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


def test_a_selectified_network(tmp_path: Path) -> None:
    plain = moved(Small())
    model = moved(selkern.selectify(plain, example=images(2), where="conv"))
    result = selkern.export(model, tmp_path / "small.onnx", example=images(2), images=images())
    assert result.difference < 1e-5
    file = ExportedNetwork(tmp_path / "small.onnx")
    with torch.no_grad():
        torch.testing.assert_close(file(images(5)), model(images(5)), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(file(images(5)), plain(images(5)), rtol=1e-2)


def test_preprocessing_in_the_graph(tmp_path: Path, network: nn.Module) -> None:
    path = tmp_path / "levels.onnx"
    small, known = moved(Small()), network.card
    assert isinstance(known, Card)
    card = replace(known, classes=known.classes[:4])
    selkern.export(small, path, example=images(2), card=card, with_preprocessing=True)
    file, levels = ExportedNetwork(path), torch.randint(0, 256, (3, SIDE, SIDE, 3), dtype=torch.uint8)
    normalised = Preprocess.from_dict(card.preprocess).normalise(levels.permute(0, 3, 1, 2))
    with torch.no_grad():
        want = small(normalised)
    torch.testing.assert_close(file.outputs(levels)[0], want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(file(normalised), want, rtol=1e-4, atol=1e-5)
    assert file.card is not None
    assert file.card.images == ("batch", "height", "width", 3)
    assert file.outputs(torch.zeros(2, 90, 200, 3, dtype=torch.uint8))[0].shape == (2, 4)


def test_a_program_of_torch_export(tmp_path: Path) -> None:
    model = moved(Small())
    selkern.export(model, tmp_path / "small.pt2", example=images(2))
    loaded = torch.export.load(tmp_path / "small.pt2").module()
    with torch.no_grad():
        torch.testing.assert_close(loaded(images(5))[0], model(images(5)), rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match="may hold pickled objects"):
        ExportedNetwork(tmp_path / "small.pt2")


def test_predict_and_evaluate_open_it(onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = Image.new("RGB", (60, 50), (200, 30, 30))
    draw.save(tmp_path / "a.png")
    answers = []
    for run in (str(onnx), str(bundled()["sknet_mini.digits"])):
        assert cli.main(["predict", run, str(tmp_path / "a.png"), "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0]["classes"] == answers[1]["classes"]
    assert answers[0]["probabilities"] == pytest.approx(answers[1]["probabilities"], abs=1e-5)
    assert cli.main(["evaluate", str(onnx), "--data", "digits:train=30,val=10,test=40", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["images"] == 40
    assert figures["top1"] > 0.8


def test_a_network_of_other_numbers_is_written_as_float32(tmp_path: Path) -> None:
    model = moved(Small()).double()
    selkern.export(model, tmp_path / "a.onnx", example=images(2).double())
    with torch.no_grad():
        want = model(images(3).double()).float()
    torch.testing.assert_close(ExportedNetwork(tmp_path / "a.onnx")(images(3)), want, rtol=1e-4, atol=1e-5)
    assert next(model.parameters()).dtype == torch.float64


def test_outputs_have_the_labels_of_record(tmp_path: Path) -> None:
    model = Small()
    model.act = nn.Sequential(selkern.SKAttention(16), nn.ReLU())  # type: ignore[assignment]
    moved(model)
    selkern.export(model, tmp_path / "a.pt2", example=images(2), selections=True)
    card = ExportCard.from_json((tmp_path / "a.pt2.json").read_text(), "test")
    assert card.outputs == ("logits", "act.0")


@pytest.mark.parametrize("words", [
    "export FILE", "analyze FILE --output OUT --data digits", "bench FILE --runtimes", "bench FILE", "check FILE",
    "selectify FILE",
    "train --weights FILE --data digits --output OUT", "train --model FILE --data digits --output OUT",
])  # fmt: skip
def test_commands_that_need_the_network_say_that_a_file_is_exported(
    words: str, onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replaced = {"FILE": str(onnx), "OUT": str(tmp_path / "out")}
    assert cli.main([replaced.get(word, word) for word in words.split()]) == 2
    assert "an exported file" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["--max-drop 5", "--min-agreement 99", "--compiled", "--to pt2 --int8"])
def test_options_that_would_do_nothing_are_mistakes(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["export", "sknet_mini.digits", *words.split()]) == 2
    assert "error: " in capsys.readouterr().err


def test_every_format_is_known_as_exported() -> None:
    assert set(EXPORTED) == set(SUFFIXES.values())


def test_a_file_whose_classes_are_not_its_outputs(onnx: Path, tmp_path: Path) -> None:
    proto = importlib.import_module("onnx").load(str(onnx))
    entry = next(entry for entry in proto.metadata_props if entry.key == "selkern")
    entry.value = entry.value.replace('"0", ', "", 1)
    path = tmp_path / "a.onnx"
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(CheckpointError, match=r"gives \(10,\) numbers an image, and names 9 classes"):
        ExportedNetwork(path)(images(1))


def test_int8_and_the_comparison_never_share_images(tmp_path: Path) -> None:
    """Without a validation split every second training image is for the one; a test split alone is refused."""
    loaded = load("sknet_mini.digits")
    for home in ("data", "datatest/test", "datatrain/train", "both/train", "both/test"):
        for number in range(10):
            for name in map(str, range(10)):
                (folder := tmp_path / home / name).mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (20, 20), (25 * number, 7 * int(name), 0)).save(folder / f"{number}.png")
    given: dict[str, Any] = {"table": None, "seen": lambda _: None}
    for data, name in (("data", "50 images"), ("datatrain", "50 train images"), ("both", "50 train images")):
        shown, calibration = pictures_of(loaded, str(tmp_path / data), 1000, 1000, **given)
        assert shown is not None
        assert calibration is not None
        assert shown.name.startswith(name)
        assert calibration.name.startswith(name)
        both = torch.cat([shown.images, calibration.images]).flatten(1)
        assert len(torch.unique(both, dim=0)) == 100
    with pytest.raises(UsageError, match="no training images to calibrate int8 with"):
        pictures_of(loaded, str(tmp_path / "datatest"), 1000, 1000, **given)


def test_a_wrong_file_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("selkern.runtimes.trial.run_file", lambda _path, x: torch.zeros(len(x), 4))
    with pytest.raises(NumericsError, match=r"differs by .* of the largest logit"):
        selkern.export(moved(Small()), tmp_path / "small.onnx", example=images(2))
    assert not list(tmp_path.iterdir())


def test_int8_that_costs_more_than_allowed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = moved(Small())
    trial = Trial.of(model, images(), None, None)
    wrong = trial.logits.roll(1, dims=1)
    wrong[1:] = trial.logits[1:]
    monkeypatch.setattr("selkern.runtimes.trial.run_file", lambda *_: wrong)
    path = tmp_path / "a.xml"
    with pytest.raises(NumericsError, match=r"int8 has a top-1 of 91.67%, 100.00% without, and 5.00% less is allowed"):
        trial.compare(path, path, math.inf, 0.05)
    assert trial.compare(path, path, math.inf, 0.1, 0.9).agreement == pytest.approx(11 / 12)
    with pytest.raises(NumericsError, match=r"same likeliest class for 91.67% of the images, less than 95.00%"):
        trial.compare(path, path, math.inf, 0.1, 0.95)
    with pytest.raises(UsageError, match="3 images to calibrate with"):
        Int8(calibration=images(3))


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.export.save", full)
    with pytest.raises(selkern.errors.ResourceError, match="No space left on device"):
        selkern.export(moved(Small()), tmp_path / "small.pt2", example=images(2))
    assert not list(tmp_path.iterdir())


class Untraceable(Small):
    """Its graph depends on the values of the images."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if float(x.sum()) > 0 else super().forward(-x)


class NoLogits(Small):
    """Gives maps."""

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(x)
        return result


class Named(Small):
    """Gives its logits by name."""

    def forward(self, x: Tensor) -> Any:
        return {"logits": super().forward(x)}


class Flat(nn.Sequential):
    """A network of one size of images."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(3 * SIDE * SIDE, 4))


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "an upper-case suffix": (lambda p: selkern.export(Small(), p / "a.ONNX", example=images(2)), "no format has the"),
    "logits by name": (lambda p: selkern.export(Named(), p / "a.pt2", example=images(2)), "gives a dict, not logits"),
    "channels": (lambda p: selkern.export(Small(), p / "a.pt2", example=torch.zeros(2, 1, 9, 9)), "does not run on"),
    "no tensor": (lambda p: selkern.export(Small(), p / "a.pt2", example=cast(Any, [1, 2])), "example is list"),
    "other images": (
        lambda p: selkern.export(Small(), p / "a.pt2", example=images(2), images=torch.zeros(2, 3, 9, 9)),
        "give images of the example's size",
    ),
    "no images": (lambda p: selkern.export(Small(), p / "a.pt2", example=images(2), images=images(0)), "images are"),
    "labels of no class": (
        lambda p: selkern.export(Small(), p / "a.pt2", example=images(2), labels=torch.tensor([0, 4])),
        "labels from 0 to 4 of 4 classes",
    ),
    "int8": (lambda p: selkern.export(Small(), p / "a.onnx", example=images(2), int8=cast(Any, True)), "int8 is True"),
    "classes": (
        lambda p: selkern.export(Small(), p / "a.pt2", example=images(2), card=Card(model="a", classes=("b", "c"))),
        "2 classes, and the model gives 4 numbers an image",
    ),
    "a suffix": (lambda p: selkern.export(Small(), p / "a.tflite", example=images(2)), "no format has the suffix"),
    "a folder": (lambda p: selkern.export(Small(), p / "no" / "a.onnx", example=images(2)), "no such folder"),
    "no example": (lambda p: selkern.export(Small(), p / "a.onnx"), "the size of the images is not known"),
    "one image": (
        lambda p: selkern.export(Small(), p / "a.onnx", example=images(1)),
        "give a tensor",
    ),
    "no logits": (lambda p: selkern.export(NoLogits(), p / "a.onnx", example=images(2)), "not logits"),
    "values": (lambda p: selkern.export(Untraceable(), p / "a.pt2", example=images(2)), "torch.export cannot trace it"),
    "no units": (
        lambda p: selkern.export(Small(), p / "a.pt2", example=images(2), selections=True),
        "no selective-kernel unit in it",
    ),
    "labels": (
        lambda p: selkern.export(Small(), p / "a.pt2", example=images(2), labels=torch.zeros(3, dtype=torch.long)),
        "3 labels of 2 images",
    ),
    "machine code": (
        lambda p: selkern.export(Small(), p / "a.onnx", example=images(2), compiled=True),
        "compiled is of torch.export",
    ),
    "any size for a device": (
        lambda p: selkern.export(Small(), p / "a.pte", example=images(2), dynamic_size=True),
        "plans its memory for images of one size",
    ),
    "one size alone": (
        lambda p: selkern.export(Flat(), p / "a.pt2", example=images(2), dynamic_size=True),
        "leave dynamic_size out",
    ),
    "no preprocessing": (
        lambda p: selkern.export(Small(), p / "a.pt2", example=images(2), with_preprocessing=True),
        "the model has no preprocessing",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_are_one_line_and_leave_nothing(case: str, tmp_path: Path) -> None:
    call, message = WRONG[case]
    with pytest.raises(UsageError, match=message) as error:
        call(tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_no_file_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "small.onnx.json").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        selkern.export(Small(), tmp_path / "small.onnx", example=images(2))
    assert (tmp_path / "small.onnx.json").read_text() == "mine"


def test_damaged_and_foreign_files(onnx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = onnx.read_bytes()
    (tmp_path / "cut.onnx").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.onnx").write_text("no network")
    for name in ("cut.onnx", "text.onnx"):
        with pytest.raises(CheckpointError, match="cannot be opened"):
            ExportedNetwork(tmp_path / name)
    with pytest.raises(CheckpointError, match="no such file"):
        ExportedNetwork(tmp_path / "none.onnx")
    shutil.copy(f"{onnx}.json", tmp_path / "flipped.onnx.json")
    (tmp_path / "flipped.onnx").write_bytes(data)
    assert ExportedNetwork(tmp_path / "flipped.onnx").card is not None
    middle = len(data) // 2  # among the weights, where ONNX Runtime notices nothing
    (tmp_path / "flipped.onnx").write_bytes(data[:middle] + bytes([data[middle] ^ 64]) + data[middle + 1 :])
    with pytest.raises(CheckpointError, match=r"is damaged, or not the file that its \.json describes"):
        ExportedNetwork(tmp_path / "flipped.onnx")
    (tmp_path / "flipped.onnx.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        ExportedNetwork(tmp_path / "flipped.onnx")
    foreign = tmp_path / "foreign.onnx"
    torch.onnx.export(moved(Small()), (images(2),), foreign, dynamo=True, verbose=False, external_data=False)
    assert ExportedNetwork(foreign).card is None
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    assert cli.main(["predict", str(foreign), str(tmp_path / "a.png")]) == 4
    assert "does not say how to prepare images" in capsys.readouterr().err


def test_images_of_a_wrong_shape(tmp_path: Path) -> None:
    selkern.export(moved(Small()), tmp_path / "small.onnx", example=images(2))
    file = ExportedNetwork(tmp_path / "small.onnx")
    with pytest.raises(UsageError, match=rf"does not run on \(2, 3, 20, 20\); it takes batch x 3 x {SIDE} x {SIDE}"):
        file(torch.zeros(2, 3, 20, 20))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "digits.safetensors"
    shutil.copy(bundled()["sknet_mini.digits"], weights)
    words = ["export", str(weights), "--to", "pt2", "--output", str(tmp_path / "out"), "--images", "50"]
    assert cli.main([*words, "--data", "digits:train=60,val=50,test=20", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert Path(answer["file"]) == tmp_path / "out" / "digits.pt2"
    assert answer["compared"]["images"] == 50
    assert answer["compared"]["top1"] == answer["compared"]["exported_top1"] > 0.8
    assert cli.main([*words, "--data", "digits:train=60,val=50,test=20"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert cli.main(["export", str(weights), "--int8", "--to", "pt2"]) == 2
    assert cli.main(["export", str(weights), "--output", str(weights)]) == 2
    assert cli.main(["export", str(weights), "--to", "onnx", "--output", str(tmp_path / "a.xml")]) == 2


def test_an_absent_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(PackageError, match=r"pip install 'selkern\[export\]'"):
        selkern.export(Small(), tmp_path / "a.onnx", example=images(2))


def test_the_table_of_runtimes_has_the_ratio_as_its_figure() -> None:
    first = Row(runtime="PyTorch", batch=1, value=Spread(8.0, 7.5, 8.5), speedup=None, memory=None, size=4_000_000)
    second = replace(
        first, runtime="OpenVINO int8", value=Spread(2.0, 1.9, 2.1), speedup=Spread(4.0, 3.9, 4.1), memory=20
    )
    lines = _runtimes_table([first, second.compared(0.25, 0.995)]).splitlines()
    assert lines[3].split() == ["PyTorch", "8.00", "[7.50,", "8.50]", "125.0", "1.00", "█" * 5, "4.00", "-"]
    last = ["500.0", "4.00", "█" * 20, "4.00", "20", "2e-01", "99.5%"]
    assert lines[4].split() == ["OpenVINO", "int8", "2.00", "[1.90,", "2.10]", *last]

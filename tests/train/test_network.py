"""Third-party and selectified networks train, resume and open like ours; code is run only where the user names it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import assert_same, make_folder, make_options, signal_at, train

from selkern.adapt.unit import SelectiveConv
from selkern.cli import main
from selkern.errors import CheckpointError, Interrupted, UsageError
from selkern.inference.network import load
from selkern.models.registry import create_model
from selkern.models.weights import read_card, save_weights
from selkern.selection.record import record
from selkern.train import run as job
from selkern.train.defaults import Asked, choose_defaults
from selkern.train.network import Construction, bare, code_of, new_network, open_network
from selkern.train.options import TrainOptions
from selkern.train.run_folder import RunFolder, find_weights
from selkern.train.step import make_optimizer, set_lr

CODE = """
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=2):
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.second, self.norm2 = nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, classes)

    def forward(self, x):
        x = self.norm1(self.first(x)).relu()
        return self.head(self.norm2(self.second(x)).relu().mean((2, 3)))
"""


@pytest.fixture(scope="module")
def word(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("code") / "mine.py"
    file.write_text(CODE)
    return f"{file}:Net"


@pytest.fixture(scope="module")
def done(data: Path, word: str, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of the user's own network, whose second convolution is a unit."""
    options = make_options(data, tmp_path_factory.mktemp("runs"), model=word, selectify="second", name="run")
    return train_quietly(options)


def train_quietly(options: TrainOptions) -> RunFolder:
    run = job.train(options)
    assert run is not None
    return run


def test_the_network_of_a_run_is_built_again(done: RunFolder, word: str) -> None:
    card = read_card(done.best)
    assert card.model == word
    design = {"branches": 2, "form": "residual", "groups": 32, "reduction": 16, "min_width": 32, "gate_norm": "layer"}
    assert card.network == {"arguments": "", "changed": ["second"], "size": 16, "design": design}
    loaded = load(str(done.path), "cpu", word)
    assert isinstance(loaded.model.get_submodule("second"), SelectiveConv)
    with torch.inference_mode(), record(loaded.model) as selection:
        loaded.model(torch.randn(2, 3, 16, 16))
    assert {name: tuple(a.shape) for name, a in selection.items()} == {"second": (2, 2, 16)}


def test_code_is_run_only_where_the_user_names_it(done: RunFolder, word: str, data: Path) -> None:
    for given, message in (("", "is made by code of its own"), ("other.py:Other", "--model names other.py:Other")):
        with pytest.raises(UsageError, match=message) as error:
            load(str(done.path), "cpu", given)
        assert f"--model {word}" in str(error.value)
        with pytest.raises(UsageError, match=message):
            job.resume(done, "cpu", epochs=3, extend="rescale", model=given)
    with pytest.raises(UsageError, match="is made by code of its own"):
        choose_defaults(Asked(data=str(data), weights=str(done.path)))
    with pytest.raises(UsageError, match="leave --model out"):
        code_of("timm:resnet18", "timm:resnet34", "run")


def test_code_may_have_moved(done: RunFolder, word: str, tmp_path: Path) -> None:
    moved = tmp_path / "there.py"
    moved.write_text(CODE)
    here, there = load(str(done.path), "cpu", word), load(str(done.path), "cpu", f"{moved}:Net")
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(here.model(x), there.model(x))
    shutil.copytree(done.path, tmp_path / "run")
    run = job.resume(RunFolder(tmp_path / "run"), "cpu", epochs=3, extend="rescale", model=f"{moved}:Net")
    assert run is not None
    assert read_card(run.best).model in (word, f"{moved}:Net")


def test_the_next_commands_name_the_code(
    word: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data", str(data), "--model", word, "--output", str(tmp_path), "--image-size", "16", "--epochs", "1"]
    assert main(["train", *words, "--no-report", "--threads", "1", "--lr-new", "2"]) == 2
    assert "nothing was added to the network | --lr-new" in capsys.readouterr().err
    assert main(["train", *words, "--no-report", "--threads", "1"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) == 4
    assert all(line.endswith(f"--model {word}") for line in lines[1:])


def test_every_command_opens_it(done: RunFolder, word: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(done.path), "--model", word, "--json", "--threads", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == word
    image = next((data / "cat").glob("*.png")) if (data / "cat").is_dir() else next(data.rglob("*.png"))
    assert main(["predict", str(done.path), str(image), "--model", word, "--threads", "1"]) == 0
    assert main(["predict", str(done.path), str(image), "--threads", "1"]) == 2
    assert "is made by code of its own" in capsys.readouterr().err


def test_stopped_and_resumed_is_the_unbroken_run(
    done: RunFolder, data: Path, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal_at(monkeypatch, [2])
    options = make_options(data, tmp_path, model=word, selectify="second", name="run")
    with pytest.raises(Interrupted):
        job.train(options)
    run = job.resume(RunFolder(tmp_path / "run"), "cpu", model=word)
    assert run is not None
    assert_same(run, done)


@pytest.mark.exhaustive
def test_one_of_ours_is_changed_too(data: Path, tmp_path: Path) -> None:
    run = train(make_options(data, tmp_path, model="resnet_mini", selectify="stages.2", epochs=1, report=True))
    assert read_card(run.best).network["changed"]
    assert (run.path / "report.html").is_file()
    assert any(isinstance(module, SelectiveConv) for module in load(str(run.path), "cpu").model.modules())
    with pytest.raises(CheckpointError, match="which create_model alone does not make"):
        create_model(weights=run.best)


def test_weights_of_a_changed_network_start_another_with_other_classes(
    done: RunFolder, word: str, tmp_path: Path
) -> None:
    classes = make_folder(tmp_path / "data", images=4)
    options = make_options(classes, tmp_path, model=word, weights=str(done.path), epochs=1, name="next")
    run = train_quietly(options)
    assert read_card(run.best).network["changed"] == ["second"]
    model, how, table = new_network(word, 3, 16, weights=done.best, arguments="classes=3")
    assert (how.classes, table) == (3, "")
    old, _ = open_network(done.best, word)
    assert torch.equal(model.get_parameter("second.conv.weight"), old.get_parameter("second.conv.weight"))
    assert model.get_submodule("head").out_features == 3
    with pytest.raises(UsageError, match="selective kernels already"):
        new_network(word, 2, 16, weights=done.best, pattern="first")


def test_weights_in_the_networks_own_names(word: str, tmp_path: Path) -> None:
    first = bare(word, 2, 16)
    file = tmp_path / "plain.safetensors"
    save_file(first.state_dict(), file)
    model, _, _ = new_network(word, 2, 16, weights=file, pattern="second")
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(model.eval()(x), first.eval()(x))
    save_file({f"module.{name}": tensor for name, tensor in first.state_dict().items()}, file)  # of parallel training
    assert torch.equal(new_network(word, 2, 16, weights=file)[0].eval()(x), first.eval()(x))
    save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match="in its own names"):
        new_network(word, 2, 16, weights=file)
    save_file(model.state_dict(), file)
    with pytest.raises(CheckpointError, match="they hold selective kernels already"):
        new_network(word, 2, 16, weights=file)
    torch.save(first.state_dict(), tmp_path / "plain.pth")
    with pytest.raises(CheckpointError, match=r"safetensors\.torch\.save_file"):
        find_weights(str(tmp_path / "plain.pth"))


@pytest.mark.parametrize("arguments", ["pretrained=True", "checkpoint_path='x'", "cache_dir='x'", "features_only=True"])
def test_no_file_has_weights_fetched(arguments: str, word: str, tmp_path: Path, done: RunFolder) -> None:
    with pytest.raises(UsageError, match="not arguments of a run's network"):
        new_network(word, 2, 16, arguments=arguments)
    card = read_card(done.best)
    file = tmp_path / "hostile.safetensors"
    save_weights(file, {"x": torch.zeros(1)}, replace(card, model="timm:resnet18", network={"arguments": arguments}))
    with pytest.raises(UsageError, match="not arguments of a run's network"):
        open_network(file)


@pytest.mark.parametrize(
    "network",
    [{"size": "x"}, {"size": 9000}, {"changed": "x"}, {"changed": [1]}, {"arguments": 1}, {"design": {"x": 1}}],
    ids=str,
)
def test_a_damaged_description_is_one_line(network: dict[str, object], done: RunFolder) -> None:
    with pytest.raises(CheckpointError, match="does not say how its network is made"):
        Construction.of_card(replace(read_card(done.best), network=network))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--selectify", "nothing"], "no convolution matches 'nothing' | --selectify nothing | "),
        (["--weights", "pretrained"], "has no weights that could be fetched | --weights pretrained | "),
        (["--with", "classes=7"], "the data have 2 classes"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], message: str, word: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--data", str(data), "--output", str(tmp_path), "--model", word, *words]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.fixture
def apart(word: str) -> Iterator[torch.nn.Module]:
    model, _, _ = new_network(word, 2, 16, pattern="second")
    yield model


def test_the_backbone_has_a_learning_rate_of_its_own(apart: torch.nn.Module) -> None:
    recipe = make_options("x", Path(), lr_backbone=0.1, lr_new=1.0, freeze_epochs=1).training
    optimizer = make_optimizer(apart, recipe)
    names = {p: name for name, p in apart.named_parameters()}
    set_lr(optimizer, 1.0)
    rates = {names[p]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates.keys() == set(names.values())
    new = {name for name, rate in rates.items() if rate == 1}
    assert {rates[name] for name in rates.keys() - new} == {0.1}
    assert "second.further.0.conv.weight" in new
    assert {name for name in new if name.startswith("head")} == {"head.weight", "head.bias"}
    assert {"first.weight", "second.conv.weight", "second.norm.weight", "second.further.0.norm.weight"}.isdisjoint(new)
    set_lr(optimizer, 1.0, frozen=True)
    assert {group["lr"] for group in optimizer.param_groups} == {0.0, 1.0}


def test_new_parts_have_a_learning_rate_of_their_own(apart: torch.nn.Module) -> None:
    optimizer = make_optimizer(apart, make_options("x", Path(), lr_new=0.1, lr_backbone=0.5).training)
    names = {p: name for name, p in apart.named_parameters()}
    rates = {names[p]: group["lr_factor"] for group in optimizer.param_groups for p in group["params"]}
    assert {name for name, rate in rates.items() if rate == 1} == {"head.weight", "head.bias"}
    new = {name for name, rate in rates.items() if rate == 0.1}
    assert "second.further.0.conv.weight" in new
    assert "second.gate.fc1.weight" in new
    assert all("gate" in name or "further.0.conv" in name for name in new)


def test_a_frozen_backbone_stays_as_it_was(
    word: str, data: Path, done: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = make_options(data, tmp_path, model=word, selectify="second", freeze_epochs=1, name="run")
    torch.manual_seed(options.seed)
    first, _, _ = new_network(word, 2, 16, pattern="second")
    signal_at(monkeypatch, [int(done.read_metrics()[0]["step"]) + 1])
    with pytest.raises(Interrupted):
        job.train(options)
    moved = open_network(tmp_path / "run" / "weights" / "last.safetensors", word)[0]
    assert torch.equal(moved.get_parameter("second.conv.weight"), first.get_parameter("second.conv.weight"))
    for name in ("head.weight", "second.further.0.conv.weight"):
        assert not torch.equal(moved.get_parameter(name), first.get_parameter(name))

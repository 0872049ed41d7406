"""One run in one process: it learns, keeps what it should keep, and never keeps what is not finite."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import BUSY_ADAMW, BUSY_SGD, draw, make_folder, make_options, rows, train, tree
from torch import Tensor

from selkern.data.preprocess import Preprocess
from selkern.data.sources import open_source
from selkern.errors import CheckpointError, DataError, NumericsError, UsageError
from selkern.evaluation import evaluate, to_input
from selkern.inference.images import choose_images
from selkern.inference.network import load
from selkern.models.registry import create_model
from selkern.models.weights import read_card
from selkern.train import run as job
from selkern.train.loop import Training
from selkern.train.recipe import Recipe
from selkern.train.run_folder import COLUMNS, RunFolder
from selkern.train.state import load_state

pytestmark = pytest.mark.usefixtures("tiny_networks")


@pytest.fixture(scope="module")
def learned(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    torch.set_num_threads(1)
    recipe = Recipe(epochs=8, batch_size=8, image_size=16, lr=1e-2)
    return train(make_options(data, tmp_path_factory.mktemp("learned"), recipe, model="sk_tiny"))


def test_two_colours_are_learned(learned: RunFolder) -> None:
    table = rows(learned)
    assert table[-1]["train_loss"] < 0.5 * table[0]["train_loss"]
    assert table[-1]["train_top1"] > 0.9
    assert max(row["val_top1"] for row in table) == 1.0


def test_the_metrics_have_one_row_per_epoch_with_the_recipes_rate(learned: RunFolder) -> None:
    with learned.metrics.open(newline="") as file:
        assert tuple(next(csv.reader(file))) == COLUMNS
    recipe = Recipe(epochs=8, batch_size=8, image_size=16, lr=1e-2)
    table = learned.read_metrics()
    assert [(row["epoch"], row["step"]) for row in table] == [(e, 3.0 * e) for e in range(1, 9)]
    assert [row["lr"] for row in table] == [recipe.lr_at(3 * e - 1, 3) for e in range(1, 9)]
    assert all(row["seconds"] > 0 and row["images_per_s"] > 0 for row in table)
    assert all(row["val_top5"] == 1.0 for row in table)  # of two classes


def test_best_is_the_first_epoch_of_the_highest_top1(learned: RunFolder) -> None:
    table = rows(learned)
    first = max(table, key=lambda row: (row["val_top1"], -row["epoch"]))
    assert read_card(learned.best).source["epoch"] == first["epoch"]
    assert read_card(learned.last).source["epoch"] == 8


@pytest.mark.parametrize("which", ["last", "best"])
def test_the_kept_weights_measure_what_their_card_says(which: str, learned: RunFolder) -> None:
    loaded = load(str(getattr(learned, which)))
    source = choose_images(load(str(learned.path))).source
    result = evaluate(loaded.model, source.val, source.classes, loaded.preprocess)
    assert loaded.card.metrics == pytest.approx(
        {"val_top1": result.top1, "val_top5": result.top5, "val_loss": result.loss}, rel=1e-6
    )
    assert loaded.card.classes == ("cat", "dog")


@pytest.mark.parametrize("recipe", [BUSY_SGD, BUSY_ADAMW], ids=["sgd", "adamw"])
def test_the_kept_weights_are_the_moving_average(
    recipe: Recipe, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Averaged again here, in float64, from the weights after each step."""
    seen: list[dict[str, Tensor]] = []
    original = Training._train_step

    def step(self: Training, batch: Any) -> None:
        original(self, batch)
        seen.append({name: value.detach().clone().double() for name, value in self.stepper.model.state_dict().items()})

    monkeypatch.setattr(Training, "_train_step", step)
    run = train(make_options(data, tmp_path, recipe, model="sk_tiny"))
    assert len(seen) == 6
    average = seen[0]
    for weights in seen[1:]:
        average = {name: recipe.ema * average[name] + (1 - recipe.ema) * weights[name] for name in average}
    kept = load_file(run.last)
    assert kept.keys() == average.keys()
    apart = 0
    for name, value in kept.items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), average[name], rtol=1e-5, atol=1e-6)
            apart += not torch.allclose(value.double(), seen[-1][name], rtol=1e-5, atol=1e-6)
    assert apart > len(kept) / 2  # the average is not the weights
    source = open_source(str(data))
    model = create_model(weights=run.last)
    result = evaluate(model, source.val, source.classes, recipe.preprocess)
    assert rows(run)[-1]["val_loss"] == pytest.approx(result.loss, rel=1e-6)


def test_every_step_has_its_learning_rate(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[list[float]] = []
    original = Training._train_step

    def step(self: Training, batch: Any) -> None:
        original(self, batch)
        rates.append([group["lr"] for group in self.stepper.optimizer.param_groups])

    monkeypatch.setattr(Training, "_train_step", step)
    train(make_options(data, tmp_path, BUSY_SGD, model="sk_tiny"))
    expected = [BUSY_SGD.lr_at(step, 3) for step in range(6)]
    assert len(set(expected)) == 3
    assert rates == [[rate, rate, 2 * rate] for rate in expected]  # the last group is the classifier's bias


@pytest.mark.parametrize(("accumulate", "clip"), [(1, 0.3), (5, 0.0)], ids=["clipped", "in five parts"])
def test_one_step_is_the_gradient_step_computed_by_hand(
    accumulate: int, clip: float, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGD with weight decay, smoothing, and mixup's two labels, against plain arithmetic."""
    recipe = Recipe(
        epochs=1,
        batch_size=24,
        image_size=16,
        optimizer="sgd",
        lr=0.1,
        weight_decay=0.02,
        label_smoothing=0.2,
        clip=clip,
        accumulate=accumulate,
        bias_lr=3.0,
        augment=BUSY_SGD.augment,
    )
    before: dict[str, Tensor] = {}
    batches: list[Any] = []
    original = Training._train_step

    def step(self: Training, batch: Any) -> None:
        before.update({name: p.detach().clone() for name, p in self.stepper.model.named_parameters()})
        batches.append(batch)
        original(self, batch)

    monkeypatch.setattr(Training, "_train_step", step)
    run = train(make_options(data, tmp_path, recipe, model="sk_tiny"))
    (batch,) = batches
    model = create_model("sk_tiny", num_classes=2)
    model.load_state_dict({**model.state_dict(), **before})
    parts = torch.arange(24).tensor_split(accumulate)
    assert [len(part) for part in parts] == ([24] if accumulate == 1 else [5, 5, 5, 5, 4])
    logits = torch.cat([model(recipe.preprocess.normalise(batch.images[part])) for part in parts])
    one_hot = torch.eye(2)
    target = batch.lam[:, None] * one_hot[batch.labels] + (1 - batch.lam)[:, None] * one_hot[batch.partners]
    assert (batch.lam < 1).any()
    target = 0.8 * target + 0.2 / 2
    loss = -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
    assert loss.item() == pytest.approx(rows(run)[0]["train_loss"], rel=1e-5)
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, parameters)
    norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
    assert norm > 0.3, "the gradient must be clipped to test it"
    share = clip / (norm + 1e-6) if clip else 1.0
    kept = load_file(run.last)
    for name, value, gradient in zip(names, parameters, gradients, strict=True):
        rate = 0.3 if name == "fc.bias" else 0.1
        decay = 0.02 * value.detach() if value.ndim > 1 else 0
        expected = value.detach() - rate * (gradient * share + decay)
        torch.testing.assert_close(kept[name], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("part", [0, 1], ids=["first part", "second part"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_before_it_can_be_kept(
    value: float, part: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second step of the second epoch, in one half of its batch."""
    calls = [0]
    kept: dict[str, tuple[str, int]] = {}
    run = RunFolder(tmp_path / "run")

    def poisoned(images: Tensor, preprocess: Preprocess, device: torch.device) -> Tensor:
        calls[0] += 1
        if calls[0] != 2 * (3 + 1) + 1 + part:
            return to_input(images, preprocess, device)
        kept.update(tree(run.weights))
        return torch.full_like(to_input(images, preprocess, device), value)

    monkeypatch.setattr("selkern.train.step.to_input", poisoned)
    with pytest.raises(NumericsError) as error:
        train(make_options(data, tmp_path, BUSY_SGD, model="sk_tiny", name="run"))
    assert error.value.exit_code == 6
    assert "epoch 2, step 2" in str(error.value)
    assert "\n" not in str(error.value)
    assert tree(run.weights) == kept != {}
    assert all(v.isfinite().all() for v in load_file(run.last).values())
    state = load_state(run.state).state
    assert all(v.isfinite().all() for group in state.tensors.values() for v in group.values())
    assert len(run.read_metrics()) == 1


def test_weights_that_blow_up_are_noticed_in_the_next_step(data: Path, tmp_path: Path) -> None:
    recipe = Recipe(epochs=2, batch_size=8, image_size=16, optimizer="sgd", lr=1e38)
    with pytest.raises(NumericsError, match=r"epoch 1, step [23]"):
        train(make_options(data, tmp_path, recipe, model="sk_tiny", name="run"))
    assert not list((tmp_path / "run" / "weights").iterdir())


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_training_image_is_named(workers: int, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "data" / "train")
    make_folder(tmp_path / "data" / "val", images=2)
    (folder / "dog" / "005.jpg").write_bytes(b"not an image")
    with pytest.raises(DataError) as error:
        train(
            make_options(
                tmp_path / "data",
                tmp_path,
                model="sk_tiny",
                epochs=1,
                batch_size=36,
                workers=workers,
                on_bad_image="error",
            )
        )
    assert str(folder / "dog" / "005.jpg") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_finished_run_holds_its_files(learned: RunFolder, data: Path) -> None:
    names = {str(path.relative_to(learned.path)) for path in learned.path.rglob("*") if path.is_file()}
    expected = {"config.yaml", "command.txt", "env.json", "classes.json", "split.csv", "inputs.json", "log.txt"}
    assert {name for name in names if "/" not in name} == {*expected, "metrics.csv", ".lock"}
    assert {name for name in names if name.startswith("weights/")} == {
        "weights/best.safetensors",
        "weights/last.safetensors",
    }
    state = {f"state/step-0000{n}/{f}" for n in (21, 24) for f in ("manifest.json", "progress.json")}
    state |= {f"state/step-0000{n}/{g}.safetensors" for n in (21, 24) for g in ("model", "optimizer")}
    assert {name for name in names if name.startswith("state/")} == {*state, "state/LAST"}
    assert json.loads((learned.path / "classes.json").read_text()) == ["cat", "dog"]
    assert {"torch", "numpy", "python", "threads"} <= json.loads((learned.path / "env.json").read_text()).keys()
    with learned.split_csv.open(newline="") as file:
        split = list(csv.DictReader(file))
    assert {row["path"] for row in split} == set(tree(data))
    log = (learned.path / "log.txt").read_text().splitlines()
    assert sum(" val loss " in line for line in log) == 8
    assert (learned.path.parent / "latest.txt").read_text().strip() == str(learned.path)


def test_a_run_folder_is_never_overwritten(data: Path, tmp_path: Path) -> None:
    options = make_options(data, tmp_path, model="sk_tiny", epochs=1, batch_size=28, name="mine")
    first = train(options)
    before = tree(first.path)
    assert [train(options).path.name for _ in range(2)] == ["mine-2", "mine-3"]
    assert tree(first.path) == before
    assert RunFolder.find("latest", str(tmp_path)).path.name == "mine-3"
    assert RunFolder.find("mine", str(tmp_path)).path == tmp_path / "mine"
    assert "mine-3 (mine exists already); 1 process" in (tmp_path / "mine-3" / "log.txt").read_text()
    older = tmp_path / "train" / "older"  # where the version before put it
    older.mkdir(parents=True)
    (older / "config.yaml").write_bytes((first.path / "config.yaml").read_bytes())
    assert RunFolder.find("older", str(tmp_path)).path == older


def test_the_latest_run_of_the_version_before_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It kept the path in runs/latest.txt, and one of today in runs/train/latest.txt is the later."""
    monkeypatch.chdir(tmp_path)
    for name, pointer, seconds in (("old", "runs/latest.txt", 1), ("new", "runs/train/latest.txt", 2)):
        folder = tmp_path / "runs" / "train" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text("")
        (tmp_path / pointer).write_text(f"{folder}\n")
        os.utime(tmp_path / pointer, (seconds, seconds))
        assert RunFolder.find("latest").path == folder
        assert RunFolder.find(name).path.resolve() == folder


def test_no_run_is_made_in_the_data(data: Path) -> None:
    before = tree(data)
    for output in (data, data / "runs", data / ".." / data.name):
        with pytest.raises(UsageError, match="lies in the data"):
            train(make_options(data, output, model="sk_tiny", epochs=1, batch_size=28))
    assert tree(data) == before


def test_what_cannot_be_trained_leaves_no_folder(data: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such run"):
        train(make_options(data, tmp_path / "runs", model="sk_tiny", weights=str(tmp_path / "nothing")))
    assert not (tmp_path / "runs").exists()


def test_the_split_of_the_run_outlives_new_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that came later is in no split; with a cut by seed it would move others."""
    data = make_folder(tmp_path / "data")
    run = train(make_options(data, tmp_path, model="sk_tiny", epochs=2, batch_size=14))
    before = choose_images(load(str(run.path))).source
    draw(data / "cat" / "0000.png", 0, 99)
    after = choose_images(load(str(run.path))).source
    for name in ("train", "val", "test"):
        one, two = getattr(before, name), getattr(after, name)
        assert [one.where(i) for i in range(len(one))] == [two.where(i) for i in range(len(two))]
    assert any("newer than the saved split" in note for note in after.notes)

    seen: list[Any] = []
    original = Training.__init__

    def init(self: Training, *args: Any) -> None:
        original(self, *args)
        seen.append(self.source)

    monkeypatch.setattr(Training, "__init__", init)
    shutil.rmtree(run.state)
    job.resume(run, "cpu")
    assert (seen[0].train.labels == before.train.labels).all()
    assert [seen[0].train.where(at) for at in range(28)] == [before.train.where(at) for at in range(28)]


def test_training_goes_on_from_the_weights_of_another_run(
    learned: RunFolder, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first: list[dict[str, Tensor]] = []
    original = Training.fit

    def fit(self: Training) -> None:
        first.append({name: value.clone() for name, value in self.stepper.model.state_dict().items()})
        original(self)

    monkeypatch.setattr(Training, "fit", fit)
    train(make_options(data, tmp_path, model="sk_tiny", epochs=1, batch_size=28, weights=str(learned.path)))
    kept = load_file(learned.best)
    assert all(torch.equal(value, kept[name]) for name, value in first[0].items())

"""Recipes and options: refused values, presets, the YAML round trip, and the learning rate of every step."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selkern.data.augment import Augment
from selkern.data.table_options import TableOptions
from selkern.errors import CheckpointError, UsageError
from selkern.train.options import TrainOptions, read_options, recipe_named
from selkern.train.recipe import RECIPE_NOTES, RECIPES, Recipe


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("epochs", 0, "at least 1"),
        ("batch_size", 1, "at least 2"),
        ("accumulate", 0, "from 1 to batch_size / 2"),
        ("accumulate", 33, "from 1 to batch_size / 2"),
        ("image_size", 7, "at least 8"),
        ("eval_crop", 0.0, "in (0, 1]"),
        ("eval_crop", 1.01, "in (0, 1]"),
        ("lr", 0.0, "above 0"),
        ("lr", math.inf, "above 0"),
        ("lr", math.nan, "above 0"),
        ("momentum", 1.0, "in [0, 1)"),
        ("weight_decay", -1e-9, "at least 0"),
        ("bias_lr", 0.0, "above 0"),
        ("warmup", -0.1, "from 0 to epochs"),
        ("warmup", 5.1, "from 0 to epochs"),
        ("label_smoothing", 1.0, "in [0, 1)"),
        ("clip", -1.0, "at least 0"),
        ("ema", 1.0, "in [0, 1)"),
        ("milestones", (3.0, 2.0), "rising"),
        ("std", (0.2, 0.0, 0.2), "above 0"),
        ("optimizer", "adam", "one of sgd, adamw"),
        ("schedule", "step", "one of cosine, steps"),
        ("precision", "fp16", "one of auto, fp32, bf16"),
    ],
)
def test_a_recipe_names_flag_value_and_range(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(UsageError) as error:
        Recipe(**{name: value})
    assert str(error.value).startswith(f"{name} is {value} | --{name.replace('_', '-')} | must be {allowed}")


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("workers", -1, "at least 0"),
        ("seed", -1, "from 0 to 2^63 - 1"),
        ("seed", 2**63, "from 0 to 2^63 - 1"),
        ("save_minutes", 0.0, "above 0"),
    ],
)
def test_options_name_flag_value_and_range(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(UsageError) as error:
        TrainOptions(**{name: value})
    assert str(error.value) == f"{name} is {value} | --{name.replace('_', '-')} | must be {allowed}"


OPTIONS = {
    "defaults": TrainOptions(),
    "everything": TrainOptions(
        data="größe: 'x' #1",
        model="sknet50",
        recipe="imagenet-light",
        weights="a/b.safetensors",
        name="1e3",
        seed=2**63 - 1,
        val_fraction=0.3,
        workers=3,
        log_order=True,
        report=False,
        training=replace(RECIPES["imagenet-light"], lr=1e-9, milestones=(0.5, 2), augment=Augment(mixup=0.3)),
    ),
    **{name: TrainOptions(recipe=name, training=recipe) for name, recipe in RECIPES.items()},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_yaml_round_trip_is_equal(options: TrainOptions, tmp_path: Path) -> None:
    assert TrainOptions.from_yaml(options.to_yaml(), "config.yaml") == options
    (tmp_path / "config.yaml").write_text(options.to_yaml())
    assert read_options(tmp_path) == options


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        ("wrokers: 2", UsageError, "unknown option 'wrokers' | config.yaml | did you mean workers?"),
        ("training: {epoch: 2}", UsageError, "unknown option 'epoch' | config.yaml | did you mean epochs?"),
        ("training: {augment: {flop: 1}}", UsageError, "unknown option 'flop' | config.yaml | did you mean flip?"),
        ("zzz: 1", UsageError, "unknown option 'zzz' | config.yaml | remove it"),
        ("training: {epochs: many}", UsageError, "wrong type"),
        ("training: {epochs: 0}", UsageError, "epochs is 0 | --epochs | must be at least 1"),
        ("training: {optimizer: adam}", UsageError, "optimizer is adam"),
        ("training: {resize: stretch}", UsageError, "resize is stretch | --resize | must be one of crop, squash, pad"),
        ("training: 3", UsageError, "expected a mapping"),
        ("[1, 2]", UsageError, "expected a mapping"),
        ("a: [", CheckpointError, "not YAML"),
        ("!!python/object/apply:os.getcwd []", CheckpointError, "not YAML"),
    ],
)
def test_a_config_that_cannot_be_is_refused_in_one_line(text: str, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind) as error:
        TrainOptions.from_yaml(text, "config.yaml")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean imagenet-paper"):
        recipe_named("imagenet-papper")
    with pytest.raises(UsageError, match=r"one of digits, cifar"):
        recipe_named("zzzz")


def test_a_folder_without_options_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a run folder"):
        read_options(tmp_path)


# The figures of the paper's section 4 and of the ResNeXt schedule on CIFAR, written out here once more.
PAPER: dict[str, dict[str, Any]] = {
    "imagenet-paper": {
        "optimizer": "sgd",
        "momentum": 0.9,
        "batch_size": 256,
        "weight_decay": 1e-4,
        "lr": 0.1,
        "epochs": 100,
        "milestones": (30, 60, 90),
        "schedule": "steps",
        "warmup": 0.0,
        "label_smoothing": 0.1,
        "image_size": 224,
        "eval_crop": 0.875,
        "bias_lr": 2.0,
        "augment": Augment(crop="resized", crop_scale=(0.08, 1.0), flip=0.5),
    },
    "imagenet-light": {
        "weight_decay": 4e-5,
        "batch_size": 256,
        "lr": 0.1,
        "epochs": 100,
        "milestones": (30, 60, 90),
        "augment": Augment(crop="resized", crop_scale=(0.2, 1.0), flip=0.5),
    },
    "cifar-paper": {
        "optimizer": "sgd",
        "momentum": 0.9,
        "epochs": 300,
        "milestones": (150, 225),
        "schedule": "steps",
        "weight_decay": 5e-4,
        "lr": 0.1,
        "batch_size": 128,
        "label_smoothing": 0.0,
        "image_size": 32,
        "eval_crop": 1.0,
        "augment": Augment(crop="pad", pad=4, flip=0.5),
    },
}


@pytest.mark.parametrize(("name", "field"), [(name, field) for name, fields in PAPER.items() for field in fields])
def test_paper_recipes_hold_the_papers_figures(name: str, field: str) -> None:
    assert getattr(RECIPES[name], field) == PAPER[name][field]


def test_every_recipe_has_a_note() -> None:
    assert RECIPE_NOTES.keys() == RECIPES.keys()


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [(0, 0.1), (29, 0.1), (30, 0.01), (59, 0.01), (60, 1e-3), (89, 1e-3), (90, 1e-4), (99, 1e-4)],
)
@pytest.mark.parametrize("step", [0, 4])
def test_steps_fall_tenfold_at_the_papers_milestones(epoch: int, rate: float, step: int) -> None:
    assert RECIPES["imagenet-paper"].lr_at(epoch * 5 + step, 5) == pytest.approx(rate, rel=1e-12)


def test_warm_up_rises_in_equal_steps_to_the_peak() -> None:
    recipe = Recipe(epochs=4, warmup=2, lr=0.5)
    rates = [recipe.lr_at(step, 10) for step in range(21)]
    assert rates[0] == pytest.approx(0.5 / 21)
    assert all(b - a == pytest.approx(0.5 / 21) for a, b in itertools.pairwise(rates))
    assert rates[20] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("step", "share"),
    [
        (10, 1.0),
        (20, (2 + math.sqrt(2)) / 4),  # (1 + cos(pi / 4)) / 2
        (30, 0.5),
        (40, (2 - math.sqrt(2)) / 4),
        (50, 0.0),
    ],
)
def test_cosine_falls_from_the_peak_to_zero(step: int, share: float) -> None:
    assert Recipe(epochs=5, warmup=1, lr=3.0).lr_at(step, 10) == pytest.approx(3 * share, abs=1e-12)


def test_options_of_before_are_written_as_before_unless_asked_for_more() -> None:
    """A study compares its runs' options with what it wrote before an update."""
    text = TrainOptions().to_yaml()
    assert not any(name in text for name in ("resize", "white_level", "table"))
    assert TrainOptions.from_yaml(text, "config.yaml") == TrainOptions()
    options = TrainOptions(training=replace(RECIPES["cifar"], resize="pad"), table=TableOptions(sep=";"))
    assert TrainOptions.from_yaml(options.to_yaml(), "config.yaml") == options
    assert options.training.preprocess.resize == "pad"
    for preprocess in (options.training.preprocess, replace(options.training.preprocess, levels=(0.0, 4095.0))):
        assert RECIPES["digits"].prepared(preprocess).preprocess == preprocess

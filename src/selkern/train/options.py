"""What one training run was asked to do; saved beside it as config.yaml, read back to resume it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro
import yaml

from selkern.errors import CheckpointError, UsageError
from selkern.train.recipe import RECIPES, Recipe

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Train a network, evaluate it, look at what its neurons chose, and write a report."""

    data: str = "digits"
    """digits (built in), a folder of images, a .csv or a .parquet file or folder."""
    model: str = "sknet_mini"
    """Name of the network; `selkern models` lists them."""
    recipe: str = "digits"
    """Preset of all the training options below: digits, cifar, cifar-paper, imagenet-paper, imagenet-light."""
    weights: str | None = None
    """Start from this weights file, run or hf-hub:user/name instead of from random weights."""
    output: str = "runs"
    """Folder that run folders are made in."""
    name: str | None = None
    """Name of the run's folder; by default model and data. An existing folder is never overwritten."""
    seed: int = 0
    """Decides first weights, splits, order and augmentation."""
    val_fraction: float = 0.1
    """Share of the training images used for validation (and test) where the data has no such split."""
    device: str = "auto"
    """auto, cpu or cuda."""
    workers: int = 0
    """Processes that read images ahead; cannot change a result."""
    save_minutes: float = 10.0
    """Minutes between saved states within an epoch; each epoch's end is saved in any case."""
    save_steps: int = 0
    """Steps between saved states within an epoch; 0 goes by minutes alone."""
    on_bad_image: Literal["skip", "error"] = "skip"
    """An image that cannot be read: skip it and name it in bad_files.csv, or end the run."""
    on_nan: Literal["stop", "rollback"] = "stop"
    """A loss, gradient or weight is not finite: end the run, or go back to the last state and pass the batch over."""
    log_order: bool = False
    """Write every rank's sample indices, as they came, to order.rank*.csv."""
    report: bool = True
    """Evaluate, analyze and write report.html at the end."""
    training: tyro.conf.OmitArgPrefixes[Recipe] = RECIPES["digits"]

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise UsageError(f"workers is {self.workers}", "--workers", "must be at least 0")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed is {self.seed}", "--seed", "must be from 0 to 2^63 - 1")
        if self.save_steps < 0:
            raise UsageError(f"save_steps is {self.save_steps}", "--save-steps", "must be at least 0")
        for name, allowed in (("on_bad_image", ("skip", "error")), ("on_nan", ("stop", "rollback"))):
            if getattr(self, name) not in allowed:
                flag = "--" + name.replace("_", "-")
                raise UsageError(f"{name} is {getattr(self, name)!r}", flag, f"must be {' or '.join(allowed)}")
        if self.save_minutes <= 0:
            raise UsageError(f"save_minutes is {self.save_minutes}", "--save-minutes", "must be above 0")

    def to_yaml(self) -> str:
        """The options as text that `from_yaml` reads back to an equal value."""
        return yaml.safe_dump(_plain(asdict(self)), sort_keys=False, allow_unicode=True)

    @classmethod
    def from_yaml(cls, text: str, where: str) -> TrainOptions:
        """Options from text. Raises UsageError for unknown names or values out of range."""
        try:
            values = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise CheckpointError("not YAML", where, str(error).splitlines()[0]) from error
        return build(cls, values, where)


def recipe_named(name: str) -> Recipe:
    """A preset by name. Raises UsageError that tells the nearest one."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.3)
        fix = f"did you mean {near[0]}?" if near else f"one of {', '.join(RECIPES)}"
        raise UsageError(f"unknown recipe {name!r}", "--recipe", fix)
    return RECIPES[name]


def build(cls: type[T], values: Any, where: str) -> T:
    """A (nested) options dataclass from plain values. Raises UsageError for names it does not have."""
    if not isinstance(values, Mapping):
        raise UsageError("expected a mapping of options", where, "see a run's config.yaml")
    hints = get_type_hints(cls)
    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            raise UsageError(f"unknown option {key!r}", where, f"did you mean {near[0]}?" if near else "remove it")
    try:
        return cls(**{key: _typed(hints[key], value, where) for key, value in values.items()})
    except TypeError as error:
        raise UsageError(
            f"an option has a value of a wrong type ({error})", where, "see `selkern train --help`"
        ) from error


def _typed(hint: Any, value: Any, where: str) -> Any:
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if is_dataclass(hint):
        return build(hint, value, where)  # type: ignore[arg-type]
    return tuple(value) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return list(value) if isinstance(value, tuple) else value


def read_options(run: Path) -> TrainOptions:
    """The options a run was started with. Raises CheckpointError if its config.yaml is not there."""
    file = run / "config.yaml"
    if not file.is_file():
        raise CheckpointError("not a run folder", str(run), "a run folder holds config.yaml")
    return TrainOptions.from_yaml(file.read_text(), str(file))

"""What one training run was asked to do; saved beside it as config.yaml, read back to resume it."""

from __future__ import annotations

import difflib
import os
import reprlib
import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
import yaml

from selkern.data import LARGEST_IMAGE
from selkern.data.table_options import TableOptions
from selkern.errors import CheckpointError, UsageError
from selkern.train.recipe import RECIPES, Recipe
from selkern.tuning import check_threads

T = TypeVar("T")
_LARGEST = 1 << 18  # bytes of a config.yaml; ours have 2,000
_LONGEST_WORD = 4200  # characters; no path is longer, and YAML makes a number of 1:1:1:... in quadratic time
PATIENCE = 10.0  # minutes for another process that does not come; no save or validation of one takes longer
_LONGEST_WAIT = 10_000  # minutes, a week
_MOST_WORKERS = 1024  # processes: a slip of the keyboard is not to fill the machine
# What versions before do not know, of a recipe: left out at the defaults, as the table is, since a study compares its
# runs' options with those that it wrote before an update.
_LATER = ("resize", "white_level", "lr_backbone", "lr_new", "freeze_epochs")
_UNLESS_GIVEN = ("threads", "arguments", "selectify", "shuffle")  # likewise, of a run
_CHOICES = {"on_bad_image": ("skip", "error"), "on_nan": ("stop", "rollback"), "shuffle": ("auto", "full", "shards")}
PRETRAINED = "pretrained"  # as weights: those that timm has for its network
OUTPUT = "runs/train"  # where runs are made, and looked for by name
_NAME_BYTES = 200  # of a run's folder, to which a number may come


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The options of a run, but for those of its training."""

    data: str = "digits"
    """digits (built in), a folder of images, a .csv or .parquet file or folder, tar shards
    (shards/train-{000000..001023}.tar, their folder, s3://, https://)."""
    model: str = "sknet_mini"
    """Name of the network (`selkern models`), or code that makes it: timm:NAME, FILE.py:NAME, module:NAME (it is run);
    by default that of --weights, else skresnet18 (photos) or sknet_mini."""
    arguments: Annotated[str, tyro.conf.arg(name="with")] = ""
    """Arguments for a third-party network (timm:NAME, FILE.py:NAME), as in Python: "drop_rate=0.1"."""
    selectify: str = ""
    """Convolutions that get further kernels to select from: auto, "last 2 stages", or names, as layer4.*,layer3.1."""
    recipe: str = "digits"
    """Preset of all the training options below; by default chosen from data and weights:
    digits, cifar (small pictures), photos (fine-tuning of trained weights), photos-scratch, cifar-paper,
    imagenet-paper, imagenet-light."""
    weights: str | None = None
    """Start from this weights file, run or hf-hub:user/name; of timm:NAME also "pretrained" (fetched). Else random."""
    output: str = OUTPUT
    """Folder in which the run's folder is made."""
    name: str | None = None
    """Name of the run's folder; by default model and data. An existing folder is never overwritten."""
    seed: int = 0
    """Seed of the initial weights, the splits, the order of the images and their augmentation."""
    val_fraction: float = 0.1
    """Share of the training images used for validation (and test) where the data has no such split."""
    device: str = "auto"
    """Where to compute: auto (a GPU if there is one), cpu or cuda."""
    threads: int | None = None
    """CPU threads, which decide how sums are rounded; by default the fastest in a short trial; kept by --resume."""
    workers: int = 0
    """Processes that load images in the background; the result does not depend on it."""
    save_minutes: float = 10.0
    """Minutes between saved states within an epoch; each epoch's end is saved in any case."""
    save_steps: int = 0
    """Steps between saved states within an epoch; 0 saves by --save-minutes alone."""
    timeout_minutes: float = PATIENCE
    """Of several processes: minutes to wait for another one before the run ends; above its longest save or report."""
    on_bad_image: Literal["skip", "error"] = "skip"
    """An image that cannot be read: skip it and name it in bad_files.csv, or end the run."""
    on_nan: Literal["stop", "rollback"] = "stop"
    """A loss, gradient or weight is not finite: end the run, or go back to the last state and pass the batch over."""
    shuffle: Literal["auto", "full", "shards"] = "auto"
    """Order of training images in tar shards: full mixes all, shards those of 16 shards and 20,000 images at a time;
    auto is shards where they lie on a store (s3://, https://), else full."""
    log_order: bool = False
    """Write the indices of the images in the order of training to order.rank*.csv, one file per process."""
    report: bool = True
    """Evaluate, analyze and write report.html at the end."""
    table: tyro.conf.OmitArgPrefixes[TableOptions] = field(default_factory=TableOptions)

    def __post_init__(self) -> None:
        if not 0 <= self.workers <= _MOST_WORKERS:
            limit = "at least 0" if self.workers < 0 else f"at most {_MOST_WORKERS}"
            raise UsageError(f"workers is {self.workers}", "--workers", f"must be {limit}")
        check_threads(self.threads)
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed is {self.seed}", "--seed", "must be from 0 to 2^63 - 1")
        if self.save_steps < 0:
            raise UsageError(f"save_steps is {self.save_steps}", "--save-steps", "must be at least 0")
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                flag = "--" + name.replace("_", "-")
                raise UsageError(f"{name} is {getattr(self, name)!r}", flag, f"must be {' or '.join(allowed)}")
        if not self.save_minutes > 0:
            raise UsageError(f"save_minutes is {self.save_minutes}", "--save-minutes", "must be above 0")
        check_timeout(self.timeout_minutes)
        self._check_texts()

    def _check_texts(self) -> None:
        for flag in ("data", "output", "name", "weights"):
            try:
                (getattr(self, flag) or "").encode()
            except UnicodeEncodeError as error:  # a run's files could not name it
                fix = "rename it, or link to it by another name"
                raise UsageError(f"{flag} is not UTF-8", "--" + flag, fix) from error
        name = self.name
        if name is not None and (
            name in ("", ".", "..")
            or "/" in name
            or os.sep in name
            or not name.isprintable()
            or len(name.encode()) > _NAME_BYTES
        ):
            fix = f"give the name of a folder, of at most {_NAME_BYTES} bytes; --output sets where it is made"
            raise UsageError(f"name is {_shown(name)}", "--name", fix)


@dataclass(frozen=True, kw_only=True)
class TrainOptions(RunOptions):
    """Train a network, evaluate it, study what its selective kernels chose, and write a report.

    The defaults depend on data, weights and network: those below hold for the --data, --weights and --model given
    beside --help, or for the digits. A run shows at its start which defaults it uses, and why.
    """

    training: tyro.conf.OmitArgPrefixes[Recipe] = RECIPES["digits"]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.training.image_size > LARGEST_IMAGE:
            what = f"image_size is {self.training.image_size}"
            raise UsageError(what, "--image-size", f"must be at most {LARGEST_IMAGE}")
        try:
            _ = self.training.preprocess
        except UsageError as error:
            flag = error.where.replace("Preprocess.", "--")
            raise UsageError(error.what, flag, error.fix) from error

    def to_yaml(self) -> str:
        """The options as text that `from_yaml` reads back to an equal value."""
        values = _plain(asdict(self))
        for name in _LATER:
            if values["training"][name] == getattr(Recipe, name):
                del values["training"][name]
        if self.table == TableOptions():
            del values["table"]
        elif self.table.local_cache is None:
            del values["table"]["local_cache"]
        for name in _UNLESS_GIVEN:
            if values[name] == getattr(RunOptions, name):
                del values[name]
        if self.timeout_minutes == PATIENCE:
            del values["timeout_minutes"]
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)

    @classmethod
    def from_yaml(cls, text: str, where: str) -> TrainOptions:
        """Options from text.

        Raises:
            CheckpointError: no YAML.
            UsageError: unknown names, wrong types or values out of range.
        """
        if max(map(len, text.split()), default=0) > _LONGEST_WORD:
            raise CheckpointError(f"a word of over {_LONGEST_WORD:,} characters", where, "restore it from a copy")
        try:
            values = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise CheckpointError("not YAML", where, str(error).splitlines()[0]) from error
        except (ValueError, RecursionError) as error:  # such as a date that is none, or brackets without an end
            raise CheckpointError(f"cannot be read ({error})", where, "restore it from a copy") from error
        return build(cls, values, where)


def check_timeout(minutes: float) -> None:
    """Raise UsageError for minutes that nobody can wait."""
    if not 0 < minutes <= _LONGEST_WAIT:
        what = f"timeout_minutes is {minutes}"
        raise UsageError(what, "--timeout-minutes", f"must be above 0, and at most {_LONGEST_WAIT:,}")


def recipe_named(name: str) -> Recipe:
    """A preset by name. Raises UsageError, which names the nearest one."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.3)
        fix = f"did you mean {near[0]}?" if near else f"one of {', '.join(RECIPES)}"
        raise UsageError(f"unknown recipe {name!r}", "--recipe", fix)
    return RECIPES[name]


def build(cls: type[T], values: Any, where: str) -> T:
    """A (nested) options dataclass from plain values. Raises UsageError for names it does not have and wrong types."""
    if not isinstance(values, Mapping):
        raise UsageError(f"expected a mapping of options, not {_shown(values)}", where, "see a run's config.yaml")
    hints = get_type_hints(cls, include_extras=True)
    names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(key, names, n=1) if isinstance(key, str) else []
            fix = f"did you mean {near[0]}?" if near else "remove it"
            raise UsageError(f"unknown option {_shown(key)}", where, fix)
    return cls(**{key: _typed(hints[key], value, key, where) for key, value in values.items()})


def _typed(hint: Any, value: Any, name: str, where: str) -> Any:
    """A plain value as its type hint asks for it. Raises UsageError, naming the option, where it is something else."""
    hint = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    if is_dataclass(hint):
        return build(hint, value, where)  # type: ignore[arg-type]
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in parts:
            return None
        (hint,) = (part for part in parts if part is not type(None))
        return _typed(hint, value, name, where)
    if origin is Literal and isinstance(value, str):  # which of them there are, the options check themselves
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        each = [parts[0]] * len(value) if parts[1:] == (...,) else list(parts)
        if len(each) == len(value):
            return tuple(_typed(part, item, name, where) for part, item in zip(each, value, strict=True))
    whole = type(value) is int and abs(value) < 1 << 1000  # what a float can be, and can be printed
    if (whole and hint in (int, float)) or (type(value) is hint and hint is not int):
        return value
    what = f"option {name} has a value of a wrong type: {_shown(value)}"
    raise UsageError(what, where, f"give {_words(hint)}")


def _shown(value: Any) -> str:
    """The start of a value, however large it is."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python does not print whole numbers of over 4,300 digits
        return "a number of thousands of digits"


def _words(hint: Any) -> str:
    """A type hint for a reader who knows no Python."""
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        parts = get_args(hint)
        return f"a list of {'numbers' if parts[1:] == (...,) else f'{len(parts)} numbers'}"
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[hint]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return list(value) if isinstance(value, tuple) else value


def read_options(run: Path) -> TrainOptions:
    """The options a run was started with. Raises CheckpointError if its config.yaml is not there."""
    file = run / "config.yaml"
    if not file.is_file():
        raise CheckpointError("not a run folder", str(run), "a run folder holds config.yaml")
    if file.stat().st_size > _LARGEST:
        raise CheckpointError(f"larger than {_LARGEST:,} bytes", str(file), "restore it from a copy")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError("not UTF-8 text", str(file), "restore it from a copy") from error
    return TrainOptions.from_yaml(text, str(file))

"""A study's file: which networks are trained, on what, how often, and what they are compared with."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from selkern.convert.hub import is_reference
from selkern.convert.subject import is_code
from selkern.data.sources import open_source
from selkern.errors import CheckpointError, UsageError
from selkern.models import registry
from selkern.models.backbone import Row
from selkern.models.change import change_row, join_name, placed
from selkern.models.cost import Cost, count
from selkern.train.network import new_network
from selkern.train.options import PRETRAINED, TrainOptions, build, recipe_named
from selkern.train.recipe import Recipe
from selkern.train.run_folder import find_weights

REQUIRED = ("title", "claim", "baseline", "arms")
_LARGEST_FILE = 1 << 16  # bytes of a study's file
_LONGEST_WORD = 4200  # characters; YAML makes a number of 1:1:1:... in quadratic time


def load(path: Path) -> tuple[str, dict[str, Any]]:
    """Text and entries of a file. Raises UsageError where it is no mapping, or has an entry twice or not at all."""
    where, fix = str(path), "see docs/studies.md"
    if path.stat().st_size > _LARGEST_FILE:
        raise UsageError(f"larger than {_LARGEST_FILE:,} bytes", where, "give a study's file")
    text = path.read_text(encoding="utf-8")
    if max(map(len, text.split()), default=0) > _LONGEST_WORD:
        raise UsageError(f"a word of over {_LONGEST_WORD:,} characters", where, fix)
    try:
        _refuse_twice(yaml.compose(text, Loader=yaml.SafeLoader), where)
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # UsageError is a ValueError
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"not YAML ({str(error).splitlines()[0]})", where, fix) from error
    if not isinstance(values, dict):
        raise UsageError("no mapping of entries", where, fix)
    if missing := [name for name in REQUIRED if name not in values]:
        raise UsageError(f"{missing[0]} is missing", where, fix)
    return text, values


def _refuse_twice(node: Any, where: str) -> None:
    """Raise UsageError where a mapping has a key twice (YAML would keep the last) or an alias (which could nest)."""
    seen: set[int] = set()
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            raise UsageError("an alias", where, "write the entry out")
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if twice := [key for key in keys if keys.count(key) > 1]:
                raise UsageError(f"{twice[0]!r} is there twice", where, "remove one of them")
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


FOLDER = Path(__file__).parent / "plans"  # the studies that come with the package
_MOST_SEEDS = 1000
_NAME = re.compile(r"[A-Za-z0-9_+.]{1,60}")  # of an arm: a folder is called after it
_LITTLE = "train=256,val=64,test=96"  # scenes of a short form
_SHORT_SEEDS = 2


@dataclass(frozen=True, kw_only=True)
class Match:
    """How far the arms' costs may be from the baseline's, as shares of it; None asks nothing."""

    parameters: float | None = None
    macs: float | None = None


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of the networks that are compared.

    Attributes:
        base: the model's name as the file has it.
        change: fields of `Architecture` as the file has them.
        row: what builds it; None of code, and of what `selectify` changes.
        options: of its training, but for seed and output; they name the model with its change.
    """

    name: str
    base: str
    change: Mapping[str, Any]
    row: Row | None
    options: TrainOptions

    @property
    def _file(self) -> str | None:
        """Weights that lie here, or will by then: not those that a run fetches."""
        named = self.options.weights
        return None if named == PRETRAINED or (named is not None and is_reference(named)) else named

    @property
    def by_shapes(self) -> bool:
        """Whether `build` needs no numbers, so that it runs on the meta device too."""
        return self.row is not None and self._file is None

    def build(self, classes: int) -> nn.Module:
        """The network; with random weights, where its shapes say all, or those of its file.

        Raises:
            CheckpointError: weights that cannot be read, or do not fit.
            UsageError: code that cannot be run or gives no classifier, nothing that `selectify` can change.
            ValueError: an architecture that cannot be.
        """
        if self.row is not None and self._file is None:
            return self.row.build(classes, 3, False)
        asked, size = self.options, self.options.training.image_size
        file = None if self._file is None else find_weights(self._file)
        return new_network(
            asked.model, classes, size, weights=file, arguments=asked.arguments, pattern=asked.selectify
        )[0]


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a study's file says.

    Attributes:
        text, path: of the file.
        scale_bins: edges of the bins of object scale in which accuracy is reported; none where it is not.
        selection: whether to report what the units of every run chose.
        cost: whether the time and memory of the arms are measured too.
        short: one epoch of few images, to try the machinery.
    """

    name: str
    text: str
    path: Path
    title: str
    claim: str
    seeds: int
    baseline: str
    arms: tuple[Arm, ...]
    match: Match
    scale_bins: tuple[float, ...]
    selection: bool
    cost: bool
    short: bool

    @property
    def sha256(self) -> str:
        """Of the file."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class _File:
    """The plain entries of a study's file; `arms` and `training` are read apart."""

    title: str
    claim: str
    baseline: str
    data: str | None = None
    recipe: str = "digits"
    seeds: int = 5
    match: Match = Match()
    scale_bins: tuple[float, ...] = ()
    selection: bool = False
    cost: bool = False


@dataclass(frozen=True, kw_only=True)
class _Arm:
    """The plain entries of an arm; `change` and `training` are read apart, and `arguments` is called `with` there."""

    model: str
    data: str | None = None
    arguments: str = ""
    selectify: str = ""
    weights: str | None = None


def find(name: str) -> Path:
    """A study's file by its path, or by its name among those that come with the package.

    Raises:
        UsageError: neither a file nor such a name; the message lists the names.
    """
    if (path := Path(name)).is_file():
        return path
    known = {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    guess = f"did you mean {near[0]}? " if near else ""
    raise UsageError("no such study", name or "(empty name)", f"{guess}give a .yaml file or one of {', '.join(known)}")


def read(path: Path, data: str | None = None, device: str = "cpu", short: bool = False) -> Study:
    """A study out of its file.

    Args:
        data: what the arms are trained on where the file leaves it open (`data: null`).
        short: one epoch of few images and two seeds; where the file leaves the data open, digit scenes.

    Raises:
        UsageError: unknown entries, wrong types, values out of range, a network that cannot be.
    """
    text, values = load(path)
    where = str(path)
    arms, training = values.pop("arms"), values.pop("training", {})
    file = build(_File, values, where)
    given = _data(file.data, data, where, short)
    if not isinstance(arms, dict) or len(arms) < 2:
        raise UsageError("a study needs two arms at least", where, "give `arms:`, a mapping of names")
    if file.baseline not in arms:
        raise UsageError(f"the baseline {file.baseline!r} is no arm", where, f"one of {', '.join(map(str, arms))}")
    if not 1 <= file.seeds <= _MOST_SEEDS:
        raise UsageError(f"seeds is {file.seeds}", where, f"give a number of seeds from 1 to {_MOST_SEEDS}")
    common = replace(
        TrainOptions(), data=given, recipe=file.recipe, training=_recipe(recipe_named(file.recipe), training, where)
    )
    common = replace(common, device=device, report=False, log_order=True, save_minutes=1.0)
    made = tuple(_arm(name, entry, common, where, short) for name, entry in arms.items())
    return Study(
        name=path.stem,
        text=text,
        path=path,
        title=file.title,
        claim=file.claim,
        seeds=min(file.seeds, _SHORT_SEEDS) if short else file.seeds,
        baseline=file.baseline,
        arms=made,
        match=file.match,
        scale_bins=_bins(file.scale_bins, made, where),
        selection=file.selection,
        cost=file.cost,
        short=short,
    )


def _data(named: str | None, given: str | None, where: str, short: bool) -> str:
    """What the arms are trained on; a path is made absolute, since runs may start in other folders."""
    if named is not None and given is not None:
        raise UsageError(f"the study names its data itself ({named})", "--data", "leave it out")
    data = named if named is not None else given
    if data is None and not short:
        raise UsageError("the study leaves its data open", where, "give --data")
    if data is None:
        data = "digits"
    return data if is_digits(data) else str(Path(data).expanduser().absolute())


def is_digits(data: str) -> bool:
    """Whether data is digit scenes, whose objects' scales are known."""
    return data == "digits" or data.startswith("digits:")


def _recipe(base: Recipe, changes: Any, where: str) -> Recipe:
    """A recipe with some of its fields changed."""
    if not isinstance(changes, dict):
        raise UsageError("training is no mapping", where, "give fields of the recipe, such as epochs: 2")
    values = asdict(base)
    augment = changes.get("augment", {})
    if not isinstance(augment, dict):
        raise UsageError("augment is no mapping", where, "give fields such as flip: 0.5")
    try:
        return build(Recipe, {**values, **changes, "augment": {**values["augment"], **augment}}, where)
    except UsageError as error:  # it may name a flag, of which there are none here
        raise placed(error, where) from error


def _arm(name: Any, entry: Any, common: TrainOptions, where: str, short: bool) -> Arm:
    folder = Path(where).absolute().parent
    where = f"{where}, arm {name}"
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise UsageError(f"an arm is called {name!r}", where, "use letters, digits, _ + and .")
    if not isinstance(entry, dict) or "model" not in entry:
        raise UsageError("model is missing", where, "give a name; `selkern models` lists them")
    plain = dict(entry)
    change, training = plain.pop("change", {}), plain.pop("training", {})
    if "with" in plain:
        plain["arguments"] = plain.pop("with")
    try:
        asked = build(_Arm, plain, where)
    except UsageError as error:
        raise UsageError(error.what.replace("option arguments", "option with"), error.where, error.fix) from error
    recipe = _recipe(common.training, training, where)
    data = common.data if asked.data is None else _data(asked.data, None, where, short)
    if short:
        recipe = replace(recipe, epochs=1, schedule_epochs=0, milestones=(), warmup=0.0)
        data = _little(data)
    row, model = _network(asked, change, folder, where)
    weights = _weights(asked.weights, folder)
    network = replace(common, model=model, arguments=asked.arguments, selectify=asked.selectify, weights=weights)
    try:
        options = replace(network, data=data, training=recipe)
    except UsageError as error:
        raise placed(error, where) from error
    return Arm(name=name, base=asked.model, change=change, row=row, options=options)


def _network(asked: _Arm, change: Any, folder: Path, where: str) -> tuple[Row | None, str]:
    """What builds an arm's network, where its shapes say all, and the name by which a run builds it."""
    if is_code(asked.model):
        if change:
            raise UsageError("code has no fields that could be changed", where, "give its arguments as `with`")
        home, _, name = asked.model.rpartition(":")
        return None, f"{folder / home}:{name}" if home.endswith(".py") else asked.model
    if asked.arguments:
        raise UsageError("`with` is for code, timm:NAME or FILE.py:NAME", where, "give fields as `change`")
    row = change_row(registry.architecture(asked.model), change, where)
    return None if asked.selectify else row, join_name(asked.model, change)


def _weights(named: str | None, folder: Path) -> str | None:
    """Weights as a run reads them; a file is meant from where the study's file is."""
    file = folder / Path(named or "").expanduser()
    return str(file) if named and file.exists() else named


def _little(data: str) -> str:
    """Few digit scenes instead of all; other data as they are."""
    if not is_digits(data):
        return data
    return f"{data}{',' if ':' in data else ':'}{_LITTLE}"


def _bins(edges: tuple[float, ...], arms: tuple[Arm, ...], where: str) -> tuple[float, ...]:
    """Edges of the bins of scale; those of the digit scenes where none are given."""
    drawn = all(is_digits(arm.options.data) for arm in arms)
    if not edges:
        return (1.0, 2.0, 3.0, 4.0) if drawn else ()
    if not drawn:
        raise UsageError("the scales of objects are known of digit scenes alone", where, "leave scale_bins out")
    if len(edges) < 2 or list(edges) != sorted(set(edges)):
        raise UsageError(f"scale_bins are {list(edges)}", where, "give two or more rising numbers")
    return edges


def costs(study: Study) -> dict[str, Cost]:
    """What every arm costs at its own image size.

    Raises:
        UsageError: a network that cannot be built, or a cost that is not matched as the study asks.
        DataError: as `open_source` says.
    """
    classes: dict[str, int] = {}
    result: dict[str, Cost] = {}
    for arm in study.arms:
        data = arm.options.data
        if data not in classes:
            asked = arm.options
            source = open_source(data, on_bad=asked.on_bad_image, table=asked.table)
            classes[data] = len(source.classes)
        try:
            with torch.device("meta") if arm.by_shapes else nullcontext():
                model = arm.build(classes[data])
        except CheckpointError as error:
            raise CheckpointError(error.what, f"{study.path}, arm {arm.name}, {error.where}", error.fix) from error
        except ValueError as error:
            raise placed(error, f"{study.path}, arm {arm.name}") from error
        result[arm.name] = count(model, arm.options.training.image_size)
    base = result[study.baseline]
    for kind in ("parameters", "macs"):
        allowed = getattr(study.match, kind)
        for name, cost in result.items():
            off = getattr(cost, kind) / getattr(base, kind) - 1
            if allowed is not None and abs(off) > allowed:
                what = (
                    f"arm {name} has {getattr(cost, kind):,} {kind}, {off:+.1%} of {study.baseline}'s "
                    f"{getattr(base, kind):,}"
                )
                raise UsageError(what, str(study.path), f"change its widths: {allowed:.0%} are allowed")
    return result

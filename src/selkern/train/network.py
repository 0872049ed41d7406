"""The network of a run, ours or third-party, changed by `selectify` if asked; and how it is built again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selkern.adapt.selectify import changed, selectify
from selkern.adapt.unit import Design, SelectiveConv
from selkern.convert.subject import check_outputs, find_subject, is_code, is_own_code
from selkern.data import LARGEST_IMAGE
from selkern.errors import CheckpointError, UsageError
from selkern.layers.memory import Memory, set_memory
from selkern.models.backbone import Backbone
from selkern.models.registry import create_model
from selkern.models.weights import Card, describes_itself, read_card, read_tensors, require_fit
from selkern.train.options import PRETRAINED

_PARALLEL = "module."


@dataclass(frozen=True)
class Construction:
    """How a network is built, but for its tensors: what a weights file and a run keep of it.

    Attributes:
        model: a name of `list_models()`, or code, `timm:NAME` or `FILE.py:NAME`.
        classes: how many outputs.
        size: side of its images, px, on which units are found.
        norms: of one of ours, as `create_model` takes them.
        arguments: of code, as in Python.
        changed: convolutions that are units of `selectify`, by name; none for a network as it is.
        design: of these units, the arguments of `selectify`.
    """

    model: str
    classes: int
    size: int
    norms: Mapping[str, Any] = field(default_factory=dict)
    arguments: str = ""
    changed: tuple[str, ...] = ()
    design: Mapping[str, Any] = field(default_factory=lambda: asdict(Design()))

    @classmethod
    def of_card(cls, card: Card) -> Construction:
        """Of the network of a weights file."""
        return cls.of_dict(card.model, len(card.classes), card.norms, card.network)

    @classmethod
    def of_dict(cls, model: str, classes: int, norms: Mapping[str, Any], network: Mapping[str, Any]) -> Construction:
        """Of what `to_dict` gave, and the rest."""
        size, arguments = network.get("size", 0), network.get("arguments", "")
        names, design = network.get("changed", []), {**asdict(Design()), **network.get("design", {})}
        texts = [arguments, *names] if isinstance(names, list) else [None]
        sized = type(size) is int and 0 <= size <= LARGEST_IMAGE
        if not sized or not all(isinstance(text, str) for text in texts) or design.keys() != asdict(Design()).keys():
            raise CheckpointError("does not say how its network is made", model, "the file is damaged; take another")
        require_no_fetching(arguments, model)
        return cls(model, classes, size, norms, arguments, tuple(names), design)

    def to_dict(self) -> dict[str, Any]:
        """What a card keeps beside model, classes and norms; empty for a network of ours as it is."""
        if not (self.changed or is_code(self.model)):
            return {}
        design = {"design": dict(self.design)} if self.changed else {}
        return {"arguments": self.arguments, "changed": list(self.changed), "size": self.size, **design}

    def build(self) -> nn.Module:
        """The network with random weights.

        Raises:
            UsageError: the code cannot be run, or gives another network than it did.
        """
        model = bare(self.model, self.classes, self.size, self.arguments, norms=self.norms)
        if not self.changed:
            return model
        model = selectify(model, example=example(self.size), where=list(self.changed), pointwise=True, **self.design)
        units = {name for name, module in model.named_modules() if isinstance(module, SelectiveConv)}
        if units != set(self.changed):
            missing = ", ".join(sorted(set(self.changed) - units)[:3])
            raise UsageError(f"{missing} cannot be changed any more", self.model, "take the versions it was made with")
        return model


def require_no_fetching(arguments: str, where: str) -> None:
    """Raise UsageError for arguments that have timm read or fetch weights."""
    if any(word in arguments for word in ("pretrained", "checkpoint", "cache_dir", "features_only")):
        fix = f"--weights {PRETRAINED} starts from timm's; leave out checkpoints and features_only"
        raise UsageError(f"not arguments of a run's network: {arguments!r}", where, fix)


def example(size: int) -> Tensor:
    """Two images (2, 3, size, size) on which the convolutions of a network are found; always the same."""
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def bare(
    word: str, classes: int, size: int, arguments: str = "", *, norms: Mapping[str, Any] | None = None
) -> nn.Module:
    """A network as its code makes it, or one of ours, with random weights or those that the arguments ask for.

    timm's get as many outputs as there are classes, unless the arguments say otherwise.

    Raises:
        UsageError: no such network, or not one that gives a number for each class.
    """
    if not is_code(word):
        return create_model(word, num_classes=classes, **(norms or {}))
    if word.startswith("timm:") and "num_classes" not in arguments:
        arguments = ", ".join(filter(None, (arguments, f"num_classes={classes}")))
    model = find_subject(word, arguments)
    check_outputs(model, word, size, classes)
    return model


def new_network(
    word: str,
    classes: int,
    size: int,
    *,
    weights: Path | str | None = None,
    arguments: str = "",
    pattern: str = "",
    memory: Memory = "default",
) -> tuple[nn.Module, Construction, str]:
    """The network that a run starts with, how it is built, and the table of what `selectify` changed.

    Args:
        word: a model's name, or code.
        weights: a file; "pretrained" for those that timm has, which it fetches.
        pattern: which convolutions become units: "auto", "last 2 stages", globs with commas between; empty for none.

    Raises:
        CheckpointError: weights that cannot be read, or do not fit.
        UsageError: as `bare` and `selectify` say.
    """
    require_no_fetching(arguments, "--with")
    model, how = _started(word, classes, size, weights, arguments)
    table = ""
    if pattern:
        if how.changed:
            raise UsageError(
                "the weights are of a network with selective kernels already", "--selectify", "leave it out"
            )
        try:
            model, plan = changed(model, example(size), pattern, Design())
        except UsageError as error:
            raise UsageError(error.what, f"--selectify {pattern}", error.fix) from error
        table, how = str(plan), replace(how, changed=plan.changed)
    return set_memory(model, memory), how, table


def _started(
    word: str, classes: int, size: int, weights: Path | str | None, arguments: str
) -> tuple[nn.Module, Construction]:
    """The network with its first weights, before `selectify`."""
    if isinstance(weights, Path) and (card := built_card(weights)) is not None:
        if not _is_same(card.model, word):
            raise CheckpointError(f"weights are of {card.model}, not {word}", str(weights), f"use --model {card.model}")
        known = Construction.of_card(card)
        how = replace(known, model=word, classes=classes, size=size, arguments=arguments or known.arguments)
        model = how.build()
        load_body(model, weights)
        return model, how
    how = Construction(word, classes, size, arguments=arguments)
    if not is_code(word):
        ours = create_model(word, num_classes=classes, weights=weights)
        return ours, replace(how, norms=ours.variant.norms)
    if weights == PRETRAINED and not word.startswith("timm:"):
        raise UsageError(f"{word} has no weights that could be fetched", f"--weights {PRETRAINED}", "give a file")
    pretrained = "pretrained=True" if weights == PRETRAINED else ""
    model = bare(word, classes, size, ", ".join(filter(None, (arguments, pretrained))))
    if isinstance(weights, Path):
        load_body(model, weights)
    return model, how


def load_body(model: nn.Module, path: Path) -> None:
    """Load a file of tensors in the network's own names; tensors of the classifier, where it has other classes, stay.

    Raises:
        CheckpointError: no such file, or names or shapes that do not fit.
    """
    own, tensors = model.state_dict(), read_tensors(path)
    if tensors and all(name.startswith(_PARALLEL) for name in tensors):  # saved from within DistributedDataParallel
        tensors = {name.removeprefix(_PARALLEL): tensor for name, tensor in tensors.items()}
    head = _classifier_name(model)
    other = [name for name in own if head and name.startswith(f"{head}.") and name in tensors]
    if any(tensors[name].shape != own[name].shape for name in other):
        tensors = {name: tensor for name, tensor in tensors.items() if name not in other}
        own = {name: tensor for name, tensor in own.items() if name not in other}
    fix = "give weights of this network, in its own names"
    if any(".further.0." in name for name in tensors.keys() - own.keys()):
        fix = "they hold selective kernels already: give those of before, or the weights file of their run"
    require_fit(tensors, own, str(path), fix)
    model.load_state_dict(tensors, strict=False)


def classifier_of(model: nn.Module) -> nn.Module | None:
    """The last linear map of a network, where it ends in one: `fc` of ours, what timm says of its own."""
    name = _classifier_name(model)
    return model.get_submodule(name) if name else None


def _classifier_name(model: nn.Module) -> str:
    if isinstance(model, Backbone):
        return "fc" if isinstance(model.fc, nn.Linear) else ""
    known = getattr(model, "default_cfg", None)
    classifier = known.get("classifier") if isinstance(known, dict) else None
    if isinstance(classifier, str):
        return classifier
    units = [f"{name}." for name, module in model.named_modules() if isinstance(module, SelectiveConv)]
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not name.startswith(tuple(units))
    ]
    return linear[-1] if linear else ""


def open_network(path: Path | str, code: str = "") -> tuple[nn.Module, Card]:
    """The network of a weights file, with its tensors, and the file's card.

    Args:
        path: of the file.
        code: the user's own code that makes the network, where the file names such: a file alone never has code run.

    Raises:
        CheckpointError: a file that cannot be read, or does not fit.
        UsageError: code that is not given, or cannot be run.
    """
    path = Path(path)
    card = built_card(path)
    if card is None:
        ours = create_model(weights=path)
        return ours, ours.card or read_card(path)
    model = replace(Construction.of_card(card), model=code_of(card.model, code, str(path))).build()
    tensors = read_tensors(path)
    require_fit(tensors, model.state_dict(), str(path), "the file is of another network")
    model.load_state_dict(tensors)
    return model, card


def built_card(path: Path) -> Card | None:
    """The card of a file whose network `create_model` alone does not make; None for any other file."""
    if not describes_itself(path):
        return None
    card = read_card(path)
    return card if card.network or is_code(card.model) else None


def code_of(word: str, code: str, where: str) -> str:
    """The name by which a network is made: ours, timm's, or the user's own code as they name it, wherever it lies now.

    Args:
        word: what a run or a weights file says.
        code: what the user says; empty for nothing.
        where: the run or file, for the error.

    Raises:
        UsageError: code of the user's own that they have not named, or another network than they name.
    """
    own = is_own_code(word)
    if own and not code:
        fix = f"--model {word} runs that code, if you trust it"
        raise UsageError(f"the network is made by code of its own, {word}", where, fix)
    if code and not _is_same(word, code):
        fix = f"give --model {word}, or where that code lies now" if own else "leave --model out"
        raise UsageError(f"the network is {word}, and --model names {code}", where, fix)
    return code or word


def _is_same(word: str, code: str) -> bool:
    """Whether both name one network, if need be of a file that has moved."""
    if word == code:
        return True
    (home, _, name), (other, _, named) = word.rpartition(":"), code.rpartition(":")
    return home.endswith(".py") and other.endswith(".py") and name == named

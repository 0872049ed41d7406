"""The network of a run: one of ours or a third-party one, changed by `selectify` if asked; and how to build it again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selkern.adapt.selectify import selectify, selectify_plan
from selkern.adapt.unit import Design, SelectiveConv
from selkern.convert.subject import PRETRAINED, check_outputs, find_subject, is_code
from selkern.errors import CheckpointError, UsageError
from selkern.layers.memory import Memory, set_memory
from selkern.models.registry import create_model
from selkern.models.weights import Card, load_tensors, read_card, read_tensors, require_fit


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
    """

    model: str
    classes: int
    size: int
    norms: Mapping[str, Any] = field(default_factory=dict)
    arguments: str = ""
    changed: tuple[str, ...] = ()

    @classmethod
    def of_card(cls, card: Card) -> Construction:
        """Of the network of a weights file."""
        size = int(card.preprocess.get("size", 0))
        network = card.network
        return cls(
            card.model,
            len(card.classes),
            int(network.get("size", size)),
            card.norms,
            str(network.get("arguments", "")),
            tuple(network.get("changed", ())),
        )

    def to_dict(self) -> dict[str, Any]:
        """What a card keeps beside model, classes and norms; empty for a network of ours as it is."""
        if not (self.changed or is_code(self.model)):
            return {}
        return {"arguments": self.arguments, "changed": list(self.changed), "size": self.size}

    def build(self) -> nn.Module:
        """The network with random weights.

        Raises:
            UsageError: the code cannot be run, or gives another network than it did.
        """
        model = bare(self.model, self.classes, self.size, self.arguments, norms=self.norms)
        if not self.changed:
            return model
        changed = selectify(model, example=example(self.size), where=list(self.changed), pointwise=True)
        units = {name for name, module in changed.named_modules() if isinstance(module, SelectiveConv)}
        if units != set(self.changed):
            missing = ", ".join(sorted(set(self.changed) - units)[:3])
            raise UsageError(f"{missing} cannot be changed any more", self.model, "take the versions it was made with")
        return changed


def example(size: int) -> Tensor:
    """Two images (2, 3, size, size) on which the convolutions of a network are found; always the same."""
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


def bare(word: str, classes: int, size: int, arguments: str = "", *, norms: Mapping[str, Any] | None = None) -> nn.Module:
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
    if is_code(word):
        pretrained = "pretrained=True" if weights == PRETRAINED else ""
        model = bare(word, classes, size, ", ".join(filter(None, (arguments, pretrained))))
        norms: Mapping[str, Any] = {}
        if isinstance(weights, Path):
            load_body(model, weights)
    else:
        ours = create_model(word, num_classes=classes, weights=weights)
        model, norms = ours, ours.variant.norms
    table = ""
    changed: tuple[str, ...] = ()
    if pattern:
        where = pattern if "," not in pattern else [part.strip() for part in pattern.split(",")]
        plan = selectify_plan(model, example=example(size), where=where)
        model = selectify(model, example=example(size), where=list(plan.changed), pointwise=True)
        table, changed = str(plan), plan.changed
    return set_memory(model, memory), Construction(word, classes, size, norms, arguments, changed), table


def load_body(model: nn.Module, path: Path) -> None:
    """Load a file of tensors in the network's own names; tensors of the classifier, where it has other classes, stay.

    Raises:
        CheckpointError: no such file, or names or shapes that do not fit.
    """
    own, tensors = model.state_dict(), read_tensors(path)
    head = _head_of(model)
    other = [name for name in own if head and name.startswith(f"{head}.") and name in tensors]
    if any(tensors[name].shape != own[name].shape for name in other):
        tensors = {name: tensor for name, tensor in tensors.items() if name not in other}
        own = {name: tensor for name, tensor in own.items() if name not in other}
    require_fit(tensors, own, str(path), "give weights of this network, in its own names")
    model.load_state_dict(tensors, strict=False)


def _head_of(model: nn.Module) -> str:
    """The classifier's name: as timm says, else the last linear map."""
    known = getattr(model, "default_cfg", None)
    named = known.get("classifier") if isinstance(known, dict) else None
    if isinstance(named, str):
        return named
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else ""


def open_network(path: Path, code: str = "") -> tuple[nn.Module, Card]:
    """The network of a weights file, with its tensors, and the file's card.

    Args:
        path: of the file.
        code: the user's own code that makes the network, where the file names such: a file alone never has code run.

    Raises:
        CheckpointError: a file that cannot be read, or does not fit.
        UsageError: code that is not given, or cannot be run.
    """
    card = read_card(path) if _is_built(path) else None
    if card is None:
        ours = create_model(weights=path)
        return ours, ours.card or read_card(path)
    require_consent(card.model, code, str(path))
    model = Construction.of_card(card).build()
    tensors = read_tensors(path)
    require_fit(tensors, model.state_dict(), str(path), "the file is of another network")
    model.load_state_dict(tensors)
    return model, card

"""Names, files and repositories to networks: `create_model`, `from_pretrained` and `list_models`."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from selkern.convert import hub
from selkern.errors import CheckpointError, UsageError, printable
from selkern.layers.parts import NORMS, Norm
from selkern.models import shufflenet, skresnet, zoo
from selkern.models.backbone import Backbone, Row, Variant
from selkern.models.weights import (
    Card,
    checksum,
    describes_itself,
    find_boxed,
    load_into,
    numbered,
    read_card,
    read_tensors,
    require_fit,
)

ARCHITECTURES: dict[str, Row] = {
    **zoo.ARCHITECTURES,
    **shufflenet.ARCHITECTURES,
    **skresnet.ARCHITECTURES,
}
log = logging.getLogger("selkern")


def list_models(pattern: str = "*") -> list[str]:
    """Names that fit a glob pattern such as "sk*", sorted."""
    return sorted(name for name in ARCHITECTURES if fnmatchcase(name, pattern))


def architecture(name: str) -> Row:
    """The table row of a model name.

    Raises:
        UsageError: an unknown name; the message tells the nearest ones.
    """
    if name not in ARCHITECTURES:
        near = difflib.get_close_matches(name, ARCHITECTURES, n=3, cutoff=0.4) or list_models()
        raise UsageError(f"unknown model {name!r}", "model", f"did you mean {', '.join(near)}? (`selkern models`)")
    return ARCHITECTURES[name]


def register(name: str, row: Row) -> None:
    """Give a network a name in this process, so that it can be created, saved and loaded by it.

    Raises:
        UsageError: the name is taken by another network.
    """
    if ARCHITECTURES.setdefault(name, row) != row:
        raise UsageError(f"the name {name!r} is taken by another model", "register", "choose another name")


def create_model(
    name: str | None = None,
    *,
    num_classes: int | None = None,
    weights: str | Path | None = None,
    features_only: bool = False,
    in_chans: int | None = None,
    norm: Norm | None = None,
    gate_norm: Norm | None = None,
    drop_path_rate: float = 0.0,
) -> Backbone:
    """A network by name, by weights file, or both.

    Args:
        name: one of `list_models()`; None takes the architecture that the weights file tells.
        num_classes: outputs; None takes the weights' own, else 1000. Where it differs from the weights', the
            classifier is made anew and one line says so.
        weights: a self-describing `.safetensors` file; the name of weights in the box, "digits" for `sknet_mini`
            and `resnet_mini`; or a repository of the Hugging Face Hub, "hf-hub:user/name" or
            "hf-hub:user/name@revision", the only ones that are ever fetched. timm's files of its SK networks are
            taken too, such as "hf-hub:timm/skresnet18.ra_in1k".
        features_only: forward returns the maps after the stem and after each stage, told in
            `model.feature_info` (module, channels, stride).
        in_chans: channels of the images; None takes the weights' own, else 3.
        norm: every norm of the network: "batch", "group", "layer", "none", or a function from a channel count to a
            module; None takes the weights' own, else "batch". "group" and "layer" train on any number of images.
        gate_norm: the norm of the gates' descriptors (N, D); None takes the weights' own, else `norm`. Other than
            "batch" where batches of one image are the rule.
        drop_path_rate: stochastic depth: share of the training images for which the last unit leaves its path out,
            rising linearly from 0 in the first unit. It is no part of the weights, and 0 by default.

    Raises:
        UsageError: neither name nor weights, an unknown name or norm, a count or rate out of range, or huggingface_hub
            is missing.
        CheckpointError: a file that is missing, broken, of another architecture or of other norms; the Hub cannot be
            reached, or does not have it.

    Example:
        >>> import selkern
        >>> model = selkern.create_model("sknet50", features_only=True)
        >>> [(f.channels, f.stride) for f in model.feature_info]
        [(64, 2), (256, 4), (512, 8), (1024, 16), (2048, 32)]
    """
    for argument, value, least in (("num_classes", num_classes, 0), ("in_chans", in_chans, 1)):
        if value is not None and value < least:
            raise UsageError(f"{argument} is {value}", argument, f"must be at least {least}")
    if weights is None:
        if name is None:
            raise UsageError(
                "neither a model name nor weights", "create_model", "give one; `selkern models` lists names"
            )
        classes, channels = (1000 if num_classes is None else num_classes), (3 if in_chans is None else in_chans)
        variant = Variant(norm="batch" if norm is None else norm, gate_norm=gate_norm, drop_path_rate=drop_path_rate)
        model = architecture(name).build(classes, channels, features_only, variant)
        started = {"started from": "random weights"}
        model.card = Card(model=name, classes=numbered(classes), in_chans=channels, source=started, norms=variant.norms)
        return model
    path = hub.fetch(str(weights)) if hub.is_reference(weights) else find_boxed(name, weights) or Path(weights)
    norms = {"norm": norm, "gate_norm": gate_norm}
    return _from_weights(name, path, num_classes, features_only, in_chans, norms, drop_path_rate)


def from_pretrained(
    source: str | Path,
    *,
    revision: str | None = None,
    name: str | None = None,
    num_classes: int | None = None,
    features_only: bool = False,
    in_chans: int | None = None,
    norm: Norm | None = None,
    gate_norm: Norm | None = None,
    drop_path_rate: float = 0.0,
) -> Backbone:
    """A network out of a folder that `save_pretrained` wrote, a weights file, or a repository of the Hugging Face Hub.

    Args:
        source: a folder with `model.safetensors`; a weights file; or, where there is no such path, the name of a
            repository, "user/name", which alone is fetched (once: then it lies in the Hub's cache).
        revision: of the repository: a branch, a tag or a commit; None takes main.
        name: the architecture, where the weights do not tell it; the rest as in `create_model`.

    Raises:
        UsageError: a revision of a folder or file; or as `create_model` says.
        CheckpointError: as `create_model` says.

    Example:
        >>> import selkern, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     selkern.create_model("sknet_mini", num_classes=10).save_pretrained(folder)
        ...     model = selkern.from_pretrained(folder, num_classes=3)
        >>> model.card.model, model.card.classes
        ('sknet_mini', ('0', '1', '2'))
    """
    path, weights = Path(source), source
    named = isinstance(source, str) and path.suffix != ".safetensors" and hub.is_repository(source)
    remote = hub.is_reference(source) or (named and not path.exists())
    if revision is not None and not remote:
        raise UsageError(f"revision {revision!r} of a file or folder", str(source), "only the Hub keeps revisions")
    if remote:
        repository = str(source).removeprefix(hub.PREFIX)
        weights = hub.PREFIX + (repository if revision is None else f"{repository.partition('@')[0]}@{revision}")
    elif path.is_dir():
        weights = path / hub.WEIGHTS
    return create_model(
        name,
        num_classes=num_classes,
        weights=weights,
        features_only=features_only,
        in_chans=in_chans,
        norm=norm,
        gate_norm=gate_norm,
        drop_path_rate=drop_path_rate,
    )


def card_of(path: Path, name: str | None = None) -> Card:
    """The card of a weights file, ours or timm's, without making the network.

    Args:
        name: the architecture, where the file does not tell it.

    Raises:
        CheckpointError: a file that is missing, damaged, or neither.
    """
    return _sound(read_card(path) if describes_itself(path) else _read(path, name)[0], path)


def _read(path: Path, name: str | None) -> tuple[Card, dict[str, Tensor]]:
    """Card and tensors of a file of ours, or of timm's."""
    try:
        if not describes_itself(path):
            from selkern.convert.foreign import read_timm

            if (found := read_timm(path, name)) is not None:
                return found
        return read_card(path), read_tensors(path)
    except RuntimeError as error:  # a file that is larger than memory can map
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"cannot be read ({reason})", str(path), "the file is damaged; take another") from error


def _from_weights(
    name: str | None,
    path: Path,
    num_classes: int | None,
    features_only: bool,
    in_chans: int | None,
    norms: Mapping[str, Norm | None],
    drop_path_rate: float,
) -> Backbone:
    card, tensors = _read(path, name)
    card = _sound(card, path)
    if name is not None and architecture(name) and name != card.model:
        raise CheckpointError(f"weights are of {card.model}, not {name}", str(path), f"use model {card.model}")
    if in_chans not in (None, card.in_chans):
        raise CheckpointError(
            f"weights take {card.in_chans} channels, not {in_chans}",
            str(path),
            f"use in_chans={card.in_chans}",
        )
    _require_own_tensors(card, tensors, path)
    classes = len(card.classes) if num_classes is None else num_classes
    variant = _variant(card, norms, drop_path_rate, path)
    model = architecture(card.model).build(classes, card.in_chans, features_only, variant)
    keep_head = classes == len(card.classes)
    if not keep_head and not features_only and classes:
        log.warning("head made anew for %d classes (%s has %d)", classes, hub.origin(path), len(card.classes))
    load_into(model, tensors, str(path), keep_head=keep_head)
    model.card = card if keep_head else card.successor(numbered(classes))
    model.loaded = model.card, checksum(model.state_dict())
    return model


def _variant(card: Card, norms: Mapping[str, Norm | None], drop_path_rate: float, path: Path) -> Variant:
    """The variant that a card tells. Raises CheckpointError where another norm is asked for by name.

    Whether the weights fit a norm that is a function is seen when they are loaded.
    """
    told: dict[str, Any] = {"norm": "batch", "gate_norm": "batch", **card.norms}
    for name, asked in norms.items():
        if callable(asked):
            told[name] = asked
        elif asked not in (None, told[name]):
            what = f"weights are of a network with {name}={told[name]!r}, not {asked!r}"
            raise CheckpointError(what, str(path), f"use {name}={told[name]!r}")
    return Variant(**told, drop_path_rate=drop_path_rate)


def _sound(card: Card, path: Path) -> Card:
    """A card with printable names. Raises CheckpointError where a value is of another type than it must be."""
    fine = {
        "model": isinstance(card.model, str),
        "classes": all(isinstance(name, str) for name in card.classes),
        "in_chans": type(card.in_chans) is int and card.in_chans > 0,
        **{name: isinstance(getattr(card, name), dict) for name in ("preprocess", "metrics", "source")},
        "norms": isinstance(card.norms, dict)
        and card.norms.keys() <= {"norm", "gate_norm"}
        and all(norm in NORMS for norm in card.norms.values()),
    }
    for name, right in fine.items():
        if not right:
            raise CheckpointError(
                f"its card has no {name} that can be used", str(path), "the file is damaged; take another"
            )
    if card.model not in ARCHITECTURES:
        raise CheckpointError(f"weights are of {card.model!r}, which is no model here", str(path), "`selkern models`")
    return replace(card, classes=tuple(map(printable, card.classes)))


def _require_own_tensors(card: Card, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise CheckpointError unless a file holds the network that its card tells: an absurd one is never built."""
    with torch.device("meta"):
        whole = architecture(card.model).build(len(card.classes), card.in_chans, False, Variant(**card.norms))
    expected = whole.state_dict()
    if "fc.weight" not in tensors:  # a head is optional
        expected = {name: tensor for name, tensor in expected.items() if not name.startswith("fc.")}
    require_fit(tensors, expected, str(path), "the file is of another architecture")

"""Names, files and repositories to networks: `create_model`, `from_pretrained` and `list_models`."""

from __future__ import annotations

import difflib
import logging
import reprlib
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
from selkern.models.change import change_row, join_name, placed, split_name
from selkern.models.weights import (
    Card,
    checksum,
    describes_itself,
    find_bundled,
    load_into,
    numbered,
    read_card,
    read_tensors,
    require_fit,
    require_not_exported,
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
    """The table row of a model name, with the fields in brackets replaced: "resnet_mini(mids=[36,64,88])".

    Raises:
        UsageError: an unknown name, for which the message lists the nearest ones; a wrong field.
    """
    base, change = split_name(name)
    if base not in ARCHITECTURES:
        require_not_exported(base)
        near = difflib.get_close_matches(base, ARCHITECTURES, n=3, cutoff=0.4) or list_models()
        raise UsageError(f"unknown model {base!r}", "model", f"did you mean {', '.join(near)}? (`selkern models`)")
    return change_row(ARCHITECTURES[base], change, name)


def _full_name(name: str) -> str:
    """A name as cards hold it, the same however its fields were written. Raises UsageError as `architecture` does."""
    architecture(name)
    return join_name(name, {})


def _build(name: str, classes: int, channels: int, features_only: bool, variant: Variant) -> Backbone:
    """The network of a name; a changed one that no layer can be built for is a UsageError."""
    row = architecture(name)
    try:
        return row.build(classes, channels, features_only, variant)
    except ValueError as error:
        if "(" not in name:
            raise
        raise placed(error, name) from error


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
        name: one of `list_models()`, also with fields of its architecture replaced, as in
            "resnet_mini(mids=[36,64,88])"; None takes the architecture of the weights file.
        num_classes: outputs; None takes the weights' own, else 1000. Where it differs from the weights', the
            classifier is made anew and one line says so.
        weights: a self-describing `.safetensors` file; the name of bundled weights, "digits" for `sknet_mini`
            and `resnet_mini`; or a repository of the Hugging Face Hub, "hf-hub:user/name" or
            "hf-hub:user/name@revision", the only ones that are ever fetched. timm's files of its SK networks are
            taken too, such as "hf-hub:timm/skresnet18.ra_in1k".
        features_only: forward returns the maps after the stem and after each stage, described in
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
        name = _full_name(name)
        model = _build(name, classes, channels, features_only, variant)
        started = {"started from": "random weights"}
        model.card = Card(model=name, classes=numbered(classes), in_chans=channels, source=started, norms=variant.norms)
        return model
    path = hub.fetch(str(weights)) if hub.is_reference(weights) else find_bundled(name, weights) or Path(weights)
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
        name: the architecture, where the weights do not say it; the rest as in `create_model`.

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
        name: the architecture, where the file does not say it.

    Raises:
        CheckpointError: a file that is missing, damaged, or neither.
    """
    return _sound(read_card(path) if describes_itself(path) else _read(path, name)[0], path)


def _read(path: Path, name: str | None) -> tuple[Card, dict[str, Tensor]]:
    """Card and tensors of a file of ours, or of timm's."""
    if not describes_itself(path):
        from selkern.convert.foreign import read_timm

        if (result := read_timm(path, name)) is not None:
            return result
    return read_card(path), read_tensors(path)


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
    if card.network or ":" in str(card.model):
        fix = "the commands open it; in Python selkern.train.network.open_network(FILE)"
        what = f"weights of {reprlib.repr(card.model)}, which create_model alone does not make"
        raise CheckpointError(what, str(path), fix)
    card = _sound(card, path)
    if name is not None and (asked := _full_name(name)) != card.model:
        raise CheckpointError(f"weights are of {card.model}, not {asked}", str(path), f"use model {card.model}")
    if in_chans not in (None, card.in_chans):
        raise CheckpointError(
            f"weights take {card.in_chans} channels, not {in_chans}",
            str(path),
            f"use in_chans={card.in_chans}",
        )
    _require_own_tensors(card, tensors, path)
    classes = len(card.classes) if num_classes is None else num_classes
    variant = _variant(card, norms, drop_path_rate, path)
    model = _build(card.model, classes, card.in_chans, features_only, variant)
    keep_head = classes == len(card.classes)
    if not keep_head and not features_only and classes:
        log.warning("head made anew for %d classes (%s has %d)", classes, hub.origin(path), len(card.classes))
    load_into(model, tensors, str(path), keep_head=keep_head)
    model.card = card if keep_head else card.successor(numbered(classes))
    model.loaded = model.card, checksum(model.state_dict())
    return model


def _variant(card: Card, norms: Mapping[str, Norm | None], drop_path_rate: float, path: Path) -> Variant:
    """The variant that a card describes. Raises CheckpointError where another norm is asked for by name.

    Whether the weights fit a norm that is a function is seen when they are loaded.
    """
    described: dict[str, Any] = {"norm": "batch", "gate_norm": "batch", **card.norms}
    for name, asked in norms.items():
        if callable(asked):
            described[name] = asked
        elif asked not in (None, described[name]):
            what = f"weights are of a network with {name}={described[name]!r}, not {asked!r}"
            raise CheckpointError(what, str(path), f"use {name}={described[name]!r}")
    return Variant(**described, drop_path_rate=drop_path_rate)


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
    try:
        model = _full_name(card.model)
    except UsageError as error:
        what = f"weights are of {reprlib.repr(card.model)}, which is no model here"
        raise CheckpointError(what, str(path), "`selkern models`") from error
    return replace(card, model=model, classes=tuple(map(printable, card.classes)))


def _require_own_tensors(card: Card, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise CheckpointError unless a file holds the network that its card describes: an absurd one is never built."""
    row, fix = architecture(card.model), "the file is of another architecture"
    branches = sum(row.depths) * len(getattr(row, "kernels", ()))
    if "(" in card.model and branches > len(tensors):  # so many layers are not even made without memory
        raise CheckpointError(f"{card.model} has more layers than the file has tensors", str(path), fix)
    try:
        with torch.device("meta"):
            whole = _build(card.model, len(card.classes), card.in_chans, False, Variant(**card.norms))
    except (ValueError, RuntimeError) as error:  # RuntimeError: sizes that no tensor has
        raise CheckpointError(f"{card.model} cannot be built", str(path), fix) from error
    expected = whole.state_dict()
    if "fc.weight" not in tensors:  # a head is optional
        expected = {name: tensor for name, tensor in expected.items() if not name.startswith("fc.")}
    require_fit(tensors, expected, str(path), fix)

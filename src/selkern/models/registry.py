"""Names to networks: `create_model` and `list_models`."""

from __future__ import annotations

import difflib
import logging
from fnmatch import fnmatchcase
from pathlib import Path

from selkern.errors import CheckpointError, UsageError
from selkern.models import cifar, shufflenet, sknet, skresnet
from selkern.models.backbone import Backbone, Row
from selkern.models.weights import find_boxed, load_into, read_card

ARCHITECTURES: dict[str, Row] = {
    **sknet.ARCHITECTURES,
    **cifar.ARCHITECTURES,
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


def create_model(
    name: str | None = None,
    *,
    num_classes: int | None = None,
    weights: str | Path | None = None,
    features_only: bool = False,
    in_chans: int | None = None,
) -> Backbone:
    """A network by name, by weights file, or both.

    Args:
        name: one of `list_models()`; None takes the architecture that the weights file tells.
        num_classes: outputs; None takes the weights' own, else 1000. Where it differs from the weights', the
            classifier is made anew and one line says so.
        weights: a self-describing `.safetensors` file; or the name of weights in the box, "digits" for
            `sknet_mini` and `resnet_mini`.
        features_only: forward returns the maps after the stem and after each stage, told in
            `model.feature_info` (module, channels, stride).
        in_chans: channels of the images; None takes the weights' own, else 3.

    Raises:
        UsageError: neither name nor weights, an unknown name, or a count out of range.
        CheckpointError: a file that is missing, broken, or of another architecture.

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
        return architecture(name).build(classes, channels, features_only)
    return _from_weights(name, find_boxed(name, weights) or Path(weights), num_classes, features_only, in_chans)


def _from_weights(
    name: str | None, path: Path, num_classes: int | None, features_only: bool, in_chans: int | None
) -> Backbone:
    card = read_card(path)
    if card.model not in ARCHITECTURES:
        raise CheckpointError(f"weights are of {card.model!r}, which is no model here", str(path), "`selkern models`")
    if name is not None and architecture(name) and name != card.model:
        raise CheckpointError(f"weights are of {card.model}, not {name}", str(path), f"use model {card.model}")
    if in_chans not in (None, card.in_chans):
        raise CheckpointError(
            f"weights take {card.in_chans} channels, not {in_chans}",
            str(path),
            f"use in_chans={card.in_chans}",
        )
    classes = len(card.classes) if num_classes is None else num_classes
    model = architecture(card.model).build(classes, card.in_chans, features_only)
    keep_head = classes == len(card.classes)
    if not keep_head and not features_only and classes:
        log.warning("head made anew for %d classes (%s has %d)", classes, path.name, len(card.classes))
    load_into(model, path, keep_head=keep_head)
    return model

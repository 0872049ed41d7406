"""Third-party weights into a weights file: timm's SK networks, the authors' Caffe models, plain state dicts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from selkern.convert import hub
from selkern.convert.foreign import preparation, read_state
from selkern.data.decode import show
from selkern.data.labels import same_text
from selkern.data.listing import is_file
from selkern.data.preprocess import Preprocess
from selkern.data.tables import read_text
from selkern.errors import CheckpointError, DataError, UsageError, printable
from selkern.models.registry import architecture
from selkern.models.weights import Card, describes_itself, numbered, require_fit, save_weights

# Caffe's custom: 0 to 255, no division, these means. The authors' own are nowhere written down.
CAFFE = Preprocess(size=224, crop=0.875, mean=(123 / 255, 117 / 255, 104 / 255), std=(1 / 255,) * 3)


def convert(source: str | Path, target: Path, model: str, *, classes: tuple[str, ...] | None = None) -> Card:
    """Read `source` as weights of `model` and write them as a file that describes itself.

    Args:
        source: `.safetensors`, a torch `.pth`/`.pt`/`.bin` (restricted loading), or a `.caffemodel`; with our
            names, with timm's for its SK networks, or in the authors' order for Caffe. A Caffe file does not
            say its colours: BGR and Caffe's customary means are assumed, and the card says so. Or a repository
            of the Hub, such as "hf-hub:timm/skresnet18.ra_in1k".
        target: the `.safetensors` file to write; never one that exists.
        model: architecture name.
        classes: names of the outputs; None numbers them.

    Returns:
        The card of the new file.

    Raises:
        UsageError: the target exists or its folder does not, the source is a file of ours, or the number of class names
            is not the number of outputs.
        CheckpointError: the source cannot be read, or is of another architecture.
    """
    row = architecture(model)
    if target.exists() or target.suffix != ".safetensors":
        raise UsageError("the target must be a new .safetensors file", str(target), "give another name")
    if not target.parent.is_dir():
        raise UsageError("no such folder", str(target.parent), "make it first, or choose another")
    file = hub.fetch(str(source)) if hub.is_reference(source) else Path(source)
    if not file.is_file():
        raise CheckpointError("no such file", str(source), "check the path")
    caffe = file.suffix == ".caffemodel"
    state = _from_caffe(file, model) if caffe else read_state(file, model)
    if file.suffix == ".safetensors" and describes_itself(file):  # reading it as another's would lose its card
        raise UsageError("the file is one of ours and needs no converting", str(source), "use it as it is")
    if "fc.weight" not in state or "fc.bias" not in state:
        raise CheckpointError("the classifier fc is missing", str(source), f"give weights of {model}")
    outputs = len(state["fc.weight"])
    names = numbered(outputs) if classes is None else classes
    if len(names) != outputs:
        raise UsageError(f"{len(names)} class names for {outputs} outputs", "--classes", f"give {outputs}")
    if len(set(names)) < outputs:
        raise UsageError("the list names a class twice", "--classes", "give every output a name of its own")
    with torch.device("meta"):  # names and shapes are all that is asked of it
        expected = row.build(outputs, 3, False).state_dict()
    require_fit(state, expected, str(source), f"give weights of {model}")
    if caffe:
        preprocess = replace(CAFFE, size=row.input_size)
        notes = {"assumed": "BGR images with Caffe's customary means; the stem was turned to RGB"}
    else:
        preprocess, notes = preparation(file, model, row.input_size)
    card = Card(
        model=model,
        classes=names,
        preprocess=preprocess.to_dict(),
        source={"converted from": hub.origin(file), **notes},
    )
    save_weights(target, state, card)
    return card


def read_classes(path: Path) -> tuple[str, ...]:
    """Class names from a text file, one in each line; blank lines are none.

    Raises:
        UsageError: no such file.
        DataError: no text, or a name that is there twice.
    """
    if not is_file(path):
        raise UsageError("no such file", show(path), "give a text file with one class per line")
    lines: dict[str, int] = {}  # in which each name is
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        name = printable(line.strip())
        if name and same_text(name) in lines:
            what = f"class {name!r} is in line {lines[same_text(name)]} already"
            raise DataError(what, f"{show(path)} line {number}", "give every output a name of its own")
        if name:
            lines[same_text(name)] = number
    return tuple(lines)


def _from_caffe(source: Path, model: str) -> dict[str, Tensor]:
    from selkern.convert.caffe import from_caffe, read_caffemodel

    state = from_caffe(read_caffemodel(source), model)
    # Caffe reads images as BGR, everything here as RGB.
    return {**state, "stem.0.weight": state["stem.0.weight"].flip(1)}

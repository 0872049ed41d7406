"""The formats a network is exported to, and the card that goes with each file: in the file itself, and beside it."""

from __future__ import annotations

import hashlib
import importlib
import json
import zipfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

from selkern.errors import CheckpointError, PackageError, UsageError, first_line
from selkern.extras import missing
from selkern.models.weights import Card

Format = Literal["onnx", "openvino", "pt2", "executorch"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2", "executorch": ".pte"}
PACKAGES: dict[Format, tuple[str, ...]] = {  # that write and open it, beside torch
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "pt2": (),
    "executorch": ("executorch",),
}
RUNNABLE = (".onnx", ".xml")  # what commands open: a .pt2 may hold code, a .pte is for devices
BATCH = "batch"  # the axis of the input that takes any number
KEY = "selkern"  # of the card in a file's metadata
MARK = "selkern-export-1"
DIGEST = "sha256"  # of the file, in the .json beside it


@dataclass(frozen=True, kw_only=True)
class ExportCard:
    """What an exported file says about itself.

    Attributes:
        network: the card of the weights.
        images: shape of the input, "batch", "height" and "width" where any number goes.
        outputs: names of the outputs: "logits", then the label of each unit whose selection is one.
        layout: of the input: "NCHW" normalised float32, or "NHWC" uint8, which the graph resizes and normalises.
        int8: whether weights and activations are quantised.
        weights_sha256: of the .bin beside an .xml; empty of other formats.
        compared: figures of the comparison with the PyTorch network, by name.
    """

    network: Card
    images: tuple[int | str, ...]
    outputs: tuple[str, ...]
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    int8: bool = False
    weights_sha256: str = ""
    compared: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> str:
        """As text."""
        return json.dumps({"format": MARK, **asdict(self)})

    @classmethod
    def from_json(cls, text: str, where: str) -> ExportCard:
        """The inverse of `to_json`. Raises CheckpointError for anything else."""
        try:
            values = json.loads(text)
            if values.pop("format") != MARK:
                raise ValueError("another format")
            values.pop(DIGEST, None)
            card = Card(**{**values["network"], "classes": tuple(values["network"]["classes"])})
            parts = {name: tuple(values[name]) for name in ("images", "outputs")}
            return cls(**{**values, **parts, "network": card})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = f"its description cannot be read ({type(error).__name__})"
            raise CheckpointError(reason, where, "export the network again") from error


def format_of(path: Path) -> Format:
    """By the file's suffix. Raises UsageError for another."""
    for name, suffix in SUFFIXES.items():
        if path.suffix == suffix:
            return name
    raise UsageError(f"no format has the suffix {path.suffix!r}", str(path), f"give {', '.join(SUFFIXES.values())}")


def need(package: str, where: str) -> Any:
    """An optional package. Raises PackageError with the line that installs it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise missing(error, where) or PackageError(str(error), where) from error


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def bytes_of(path: Path) -> int:
    """Size of an exported file, with the weights beside an .xml."""
    files = [path, path.with_suffix(".bin")] if format_of(path) == "openvino" else [path]
    return sum(file.stat().st_size for file in files)


def is_compiled(path: Path) -> bool:
    """Whether a .pt2 is machine code (AOTInductor), not operators."""
    with zipfile.ZipFile(path) as file:
        return any("aotinductor" in name for name in file.namelist())


def write_card(path: Path, card: ExportCard) -> None:
    """Put the card into a file of ours, and into a `.json` beside it."""
    kind = format_of(path)
    if kind == "onnx":
        onnx = need("onnx", str(path))
        proto = onnx.load(str(path))
        onnx.helper.set_model_props(proto, {KEY: card.to_json()})
        onnx.save(proto, str(path))
    elif kind == "openvino":
        card = replace(card, weights_sha256=digest(path.with_suffix(".bin")))
        tree = ElementTree.parse(path)
        info = tree.getroot().find("rt_info")
        info = ElementTree.SubElement(tree.getroot(), "rt_info") if info is None else info
        ElementTree.SubElement(ElementTree.SubElement(info, KEY), "card", value=card.to_json())
        tree.write(path)
    values = {**json.loads(card.to_json()), DIGEST: digest(path)}
    beside(path).write_text(json.dumps(values, indent=1) + "\n")


def beside(path: Path) -> Path:
    """The .json that goes with an exported file."""
    return path.with_name(f"{path.name}.json")


def require_undamaged(path: Path) -> None:
    """Raise CheckpointError for a file that is not the one its .json was written for; without a .json it may be any."""
    try:
        known = json.loads(beside(path).read_text()).get(DIGEST)
    except FileNotFoundError:
        return
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        what = f"cannot be read ({first_line(error)[:200]})"
        raise CheckpointError(what, str(beside(path)), "export the network again") from error
    if known is not None and known != digest(path):
        what = "is damaged, or not the file that its .json describes"
        raise CheckpointError(what, str(path), "export the network again")

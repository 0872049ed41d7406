"""`selkern convert`: third-party weights to a weights file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from selkern.cli.parse import parse


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Convert third-party weights (timm, the authors' Caffe models, torch state dicts) into a weights file."""

    source: Annotated[Positional[str], tyro.conf.arg(metavar="IN")]
    """A .safetensors, .pth, .pt, .bin (restricted loading: no code runs) or .caffemodel file, or hf-hub:user/name."""
    target: Annotated[Positional[Path], tyro.conf.arg(metavar="OUT")]
    """The new .safetensors file; never one that exists."""
    model: str
    """Which network the weights are of; `selkern models` lists them."""
    classes: Path | None = None
    """A text file with one class name per line, in the order of the outputs; without it they are numbered."""


def main(argv: list[str]) -> int:
    """`selkern convert`."""
    options = parse(ConvertOptions, argv, "convert")
    from selkern.convert import files as converting

    classes = None if options.classes is None else converting.read_classes(options.classes)
    card = converting.convert(options.source, options.target, options.model, classes=classes)
    print(f"{options.target}: {card.model}, {len(card.classes):,} classes")
    return 0

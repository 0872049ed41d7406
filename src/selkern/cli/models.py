"""`selkern models`: the networks and their cost."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import Positional

from selkern.cli.parse import parse
from selkern.errors import UsageError

if TYPE_CHECKING:
    from selkern.models.describe import Block


@dataclass(frozen=True, kw_only=True)
class ModelsOptions:
    """List the networks, with parameters and multiply-adds at the image size they were designed for."""

    pattern: Annotated[Positional[str], tyro.conf.arg(metavar="PATTERN")] = "*"
    """Only names that fit, such as "sk*"; a whole name shows that network's layers and its differences."""
    json: bool = False
    """Print one JSON object instead of text."""


def main(argv: list[str]) -> int:
    """`selkern models`."""
    options = parse(ModelsOptions, argv, "models")
    from selkern.models.costs import recorded

    names = sorted(name for name in recorded() if fnmatchcase(name, options.pattern))
    if not names:
        raise UsageError(f"no model fits {options.pattern!r}", "pattern", "`selkern models` lists all")
    if names == [options.pattern]:
        return _describe(names[0], options.json)
    rows = [_model_row(name) for name in names]
    if options.json:
        print(json.dumps(rows))
        return 0
    print(f"{'':24}{'counted':>11}{'':>18}   the paper's")
    print(f"{'name':24}{'params':>11}{'GMACs':>9}{'input':>9}   {'params':>7}{'GMACs':>7}{'error':>9}  source")
    for row in rows:
        counted = f"{row['name']:24}{row['parameters'] / 1e6:>9.3f} M{row['macs'] / 1e9:>9.3f}{row['input_size']:>6} px"
        paper = row["paper"]
        figures = [] if paper is None else [paper["parameters"], paper["gmacs"], paper["error"]]
        cells = "".join(f"{'-' if value is None else value:>7}" for value in figures)
        source = row["source"] if paper is None else f"{paper['table']}{', from memory' if paper['recalled'] else ''}"
        print(f"{counted}   {cells:21}{'  ' if paper is None else ' %'}  {source}")
    print(
        "\nparams in millions, for 1,000 classes (10 below 64 px); GMACs: billions of multiply-adds at the input size\n"
        "`selkern models NAME` shows a network's layers, and how it differs from its source"
    )
    return 0


def _describe(name: str, as_json: bool) -> int:
    """One network: its figures, its layers, its differences from the paper."""
    import torch

    from selkern.models.describe import blocks
    from selkern.models.paper import differences
    from selkern.models.registry import create_model

    row = _model_row(name)
    with torch.device("meta"):
        lines = blocks(create_model(name, num_classes=row["num_classes"]), row["input_size"])
    if as_json:
        print(json.dumps({**row, "layers": [asdict(line) for line in lines], "differences": differences(name)}))
        return 0
    paper, side = row["paper"], row["input_size"]
    print(f"{name}: {row['source']}")
    print(f"counted    {row['parameters']:,} parameters, {row['macs'] / 1e9:.3f} GMACs at {side} x {side} px")
    if paper is not None:
        figures = [("{} M parameters", "parameters"), ("{} GMACs", "gmacs"), ("top-1 error {} %", "error")]
        printed = ", ".join(text.format(paper[key]) for text, key in figures if paper[key] is not None)
        print(f"printed    {printed} ({paper['table']}{', from memory' if paper['recalled'] else ''})")
    print(f"\n{'':14}{'output':>14}{'parameters':>13}{'MMACs':>9}  layers")
    for path, line in _alike(lines):
        output = " x ".join(map(str, line.output))
        print(f"{path:14}{output:>14}{line.parameters:>13,}{line.macs / 1e6:>9.1f}  {line.what}")
    print("\ndifferences from the source, and what it leaves open:")
    print("\n".join(f"  - {text}" for text in differences(name) or ("none known",)))
    return 0


def _alike(lines: list[Block]) -> Iterator[tuple[str, Block]]:
    """Lines with their paths, alike ones in a row once: stages.2.1 to 5."""
    for _, run in groupby(lines, key=lambda line: (line.what, line.output, line.parameters, line.macs)):
        first, *others = run
        last = f"-{others[-1].path.rpartition('.')[2]}" if others else ""
        yield f"{first.path}{last}", first


def _model_row(name: str) -> dict[str, Any]:
    """A network's counted cost, with the figures that its source prints beside it."""
    from selkern.models.costs import recorded
    from selkern.models.paper import PUBLISHED, origin

    paper = PUBLISHED.get(name)
    return {
        "name": name,
        **recorded()[name],
        "source": origin(name),
        "paper": None if paper is None else asdict(paper),
    }

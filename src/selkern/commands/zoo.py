"""The commands about the networks themselves: models, check, convert.

Each function takes the words after the command's name, calls one function, prints what it returns, and gives the exit
code. Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from selkern.errors import UsageError


def models(argv: list[str]) -> int:
    """`selkern models`."""
    from selkern.cli_options import ModelsOptions, parse

    options = parse(ModelsOptions, argv, "models")
    from selkern.models.registry import list_models

    names = list_models(options.pattern)
    if not names:
        raise UsageError(f"no model fits {options.pattern!r}", "pattern", "`selkern models` lists all")
    rows = [_model_row(name) for name in names]
    if options.json:
        print(json.dumps(rows))
        return 0
    print(f"{'':24}{'counted':>11}{'':>18}   the paper's")
    print(f"{'name':24}{'params':>11}{'GMACs':>9}{'input':>9}   {'params':>7}{'GMACs':>7}{'error':>9}  table")
    for row in rows:
        counted = f"{row['name']:24}{row['parameters'] / 1e6:>9.3f} M{row['macs'] / 1e9:>9.3f}{row['input_size']:>6} px"
        paper = row["paper"]
        figures = [] if paper is None else [paper["parameters"], paper["gmacs"], paper["error"]]
        cells = "".join(f"{'-' if value is None else value:>7}" for value in figures)
        source = "" if paper is None else f" %  {paper['table']}{', from memory' if paper['recalled'] else ''}"
        print(f"{counted}   {cells}{source}".rstrip())
    print(
        "\nparams in millions, for 1,000 classes (10 below 64 px); GMACs: billions of multiply-adds at the input size"
    )
    return 0


def _model_row(name: str) -> dict[str, Any]:
    """A network's counted cost, with the paper's figures beside it where it has some."""
    import torch

    from selkern.models.cost import count
    from selkern.models.paper import PUBLISHED
    from selkern.models.registry import architecture, create_model

    paper, size = PUBLISHED.get(name), architecture(name).input_size
    with torch.device("meta"):
        model = create_model(name, num_classes=1000 if size >= 64 else 10)
    cost = count(model, size)
    return {
        "name": name,
        "num_classes": model.num_classes,
        "input_size": size,
        **asdict(cost),
        "paper": None if paper is None else asdict(paper),
    }


def convert(argv: list[str]) -> int:
    """`selkern convert`."""
    from selkern.cli_options import ConvertOptions, parse

    options = parse(ConvertOptions, argv, "convert")
    from selkern.models import convert as converting

    classes = None
    if options.classes is not None:
        if not options.classes.is_file():
            raise UsageError("no such file", str(options.classes), "give a text file with one class per line")
        classes = tuple(line for line in options.classes.read_text(encoding="utf-8").splitlines() if line)
    card = converting.convert(options.source, options.target, options.model, classes=classes)
    print(f"{options.target}: {card.model}, {len(card.classes):,} classes")
    return 0


def check(argv: list[str]) -> int:
    """`selkern check`; 1 where a rule is broken."""
    from selkern.cli_options import CheckOptions, parse

    options = parse(CheckOptions, argv, "check")
    shape = None
    if options.input is not None:
        try:
            shape = tuple(int(side) for side in options.input.split(","))
        except ValueError:
            raise UsageError(f"{options.input!r} is no shape", "--input", "write it as 64,32,32") from None
    from selkern.analysis.conformance import check as conformance
    from selkern.analysis.subject import find_inputs, find_subject

    model = find_subject(options.subject, options.arguments)
    x = find_inputs(model, shape)
    found = conformance(model, x)
    if options.json:
        print(json.dumps({"subject": options.subject, "input": list(x.shape), **asdict(found)}))
        return 1 if found.broken else 0
    units = f"{len(found.units)} selective-kernel unit{'s' if len(found.units) > 1 else ''}"
    print(f"{options.subject}: {units}, {found.parameters:,} parameters, run on {tuple(x.shape)}\n")
    for finding in found.findings:
        more = f" (and {len(finding.evidence) - 1} alike)" if len(finding.evidence) > 1 else ""
        print(f"{'ok' if finding.holds else 'BROKEN':8}{finding.rule}  [{finding.source}]")
        print(f"{'':8}  {finding.evidence[0]}{more}")
        if len(found.units) > 1 and finding.units:
            rest = f" and {len(finding.units) - 3} more" if len(finding.units) > 3 else ""
            print(f"{'':8}  in {', '.join(finding.units[:3])}{rest}")
    names = ": " + "; ".join(finding.rule for finding in found.broken) if found.broken else ""
    print(f"\n{len(found.findings) - len(found.broken)} rules obeyed, {len(found.broken)} broken{names}")
    return 1 if found.broken else 0

"""`selkern check`: selective-kernel code held against the rules of the paper."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Annotated

import tyro
from tyro.conf import Positional

from selkern.cli.parse import parse
from selkern.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """Hold the rules of the paper and the authors' prototxt against any selective-kernel code, with the evidence.

    Ends with 0 where all rules are obeyed and with 1 where one is broken.
    """

    subject: Annotated[Positional[str], tyro.conf.arg(metavar="WHAT")]
    """A model's name, weights file, hf-hub:user/name, timm:NAME, FILE.py:CLASS or module:CLASS (whose code is run)."""
    arguments: Annotated[str, tyro.conf.arg(name="with")] = ""
    """What a class is made with, as in Python: "64, kernels=[3, 5]"."""
    input: str | None = None
    """Shape of one input without the batch, such as 64,32,32; by default one that works is found."""
    json: bool = False
    """Print one JSON object instead of text."""

    def __post_init__(self) -> None:
        # Here, so that the error comes before torch is imported; zeros are left to the model.
        if self.input is not None and not re.fullmatch(r"\d{1,7}(,\d{1,7})*", self.input):
            raise UsageError(f"{self.input[:40]!r} is no shape", "--input", "write it as 64,32,32")


def main(argv: list[str]) -> int:
    """`selkern check`; 1 where a rule is broken."""
    options = parse(CheckOptions, argv, "check")
    shape = None
    if options.input is not None:
        try:
            shape = tuple(int(side) for side in options.input.split(","))
        except ValueError:
            raise UsageError(f"{options.input!r} is no shape", "--input", "write it as 64,32,32") from None
    from selkern.conformance.check import check as conformance
    from selkern.convert.subject import find_inputs, find_subject

    model = find_subject(options.subject, options.arguments)
    x = find_inputs(model, shape)
    result = conformance(model, x)
    if options.json:
        print(json.dumps({"subject": options.subject, "input": list(x.shape), **asdict(result)}))
        return 1 if result.broken else 0
    units = f"{len(result.units)} selective-kernel unit{'s' if len(result.units) > 1 else ''}"
    print(f"{options.subject}: {units}, {result.parameters:,} parameters, run on {tuple(x.shape)}\n")
    for finding in result.findings:
        more = f" (and {len(finding.evidence) - 1} alike)" if len(finding.evidence) > 1 else ""
        print(f"{'ok' if finding.holds else 'BROKEN':8}{finding.rule}  [{finding.source}]")
        print(f"{'':8}  {finding.evidence[0]}{more}")
        if len(result.units) > 1 and finding.units:
            rest = f" and {len(finding.units) - 3} more" if len(finding.units) > 3 else ""
            print(f"{'':8}  in {', '.join(finding.units[:3])}{rest}")
    names = ": " + "; ".join(finding.rule for finding in result.broken) if result.broken else ""
    print(f"\n{len(result.findings) - len(result.broken)} rules obeyed, {len(result.broken)} broken{names}")
    return 1 if result.broken else 0

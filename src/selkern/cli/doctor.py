"""`selkern doctor`: this machine and the installation."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Show versions, devices, cores, settings, free disk, missing packages and a short speed test of this machine."""

    json: bool = False
    """Print one JSON object instead of text."""


def main(argv: list[str]) -> int:
    """`selkern doctor`."""
    try:
        from selkern.cli.parse import parse
    except ImportError:  # without the extra `train` there is no tyro; this command says so
        if set(argv) - {"--json"}:
            raise
        as_json = "--json" in argv
    else:
        as_json = parse(DoctorOptions, argv, "doctor").json
    from selkern.measure import doctor as examining

    findings = examining.examine()
    if as_json:
        print(json.dumps({finding.name: asdict(finding) for finding in findings}))
        return 0
    for finding in findings:
        print(f"{finding.name:18}{finding.value}" + (f"  ({finding.note})" if finding.note else ""))
    return 0

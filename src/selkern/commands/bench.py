"""The commands about speed and the machine: bench, doctor.

Each function takes the words after the command's name, calls one function, prints what it returns, and gives the exit
code. Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict


def bench(argv: list[str]) -> int:
    """`selkern bench`; 130 where Ctrl+C stopped it, with what was measured until then."""
    from selkern.cli_options import BenchOptions, parse

    options = parse(BenchOptions, argv, "bench")
    from selkern.bench import run, workloads
    from selkern.bench.session import Session

    short = workloads.SHORT_BATCHES if not options.workloads else workloads.ALL_BATCHES
    session = Session(
        say=_say,
        budget=options.budget,
        rounds=options.rounds,
        batches=options.batches or ((2,) if options.trial else short),
        train_batch=options.train_batch,
        compile=options.compile,
        trial=options.trial,
    )
    report = run.run(session, workloads.chosen(options.workloads), options.output, options.threads)
    if not options.json:
        print(report.text)
        print(f"\nwritten: {', '.join(str(path) for path in sorted(report.folder.iterdir()))}\n")
    print(json.dumps(report.data))
    return 130 if report.data["settings"]["stopped_in"] else 0


def _say(text: str) -> None:
    print(f"measuring {text}", file=sys.stderr, flush=True)


def doctor(argv: list[str]) -> int:
    """`selkern doctor`."""
    try:
        from selkern.cli_options import DoctorOptions, parse
    except ImportError:  # without the extra `train` there is no tyro; this command says so
        if set(argv) - {"--json"}:
            raise
        as_json = "--json" in argv
    else:
        as_json = parse(DoctorOptions, argv, "doctor").json
    from selkern.bench import doctor as examining

    findings = examining.examine()
    if as_json:
        print(json.dumps({finding.name: asdict(finding) for finding in findings}))
        return 0
    for finding in findings:
        print(f"{finding.name:18}{finding.value}" + (f"  ({finding.note})" if finding.note else ""))
    return 0

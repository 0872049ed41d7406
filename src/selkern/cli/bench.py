"""`selkern bench`: time and memory on this machine."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from selkern.cli.parse import parse
from selkern.errors import UsageError

Workload = Literal["start", "article", "layer", "infer", "train", "memory", "scaling", "ddp", "data", "all"]


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Measure our code beside timm's, the article's and the bare convolutions, in turn, against the project's goals.

    Prints a table and, as its last line, one JSON object; writes both and a chart into a new folder.
    """

    workloads: Annotated[Positional[tuple[Workload, ...]], tyro.conf.arg(metavar="WORKLOAD...")] = ()
    """start, article, layer, infer, train, memory, scaling, ddp, data or all; by default a short set (minutes)."""
    budget: float = 10.0
    """Seconds for the rounds of one comparison; at least three rounds are run."""
    rounds: int | None = None
    """Exactly so many rounds instead."""
    threads: int | None = None
    """Of torch; by default what `selkern doctor` tells."""
    batches: tuple[int, ...] = ()
    """Of infer: 1 8 32; in the short set 1 8."""
    train_batch: int = 8
    """Of train."""
    compile: bool = False
    """Also measure what torch.compile makes of SKNet-50; compiling takes minutes."""
    output: Path = Path("bench-results")
    """Folder in which the run's own is made."""
    trial: bool = False
    """Small shapes that try the harness itself: figures without a meaning, in seconds."""
    json: bool = False
    """Print the JSON object alone."""

    def __post_init__(self) -> None:
        for name in ("rounds", "threads", "train_batch"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UsageError(f"{name} is {value}", f"--{name.replace('_', '-')}", "must be at least 1")
        if not self.budget > 0:
            raise UsageError(f"budget is {self.budget}", "--budget", "must be above 0")
        if any(batch < 1 for batch in self.batches):
            raise UsageError(f"batches are {self.batches}", "--batches", "must be at least 1 each")


def main(argv: list[str]) -> int:
    """`selkern bench`; 130 where Ctrl+C stopped it, with what was measured until then."""
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

"""The CPU benchmark: our layers and networks beside timm's, the article's code and the bare convolutions.

    python benchmarks/run.py [WORKLOAD ...] [--budget 10] [--rounds N] [--threads N] [--batches 1 8 32] [--compile]

All variants run in turn in one process; the figures are compared with the project's goals. Prints a table and, as its
last line, one JSON object; writes both and a chart into a new folder. `--trial` tries the harness itself on small
shapes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # run as a file: the package `benchmarks` is beside src

import torch

from benchmarks import layers, networks, pipeline, processes
from benchmarks.goals import GOALS
from benchmarks.results import Results, Verdict, judge
from benchmarks.session import FAILURES, Session
from benchmarks.table import aim, render
from selkern.errors import PackageError, ResourceError, SelkernError
from selkern.io import new_folder, write_atomic
from selkern.measure import machine
from selkern.tuning import tune

WORKLOADS: dict[str, Callable[[Session], None]] = {
    "start": processes.start,
    "article": layers.article,
    "layer": layers.layer,
    "infer": networks.infer,
    "train": networks.train,
    "memory": networks.memory,
    "scaling": layers.scaling,
    "ddp": processes.ddp,
    "data": pipeline.data,
}
SHORT = ("start", "article", "layer", "infer", "memory")
SHORT_BATCHES, ALL_BATCHES = (1, 8), (1, 8, 32)


def chosen(given: Sequence[str]) -> list[str]:
    """Names of workloads, in their order; "all" means all of them, nothing the short set."""
    wanted = set(WORKLOADS) if "all" in given else set(given or SHORT)
    return [name for name in WORKLOADS if name in wanted]


@dataclass(frozen=True)
class Report:
    """What a run gave.

    Attributes:
        folder: where its files are.
        text: the table.
        data: everything, ready for JSON.
    """

    folder: Path
    text: str
    data: dict[str, Any]


def run(session: Session, names: Sequence[str], output: Path, threads: int | None = None) -> Report:
    """Run workloads by name and write their results.

    Args:
        session: its settings; the rows are added to its results.
        names: of `WORKLOADS`.
        output: folder in which a new one is made; nothing is overwritten.
        threads: of torch; None leaves what `tune` made of it.

    Raises:
        ResourceError: the folder cannot be made or written to.

    What was measured before Ctrl+C is written as well.
    """
    tune()
    if threads is not None:
        torch.set_num_threads(threads)
    folder = make_folder(output)
    about = machine.describe()
    stopped_in = _run_all(session, names)
    about["load_average_after"] = machine.load_average()
    results, verdicts = session.results, judge(GOALS, session.results)
    head = ("a trial on small shapes: these figures say nothing\n" if session.trial else "") + machine.summary(about)
    text = render(results, verdicts, head)
    settings: dict[str, Any] = {
        "workloads": list(names),
        "budget_s": session.budget,
        "rounds": session.rounds,
        "trial": session.trial,
    }
    settings["stopped_in"] = stopped_in
    data = {"machine": about, "settings": settings, **as_data(results, verdicts)}
    write_atomic(folder / "table.txt", text + "\n")
    write_atomic(folder / "results.json", json.dumps(data, indent=1) + "\n")
    try:
        write_chart(folder, results, head.splitlines()[0])
    except PackageError as error:
        text += f"\n\nno chart: {error}"
    return Report(folder, text, data)


def _run_all(session: Session, names: Sequence[str]) -> str | None:
    """Run workloads in turn; one that fails is named as missing. The one that Ctrl+C stopped, if it did."""
    for name in names:
        torch.manual_seed(0)
        try:
            WORKLOADS[name](session)
        except FAILURES as error:
            session.results.lacks(name, "the rest of this workload", error)
        except KeyboardInterrupt:
            session.results.lacks(name, "the rest of this workload", "stopped")
            return name
    return None


def make_folder(output: Path) -> Path:
    """Make `output/bench`, or `bench-2` and so on where that exists.

    Raises:
        ResourceError: it cannot be made.
    """
    try:
        return new_folder(output, "bench")
    except OSError as error:
        raise ResourceError(f"cannot make a folder ({error.strerror})", str(output), "give another --output") from error


def write_chart(folder: Path, results: Results, foot: str) -> None:
    """chart.png, where there is something to draw.

    Raises:
        PackageError: matplotlib is not installed.
    """
    try:
        from benchmarks.chart import draw
    except ImportError as error:
        raise PackageError(
            f"matplotlib cannot be imported ({error})", "chart", "pip install 'selkern[train]'"
        ) from error
    picture = draw(results, foot)
    if picture is not None:
        write_atomic(folder / "chart.png", picture)


def as_data(results: Results, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Rows, what is missing, and goals, as JSON has them."""
    rows = []
    for row in results.rows:
        better = results.advantage(row)
        samples = [float(f"{value:.6g}") for value in row.samples]
        entry = {**asdict(row), "samples": samples, **asdict(row.spread)}
        rows.append({**entry, "times_better": None if better is None else asdict(better)})
    goals = [
        {
            **asdict(verdict.goal),
            "text": aim(verdict.goal),
            "measured": None if verdict.value is None else asdict(verdict.value),
            "verdict": verdict.word,
        }
        for verdict in verdicts
    ]
    return {"rows": rows, "missing": [asdict(entry) for entry in results.missing], "goals": goals}


def _positive(word: str) -> int:
    if (value := int(word)) < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def _seconds(word: str) -> float:
    if not (value := float(word)) > 0:
        raise argparse.ArgumentTypeError(f"{word} is not above 0")
    return value


def _workload(word: str) -> str:
    if word not in (*WORKLOADS, "all"):
        raise argparse.ArgumentTypeError(f"{word!r} is none of {', '.join((*WORKLOADS, 'all'))}")
    return word


def _options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks/run.py", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    names = f"{', '.join(WORKLOADS)} or all; by default {', '.join(SHORT)} (minutes)"
    add("workloads", nargs="*", type=_workload, metavar="WORKLOAD", help=names)
    add("--budget", type=_seconds, default=10.0, help="seconds for one comparison; at least three rounds are run")
    add("--rounds", type=_positive, help="number of rounds, whatever they take")
    add("--threads", type=_positive, help="threads of torch; by default as `selkern doctor` shows")
    add("--batches", type=_positive, nargs="+", default=(), help="batch sizes of the workload infer: 1 8 32")
    add("--train-batch", type=_positive, default=8, help="batch size of the workload train")
    add("--compile", action="store_true", help="also time SKNet-50 by torch.compile; compiling takes minutes")
    add("--output", type=Path, default=Path("bench-results"), help="folder in which a new one is made")
    add("--trial", action="store_true", help="small shapes that try the harness itself; the figures mean nothing")
    add("--json", action="store_true", help="print the JSON object alone")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, write; 130 where Ctrl+C stopped it, with what was measured until then."""
    options = _options(words)
    short = SHORT_BATCHES if not options.workloads else ALL_BATCHES
    session = Session(
        say=lambda text: print(f"measuring {text}", file=sys.stderr, flush=True),
        budget=options.budget,
        rounds=options.rounds,
        batches=tuple(options.batches) or ((2,) if options.trial else short),
        train_batch=options.train_batch,
        compile=options.compile,
        trial=options.trial,
    )
    try:
        report = run(session, chosen(options.workloads), options.output, options.threads)
    except SelkernError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if not options.json:
        print(report.text)
        print(f"\nwritten: {', '.join(str(path) for path in sorted(report.folder.iterdir()))}\n")
    print(json.dumps(report.data))
    return 130 if report.data["settings"]["stopped_in"] else 0


if __name__ == "__main__":
    sys.exit(main())

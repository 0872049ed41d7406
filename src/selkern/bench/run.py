"""One run of `selkern bench`: measure, judge, write results.json, table.txt and chart.png into a folder of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from selkern.bench.goals import GOALS
from selkern.bench.results import Found, Verdict, judge
from selkern.bench.session import FAILURES, Session
from selkern.bench.table import aim, render
from selkern.bench.workloads import WORKLOADS
from selkern.errors import PackageError, ResourceError
from selkern.io import new_folder, write_atomic
from selkern.measure import machine
from selkern.tuning import tune


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
    """Run workloads by name and write what they found.

    Args:
        session: its settings; the rows are added to what it found.
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
    found, verdicts = session.found, judge(GOALS, session.found)
    head = ("a trial on small shapes: these figures say nothing\n" if session.trial else "") + machine.summary(about)
    text = render(found, verdicts, head)
    settings: dict[str, Any] = {
        "workloads": list(names),
        "budget_s": session.budget,
        "rounds": session.rounds,
        "trial": session.trial,
    }
    settings["stopped_in"] = stopped_in
    data = {"machine": about, "settings": settings, **as_data(found, verdicts)}
    write_atomic(folder / "table.txt", text + "\n")
    write_atomic(folder / "results.json", json.dumps(data, indent=1) + "\n")
    try:
        write_chart(folder, found, head.splitlines()[0])
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
            session.found.lacks(name, "the rest of this workload", error)
        except KeyboardInterrupt:
            session.found.lacks(name, "the rest of this workload", "stopped")
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


def write_chart(folder: Path, found: Found, foot: str) -> None:
    """chart.png, where there is something to draw.

    Raises:
        PackageError: matplotlib is not installed.
    """
    try:
        from selkern.bench.chart import draw
    except ImportError as error:
        raise PackageError(
            f"matplotlib cannot be imported ({error})", "chart", "pip install 'selkern[train]'"
        ) from error
    picture = draw(found, foot)
    if picture is not None:
        write_atomic(folder / "chart.png", picture)


def as_data(found: Found, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Rows, what is missing, and goals, as JSON has them."""
    rows = []
    for row in found.rows:
        better = found.advantage(row)
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
    return {"rows": rows, "missing": [asdict(entry) for entry in found.missing], "goals": goals}

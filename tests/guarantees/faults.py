"""Every write of a run fails once, and for ever.

A small run goes its way, and stops before each of its writes: the process forks, and in the fork that one call fails,
or it and all later ones (`guarantees.scout`). Each fork is a whole run that met this fault; how it ends is looked at,
the folder is put back, and the run goes on to its next write. In the end every folder that a fork left is resumed
without faults, where none before was the same, and must come to the results of the run that met none. Three runs are
treated so: one from its beginning to its end, one that is resumed, and the report of one that is finished.
"""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from guarantees import runs
from guarantees.failing import Fault
from guarantees.scout import LIMIT, Case, Scout, results, speak_to
from selkern import cli
from selkern.cli.parse import parse
from selkern.cli.train import ResumeOptions
from selkern.train.options import TrainOptions
from selkern.train.run_folder import RunFolder

FULL = Fault("ENOSPC")
FAULTS = [Fault(code, for_ever) for code in ("ENOSPC", "EIO", "EACCES") for for_ever in (False, True)]
SHORT = [Fault("ENOSPC", for_ever, short=True) for for_ever in (False, True)]
FLAGS = "--recipe digits --epochs 2 --batch-size 14 --image-size 16 --ema 0.8 --save-steps 2 --log-order"
RESUMED_REPORTS = 12  # a report takes seconds
RUN = Path("output") / "run"
THIRD_SAVE = ("rename", "run/state/step-000004")


@dataclass
class Scenario:
    """A run to be scouted.

    Attributes:
        base: its files: `start` is what `output` is before it, the rest see `Scout`.
        words: of the command line.
        points: kind and path of each call of the run without faults.
        expected: its results.
        cases: what came of the faults.
    """

    name: str
    base: Path
    words: list[str]
    points: list[tuple[str, str]] = field(default_factory=list)
    expected: dict[str, Any] = field(default_factory=dict)
    cases: list[Case] = field(default_factory=list)

    @property
    def run(self) -> RunFolder:
        """The run's folder when it is done."""
        return RunFolder(self.base / RUN)

    def scout(self, plan: Mapping[int, Sequence[Fault]]) -> None:
        """Go through the run with these faults."""
        shutil.rmtree(self.base / "output", ignore_errors=True)
        shutil.copytree(self.base / "start", self.base / "output")
        pid = os.fork()
        if not pid:
            Scout(self.base, plan, self.expected).go(self.words)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        outcome = json.loads((self.base / "outcome.json").read_text())
        if code or outcome["strays"]:
            said = (self.base / "said.txt").read_text()
            raise SystemExit(f"error: the run without faults failed | {self.name} | {code} {outcome['strays']} {said}")
        points, result = [(kind, path) for kind, path in outcome["points"]], results(self.run)
        made = {path.replace("/.step-", "/step-").replace(".tmp/", "/") for _, path in points}
        files = {str(path.relative_to(self.base / "output")) for path in self.run.path.rglob("*") if path.is_file()}
        if self.name == "train" and not files <= made:
            raise SystemExit(f"error: a file was written past the watch | {files - made} | see failing.py")
        # In whichever order a folder lists the files that are removed.
        if self.points and (sorted(points), result) != (sorted(self.points), self.expected):
            reported = set(points) ^ set(self.points) or result.items() ^ self.expected.items()
            raise SystemExit(f"error: the run without faults is not twice the same | {self.name} | {reported}")
        self.points, self.expected = points, result
        self.cases = [Case(**values) for values in outcome["cases"]]


def prepare(base: Path) -> list[Scenario]:
    """The three runs, each gone through once without faults; the later two begin with what the first one left."""
    whole = prepare_whole(base)
    resumed, report = (_scenario(base, name, ["--resume", str(base / name / RUN)]) for name in ("resume", "report"))
    shutil.copytree(whole.base / "output", report.base / "start")
    config = report.base / "start" / "run" / "config.yaml"
    config.write_text(config.read_text().replace("report: false", "report: true"))
    whole.scout({whole.points.index(THIRD_SAVE): [Fault("ENOSPC", for_ever=True)]})
    shutil.copytree(whole.base / "left" / whole.cases[0].left, resumed.base / "start")
    for scenario in (resumed, report):
        scenario.scout({})
    return [whole, resumed, report]


def prepare_whole(base: Path) -> Scenario:
    """The run from its beginning to its end, gone through once without faults, beside an older one."""
    runs.prepare()
    runs.draw_data(base / "data")
    _warm(base / "data")
    words = ["--data", str(base / "data" / "broken"), "--output", str(base / "train" / "output"), "--name", "run"]
    whole = _scenario(base, "train", [*words, "--model", "sk_killed", "--no-report", *FLAGS.split()])
    older = whole.base / "start" / "older"
    older.mkdir(parents=True)
    (older / "notes.txt").write_text("the user's own")
    whole.scout({})
    return whole


def _scenario(base: Path, name: str, words: list[str]) -> Scenario:
    (base / name).mkdir()
    (base / name / "data").symlink_to(base / "data")
    return Scenario(name, base / name, ["train", *words, "--device", "cpu"])


def _warm(data: Path) -> None:
    """Import and look up here, once, what every run would otherwise do for itself."""
    import matplotlib.font_manager  # noqa: F401

    from selkern.report import analyze  # noqa: F401
    from selkern.train import run as job  # noqa: F401

    torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1).step()
    parse(TrainOptions, ["--data", str(data), *FLAGS.split()], "train", TrainOptions())
    parse(ResumeOptions, ["--resume", "x"], "train --resume")


def choose(scenarios: Sequence[Scenario], limit: int, seed: int) -> tuple[dict[str, dict[int, list[Fault]]], int]:
    """The faults to meet, by run and call, and how many there are to choose from.

    A disk that is full once is met at every call if the limit allows it; the others are chosen by chance.
    """
    every = [
        (scenario.name, number, fault)
        for scenario in scenarios
        for number, (kind, _) in enumerate(scenario.points)
        for fault in [*FAULTS, *(SHORT if kind == "write" else [])]
    ]
    random.Random(seed).shuffle(every)
    if limit >= sum(len(scenario.points) for scenario in scenarios):
        every.sort(key=lambda case: case[2] != FULL)
    plans: dict[str, dict[int, list[Fault]]] = {scenario.name: {} for scenario in scenarios}
    for name, number, fault in every[: limit or None]:
        plans[name].setdefault(number, []).append(fault)
    return plans, len(every)


def again(scenario: Scenario, left: str) -> str:
    """Resume what a fault left, or start anew where that is no run yet; what is wrong with it."""
    output = scenario.base / "left" / left
    run = runs.find_run(output)
    words = ["train", "--resume", str(run.path), "--device", "cpu"] if run else list(scenario.words)
    if run is None:
        words[words.index("--output") + 1] = str(output)
    pid = os.fork()
    if not pid:
        code = 70
        try:
            gc.freeze()
            signal.alarm(LIMIT)
            speak_to(output / "said.txt")
            code = cli.main(words)
        except BaseException:  # noqa: BLE001 - whatever it is, a child must not go on as its parent
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    said = (output / "said.txt").read_text()
    # A fault after the last state was saved leaves nothing to resume: then the results must be there already.
    if code and not (code == 4 and "this run is finished" in said):
        return f"afterwards: exit code {code}, {said.splitlines()[-1:]}"
    result = results(runs.find_run(output) or RunFolder(output))
    differing = [
        name for name in result.keys() | scenario.expected.keys() if result.get(name) != scenario.expected[name]
    ]
    return f"afterwards: {len(differing)} results differ, such as {differing[:2]}" if differing else ""


def meet(limit: int, seed: int, folder: Path) -> tuple[str, list[str]]:
    """Meet so many faults, 0 for all, and resume what they left: the figures in one line, and every promise broken."""
    started = time.monotonic()
    torch.set_num_threads(1)
    scenarios = prepare(folder)
    plans, possible = choose(scenarios, limit, seed)
    cases: list[tuple[str, Case]] = []
    resumed = 0
    for scenario in scenarios:
        shutil.rmtree(scenario.base / "left", ignore_errors=True)
        scenario.scout(plans[scenario.name])
        lefts = [case for case in scenario.cases if case.left]
        for case in lefts[: RESUMED_REPORTS if scenario.name == "report" else None]:
            resumed += 1
            if wrong := again(scenario, case.left):
                case.wrong.append(wrong)
        cases += [(scenario.name, case) for case in scenario.cases]
    points = sum(len(scenario.points) for scenario in scenarios)
    loadable, right = sum(case.loadable for _, case in cases), sum(not case.wrong for _, case in cases)
    spared = Counter(case.kind for _, case in cases if case.code == 0)
    line = (
        f"{points} injection points, {len(cases)} of {possible} faults met: {loadable} loadable, "
        f"{right} with right exit and one line, {resumed} folders resumed, {time.monotonic() - started:.0f} s; "
        f"finished in spite of the fault: {dict(spared)}"
    )
    return line, broken(cases)


def broken(cases: Sequence[tuple[str, Case]]) -> list[str]:
    """A line for each case, with the name of its run, that does not end as is promised."""
    lines = []
    for name, case in cases:
        wrong = [*case.wrong, *([] if case.loadable else ["the state before is lost"])]
        if wrong:
            where = f"{name}, call {case.number} ({case.kind} {case.path})"
            lines.append(f"{where} meets {case.fault}: {'; '.join(wrong)}")
    return lines

"""Our Triton kernels on a GPU: are they right, how close to the card's limits, what do they gain in SKNet-50?

    python benchmarks/gpu.py [--budget 540] [--out results.json] [--chart chart.svg] [--only PART ...] [--trial]

The last line is one JSON object. Jobs run in a worker process: one that hangs, or breaks the GPU's context, costs its
own rows alone. Exit codes: 5 without a GPU that fits, 6 where a kernel gave a wrong result. `--trial` tries the script
itself in Triton's interpreter, without a GPU: its correctness counts, its times mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # run as a file: the package `benchmarks` is beside src

from benchmarks import gpu_plan as plan
from benchmarks import gpu_report as report
from benchmarks.gpu_plan import Job, Row
from benchmarks.gpu_report import Results
from benchmarks.machine import environment
from selkern.errors import PackageError, ResourceError, SelkernError
from selkern.io import write_atomic

_WORKER = ("-m", "benchmarks.gpu_worker")
_START = 90.0  # seconds that a worker may take before its first job
_LEAST = 15.0  # seconds left below which nothing more is begun
_CAPABILITY = (8, 0)


class Worker:
    """A process that does jobs in turn, and what it says.

    Args:
        program: words after `python` that start it.
        jobs: to be done.
        tiny, seed: see `gpu_worker`.
        wrong: kernels that are not to be timed.
    """

    def __init__(self, program: Sequence[str], jobs: list[Job], tiny: bool, seed: int, wrong: set[str]) -> None:
        settings = {"jobs": [asdict(job) for job in jobs], "tiny": tiny, "seed": seed, "wrong": sorted(wrong)}
        variables = environment(TRITON_INTERPRET="1") if tiny else environment()
        if not tiny:
            variables.pop("TRITON_INTERPRET", None)
        command = [sys.executable, *program, json.dumps(settings)]
        # A session of its own, so that the compilers which it starts end with it.
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=variables, start_new_session=True
        )
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def next(self, seconds: float) -> dict[str, Any] | None:
        """What it says next, None where it has ended.

        Raises:
            TimeoutError: it says nothing for so long.
        """
        try:
            line = self.lines.get(timeout=max(seconds, 0.0))
        except queue.Empty:
            raise TimeoutError from None
        return None if line is None else dict(json.loads(line))

    def end(self) -> int:
        """Stop it and all that it started; gives its exit code."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        code = self.process.wait()
        self.reader.join(timeout=5)  # a process that got away may still hold the other end
        if self.process.stdout is not None and not self.reader.is_alive():
            self.process.stdout.close()
        return code


class Run:
    """All jobs within a budget, in as many workers as it takes.

    Args:
        results: filled in, row by row.
        seed: of the random inputs.
        budget: seconds.
        worker: words after `python` that start the process which does the jobs.
    """

    def __init__(self, results: Results, seed: int, budget: float, worker: Sequence[str] = _WORKER) -> None:
        self.results, self.seed, self.worker = results, seed, worker
        self.stop = time.monotonic() + budget
        self.wrong: set[str] = set()

    def do(self, jobs: list[Job]) -> None:
        """Measure, most wanted first; what does not fit the budget is named."""
        remaining = list(jobs)
        while remaining and self._left() > _LEAST:
            worker = Worker(self.worker, remaining, self.results.tiny, self.seed, self.wrong)
            try:
                begun = self._listen(worker, remaining)
            finally:
                worker.end()
            if not begun:
                break  # another one would not begin either
        self.results.left_out += [f"{job.title}: no time left" for job in remaining]

    def _left(self) -> float:
        return self.stop - time.monotonic()

    def _listen(self, worker: Worker, remaining: list[Job]) -> bool:
        """Take what a worker says, until it ends, fails or takes too long; jobs that it ends leave `remaining`.

        Returns:
            Whether it began with any.
        """
        begun, current, until = False, None, time.monotonic() + _START
        while remaining:
            try:
                said = worker.next(min(until, self.stop) - time.monotonic())
            except TimeoutError:
                limit = "the time that was left" if self._left() <= 0 else "its limit"
                self._give_up(remaining, f"took longer than {limit}", current)
                break
            if said is None:
                self._give_up(remaining, f"the process ended (code {worker.end()})", current)
                break
            if "begin" in said:
                begun, current = True, remaining[0]
                if self._left() < _LEAST:
                    break
                until = time.monotonic() + current.limit
                print(f"-- {current.title}", flush=True)
            elif "end" in said:
                remaining.pop(0)
                current, until = None, time.monotonic() + _START
            elif "machine" in said:
                self.results.machine = said["machine"]
                print(json.dumps(said["machine"]), flush=True)
            else:
                self._add(Row(**said["row"]), current)
        return begun

    def _add(self, row: Row, job: Job | None) -> None:
        self.results.rows.append(row)
        if row.failed and job is not None:  # a correctness that was not found out counts as none
            self.wrong.add(job.settings["kernel"])
        print(report.text(row, self.results), flush=True)

    def _give_up(self, remaining: list[Job], why: str, current: Job | None) -> None:
        """Name the job that was lost, which is not tried again."""
        job = remaining.pop(0)
        if not (self.results.rows and self.results.rows[-1].what == job.title):  # else the worker has said why
            where = "" if current else " before it began"
            self._add(Row(part=job.part, what=job.title, case="", variant="", error=why + where), job)


def check_machine(tiny: bool) -> None:
    """Raise an error of one line where there is nothing to measure on."""
    if find_spec("triton") is None:
        raise PackageError("triton is not installed", "benchmarks/gpu.py", "pip install triton, as torch wants it")
    import torch  # here: `--help` needs none

    if tiny:
        return
    if not torch.cuda.is_available():
        raise ResourceError("no GPU that torch can use", "benchmarks/gpu.py", "run it on one, or with --trial")
    if torch.version.hip is not None or torch.cuda.get_device_capability() < _CAPABILITY:
        what = "the kernels are for NVIDIA GPUs of compute capability 8.0 and more"
        raise ResourceError(what, torch.cuda.get_device_name(), "run it on one, or with --trial")


def main() -> int:
    """Measure, print, write; gives the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--budget", type=float, default=540, help="seconds for everything")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--chart", type=Path, help="SVG file to write")
    parser.add_argument("--only", nargs="+", choices=plan.PARTS, help="parts; correctness always comes first")
    parser.add_argument("--seed", type=int, help="of the random inputs; a new one every time if not given")
    parser.add_argument(
        "--trial",
        "--tiny",
        dest="tiny",
        action="store_true",
        help="small shapes in Triton's interpreter, without a GPU",
    )
    options = parser.parse_args()
    begin = time.monotonic()
    try:
        check_machine(options.tiny)
    except SelkernError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    results = Results(options.tiny)
    jobs = plan.jobs(options.tiny)
    if options.only:
        wanted = {"machine", "ceiling", "correct", *options.only}
        results.left_out += [f"{job.title}: not asked for" for job in jobs if job.part not in wanted]
        jobs = [job for job in jobs if job.part in wanted]
    seed = random.randrange(2**31) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):  # what there is by then is reported
        Run(results, seed, options.budget).do(jobs)
    return _finish(results, options.out, options.chart, time.monotonic() - begin)


def _finish(results: Results, out: Path | None, chart: Path | None, seconds: float) -> int:
    print(f"\n{report.summary(results)}\n", flush=True)
    line = json.dumps(report.as_json(results, seconds))
    code = 6 if results.wrong else 0 if any(row.ms for row in results.rows) else 1
    try:
        if out is not None:
            write_atomic(out, line + "\n")
        if chart is not None:
            from benchmarks.gpu_chart import draw  # here: matplotlib is not needed for figures alone

            picture = draw(results)
            if picture is not None:
                write_atomic(chart, picture)
    except (SelkernError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        code = code or 1
    print(line, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())

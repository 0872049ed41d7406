"""`benchmarks/gpu.py` without a GPU: right kernels pass, wrong ones do not, what is lost costs its own rows."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import ENVIRONMENT

from benchmarks import gpu
from benchmarks import gpu_plan as plan
from benchmarks import gpu_report as report

FOLDER = Path(__file__).parents[2] / "benchmarks"
INTERPRETED = {**ENVIRONMENT, "TRITON_INTERPRET": "1"}

# In place of gpu_worker.py: a title says what becomes of the job.
STAND_IN = """
import json, sys, time
settings = json.loads(sys.argv[1])
def send(kind, what):
    print(json.dumps({kind: what}), flush=True)
for job in settings["jobs"]:
    title = job["title"]
    send("begin", title)
    if title == "hangs":
        time.sleep(600)
    if title == "dies":
        sys.exit(3)
    row = {"part": job["part"], "what": title, "case": ",".join(settings["wrong"]), "variant": "", "ms": 1.0}
    send("row", row)
    send("end", title)
"""
SABOTAGE = """
import json, sys, torch
sys.path.insert(0, sys.argv[1])
from benchmarks import gpu_correct
from benchmarks.gpu_session import Session
from selkern.ops.triton import convolution_launch as launch, fuse_select_launch
if sys.argv[2] == "dilation":
    forward = launch.forward
    launch.forward = lambda x, w, y, g, stride, d, statistics: forward(x, w, y, g, stride, [1] * len(w), statistics)
else:  # the gradient without its two means over the batch
    gradients = fuse_select_launch.gradients
    fuse_select_launch.gradients = lambda dv, y, norms, a, ds, means: gradients(dv, y, norms, a, ds, 0 * means)
rows = []
session = Session(torch.device("cpu"), True, 0, rows.append)
gpu_correct.check(session, kernel=sys.argv[3])
print(json.dumps({"errors": [row.error for row in rows], "wrong": sorted(session.wrong)}))
"""


def run(*options: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / "gpu.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, env=INTERPRETED, timeout=timeout, check=False)


@pytest.mark.exhaustive
def test_it_runs_without_a_gpu_as_a_trial_of_itself(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="no kernels without Triton")
    out, chart = tmp_path / "results.json", tmp_path / "chart.svg"
    done = run("--trial", "--budget", "250", "--out", str(out), "--chart", str(chart))
    assert done.returncode == 0, done.stdout + done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert json.loads(out.read_text()) == result
    assert chart.read_text().startswith("<svg")
    assert [row for row in result["rows"] if "error" in row] == []
    assert result["left_out"] == []
    assert result["correct"]
    correct = [row for row in result["rows"] if row["part"] == "correct"]
    assert {row["what"] for row in correct} == {"fuse_select", "convolution"}
    assert all(0 < row["value"] <= row["bound"] for row in correct)
    parts = {row["part"] for row in result["rows"]}
    assert parts == {"ceiling", "correct", "unit", "train", "kernel", "graph"}
    # Nobody may take an interpreter's times for a card's.
    assert result["tiny"]
    assert result["verdicts"] == []
    assert all("times mean nothing" in line for line in result["measured"])
    assert f"seed {result['machine']['seed']}" == done.stdout.splitlines()[0]


def test_without_a_gpu_it_says_so_in_one_line() -> None:
    pytest.importorskip("triton", reason="no kernels without Triton")
    done = run()
    assert done.returncode == 5
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert line.count(" | ") == 2
    assert "--trial" in line


@pytest.mark.parametrize(
    ("broken", "kernel", "wrong", "right"),
    [("dilation", "convolution", "y1", "y0 "), ("means", "fuse_select", "dy0", "V ")],
)
@pytest.mark.exhaustive
def test_a_wrong_kernel_is_reported(broken: str, kernel: str, wrong: str, right: str) -> None:
    pytest.importorskip("triton", reason="no kernels without Triton")
    command = [sys.executable, "-c", SABOTAGE, str(FOLDER.parent), broken, kernel]
    done = subprocess.run(command, capture_output=True, text=True, env=INTERPRETED, timeout=300, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["wrong"] == [kernel]
    assert len(result["errors"]) == 2
    for error in result["errors"]:
        assert error.startswith("FAIL")
        assert wrong in error
        assert f" {right}" not in error


def test_what_hangs_or_dies_costs_its_own_rows_alone(tmp_path: Path) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(STAND_IN)
    results = report.Results(True)
    jobs = [
        plan.Job("unit", "first", 60),
        plan.Job("correct", "dies", 60, {"kernel": "convolution"}),
        plan.Job("unit", "hangs", 1),
        plan.Job("unit", "last", 60),
    ]
    gpu.Run(results, 0, 100, [str(worker)]).do(jobs)
    rows = {row.what: row for row in results.rows}
    assert list(rows) == ["first", "dies", "hangs", "last"]
    assert rows["first"].ms == rows["last"].ms == 1.0
    assert "code 3" in rows["dies"].error
    assert "longer than its limit" in rows["hangs"].error
    assert results.wrong, "a kernel that was not found right counts as wrong"
    assert (rows["first"].case, rows["last"].case) == ("", "convolution"), "later workers know of it"


def test_what_no_time_is_left_for_is_named(tmp_path: Path) -> None:
    worker, results = tmp_path / "worker.py", report.Results(True)
    worker.write_text(STAND_IN)
    gpu.Run(results, 0, 10, [str(worker)]).do([plan.Job("unit", "first", 60)])
    assert results.rows == []
    assert results.left_out == ["first: no time left"]


def test_a_worker_that_cannot_begin_ends_it(tmp_path: Path) -> None:
    results = report.Results(True)
    gpu.Run(results, 0, 100, [str(tmp_path / "missing.py")]).do([plan.Job("unit", name, 60) for name in "abc"])
    assert [(row.what, "before it began" in row.error) for row in results.rows] == [("a", True)]
    assert len(results.left_out) == 2


def measured(ours: float) -> report.Results:
    """Made-up results of a card that copies 2,000 GB/s."""
    results = report.Results(False, {"gpu": "Card"})

    def add(part: str, what: str, case: str, variant: str, ms: float, **more: Any) -> None:
        results.rows.append(plan.Row(part=part, what=what, case=case, variant=variant, ms=ms, **more))

    add("ceiling", "copy", "device memory", "torch", 2.0, gbyte=4.0)
    for stage in plan.SK50:
        case = stage.case("bfloat16")
        add("kernel", "fuse_select: Select", case, "triton", 1.0, gbyte=1.8)
        for variant, ms in (("triton", ours), ("eager", 2.0), ("compiled", 1.0)):
            add("kernel", f"fuse_select: {plan.WHOLE}", case, variant, ms)
    add("unit", "forward", plan.SK50[0].case("bfloat16"), plan.OURS, 1.0, gbyte=1.0)
    add("train", "step", "bfloat16", plan.OURS, 100.0, batch=128)
    add("train", "step", "bfloat16", plan.TIMM_SK_COMPILED, 400.0, batch=256)
    return results


def test_goals_are_judged() -> None:
    result = {verdict.goal: verdict for verdict in report.verdicts(measured(0.5))}
    select = result["Select, stage 1: share of the copy bandwidth"]
    assert select.value == pytest.approx(0.9)
    assert select.word == "reached"
    assert result["Fuse, stage 1: share of the copy bandwidth"].word == "not measured"
    unit = result["unit of stage 1, forward: share of its floor's speed"]
    assert unit.value == pytest.approx(0.5)
    assert unit.word == "missed"
    step = next(verdict for goal, verdict in result.items() if plan.TIMM_SK in goal)
    assert step.value == pytest.approx(2.0), "by images, not by steps"
    assert step.word == "reached"


@pytest.mark.parametrize(("ours", "start"), [(0.5, '("fuse_select", "Card", torch.bfloat16),'), (1.5, "# fuse_select")])
def test_auto_takes_what_won_against_eager_and_compiled(ours: float, start: str) -> None:
    results = measured(ours)
    lines = report.winners(results)
    assert lines[0].startswith(start)
    assert all(line.startswith("#") for line in lines[1:]), "not measured"
    results.rows.append(plan.Row(part="correct", what="fuse_select", case="", variant="triton", error="FAIL: V"))
    assert report.winners(results)[0].endswith("gives wrong results")

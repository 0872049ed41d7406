"""The short form of `reliability.kills`: its promise holds, and it is able to fail."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import ENVIRONMENT, SOURCE

from selkern.train.run_folder import RunFolder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the runs that it kills")
ROOT = SOURCE.parent


def kills(*words: str) -> subprocess.CompletedProcess[str]:
    """The program, in a process of its own: it forks from one in which torch has not computed yet."""
    path = os.pathsep.join([str(SOURCE), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-m", "reliability.kills", *words],
        env={**ENVIRONMENT, "PYTHONPATH": path},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


@pytest.mark.parametrize("count", [10, pytest.param(50, marks=pytest.mark.exhaustive)])
def test_kills_leave_every_run_bit_identical(count: int, tmp_path: Path) -> None:
    done = kills("--kills", str(count), "--seed", "7", "--keep", str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr + done.stdout
    figures = re.fullmatch(
        r"(\d+) kills, (\d+) finished runs, (\d+) bit-identical, 0 unreadable states, "
        r"at most ([012]) steps lost \(saved every 2\), 0 faults, \d+ s\n",
        done.stdout,
    )
    assert figures, done.stdout
    assert int(figures[1]) == count
    assert int(figures[2]) == int(figures[3]) >= (8 if count == 50 else 1), "every kind of run came to its end"


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        pytest.param("optimizer", "differs from the run that nobody killed", marks=pytest.mark.exhaustive),
        ("bit", "differs from the run that nobody killed in 1 things: ['weights/last.safetensors: "),
        pytest.param("state", "unreadable: ", marks=pytest.mark.exhaustive),
    ],
)
def test_what_is_broken_is_found(spoil: str, told: str, tmp_path: Path) -> None:
    """A resume without the optimizer's state, a flipped bit in the last weights, flipped bits in the states."""
    done = kills("--kills", "6", "--seed", "1", "--spoil", spoil, "--kinds", "ema-0-workers", "--keep", str(tmp_path))
    assert done.returncode == 1
    assert told in done.stderr, done.stderr
    assert "seed 1, run " in done.stderr
    assert " 0 faults" not in done.stdout


def test_a_rank_that_is_killed_is_noticed_by_the_other(tmp_path: Path) -> None:
    done = kills("--kills", "3", "--ranks", "2", "--kinds", "ema-0-workers", "--keep", str(tmp_path))
    assert done.returncode == 0, done.stderr + done.stdout
    assert re.search(r"3 kills, (\d+) finished runs, \1 bit-identical", done.stdout), done.stdout


def test_a_line_of_the_order_that_a_kill_cut_short_is_dropped(tmp_path: Path) -> None:
    """Cut short, `1,20,5` may look like an earlier step's."""
    file = tmp_path / "order.rank0.csv"
    file.write_text("0,0,3\n1,2,5\n1,2,7\n1,20,5\n1,2")
    RunFolder(tmp_path).cut_order(1, 20)
    assert file.read_text() == "0,0,3\n1,2,5\n1,2,7\n"


def test_what_a_kill_left_half_written_is_removed(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / ".last.safetensors.123.tmp").write_bytes(b"half")
    (weights / "last.safetensors").write_bytes(b"whole")
    RunFolder(tmp_path).clear()
    assert [path.name for path in weights.iterdir()] == ["last.safetensors"]

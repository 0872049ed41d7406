"""A killed run that is resumed is the unbroken run, bit for bit; and what is broken is noticed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import ENVIRONMENT, SOURCE

from guarantees import kills
from selkern.train.run_folder import RunFolder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks the runs that it kills")


PROVE = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from guarantees import kills
asked = json.loads(sys.argv[1])
print(json.dumps(asdict(kills.prove(**{**asked, "folder": Path(asked["folder"])}))))
"""


def prove(count: int, seed: int, folder: Path, **named: Any) -> kills.Figures:
    """`kills.prove` in a new process: it forks from one in which torch has not computed yet."""
    asked = json.dumps({"kills": count, "seed": seed, "folder": str(folder), **named})
    path = os.pathsep.join([str(SOURCE), str(SOURCE.parent / "tests")])
    environment = {**ENVIRONMENT, "PYTHONPATH": path}
    words = [sys.executable, "-c", PROVE, asked]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures = kills.Figures(**json.loads(done.stdout.splitlines()[-1]))
    print(figures.line(named.get("ranks", 1)))
    return figures


def test_killed_runs_are_bit_identical(seed: int, tmp_path: Path) -> None:
    figures = prove(5, seed, tmp_path / "runs", only=["mixed-0-workers"])
    assert not figures.faults, "\n".join(figures.faults)
    assert figures.kills == 5
    assert figures.finished == figures.identical >= 1
    assert figures.most_lost <= 2


@pytest.mark.exhaustive
def test_killed_runs_of_every_kind_are_bit_identical(seed: int, cases: int | None, tmp_path: Path) -> None:
    figures = prove(cases or 20, seed, tmp_path / "runs")
    assert not figures.faults, "\n".join(figures.faults)
    assert figures.kills == (cases or 20)
    assert figures.finished == figures.identical >= min(8, figures.kills // 6), "every kind of run came to its end"
    assert figures.most_lost <= 2
    assert not figures.unreadable


@pytest.mark.exhaustive
@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_runs_on_tar_shards_are_bit_identical(seed: int, cases: int | None, ranks: int, tmp_path: Path) -> None:
    """Read by two workers of each rank, shard by shard."""
    figures = prove(cases or 4, seed, tmp_path / "runs", ranks=ranks, only=["shards-2-workers"])
    assert not figures.faults, "\n".join(figures.faults)
    assert figures.kills == (cases or 4)
    assert figures.finished == figures.identical >= 1
    assert figures.most_lost <= 2


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        ("optimizer", "differs from the run that nobody killed"),
        ("bit", "differs from the run that nobody killed in 1 things: ['weights/last.safetensors: "),
        ("state", "unreadable: "),
    ],
)
def test_what_is_broken_is_noticed(spoil: str, fault: str, tmp_path: Path) -> None:
    """A resume without the optimizer's state, a flipped bit in the last weights, flipped bits in the states."""
    figures = prove(6, 1, tmp_path / "runs", spoil=spoil, only=["ema-0-workers"])
    assert any(fault in line and "seed 1, run " in line for line in figures.faults), figures.faults


@pytest.mark.exhaustive
def test_a_killed_rank_is_noticed_by_the_other(seed: int, tmp_path: Path) -> None:
    figures = prove(3, seed, tmp_path / "runs", ranks=2, only=["ema-0-workers"])
    assert not figures.faults, "\n".join(figures.faults)
    assert figures.kills == 3
    assert figures.finished == figures.identical


@pytest.mark.exhaustive
def test_killed_runs_of_two_ranks_are_bit_identical(seed: int, cases: int | None, tmp_path: Path) -> None:
    figures = prove(cases or 6, seed, tmp_path / "runs", ranks=2)
    assert not figures.faults, "\n".join(figures.faults)
    assert figures.kills == (cases or 6)
    assert figures.finished == figures.identical


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

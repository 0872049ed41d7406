"""The Ray engine: the same figures as on one machine. Skipped where ray is not installed."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from small_study import write
from tiny import ENVIRONMENT, PROGRAM

from selkern.cli import main

HAS_RAY = importlib.util.find_spec("ray") is not None


def carry_out(file: Path, folder: Path, *words: str) -> dict[str, Any]:
    folders = ["--output", str(folder / "runs"), "--results", str(folder / "results")]
    path = os.pathsep.join([ENVIRONMENT["PYTHONPATH"], os.environ.get("PYTHONPATH", "")])  # where ray may lie
    environment = {**ENVIRONMENT, "PYTHONPATH": path}
    done = subprocess.run([*PROGRAM, "study", str(file), *folders, *words], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    results: dict[str, Any] = json.loads((folder / "results" / f"{file.stem}.json").read_text())
    return results


@pytest.mark.exhaustive
@pytest.mark.skipif(not HAS_RAY, reason='needs ray: pip install "selkern[ray]"')
def test_a_cluster_gives_the_same_results(tmp_path: Path) -> None:
    file = write(tmp_path, ("seeds: 2", "seeds: 1"))
    alone = carry_out(file, tmp_path / "alone")
    cluster = carry_out(file, tmp_path / "cluster", "--engine", "ray")
    assert {**cluster, "circumstances": 0} == {**alone, "circumstances": 0}


@pytest.mark.skipif(HAS_RAY, reason="ray is installed")
def test_without_ray_the_error_says_what_to_install(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ["--output", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    assert main(["study", str(write(tmp_path)), *folders, "--engine", "ray"]) == 1
    assert 'error: ray is missing | --engine ray | pip install "selkern[ray]"' in capsys.readouterr().err

"""One job trains a run at a time; the lock ends with its process, however that ends, and workers do not keep it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny import ENVIRONMENT, make_options, train

from selkern import cli
from selkern.errors import ResourceError
from selkern.train.distributed import Ranks
from selkern.train.run_folder import FILE, RunFolder, locked

pytestmark = [
    pytest.mark.skipif(sys.platform == "win32", reason="no such locks there"),
    pytest.mark.usefixtures("tiny_networks"),
]
ALONE = Ranks(0, 1, torch.device("cpu"))
# Holds the lock as `locked` does, says so, and forks a child, as a loader does, that outlives it until stdin ends.
HOLDER = """
import fcntl, os, sys
handle = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
os.write(handle, b"process %d on here" % os.getpid())
child = os.fork()
if child:
    print(child, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(make_options(data, tmp_path_factory.mktemp("runs"), model="sk_tiny", epochs=1, batch_size=14))


@pytest.fixture
def holder(run: RunFolder) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the lock."""
    words = [sys.executable, "-c", HOLDER, str(run.path / FILE)]
    with subprocess.Popen(words, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline()
        yield process
        process.stdin.close()


def test_a_run_that_is_being_trained_is_not_resumed_but_evaluated(
    run: RunFolder, data: Path, holder: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run.path / "config.yaml").read_bytes()
    assert cli.main(["train", "--resume", str(run.path), "--epochs", "3", "--extend", "rescale"]) == 5
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith(f"error: this run is being trained by process {holder.pid} on here | {run.path} | ")
    assert (run.path / "config.yaml").read_bytes() == before
    assert cli.main(["evaluate", str(run.path), "--json"]) == 0
    assert cli.main(["predict", str(run.path), str(data / "cat" / "000.png"), "--json"]) == 0


def test_a_kill_frees_it_at_once_although_a_forked_worker_lives(run: RunFolder, holder: subprocess.Popen[str]) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with locked(run.path, ALONE, pytest.fail):
        assert (run.path / FILE).read_text().startswith(f"process {os.getpid()} on ")


def test_it_is_free_after_the_block(run: RunFolder, tmp_path: Path) -> None:
    for _ in range(2):
        with locked(run.path, ALONE, pytest.fail):
            pass
    with pytest.raises(ResourceError, match="cannot write"), locked(tmp_path / "nowhere", ALONE, pytest.fail):
        pytest.fail("there is nothing to hold")


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    said: list[str] = []
    with locked(tmp_path, ALONE, said.append):
        assert said == [
            f"warning: no lock on {tmp_path} (No locks available): see that no other process trains this run"
        ]


def test_all_ranks_end_where_the_main_one_finds_it_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ranks, "from_main", lambda _self, _mine: "process 7 on there")
    with pytest.raises(ResourceError, match="process 7 on there"), locked(tmp_path, Ranks(1, 2, ALONE.device), print):
        pytest.fail("a rank went on")

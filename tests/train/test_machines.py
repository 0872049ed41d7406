"""Several machines: the bits of one, after kills too; machines that come and go; each reads its part and one writes."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from machines import WATCH, Machine, cable, missing, wait
from numpy.typing import NDArray
from tiny import ENVIRONMENT, SOURCE, assert_same, draw, make_folder, order_of, rows

from selkern.data.order import TrainOrder
from selkern.data.sources import open_source
from selkern.train.run_folder import RunFolder

EPOCHS, STEPS, BATCH = 12, 5, 8
LONG = 40  # epochs, of which some are one process's alone

pytestmark = [pytest.mark.exhaustive, pytest.mark.skipif(bool(why := missing()), reason=why or "here it can be")]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images to train on and 7 to validate, which two ranks cannot share evenly."""
    root = tmp_path_factory.mktemp("data")
    make_folder(root / "train", images=20)
    for number in range(7):
        draw(root / "val" / ("cat" if number < 4 else "dog") / f"{number}.png", number % 3, 50 + number)
    return root


@pytest.fixture
def two() -> Iterator[tuple[Machine, Machine]]:
    """Two machines and the cable between them."""
    with cable() as machines:
        yield machines


def words_of(data: Path, output: Path, *more: str) -> list[str]:
    """What `selkern train` is asked to do."""
    words = ["--data", str(data), "--output", str(output), "--name", "run", "--device", "cpu", "--no-report"]
    words += ["--epochs", str(EPOCHS), "--batch-size", str(BATCH), "--image-size", "16", "--ema", "0.5"]
    return [*words, "--save-steps", "2", "--log-order", *more]


@pytest.fixture(scope="module")
def reference(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Two processes of one machine, which nobody disturbs."""
    output = tmp_path_factory.mktemp("reference")
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    start += ["-m", "selkern.cli", "train", *words_of(data, output)]
    done = subprocess.run(start, env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return RunFolder(output / "run")


def batches(run: RunFolder) -> dict[tuple[int, int], list[int]]:
    """The images of every step, of all ranks together."""
    table: NDArray[np.int64] = np.concatenate([order_of(file) for file in sorted(run.path.glob("order.rank*.csv"))])
    steps = {(int(epoch), int(step)) for epoch, step in table[:, :2]}
    return {at: sorted(table[(table[:, 0] == at[0]) & (table[:, 1] == at[1]), 2].tolist()) for at in sorted(steps)}


def epochs_done(run: RunFolder) -> int:
    return len(run.metrics.read_text().splitlines()) - 1 if run.metrics.is_file() else 0


def errors_in(said: Path) -> list[str]:
    """The lines of ours that are errors."""
    text = said.read_text()
    assert "selkern/cli/program.py" not in text, text  # no traceback of ours; torchrun's own end has one
    return [line for line in text.splitlines() if line.startswith("error: ")]


def test_two_machines_compute_what_two_processes_of_one_do(
    data: Path, two: tuple[Machine, Machine], reference: RunFolder, tmp_path: Path
) -> None:
    """And each process reads the images of its own part alone; what is written, rank 0 writes."""
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    watch = {"WATCH_OUT": str(tmp_path / "watch"), "WATCH_DATA": str(data), "WATCH_RUNS": str(tmp_path / "runs")}
    watch["PYTHONPATH"] = f"{tmp_path / 'watch'}:{SOURCE}"
    words = words_of(data, tmp_path / "runs")
    starts = [machine.start(two[0], words, tmp_path / machine.name, watch=watch) for machine in two]
    assert [start.wait(120) for start in starts] == [0, 0], (tmp_path / two[0].name).read_text()
    run = RunFolder(tmp_path / "runs" / "run")
    assert_same(run, reference)
    train = open_source(str(data)).train
    for rank in range(2):
        order = order_of(run.path / f"order.rank{rank}.csv")
        assert (order == order_of(reference.path / f"order.rank{rank}.csv")).all()
        seen = [line.split(" ", 1) for line in (tmp_path / "watch" / f"rank{rank}.txt").read_text().splitlines()]
        opened = Counter(path for phase, path in seen if phase == "train")
        assert opened == Counter(train.where(index) for index in order[:, 2].tolist())
        assert sum(opened.values()) == EPOCHS * STEPS * BATCH // 2
        assert len([path for phase, path in seen if phase == "val"]) == EPOCHS * (4 - rank)
        if rank:
            assert {path for phase, path in seen if phase == "write"} == {str(run.path / f"order.rank{rank}.csv")}


@pytest.mark.share(2)
@pytest.mark.parametrize("rank", [1, 0])
def test_a_machine_is_killed_and_comes_back(
    rank: int, data: Path, two: tuple[Machine, Machine], reference: RunFolder, tmp_path: Path
) -> None:
    """torchrun and the process of one machine; the other's torchrun waits for it, and both go on from the state.

    Args:
        rank: of the process that is killed; 0 is the one that writes. Ranks follow the addresses.
    """
    second, first = two[rank], two[1 - rank]
    run, words = RunFolder(tmp_path / "runs" / "run"), words_of(data, tmp_path / "runs")
    waiting = first.start(first, words, tmp_path / "first")
    second.start(first, words, tmp_path / "second")
    wait(lambda: epochs_done(run) >= 4)
    second.kill()
    again = second.start(first, words, tmp_path / "second")
    assert [waiting.wait(120), again.wait(60)] == [0, 0], (tmp_path / "first").read_text()
    (error,) = errors_in(tmp_path / "first")
    assert error.startswith("error: another process of this run is gone (")
    assert [path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()] == ["run"]
    assert (tmp_path / ("first" if rank else "second")).read_text().count("resuming ") == 1, "rank 0 says so"
    assert_same(run, reference)
    assert batches(run) == batches(reference)


@pytest.mark.share(0)
def test_machines_come_and_go(data: Path, two: tuple[Machine, Machine], tmp_path: Path) -> None:
    """Two, one, two: one process's images are in the steps, each once; when one comes, no step is lost."""
    first, second = two
    run, words = RunFolder(tmp_path / "runs" / "run"), words_of(data, tmp_path / "runs", "--epochs", str(LONG))
    staying = first.start(first, words, tmp_path / "first", nodes="1:2")
    second.start(first, words, tmp_path / "second", nodes="1:2")
    wait(lambda: epochs_done(run) >= 3)
    second.kill()
    wait(lambda: "resuming " in (tmp_path / "first").read_text())
    again = second.start(first, words, tmp_path / "second", nodes="1:2")
    assert [staying.wait(120), again.wait(60)] == [0, 0], (tmp_path / "first").read_text()
    said = (tmp_path / "first").read_text()
    assert said.count("resuming ") == 2, said
    assert said.count("state saved; continue with") == 1, "asked to stop, the one that stays saves"
    assert [path.name for path in (tmp_path / "runs").iterdir() if path.is_dir()] == ["run"]
    order, seen = TrainOrder(40, BATCH, 0), batches(run)
    for epoch in range(LONG):
        order.seek(epoch)
        for step, batch in enumerate(order):
            assert seen[epoch, step] == sorted(index for _, index in batch)
    shares = [np.unique(order_of(run.path / f"order.rank{rank}.csv")[:, :2], axis=0) for rank in range(2)]
    assert len(shares[0]) == LONG * STEPS > len(shares[1]), "some steps were one process's alone"
    assert [row["epoch"] for row in rows(run)] == list(range(1, LONG + 1))


def test_a_machine_that_does_not_see_the_runs_folder_is_told(
    data: Path, two: tuple[Machine, Machine], tmp_path: Path
) -> None:
    first, second = two
    (tmp_path / "runs").mkdir()
    words = words_of(data, tmp_path / "runs")
    starts = [first.start(first, words, tmp_path / "first", restarts=0)]
    starts += [second.start(first, words, tmp_path / "second", restarts=0, hidden=tmp_path / "runs")]
    assert all(start.wait(60) for start in starts)
    for said in ("first", "second"):
        (error,) = errors_in(tmp_path / said)
        assert error.startswith("error: process 1 on ")
        assert f" does not see the folder of the run | {tmp_path / 'runs'} | give an --output " in error
        assert "exitcode: 5" in (tmp_path / said).read_text() or "exitcode  : 5" in (tmp_path / said).read_text()
    assert not list((tmp_path / "runs").iterdir()), "nothing was begun"


def test_a_run_goes_on_only_where_all_machines_see_it(
    two: tuple[Machine, Machine], reference: RunFolder, tmp_path: Path
) -> None:
    first, second = two
    before = {path: path.read_bytes() for path in reference.path.rglob("*") if path.is_file()}
    words = ["--resume", str(reference.path), "--device", "cpu", "--epochs", "20", "--extend", "keep"]
    starts = [first.start(first, words, tmp_path / "first", restarts=0)]
    starts += [second.start(first, words, tmp_path / "second", restarts=0, hidden=reference.path.parent)]
    assert all(start.wait(60) for start in starts)
    for said in ("first", "second"):
        (error,) = errors_in(tmp_path / said)
        assert f" does not see the folder of the run | {reference.path} | " in error
    assert before == {path: path.read_bytes() for path in reference.path.rglob("*") if path.is_file()}


def test_other_options_on_one_machine_are_told(data: Path, two: tuple[Machine, Machine], tmp_path: Path) -> None:
    first, second = two
    starts = [first.start(first, words_of(data, tmp_path / "runs"), tmp_path / "first", restarts=0)]
    words = words_of(data, tmp_path / "runs", "--lr", "0.5")
    starts += [second.start(first, words, tmp_path / "second", restarts=0)]
    assert all(start.wait(60) for start in starts)
    for said in ("first", "second"):
        (error,) = errors_in(tmp_path / said)
        assert error.startswith("error: process 1 has 0.5, process 0 ")
        assert error.endswith(" | --lr | start the same command on every machine")
    assert not list((tmp_path / "runs").iterdir()), "nothing was begun"


@pytest.mark.share(0)
def test_a_cable_that_is_pulled_out_ends_both_within_the_timeout(
    data: Path, two: tuple[Machine, Machine], tmp_path: Path
) -> None:
    first, second = two
    words = words_of(data, tmp_path / "runs", "--timeout-minutes", "0.1", "--epochs", "1000")
    starts = [machine.start(first, words, tmp_path / machine.name, restarts=0) for machine in two]
    wait(lambda: epochs_done(RunFolder(tmp_path / "runs" / "run")) >= 2)
    second.cut()
    assert starts[0].wait(40)
    (error,) = errors_in(tmp_path / first.name)
    assert error.startswith("error: another process of this run is gone (")
    assert "exitcode: 5" in (tmp_path / first.name).read_text()
    # The other's process ends likewise; its torchrun, which cannot reach the first one, ends when its system gives up.
    wait(lambda: len(errors_in(tmp_path / second.name)) == 1, 40)
    assert errors_in(tmp_path / second.name)[0].startswith("error: another process of this run is gone (")

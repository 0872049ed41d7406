"""Ways to go on: after damage, with more epochs, on another number of processes, started again by torchrun."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import (
    BUSY_ADAMW,
    BUSY_SGD,
    ENVIRONMENT,
    PROGRAM,
    assert_same,
    bits,
    everything,
    make_options,
    order_of,
    resume,
    rows,
    signal_at,
    train,
)

from selkern import cli
from selkern.errors import CheckpointError, Interrupted, ResourceError, UsageError
from selkern.train import run as job
from selkern.train.loop import Training
from selkern.train.recipe import Recipe
from selkern.train.run_folder import RunFolder
from selkern.train.state import pointed_to

pytestmark = pytest.mark.usefixtures("tiny_networks")
STEPS = 3  # of an epoch


def stop_at(step: int, options: Any) -> RunFolder:
    """A run that was asked to stop in a step, counted from 1."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        signal_at(patch, [step])
        train(options)
    return RunFolder(Path(options.output) / options.name)


def test_a_damaged_state_is_told_and_the_one_before_gone_on_from(data: Path, tmp_path: Path) -> None:
    options = make_options(data, tmp_path, BUSY_SGD, model="sk_tiny", name="run", save_steps=1)
    run = stop_at(STEPS + 2, options)
    newest = run.state / pointed_to(run.state)
    file = newest / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-7] + b"\0" * 7)
    resume(run)
    shown = [line for line in run.log.read_text().splitlines() if "warning" in line]
    assert len(shown) == 1
    assert f"{file}: differs from what was written; going on from step-00000{STEPS + 1}" in shown[0]
    assert_same(run, train(replace(options, name="unbroken")))


@pytest.mark.parametrize("every", [1, 2, 5])
def test_states_are_saved_by_steps(every: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    write = Training._write

    def note(self: Training, *args: Any) -> None:
        write(self, *args)
        saved.append(self.epoch * STEPS + self.step)

    monkeypatch.setattr(Training, "_write", note)
    train(make_options(data, tmp_path, BUSY_SGD, model="sk_tiny", save_steps=every))
    assert sorted(set(saved)) == sorted({STEPS, 2 * STEPS, *range(every, 2 * STEPS + 1, every)})


def test_the_order_file_repeats_nothing_after_a_crash(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(BaseException):
        pass

    original = Training._train_step

    def step(self: Training, batch: Any) -> None:
        original(self, batch)
        if (self.epoch, self.step) == (1, 1):
            raise Crash

    options = make_options(data, tmp_path, BUSY_SGD, model="sk_tiny", name="run", log_order=True)
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(Training, "_train_step", step)
        train(options)
    run = RunFolder(tmp_path / "run")
    assert len(order_of(run.path / "order.rank0.csv")) == 5 * 8
    resume(run)
    whole = train(replace(options, name="unbroken"))
    assert (order_of(run.path / "order.rank0.csv") == order_of(whole.path / "order.rank0.csv")).all()


def test_a_stop_in_the_validation_keeps_the_epoch(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal comes between two of its batches; no step is done again."""
    validate, steps = Training._validate, [0]
    step = Training._train_step

    def stopped(self: Training, between: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return validate(self, between)

    def counted(self: Training, batch: Any) -> None:
        step(self, batch)
        steps[0] += 1

    options = make_options(data, tmp_path, BUSY_ADAMW, model="sk_tiny", name="run")
    monkeypatch.setattr(Training, "_train_step", counted)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Training, "_validate", stopped)
        train(options)
    run = RunFolder(tmp_path / "run")
    assert rows(run) == []
    assert pointed_to(run.state) == f"step-00000{STEPS}"
    resume(run)
    assert steps[0] == 2 * STEPS
    assert_same(run, train(replace(options, name="unbroken")))


def test_more_epochs_need_a_choice(data: Path, tmp_path: Path) -> None:
    run = train(make_options(data, tmp_path, BUSY_SGD, model="sk_tiny"))
    with pytest.raises(CheckpointError, match="this run is finished"):
        resume(run)
    with pytest.raises(UsageError, match=r"3 epochs where 2 were planned \| --epochs \| .*--extend keep or"):
        job.resume(run, "cpu", epochs=3)
    cosine = train(make_options(data, tmp_path, BUSY_ADAMW, model="sk_tiny"))
    with pytest.raises(UsageError, match=r"ends at 0 after 2 epochs \| --extend keep \| take --extend rescale"):
        job.resume(cosine, "cpu", epochs=3, extend="keep")


def test_a_kept_schedule_is_the_longer_run_from_the_start(data: Path, tmp_path: Path) -> None:
    run = train(make_options(data, tmp_path, BUSY_SGD, model="sk_tiny", name="run"))
    job.resume(run, "cpu", epochs=3, extend="keep")
    longer = make_options(data, tmp_path, replace(BUSY_SGD, epochs=3), model="sk_tiny", name="longer")
    assert_same(run, train(longer))
    with pytest.raises(CheckpointError, match="this run is finished"):  # the new number is the run's own
        resume(run)


def test_a_stretched_schedule(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = stop_at(2, make_options(data, tmp_path, BUSY_ADAMW, model="sk_tiny", name="run"))
    words = ["train", "--resume", str(run.path), "--device", "cpu", "--epochs", "4"]
    assert cli.main(words) == 2
    assert cli.main([*words, "--extend", "rescale"]) == 0
    assert len(run.read_metrics()) == 4
    longer = replace(BUSY_ADAMW, epochs=4)
    assert [row["lr"] for row in run.read_metrics()] == pytest.approx(
        [longer.lr_at(STEPS * n - 1, STEPS) for n in range(1, 5)]
    )
    capsys.readouterr()


def test_milestones_stretch_with_the_schedule() -> None:
    recipe = Recipe(epochs=100, schedule="steps", milestones=(30, 60, 90))
    stretched = recipe.extended(200, "rescale")
    assert (stretched.epochs, stretched.milestones) == (200, (60, 120, 180))
    kept = recipe.extended(120, "keep")
    assert (kept.epochs, kept.milestones, kept.schedule_epochs) == (120, (30, 60, 90), 100)
    shorter = Recipe(epochs=10).extended(5, "keep")
    assert shorter.lr_at(40, 10) == Recipe(epochs=10).lr_at(40, 10)


@pytest.mark.exhaustive
def test_a_report_that_a_kill_prevented_is_made_later(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("selkern.report.analyze.analyze", killed)
        train(make_options(data, tmp_path, BUSY_SGD, model="sk_tiny", name="run", report=True))
    run = RunFolder(tmp_path / "run")
    before = everything(run)
    resume(run)
    assert run.report.is_file()
    assert everything(run) == before
    with pytest.raises(CheckpointError, match="this run is finished"):
        resume(run)


def test_a_disk_without_room_is_told_before_the_first_step(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000))
    with pytest.raises(ResourceError, match=r"0 MiB are free, \d+ are needed"):
        train(make_options(data, tmp_path, BUSY_SGD, model="sk_tiny", name="run"))


FLAGS = "--epochs 3 --batch-size 8 --image-size 16 --ema 0.5 --accumulate 2 --no-report --log-order --save-steps 1"


def ranks(data: Path, output: Path, number: int, words: Sequence[str], *launch: str) -> subprocess.Popen[str]:
    """`selkern train` under torchrun, with several processes."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(number), *launch]
    start += ["-m", "selkern.cli", "train", "--device", "cpu", *words]
    if "--resume" not in words:
        start += ["--data", str(data), "--output", str(output), *FLAGS.split()]
    return subprocess.Popen(
        start, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(program: subprocess.Popen[str]) -> str:
    try:
        said, _ = program.communicate(timeout=150)
    finally:
        if program.poll() is None:
            os.killpg(program.pid, signal.SIGKILL)
    return said


def children(parent: int) -> list[int]:
    result = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                result.append(int(folder.name))
        except (OSError, ValueError):
            continue
    return sorted(result)


def kill_a_rank(program: subprocess.Popen[str], run: RunFolder) -> None:
    """SIGKILL to the second process, in the middle of the run."""
    end = time.monotonic() + 90
    while not (run.has_state and pointed_to(run.state) >= "step-000002"):
        assert program.poll() is None
        assert time.monotonic() < end
        time.sleep(0.005)
    os.kill(children(program.pid)[1], signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="finds the ranks in /proc")
@pytest.mark.exhaustive
def test_a_dead_rank_ends_the_job_and_torchrun_or_resume_continues_it(data: Path, tmp_path: Path) -> None:
    """Three jobs of two ranks side by side: unbroken, started again by torchrun, and continued on one rank."""
    unbroken = ranks(data, tmp_path, 2, ["--name", "unbroken"])
    said = finish(unbroken)
    assert unbroken.returncode == 0, said
    again = ranks(data, tmp_path / "again", 2, ["--name", "run"], "--max-restarts", "2")
    run = RunFolder(tmp_path / "again" / "run")
    kill_a_rank(again, run)
    said = finish(again)
    assert again.returncode == 0, said
    assert "resuming" in said
    made = [path.name for path in (tmp_path / "again").iterdir() if path.is_dir()]
    assert made == ["run"], "a restart made a new run"
    whole = RunFolder(tmp_path / "unbroken")
    assert_same(run, whole)

    lost = ranks(data, tmp_path / "lost", 2, ["--name", "run"])
    run = RunFolder(tmp_path / "lost" / "run")
    kill_a_rank(lost, run)
    killed = time.monotonic()
    said = finish(lost)
    assert lost.returncode != 0
    assert time.monotonic() - killed < 60
    ours = [line for line in said.splitlines() if re.match(r"error: ", line)]
    assert all("another process of this run is gone" in line for line in ours), said
    # One process, two workers: the same images in the same steps, though sums and statistics differ in their last bits.
    program = subprocess.run(
        [*PROGRAM, "train", "--resume", str(run.path), "--device", "cpu", "--workers", "2"],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert program.returncode == 0, program.stderr
    assert len(rows(run)) == len(rows(whole)) == 3
    assert merged_order(run) == merged_order(whole)
    assert bits(run.last).keys() == bits(whole.last).keys()


def merged_order(run: RunFolder) -> list[tuple[int, int, int]]:
    """Every sample that was trained on: epoch, step, number, over all ranks."""
    return sorted(tuple(row) for file in run.path.glob("order.rank*.csv") for row in order_of(file).tolist())

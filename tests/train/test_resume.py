"""A run that was stopped or killed and goes on equals, bit for bit, the run that never stopped."""

from __future__ import annotations

import multiprocessing
import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
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
    signal_at,
    train,
)

from selkern import cli, evaluation
from selkern.errors import CheckpointError, Interrupted
from selkern.train import loop, run_folder
from selkern.train.recipe import Recipe
from selkern.train.run_folder import RunFolder
from selkern.train.state import pointed_to
from selkern.train.stop import StopRequest

RECIPES = {"sgd": BUSY_SGD, "adamw": BUSY_ADAMW}
STEPS = 3  # of an epoch


pytestmark = pytest.mark.usefixtures("tiny_networks")


@pytest.fixture(scope="module")
def unbroken(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """One run per recipe that nobody stopped, without workers."""
    torch.set_num_threads(1)
    output = tmp_path_factory.mktemp("unbroken")
    return {
        k: train(make_options(data, output, r, model="sk_tiny", name=k, log_order=True)) for k, r in RECIPES.items()
    }


FOUR = [2, STEPS, STEPS + 2, 2 * STEPS]  # the last of them ends the last epoch


@pytest.mark.parametrize(
    ("name", "stops", "workers"),
    [("sgd", [2], 2), ("adamw", [2], 0), ("sgd", [3], 0), ("adamw", [3], 2), ("sgd", FOUR, 0), ("adamw", FOUR, 2)],
    ids=str,
)
def test_stopped_and_resumed_is_the_unbroken_run(
    name: str,
    stops: list[int],
    workers: int,
    data: Path,
    unbroken: dict[str, RunFolder],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signal_at(monkeypatch, stops)
    options = make_options(data, tmp_path, RECIPES[name], model="sk_tiny", name="run", workers=workers, log_order=True)
    with pytest.raises(Interrupted) as stop:
        train(options)
    assert stop.value.exit_code == 128 + signal.SIGINT
    assert not multiprocessing.active_children(), "workers outlive the run that they read for"
    run = RunFolder(tmp_path / "run")
    for _ in stops[1:]:
        with pytest.raises(Interrupted):
            resume(run)
    resume(run)
    assert_same(run, unbroken[name])
    assert (order_of(run.path / "order.rank0.csv") == order_of(unbroken[name].path / "order.rank0.csv")).all()


def test_stopped_during_validation_is_the_unbroken_run(
    data: Path, unbroken: dict[str, RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, pending = evaluation.evaluate, [signal.SIGTERM]

    def evaluate(*args: Any, **named: Any) -> Any:
        if pending:
            os.kill(os.getpid(), pending.pop())
        return original(*args, **named)

    monkeypatch.setattr("selkern.train.loop.evaluate", evaluate)
    with pytest.raises(Interrupted) as stop:
        train(make_options(data, tmp_path, BUSY_SGD, model="sk_tiny", name="run"))
    assert stop.value.exit_code == 143
    assert_same(resume(RunFolder(tmp_path / "run")), unbroken["sgd"])


@pytest.mark.parametrize("moment", ["step 2", "step 5", "step 6", "weights kept", "metrics written", "state staged"])
def test_a_crash_at_any_moment_loses_nothing(
    moment: str, data: Path, unbroken: dict[str, RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As SIGKILL does, the crash skips every clean-up; states are saved after each step."""

    class Crash(BaseException):
        pass

    steps = [0]

    def crash_after(owner: Any, function: str, condition: Any) -> None:
        original = getattr(owner, function)

        def wrapped(*args: Any, **named: Any) -> Any:
            result = original(*args, **named)
            if condition():
                raise Crash
            return result

        monkeypatch.setattr(owner, function, wrapped)

    def counted() -> bool:
        steps[0] += 1
        return moment == f"step {steps[0]}"

    crash_after(loop.Training, "_train_step", counted)
    crash_after(run_folder, "save_weights", lambda: moment == "weights kept" and steps[0] == STEPS)
    crash_after(RunFolder, "write_metrics", lambda: moment == "metrics written" and steps[0] == STEPS)
    if moment == "state staged":
        from selkern.train import state

        crash_after(state, "sync_folder", lambda: steps[0] == STEPS)  # renamed, but LAST points to the one before
    with pytest.raises(Crash):
        train(make_options(data, tmp_path, BUSY_SGD, model="sk_tiny", name="run", save_minutes=1e-9))
    monkeypatch.undo()
    assert_same(resume(RunFolder(tmp_path / "run")), unbroken["sgd"])


def test_a_run_killed_before_its_first_state_starts_again(
    data: Path, unbroken: dict[str, RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: Any) -> None:
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(loop.Training, "_train_step", crash)
        train(make_options(data, tmp_path, BUSY_SGD, model="sk_tiny", name="run"))
    assert_same(resume(RunFolder(tmp_path / "run")), unbroken["sgd"])


@pytest.mark.parametrize(
    "signum",
    [*(pytest.param(s, marks=pytest.mark.exhaustive) for s in (signal.SIGINT, signal.SIGTERM)), signal.SIGKILL],
    ids=lambda s: s.name,
)
def test_a_real_program_stopped_by_a_signal_goes_on(
    signum: signal.Signals, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Signals go to the whole group with its two workers, as Ctrl+C in a terminal and the end of a cluster's job do."""
    workers = 0 if signum == signal.SIGKILL else 2
    recipe = Recipe(epochs=6, batch_size=8, image_size=16, ema=0.9)
    flags = f"--epochs 6 --batch-size 8 --image-size 16 --ema 0.9 --workers {workers} --save-minutes 1e-9 --no-report"
    output = tmp_path / "my runs"
    words = [*PROGRAM, "train", "--recipe", "digits", "--data", str(data), "--output", str(output), "--name", "run"]
    words += [*flags.split(), "--lr", str(recipe.lr), "--warmup", "0", "--label-smoothing", "0", "--device", "cpu"]
    program = subprocess.Popen(
        words, env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        run = RunFolder(output / "run")
        wait_for(lambda: run.has_state and pointed_to(run.state) > "step-000002", program)
        os.killpg(program.pid, signum)
        _, said = program.communicate(timeout=30)
    finally:
        if program.poll() is None:
            os.killpg(program.pid, signal.SIGKILL)
    assert "Traceback" not in said
    assert "error" not in said
    if signum != signal.SIGKILL:
        assert program.returncode == 128 + signum
        last = said.strip().splitlines()[-1]
        assert last.startswith("state saved; continue with: selkern train --resume ")
        words = shlex.split(last.partition(": selkern ")[2])
    else:
        assert program.returncode == -signal.SIGKILL
        words = ["train", "--resume", str(run.path)]
    assert len(run.read_metrics()) < recipe.epochs, "the signal came too late to prove anything"

    assert cli.main([*words, "--workers", "0", "--device", "cpu"]) == 0
    resumed_at = re.search(r"resuming .* at epoch (\d+), step (\d+)", capsys.readouterr().err)
    assert resumed_at
    assert (int(resumed_at[1]) - 1) * STEPS + int(resumed_at[2]) > 3, "it did not go on from the saved state"
    assert_same(run, train(make_options(data, tmp_path / "unbroken", recipe, name="run")))


def wait_for(ready: Any, program: subprocess.Popen[str], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert program.poll() is None, program.communicate()[1]
        assert time.monotonic() < end, "the program did not get there"
        time.sleep(0.01)


def test_workers_cannot_change_a_result(data: Path, unbroken: dict[str, RunFolder], tmp_path: Path) -> None:
    assert_same(train(make_options(data, tmp_path, BUSY_ADAMW, model="sk_tiny", workers=2)), unbroken["adamw"])


def test_the_seed_changes_the_result(data: Path, unbroken: dict[str, RunFolder], tmp_path: Path) -> None:
    other = train(make_options(data, tmp_path, BUSY_SGD, model="sk_tiny", seed=1))
    assert bits(other.last) != bits(unbroken["sgd"].last)


@pytest.mark.parametrize("changed", ["one bit of the weights", "a metric"])
def test_the_comparison_of_runs_can_fail(
    changed: str, unbroken: dict[str, RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = everything(unbroken["sgd"])
    if changed == "a metric":
        other = {**whole, "rows": [{**whole["rows"][0], "val_top1": 2.0}, *whole["rows"][1:]]}
    else:
        name, (kind, data) = next(iter(whole["optimizer.safetensors"].items()))
        flipped = {**whole["optimizer.safetensors"], name: (kind, bytes([data[0] ^ 1]) + data[1:])}
        other = {**whole, "optimizer.safetensors": flipped}
    results = [whole, other]
    monkeypatch.setattr("tiny.everything", lambda _run: results.pop())
    with pytest.raises(AssertionError):
        assert_same(unbroken["sgd"], unbroken["sgd"])


def test_a_finished_run_is_not_resumed(unbroken: dict[str, RunFolder]) -> None:
    before = everything(unbroken["sgd"])
    with pytest.raises(CheckpointError, match="finished"):
        resume(unbroken["sgd"])
    assert everything(unbroken["sgd"]) == before


def test_a_state_of_another_model_is_refused_in_one_line(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal_at(monkeypatch, [1])
    with pytest.raises(Interrupted):
        train(make_options(data, tmp_path, model="sk_tiny", name="run"))
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("sk_tiny", "plain_tiny"))
    with pytest.raises(CheckpointError, match="does not fit the model") as error:
        resume(RunFolder(config.parent))
    assert "\n" not in str(error.value)


def test_signals_act_as_before_once_the_block_is_left() -> None:
    before = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)]
    with StopRequest() as stop:
        assert signal.getsignal(signal.SIGTERM) == stop._note
    assert [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)] == before


def test_the_second_signal_acts_at_once() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.signum == signal.SIGINT
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)

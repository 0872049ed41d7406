"""The number of threads of a run: measured or given, kept with it, and no more than what rounds its sums."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import BUSY_SGD, bits, make_options, resume, signal_at, train

from selkern import cli, tuning
from selkern.errors import Interrupted
from selkern.train.options import TrainOptions, read_options
from selkern.train.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("tiny_networks")


@pytest.fixture(autouse=True)
def _nothing_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (tuning.SWITCH, "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    torch.set_num_threads(2)


def command(data: Path, output: Path, name: str, *more: str) -> RunFolder:
    words = ["--data", str(data), "--model", "sk_tiny", "--recipe", "digits", "--epochs", "1", "--no-report"]
    assert cli.main(["train", *words, "--batch-size", "8", "--output", str(output), "--name", name, *more]) == 0
    return RunFolder(output / name)


def test_a_measured_training_equals_one_with_the_same_threads_given(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "_WORTH", 0.0)
        patch.setattr(tuning, "_LONGEST", 60.0)
        patch.setattr(tuning, "_BUDGET", 0.01)
        measured = command(data, tmp_path, "measured")
    said = capsys.readouterr().err
    count = read_options(measured.path).threads
    assert count in (1, 2)
    assert "by measurement" in said
    assert "by measurement" in measured.log.read_text()
    given = command(data, tmp_path, "given", "--threads", str(count))
    assert "by measurement" not in capsys.readouterr().err
    assert read_options(given.path).threads == count
    assert bits(measured.last) == bits(given.last)


def test_a_small_training_measures_nothing_and_keeps_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = command(data, tmp_path, "small")
    assert "by measurement" not in capsys.readouterr().err
    assert "threads" not in (run.path / "config.yaml").read_text()


@pytest.mark.parametrize(("environment", "given", "count"), [("", None, 2), ("1", None, 1), ("", 1, 1)])
def test_a_resumed_run_has_its_threads_unless_others_are_given(
    environment: str, given: int | None, count: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = make_options(data, tmp_path, BUSY_SGD, model="sk_tiny", name="run", threads=2)
    with monkeypatch.context() as patch:
        signal_at(patch, [3])
        with pytest.raises(Interrupted):
            train(options)
    torch.set_num_threads(1)
    if environment:
        monkeypatch.setenv("OMP_NUM_THREADS", environment)
    run = RunFolder(tmp_path / "run")
    if given is None:
        resume(run)
    else:
        assert cli.main(["train", "--resume", str(run.path), "--threads", str(given)]) == 0
    assert torch.get_num_threads() == count
    assert read_options(run.path).threads == 2


def test_options_of_older_runs_have_no_threads() -> None:
    options = TrainOptions()
    assert "threads" not in options.to_yaml()
    assert TrainOptions.from_yaml(options.to_yaml(), "config.yaml").threads is None
    with_some = TrainOptions(threads=3)
    assert TrainOptions.from_yaml(with_some.to_yaml(), "config.yaml") == with_some


@pytest.mark.parametrize("name", ["evaluate", "analyze", "predict", "train", "train --resume"])
def test_every_command_that_computes_refuses_no_threads(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    rest = ["run"] if name != "train" else []
    assert cli.main([*name.split(), *rest, "--threads", "0"]) == 2
    assert "threads is 0 | --threads | must be from 1 to 1024" in capsys.readouterr().err

"""Numbers that are not finite and memory that ends: found at once, never kept, and survived where that is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import BUSY_ADAMW, BUSY_SGD, assert_same, make_options, resume, rows, train
from torch import Tensor

from selkern import cli
from selkern.data.loader import Batch
from selkern.errors import NumericsError, ResourceError, ran_out_of_memory
from selkern.train.loop import Training
from selkern.train.run_folder import RunFolder
from selkern.train.state import load_state
from selkern.train.step import Stepper

pytestmark = pytest.mark.usefixtures("tiny_networks")
STEPS = 3  # of an epoch


def poison(monkeypatch: pytest.MonkeyPatch, what: str, steps: range) -> None:
    """Make loss, gradient or weights infinite or NaN in some steps, counted from 1 over all that are tried."""
    seen = [0]
    gradients, update = Stepper._gradients, Stepper.step

    def broken_gradients(self: Stepper, batch: Batch) -> Any:
        seen[0] += 1
        losses, right = gradients(self, batch)
        if seen[0] in steps and what == "loss":
            losses[-1] = math.nan
        if seen[0] in steps and what == "gradient":
            list(self.model.parameters())[-1].grad[0] = math.inf
        return losses, right

    def broken_update(self: Stepper, batch: Batch, lr: float, **named: Any) -> None:
        update(self, batch, lr, **named)
        if seen[0] in steps and what in ("weight", "statistic"):
            tensors = self.model.parameters() if what == "weight" else self.model.buffers()
            with torch.no_grad():
                next(iter(tensors)).fill_(math.nan)

    monkeypatch.setattr(Stepper, "_gradients", broken_gradients)
    monkeypatch.setattr(Stepper, "step", broken_update)


@pytest.mark.parametrize(("what", "shown"), [("loss", "the loss is nan"), ("gradient", "the gradient is inf")])
def test_it_is_found_in_its_step_and_the_images_are_named(
    what: str, shown: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, what, range(5, 6))
    run = RunFolder(tmp_path / "run")
    with pytest.raises(NumericsError, match=r"epoch 2, step 2 \| lower --lr") as error:
        train(make_options(data, tmp_path, BUSY_ADAMW, model="sk_tiny", name="run", log_order=True))
    assert str(error.value).startswith(shown)
    assert "\n" not in str(error.value)
    assert str(error.value).count(str(data)) == 2
    said = next(line for line in run.log.read_text().splitlines() if "images of epoch 2, step 2" in line)
    assert said.count(str(data)) == 8


@pytest.mark.parametrize("what", ["weight", "statistic"])
@pytest.mark.parametrize("step", [STEPS + 1, 2 * STEPS], ids=["in an epoch", "at its end"])
def test_what_is_not_finite_is_never_saved(
    what: str, step: int, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, what, range(step, step + 1))
    run = RunFolder(tmp_path / "run")
    with pytest.raises(NumericsError) as error:
        train(make_options(data, tmp_path, BUSY_SGD, model="sk_tiny", name="run", save_steps=1))
    assert "is not finite" in str(error.value)
    result = load_state(run.state)
    assert not result.damaged
    assert result.state.progress["epoch"] * STEPS + result.state.progress["step"] == step - 1
    for file in (run.best, run.last):
        assert all(t.isfinite().all() for t in load_file(file).values())
    assert len(rows(run)) == 1


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_rolled_back_is_the_run_that_passes_the_batch_over(
    what: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        poison(patch, what, range(5, 6))
        options = make_options(data, tmp_path, BUSY_SGD, model="sk_tiny", name="run", on_nan="rollback")
        run = train(options)
    assert "back to epoch 2, step 1, and that batch is passed over" in run.log.read_text()

    original = Training.fit

    def fit(self: Training) -> None:
        self.avoided = [(1, 1)]
        original(self)

    monkeypatch.setattr(Training, "fit", fit)
    assert_same(run, train(make_options(data, tmp_path, BUSY_SGD, model="sk_tiny", name="known")))


def test_a_kill_after_a_rollback_still_passes_the_batch_over(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Crash(BaseException):
        pass

    options = make_options(data, tmp_path, BUSY_SGD, model="sk_tiny", name="whole", on_nan="rollback")
    with monkeypatch.context() as patch:
        poison(patch, "loss", range(2, 3))
        whole = train(options)

    def crash(self: Training, result: Exception) -> None:
        roll_back(self, result)  # type: ignore[arg-type]
        raise Crash

    roll_back = Training._roll_back
    with monkeypatch.context() as patch, pytest.raises(Crash):
        poison(patch, "loss", range(2, 3))
        patch.setattr(Training, "_roll_back", crash)
        train(make_options(data, tmp_path, BUSY_SGD, model="sk_tiny", name="killed", on_nan="rollback"))
    assert_same(resume(RunFolder(tmp_path / "killed")), whole)


def test_rollbacks_end(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, "loss", range(1, 1000))
    with pytest.raises(NumericsError, match="after 5 rollbacks") as error:
        recipe = replace(BUSY_SGD, batch_size=4)
        train(make_options(data, tmp_path, recipe, model="sk_tiny", name="run", on_nan="rollback"))
    assert error.value.exit_code == 6


def test_an_epoch_without_a_single_batch_ends_the_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, "loss", range(1, 1000))
    with pytest.raises(NumericsError, match="every batch of the epoch"):
        train(make_options(data, tmp_path, BUSY_SGD, model="sk_tiny", name="run", on_nan="rollback"))


def small_memory(monkeypatch: pytest.MonkeyPatch, images: int, error: Callable[[], Exception]) -> list[int]:
    """Let memory end in every forward pass with more images than this; the list counts how often it did."""
    original, times = Stepper._part, [0]

    def part(self: Stepper, batch: Batch, which: Tensor) -> Any:
        result = original(self, batch, which)  # BatchNorm has seen the images by then
        if len(which) > images:
            times[0] += 1
            raise error()
        return result

    monkeypatch.setattr(Stepper, "_part", part)
    return times


ERRORS: dict[str, Callable[[], Exception]] = {
    "gpu": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    "cpu": lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8"),
    "python": MemoryError,
}


@pytest.mark.parametrize("kind", ERRORS)
def test_out_of_memory_is_the_run_in_smaller_parts(
    kind: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 images do not fit, 4 do not, 2 do: bit for bit what --accumulate 4 computes, statistics of BatchNorm too."""
    with monkeypatch.context() as patch:
        times = small_memory(patch, 2, ERRORS[kind])
        run = train(make_options(data, tmp_path, BUSY_ADAMW, model="sk_tiny", name="run"))
    assert times == [2], "it was not remembered"
    said = [line for line in run.log.read_text().splitlines() if "out of memory" in line]
    assert ["--accumulate 2" in said[0], "--accumulate 4" in said[1], len(said)] == [True, True, 2]
    parts = make_options(data, tmp_path, replace(BUSY_ADAMW, accumulate=4), model="sk_tiny", name="parts")
    assert_same(run, train(parts))


def test_memory_that_ends_with_two_images_ends_the_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_memory(monkeypatch, 0, MemoryError)
    with pytest.raises(ResourceError, match=r"out of memory with 2 images at once \| .* \| use a smaller") as error:
        train(make_options(data, tmp_path, BUSY_SGD, model="sk_tiny"))
    assert error.value.exit_code == 5


def test_other_errors_are_not_taken_for_memory() -> None:
    assert not ran_out_of_memory(RuntimeError("shape mismatch"))


def test_the_command_line_ends_with_six(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    poison(monkeypatch, "loss", range(2, 3))
    words = f"train --data {data} --model sk_tiny --epochs 1 --batch-size 8 --image-size 16 --device cpu --no-report"
    assert cli.main([*words.split(), "--output", str(tmp_path)]) == 6
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: the loss is nan")
    assert "--on-nan rollback" in last

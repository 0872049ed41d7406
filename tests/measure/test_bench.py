"""`selkern bench`: time and memory of any models, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from shim import timm_or_skip
from torch import nn

from selkern.cli import bench as command
from selkern.cli import main
from selkern.measure.bench import HELD, INFERENCE, TRAINING, bench, forward, in_layouts, loss_of
from selkern.models.registry import create_model

SHORT = ["--image-size", "32", "--batch-size", "1", "2", "--budget", "0.01"]


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """The JSON object of a command line."""
    assert main(["bench", *words, "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_models_are_compared_with_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    result = run(["sknet_mini", "resnet_mini", *SHORT], capsys)
    assert result["inputs"] == {"sknet_mini": [3, 32, 32], "resnet_mini": [3, 32, 32]}
    rows = {(row["quantity"], row["batch_size"], row["model"]): row for row in result["rows"]}
    cases = [(INFERENCE, 1), (INFERENCE, 2), (TRAINING, 2), (HELD, 2)]
    assert list(rows) == [(*case, model) for case in cases for model in ("sknet_mini", "resnet_mini")]
    assert all(row["value"]["median"] > 0 for row in rows.values())
    assert all(row["layout"] in ("NCHW", "channels_last") for row in rows.values() if row["quantity"] != HELD)
    for quantity, batch in cases:
        first, second = (rows[quantity, batch, model] for model in ("sknet_mini", "resnet_mini"))
        assert first["ratio"] is None
        assert second["ratio"]["low"] <= second["ratio"]["median"] <= second["ratio"]["high"]
    held = rows[HELD, 2, "resnet_mini"]
    assert held["ratio"]["median"] == pytest.approx(
        held["value"]["median"] / rows[HELD, 2, "sknet_mini"]["value"]["median"]
    )


def test_without_a_model_sknet50_and_its_plain_twin_are_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from selkern.convert import subject

    assert command.DEFAULT == ("sknet50", "resnext50_32x4d")
    small = {"sknet50": "sknet_mini", "resnext50_32x4d": "resnet_mini"}
    monkeypatch.setattr(subject, "find_subject", lambda name, _: create_model(small[name]))
    assert main(["bench", *SHORT]) == 0
    text = capsys.readouterr().out
    assert "sknet50: input 3 x 32 x 32" in text
    for quantity in (INFERENCE, TRAINING, HELD):
        assert f"{quantity}, batch size 2" in text
    assert text.count("times that of sknet50") == 4


def test_images_have_the_size_that_a_model_is_made_for(capsys: pytest.CaptureFixture[str]) -> None:
    timm_or_skip()
    names = ["sknet_mini.digits", "resnet_mini", "timm:resnet10t"]
    result = run([*names, "--batch-size", "1", "--budget", "0.01"], capsys)
    assert result["inputs"] == dict(zip(names, ([3, 48, 48], [3, 48, 48], [3, 176, 176]), strict=True))


def test_a_module_of_the_users_is_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text("from torch import nn\ndef made(width):\n    return nn.Conv2d(width, 4, 3)\n")
    result = run([f"{tmp_path / 'mine.py'}:made", "--with", "8", *SHORT], capsys)
    (shape,) = result["inputs"].values()
    assert shape == [8, 32, 32]


def test_training_that_fails_leaves_the_times_of_inference() -> None:
    class Fails(nn.Conv2d):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            if self.training:
                raise ValueError("no training\nhere")
            return super().forward(input)

    models = {"fails": Fails(3, 4, 1), "works": nn.Conv2d(3, 4, 1)}
    rows = bench(models, dict.fromkeys(models, torch.ones(1, 3, 4, 4)), (2,), 0.01)
    values = {(row.quantity, row.model): row.value is not None for row in rows}
    assert [key for key, measured in values.items() if not measured] == [(TRAINING, "fails"), (HELD, "fails")]
    assert {row.reason for row in rows if row.value is None} == {"ValueError: no training"}
    assert not any(row.ratio for row in rows if row.quantity != INFERENCE), "the first has no value to compare with"


def test_training_steps_leave_the_weights() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    bench({"model": model}, {"model": torch.ones(1, 3, 4, 4)}, (2,), 0.01)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_parameters())


def test_every_output_counts_in_the_loss() -> None:
    one, two = torch.ones(3), torch.full((2,), 2.0)
    assert loss_of({"a": one, "b": [two, (torch.tensor([7]), None)]}) == 5


def test_layouts_are_of_copies() -> None:
    model, x = nn.Conv2d(3, 4, 1), torch.randn(2, 3, 5, 5)
    jobs = in_layouts(model, x, forward)
    assert list(jobs) == ["NCHW", "channels_last"]
    results = [job() for job in jobs.values()]
    torch.testing.assert_close(results[0], results[1])
    assert list(in_layouts(nn.Linear(3, 4), torch.randn(2, 3), forward)) == [""]


def test_threads_are_those_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads()
    try:
        assert run(["sknet_mini", *SHORT, "--threads", "2"], capsys)["machine"]["threads"] == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--batch-size", "0"], "--batch-size"),
        (["--image-size", "0"], "--image-size"),
        (["--threads", "0"], "--threads"),
        (["--budget", "0"], "--budget"),
        (["layer"], "python benchmarks/run.py layer"),
        (["sknet_mni"], "did you mean sknet_mini"),
    ],
)
def test_mistakes_are_one_line(words: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert part in line

"""`selkern selectify` shows what would change, its cost and its exactness, and changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from selkern.cli import main

CODE = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        first = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()
        last = nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
        super().__init__(*first, *last, nn.Flatten(), nn.Linear(16, 2))
"""


@pytest.fixture
def word(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(CODE)
    return f"{tmp_path / 'mine.py'}:Net"


def test_the_table_has_every_convolution_that_was_asked_for(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selectify", word, "--where", "0, 3", "--image-size", "16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{word} on (2, 3, 16, 16)"
    assert [line.split()[0] for line in lines[4:6]] == ["0", "3"]
    assert lines[-1] == "largest difference on the example: 0 in eval mode, 0 in train mode"


def test_a_comma_at_the_end_counts_for_nothing(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selectify", word, "--where", "3,", "--json", "--image-size", "16"]) == 0
    assert [row["module"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["3"]


def test_json_has_the_same(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selectify", word, "--json", "--form", "widened", "--image-size", "16", "--budget", "9"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [row["module"] for row in plan["rows"]] == ["3"]
    before, after = plan["macs"]
    assert after > before


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["--where", "0, 9"], "--where 0, 9"),
        (["--where", ""], "--where"),
        (["--where", "last 9 stages"], "--where last 9 stages"),
        (["--branches", "1"], ""),
        (["--image-size", "0"], "--image-size"),
        (["--budget", "-1"], ""),
    ],
)
def test_a_mistake_is_one_line(words: list[str], where: str, word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["selectify", word, *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert line.count(" | ") >= 1
    assert f"| {where}" in line


def test_what_is_no_network_yet(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = word.removesuffix(":Net")
    assert main(["selectify", file]) == 2
    assert f"give {file}:NAME" in capsys.readouterr().err


def test_a_run_with_units_is_opened_and_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", str(data), "--output", str(tmp_path), "--name", "run", "--image-size", "16", "--epochs", "1"]
    train = ["train", *words, "--model", "resnet_mini", "--selectify", "stages.2", "--no-report", "--threads", "1"]
    assert main(train) == 0
    capsys.readouterr()
    assert main(["selectify", str(tmp_path / "run")]) == 2
    assert "holds selective kernels of selectify already" in capsys.readouterr().err

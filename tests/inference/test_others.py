"""`selkern analyze` on networks that lie in no weights file of ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from shim import timm_or_skip

from selkern import cli
from selkern.convert.subject import is_code
from selkern.errors import UsageError
from selkern.inference.network import load_other

CODE = """
import selkern
from torch import nn

class Mine(nn.Module):
    def __init__(self, num_classes=2, nonfinite=""):
        super().__init__()
        self.unit = selkern.SelectiveKernel(3, 8, groups=1, reduction=2)
        self.head = nn.Linear(8, num_classes)
        for name, parameter in self.named_parameters():
            if nonfinite and nonfinite in name:
                parameter.data.fill_(float("nan"))

    def forward(self, x):
        return self.head(self.unit(x).mean((2, 3)))

empty = nn.Identity()
"""


@pytest.fixture
def code(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(CODE)
    return f"{tmp_path / 'mine.py'}:Mine"


def analyze(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = cli.main(["analyze", *map(str, words), "--device", "cpu"])
    out, err = capsys.readouterr()
    return code, out, err.splitlines()[-1] if err else ""


def test_a_class_of_the_users(code: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (code, "--data", data, "--image-size", 24, "--output", tmp_path / "out", "--json")
    status, out, _ = analyze(capsys, *words)
    assert status == 0
    assert [row["unit"] for row in json.loads(out)["studies"]["scale_sweep"]] == ["unit"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('href="looks/') == len(list((tmp_path / "out" / "looks").iterdir())) == 3
    status, _, error = analyze(capsys, *words, "--with", "num_classes=5")
    assert (status, "gives (2, 5) for two images, and the data have 2 classes" in error) == (2, True)
    status, _, error = analyze(capsys, code, "--output", tmp_path / "out")
    assert (status, "no data to evaluate on" in error) == (2, True)
    status, _, error = analyze(capsys, *words[:-3], "--output", tmp_path / "nan", "--with", "nonfinite='head'")
    assert (status, "gives no finite numbers for 36 of 36 images" in error) == (6, True)


def test_timms_by_name(data: Path) -> None:
    timm_or_skip()
    torch.manual_seed(0)
    loaded = load_other("timm:skresnext50_32x4d", str(data), device="cpu")
    assert loaded.card.classes == ("cat", "dog")
    assert (loaded.preprocess.size, loaded.preprocess.crop) == (224, 0.875)
    assert loaded.preprocess.mean == (0.485, 0.456, 0.406)
    assert load_other("timm:skresnet18", str(data), size=64, device="cpu").preprocess.size == 64


def test_what_is_one_of_others(tmp_path: Path) -> None:
    assert all(map(is_code, ("timm:skresnet18.ra_in1k", "a/b.py:Net", "package.module:Net")))
    assert not any(map(is_code, ("latest", "sknet_mini.digits", "hf-hub:timm/skresnet18.ra_in1k", str(tmp_path))))


def test_faults(code: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="has no parameters"):
        load_other(code.replace("Mine", "empty"), str(data))
    status, _, error = analyze(capsys, "sknet_mini.digits", "--image-size", 64)
    assert (status, "is for third-party networks" in error) == (2, True)
    status, _, error = analyze(capsys, "sknet_mini.digits", "--image-size", 0)
    assert (status, "image size is 0" in error) == (2, True)

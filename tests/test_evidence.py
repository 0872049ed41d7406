"""The evidence: tables that are what the results say, results that are whole and of the files that are there."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from scipy.stats import ttest_rel

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import evidence  # noqa: E402

from selkern.selection.statistics import Estimate  # noqa: E402
from selkern.study.plan import FOLDER, read  # noqa: E402
from selkern.study.present import render  # noqa: E402

RESULTS = sorted((ROOT / "studies" / "results").glob("*.json"))
STUDIES = {path.stem: path for path in (*FOLDER.glob("*.yaml"), *(ROOT / "studies").glob("*/*.yaml"))}
OPEN = ("cifar", "finetune_cifar", "finetune_bccd")  # studies that leave their data open


def test_the_tables_are_what_the_results_say(capsys: pytest.CaptureFixture[str]) -> None:
    assert evidence.main(["--check"]) == 0, capsys.readouterr().err
    page = (ROOT / "docs" / "evidence.md").read_text()
    assert len(evidence.PLACE.findall(page)) == 3
    changed = re.sub(r"never trained on \| [\d.]+%", "never trained on | 99.99%", page)
    assert changed != page == evidence.page(changed, "../")


def test_the_readme_shows_five_headline_rows_that_stand_in_the_evidence() -> None:
    rows = evidence.headline("").splitlines()[2:]
    assert len(rows) == 5
    readme = (ROOT / "README.md").read_text()
    assert all(row in readme for row in rows)
    assert len((ROOT / "README.md").read_bytes()) <= 10_240


def test_every_study_has_results() -> None:
    assert {path.stem for path in RESULTS} == STUDIES.keys()


@pytest.mark.parametrize("path", RESULTS, ids=[path.stem for path in RESULTS])
def test_results_are_whole_and_of_the_file_that_is_there(path: Path) -> None:
    result = json.loads(path.read_text())
    study = read(STUDIES[path.stem], "digits" if path.stem in OPEN else None)
    assert result["study"]["sha256"] == study.sha256
    assert result["seeds"] == list(range(study.seeds))
    assert len(result["runs"]) == study.seeds * len(study.arms)
    assert path.with_suffix(".md").read_text() == render(result)
    assert path.with_suffix(".svg").read_text().startswith("<svg")
    top1 = {arm.name: [run["top1"] for run in result["runs"] if run["arm"] == arm.name] for arm in study.arms}
    for name, arm in result["arms"].items():
        if name == study.baseline:
            assert arm["difference"] is None
            continue
        interval = ttest_rel(top1[name], top1[study.baseline]).confidence_interval(0.95)
        assert arm["difference"]["interval"] == pytest.approx([interval.low, interval.high])
        sign = int(interval.low > 0) - int(interval.high < 0)
        assert arm["difference"]["verdict"] == {1: "better", 0: "no difference seen", -1: "worse"}[sign]


@pytest.mark.parametrize(
    ("low", "high", "holds", "verdict"),
    [
        (0.01, 0.03, "above", "holds"),
        (-0.01, 0.03, "above", "not seen"),
        (-0.03, -0.01, "above", "not seen: the opposite"),
        (-0.03, -0.01, "below", "holds"),
        (-0.009, 0.002, "near", "holds"),
        (-0.011, 0.002, "near", "not seen"),
        (-0.1, 0.19, "weak", "holds"),
        (0.05, 0.21, "weak", "not seen"),
        (0.05, 0.1, None, "better; no claim"),
    ],
)
def test_a_claim_holds_only_where_its_whole_interval_does(low: float, high: float, holds: str, verdict: str) -> None:
    assert evidence.verdict(Estimate((low + high) / 2, low, high), holds) == verdict

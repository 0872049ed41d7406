"""Statistics of paired runs: intervals that cover what they say, and no winner where they hold zero."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_rel

from selkern.study.results import interval, paired, verdict


def test_intervals_cover_the_truth_in_95_of_100_studies() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(3000):
        result = interval(rng.normal(0.7, 0.02, size=5).tolist())
        assert result is not None
        covered += result.low <= 0.7 <= result.high
    assert covered / 3000 == pytest.approx(0.95, abs=3 * (0.95 * 0.05 / 3000) ** 0.5)


def test_a_paired_difference_is_scipys() -> None:
    rng = np.random.default_rng(1)
    base = rng.normal(0.7, 0.1, size=6)
    arm = base + rng.normal(0.01, 0.003, size=6)
    result = paired(arm.tolist(), base.tolist())
    assert result is not None
    expected = ttest_rel(arm, base).confidence_interval(0.95)
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high))
    assert verdict(result) == "better"
    assert verdict(paired(base.tolist(), arm.tolist())) == "worse"


def test_no_winner_where_the_interval_holds_zero() -> None:
    assert verdict(paired([0.72, 0.70, 0.75], [0.71, 0.71, 0.71])) == "no difference seen"
    assert verdict(paired([0.7, 0.7], [0.7, 0.7])) == "no difference seen"
    assert verdict(paired([0.9], [0.1])) == "one seed: no interval"

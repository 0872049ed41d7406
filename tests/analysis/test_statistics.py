"""Rank correlations against scipy and the method of residuals; intervals against simulations of a known truth."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from selkern.analysis.evaluation import wilson
from selkern.analysis.statistics import (
    Estimate,
    bootstrap,
    mean_estimate,
    partial_rank_correlation,
    rank_correlation,
)

Array = NDArray[np.float64]


def correlated(rng: np.random.Generator, n: int, rho: float) -> tuple[Array, Array]:
    x = rng.normal(size=n)
    return x, rho * x + np.sqrt(1 - rho**2) * rng.normal(size=n)


@pytest.mark.parametrize("levels", [0, 2, 5], ids=["no ties", "two values", "five values"])
@pytest.mark.parametrize("n", [4, 10, 501])
def test_rank_correlation_is_scipys(n: int, levels: int) -> None:
    rng = np.random.default_rng(n + levels)
    x, y = rng.normal(size=n), rng.normal(size=(n, 4)) + np.arange(n)[:, None] * [0, 0.1, -0.1, 0.01]
    if levels:
        x, y = (np.arange(n) % levels).astype(np.float64), np.floor(y * levels)
    want = [stats.spearmanr(x, column).statistic for column in y.T]
    np.testing.assert_allclose(rank_correlation(x, y), want, rtol=1e-12, atol=1e-14)


def test_rank_correlation_sees_order_alone() -> None:
    x = np.random.default_rng(0).normal(size=50)
    np.testing.assert_allclose(rank_correlation(x, np.stack([np.exp(x), -(x**3)], axis=1)), [1, -1])


def residual(y: Array, z: Array) -> Array:
    design = np.stack([np.ones(len(z)), z], axis=1)
    return y - design @ np.linalg.lstsq(design, y, rcond=None)[0]


@pytest.mark.parametrize("seed", range(3))
def test_partial_correlation_is_that_of_the_residuals(seed: int) -> None:
    """Ranks of x and y, each with a straight line in the ranks of z taken off, and then Pearson's r."""
    rng = np.random.default_rng(seed)
    z = np.floor(rng.normal(size=200) * 5)
    x = z + rng.normal(size=200) * 3
    y = np.stack([z + rng.normal(size=200), x - z + rng.normal(size=200), rng.normal(size=200)], axis=1)
    rx, rz = stats.rankdata(x), stats.rankdata(z)
    want = [stats.pearsonr(residual(rx, rz), residual(stats.rankdata(c), rz)).statistic for c in y.T]
    np.testing.assert_allclose(partial_rank_correlation(x, y, z), want, rtol=1e-10, atol=1e-12)


def test_partial_correlation_removes_what_only_the_third_explains() -> None:
    rng = np.random.default_rng(1)
    z = rng.normal(size=4000)
    x, y = z + 0.5 * rng.normal(size=4000), z + 0.5 * rng.normal(size=4000)
    assert rank_correlation(x, y[:, None])[0] > 0.7
    assert abs(partial_rank_correlation(x, y[:, None], z)[0]) < 0.06  # ranks leave a little of it


def test_a_constant_column_has_no_correlation_and_claims_nothing() -> None:
    x = np.arange(20.0)
    y = np.stack([np.ones(20), x], axis=1)
    constant, same = bootstrap(lambda i: rank_correlation(x[i], y[i]), np.arange(20), draws=50)
    assert np.isnan(constant.value)
    assert constant.sign == 0
    assert same == Estimate(pytest.approx(1), pytest.approx(1), pytest.approx(1))  # type: ignore[arg-type]


@pytest.mark.parametrize("rho", [0.6])
def test_the_interval_covers_the_truth_as_often_as_it_says(rho: float) -> None:
    truth = 6 / np.pi * np.arcsin(rho / 2)  # Spearman's rho of a binormal pair
    covered = 0
    for trial in range(60):
        x, y = correlated(np.random.default_rng([trial, int(10 * rho)]), 60, rho)
        (e,) = bootstrap(lambda i: rank_correlation(x[i], y[i, None]), np.arange(60), draws=100)  # noqa: B023
        assert e.low <= e.value <= e.high
        covered += e.low <= truth <= e.high
    assert covered >= 52


def test_intervals_of_clustered_data_are_wider_and_cover() -> None:
    """Eight images of each original, nearly copies: a bootstrap of images would believe them all."""
    naive_covers = cluster_covers = 0
    for trial in range(60):
        rng = np.random.default_rng(trial)
        clusters = np.repeat(np.arange(25), 8)
        x = (rng.normal(size=25)[clusters] + 0.1 * rng.normal(size=200))[:, None]

        def mean(i: NDArray[np.int64], x: Array = x) -> Array:
            return x[i].mean(axis=0)

        (honest,) = bootstrap(mean, clusters, draws=150)
        (naive,) = bootstrap(mean, np.arange(200), draws=150)
        assert honest.high - honest.low > 1.7 * (naive.high - naive.low)
        cluster_covers += honest.low <= 0 <= honest.high
        naive_covers += naive.low <= 0 <= naive.high
    assert cluster_covers >= 50
    assert naive_covers <= 42


def test_the_bootstrap_repeats_itself_by_seed() -> None:
    x = np.random.default_rng(0).normal(size=(40, 2))
    clusters = np.arange(40) // 2

    def run(seed: int) -> list[Estimate]:
        return bootstrap(lambda i: x[i].mean(axis=0), clusters, draws=40, seed=seed)

    assert run(0) == run(0)
    assert run(0) != run(1)


@pytest.mark.parametrize(
    ("low", "high", "sign"), [(0.1, 0.2, 1), (-0.2, -0.1, -1), (-0.1, 0.1, 0), (0.0, 0.1, 0), (-0.1, 0.0, 0)]
)
def test_a_sign_needs_an_interval_without_zero(low: float, high: float, sign: int) -> None:
    assert Estimate((low + high) / 2, low, high).sign == sign


def test_an_estimate_reads_as_value_and_interval() -> None:
    assert str(Estimate(0.5, -0.125, 1)) == "+0.50 [-0.12, +1.00]"


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        (10, 20, 0.2993, 0.7007),
        (81, 263, 0.2553, 0.3662),  # Newcombe (1998), Statistics in Medicine 17, Table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_wilson_gives_newcombes_figures(right: int, n: int, low: float, high: float) -> None:
    assert wilson(right, n) == pytest.approx((low, high), abs=1e-4)


def test_the_mean_has_a_normal_interval() -> None:
    x = np.array([1.0, 2.0, 3.0, 6.0])
    half = 1.96 * np.sqrt(14 / 3) / 2
    assert mean_estimate(x) == Estimate(3.0, pytest.approx(3 - half), pytest.approx(3 + half))  # type: ignore[arg-type]
    assert mean_estimate(np.array([2.5])) == Estimate(2.5, 2.5, 2.5)

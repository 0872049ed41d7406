"""Rank correlations against scipy and the method of residuals; intervals against simulations of a known truth."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from selkern.evaluation import wilson
from selkern.selection.statistics import (
    Estimate,
    bootstrap,
    cells,
    explained,
    mean_estimate,
    partial_rank_correlation,
    rank_correlation,
    within_rank_correlation,
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


@pytest.mark.parametrize("sizes", [(40, 70, 15), (30, 1, 2), (50,)])
def test_within_classes_it_is_the_mean_of_the_classes(sizes: tuple[int, ...]) -> None:
    """Spearman's rho of each class, by scipy, whose weights are as good as their images."""
    rng = np.random.default_rng(sum(sizes))
    labels = rng.permutation(np.repeat(np.arange(len(sizes)) * 3, sizes))
    x = rng.normal(size=len(labels)) + labels
    y = np.stack([x + rng.normal(size=len(labels)), rng.normal(size=len(labels)) - 5 * labels], axis=1)
    parts = [(labels == label, n - 1 / n) for label, n in zip(np.arange(len(sizes)) * 3, sizes, strict=True) if n > 1]
    for column, got in zip(y.T, within_rank_correlation(x, y, labels), strict=True):
        rhos = [(stats.spearmanr(x[some], column[some]).statistic, weight) for some, weight in parts]
        assert got == pytest.approx(sum(r * w for r, w in rhos) / sum(w for _, w in rhos))


def test_within_classes_with_others_removed_it_is_that_of_the_residuals() -> None:
    rng = np.random.default_rng(0)
    labels, z = np.arange(120) % 4, np.floor(rng.normal(size=(120, 2)) * 3)
    x = z @ [1, 1] + rng.normal(size=120) + 9 * labels
    y = z @ [1, -1] + x + rng.normal(size=120) - 20 * labels

    def ranks(values: Array) -> Array:
        result = np.empty(120)
        for label in range(4):
            result[labels == label] = (stats.rankdata(values[labels == label]) - 15.5) / 30
        return result

    design = np.stack([ranks(column) for column in z.T], axis=1)
    left = [r - design @ np.linalg.lstsq(design, r, rcond=None)[0] for r in (ranks(x), ranks(y))]
    want = stats.pearsonr(*left).statistic
    assert within_rank_correlation(x, y[:, None], labels, z)[0] == pytest.approx(want)
    assert abs(want) < 0.9 * abs(within_rank_correlation(x, y[:, None], labels)[0])


def test_what_the_class_explains_of_sizes() -> None:
    labels = np.repeat([5, 2, 9], 20)
    assert explained(labels * 10.0, labels) == pytest.approx(1)
    assert explained(np.random.default_rng(0).normal(size=60), labels) < 0.15
    assert np.isnan(explained(np.ones(60), labels))


def test_intervals_together_hold_all_at_once() -> None:
    """Ten columns that owe nothing to x: intervals one by one miss some of them in every third sample or so."""
    at_once = by_itself = 0
    for trial in range(40):
        x, y = np.random.default_rng([trial, 7]).normal(size=40), np.random.default_rng(trial).normal(size=(40, 10))
        for together in (True, False):
            result = bootstrap(
                lambda i, x=x, y=y: rank_correlation(x[i], y[i]),  # type: ignore[misc]
                np.arange(40),
                draws=80,
                together=together,
            )
            missed = any(e.sign for e in result)
            at_once, by_itself = at_once + (missed and together), by_itself + (missed and not together)
    assert at_once <= 5
    assert by_itself >= 10


def test_of_few_originals_there_is_no_interval() -> None:
    x = np.arange(20.0)
    (few,) = bootstrap(lambda i: x[i, None].mean(axis=0), np.arange(20) % 9, draws=20)
    (enough,) = bootstrap(lambda i: x[i, None].mean(axis=0), np.arange(20) % 10, draws=20)
    assert (few.value, few.sign, str(few)) == (9.5, 0, "+9.50 (no interval)")
    assert cells("x", few) == {"x": 9.5, "x_low": None, "x_high": None}
    assert enough.low < enough.high


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

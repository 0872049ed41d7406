"""What runs paired by seed say of two arms: mean difference, 95 % interval over seeds, and a verdict."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from selkern.selection.statistics import Estimate


def interval(values: Sequence[float]) -> Estimate | None:
    """Mean and 95 % interval of independent values by Student's t; None for fewer than two."""
    from scipy.stats import t

    numbers = np.asarray(values, dtype=np.float64)
    if len(numbers) < 2:
        return None
    mean = float(numbers.mean())
    half = float(t.ppf(0.975, len(numbers) - 1)) * float(numbers.std(ddof=1)) / len(numbers) ** 0.5
    return Estimate(mean, mean - half, mean + half)


def paired(arm: Sequence[float], baseline: Sequence[float]) -> Estimate | None:
    """Arm minus baseline, value i of each from the same seed; None for fewer than two."""
    return interval([a - b for a, b in zip(arm, baseline, strict=True)])


def verdict(difference: Estimate | None) -> str:
    """In words; no winner is named where the interval holds zero."""
    if difference is None:
        return "one seed: no interval"
    return {1: "better", 0: "no difference seen", -1: "worse"}[difference.sign]

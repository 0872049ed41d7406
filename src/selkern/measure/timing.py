"""Times that can be compared on a machine that others use too: all jobs in turn in one process, A B C A B C ...

A time alone says little there. What is compared are jobs of the same round, seconds apart: a ratio is the median of the
rounds' ratios, and its quartiles show how much it can be trusted.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Job = Callable[[], object]
LEAST = 3  # rounds, however long they take
MOST = 200
_LONG = 2.0  # seconds that a round may take and still be repeated to pick the fastest


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of some numbers."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one number."""
        low, median, high = np.percentile(np.asarray(values, dtype=np.float64), (25, 50, 75)).tolist()
        return cls(median, low, high)


def in_turn(
    jobs: Mapping[str, Job], *, budget: float, rounds: int | None = None, warm_up: int = 2
) -> dict[str, list[float]]:
    """Seconds of every job in every round; `jobs` run one after the other, round after round.

    Args:
        jobs: by name; what they return is thrown away.
        budget: seconds for all rounds together; at least three rounds are run in any case.
        rounds: exactly so many, whatever they take; None asks the budget.
        warm_up: rounds before the first one that counts: memory is taken, weights are packed, code is compiled there.
    """
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    if not jobs:
        return seconds
    enabled = gc.isenabled()
    gc.disable()  # a collection would hit whichever job is running
    try:
        for _ in range(warm_up):
            for job in jobs.values():
                job()
        start, done = time.perf_counter(), 0
        while not _enough(done, rounds, time.perf_counter() - start, budget):
            for name, job in jobs.items():
                begin = time.perf_counter()
                job()
                seconds[name].append(time.perf_counter() - begin)
            done += 1
    finally:
        if enabled:
            gc.enable()
    return seconds


def _enough(done: int, rounds: int | None, spent: float, budget: float) -> bool:
    if rounds is not None:
        return done >= rounds
    if done < LEAST:
        return False
    return done >= MOST or spent + spent / done > budget


def quickest(jobs: Mapping[str, Job], *, warm: bool = False) -> str:
    """The name of the fastest job: the least time of three runs in turn, of one where a run takes long.

    Args:
        jobs: by name.
        warm: whether all have run already; if not, each runs once more, which does not count.
    """
    seconds = in_turn(jobs, budget=0, rounds=1, warm_up=0 if warm else 1)
    if sum(values[0] for values in seconds.values()) < _LONG:
        again = in_turn(jobs, budget=0, rounds=2, warm_up=0)
        seconds = {name: values + again[name] for name, values in seconds.items()}
    return min(seconds, key=lambda name: min(seconds[name]))


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """Of two jobs' numbers, round by round where both have one per round."""
    if len(numerator) == len(denominator):
        return Spread.of([a / b for a, b in zip(numerator, denominator, strict=True)])
    top, bottom = Spread.of(numerator), Spread.of(denominator)
    return Spread(top.median / bottom.median, top.low / bottom.high, top.high / bottom.low)

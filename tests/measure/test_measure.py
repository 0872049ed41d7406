"""Timing and memory: jobs in turn within a budget, ratios by round, and what autograd holds counted by hand."""

from __future__ import annotations

import itertools
import time
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from selkern.measure import timing
from selkern.measure.memory import MIB, held_for_backward


def test_jobs_run_in_turn_after_a_warm_up() -> None:
    calls: list[str] = []
    jobs = {name: partial(calls.append, name) for name in "abc"}
    seconds = timing.in_turn(jobs, budget=0, rounds=4, warm_up=2)
    assert "".join(calls) == "abc" * 6
    assert {name: len(values) for name, values in seconds.items()} == {"a": 4, "b": 4, "c": 4}


@pytest.mark.parametrize(("budget", "least", "most"), [(0.0, timing.LEAST, timing.LEAST), (1e9, 200, 200)])
def test_rounds_follow_the_budget(budget: float, least: int, most: int) -> None:
    seconds = timing.in_turn({"a": lambda: None}, budget=budget)
    assert least <= len(seconds["a"]) <= most


def test_the_budget_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()  # every look at the clock is a second later: a round of one job takes two
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    assert 5 <= len(timing.in_turn({"a": lambda: None}, budget=30)["a"]) <= 15


def test_garbage_collection_is_as_it_was_even_after_an_error() -> None:
    import gc

    def fail() -> None:
        raise RuntimeError("x")

    with pytest.raises(RuntimeError):
        timing.in_turn({"a": fail}, budget=0)
    assert gc.isenabled()


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    """One slow stretch of the machine hits both jobs of a round, and leaves the ratio alone."""
    assert timing.ratios([2, 2, 20, 2], [1, 1, 10, 1]) == timing.Spread(2, 2, 2)
    assert timing.ratios([6.0], [1.0, 2.0, 3.0]).median == 3


def test_what_is_held_is_what_one_counts_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), nn.BatchNorm2d(5))
    x = torch.randn(2, 3, 4, 4)
    # conv keeps x; ReLU and BatchNorm share one storage; BatchNorm keeps mean and 1 / deviation.
    floats = 2 * 3 * 16 + 2 * 5 * 16 + 2 * 5
    assert held_for_backward(model, partial(model, x)) * MIB == 4 * floats


def test_parameters_views_and_what_is_gone_do_not_count() -> None:
    linear = nn.Linear(7, 3, bias=False)
    x = torch.randn(4, 7)

    def twice() -> Tensor:
        linear(x * 2).relu()  # thrown away, with all that it kept
        return linear(x).reshape(-1)

    assert held_for_backward(linear, twice) * MIB == 4 * 28
    assert held_for_backward(linear, lambda: linear(x).detach()) == 0


def test_checkpointing_holds_less() -> None:
    block = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Sigmoid()) for _ in range(4)))
    x = torch.randn(16, 8, requires_grad=True)
    plain = held_for_backward(block, partial(block, x))
    saved = held_for_backward(block, lambda: checkpoint(block, x, use_reentrant=False))
    assert 0 < saved < plain / 3

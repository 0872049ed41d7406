"""Shared by both harnesses: the environment of a child process, an error as one line, a number as text."""

from __future__ import annotations

import os
from pathlib import Path

import selkern


def environment(**given: str) -> dict[str, str]:
    """This process's environment, in which `selkern` is the one that runs here, and `benchmarks` is found."""
    homes = [str(Path(file).parents[1]) for file in (str(selkern.__file__), __file__)]
    paths = [*homes, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), **given}


def one_line(error: object) -> str:
    """An error, or a reason, as one line of at most 300 characters."""
    return " ".join(str(error).split())[:300]


def number(value: float | None) -> str:
    """Three digits that count, or all in front of the point."""
    if value is None:
        return "nothing"
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"

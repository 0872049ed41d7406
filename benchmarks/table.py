"""The figures of a benchmark as text: every row with its spread and ratio, what is missing, and the goals."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.machine import number
from benchmarks.results import Goal, Results, Row, Verdict, cases

_VARIANT, _NUMBER = 32, 11  # columns
HOW = (
    "median [quartiles] of rounds in which all variants ran in turn; ratio: how many times better than what stands\n"
    'after "against", of the rounds\' ratios. NCHW or channels_last: what the variant was faster in, by trial.'
)


def render(results: Results, verdicts: Sequence[Verdict], head: str) -> str:
    """The whole report."""
    parts = [head, HOW]
    parts += [_block(results, *case) for case in cases(results.rows)]
    if results.missing:
        lines = [f"  {entry.workload:9}{entry.variant}: {entry.reason}" for entry in results.missing]
        parts.append("\n".join(["missing, not measured:", *lines]))
    parts.append("\n".join(["goals:", *(f"  {_verdict(verdict)}" for verdict in verdicts)]))
    return "\n\n".join(parts)


def _block(results: Results, workload: str, case: str, quantity: str) -> str:
    rows = [row for row in results.rows if (row.workload, row.case, row.quantity) == (workload, case, quantity)]
    against = next((row.against for row in rows if row.against), "")
    known = against if results.row(workload, case, quantity, against) else f"{against}, missing"
    title = f"{workload}: {case}, {quantity} ({rows[0].unit})"
    lines = [f"{title}, against {known}" if against else title]
    return "\n".join(lines + [_line(results, row) for row in rows])


def _line(results: Results, row: Row) -> str:
    spread, better = row.spread, results.advantage(row)
    quartiles = f"[{number(spread.low)}, {number(spread.high)}]" if len(row.samples) > 1 else ""
    median = f"{spread.median:.2f}" if row.unit == "%" else number(spread.median)  # 99.87 is not 99.9
    text = f"  {row.variant:{_VARIANT}}{median:>{_NUMBER}} {quartiles:20}"
    if better is not None:
        span = f" [{better.low:.2f}, {better.high:.2f}]" if len(row.samples) > 1 else ""
        text += f"{better.median:6.2f}x{span:15}"
    else:
        text += " " * 22
    rounds = f"{len(row.samples)} rounds" if len(row.samples) > 1 else "counted" if row.unit.startswith("MiB") else ""
    return f"{text} {rounds:11}{row.layout}".rstrip()


def aim(goal: Goal) -> str:
    """A goal in words: what is to be reached."""
    side = "at least" if goal.at_least else "at most"
    where = f"{goal.workload}, {goal.case}, {goal.quantity}: {goal.variant}"
    if goal.form == "value":
        return f"{where} {side} {goal.bound:g} {goal.unit}"
    if goal.form == "speed-up":
        return f"{where} {side} {goal.bound:g}x as fast as {goal.against}"
    return f"{where} {side} {goal.bound:g}x that of {goal.against}"


def _verdict(verdict: Verdict) -> str:
    if verdict.value is None:
        return f"{verdict.goal.number}  {verdict.word:30}{aim(verdict.goal)}"
    value = verdict.value
    quartiles = f" [{value.low:.2f}, {value.high:.2f}]" if value.low != value.high else ""
    return f"{verdict.goal.number}  {verdict.word:8} {f'{value.median:.2f}{quartiles}':21}{aim(verdict.goal)}"

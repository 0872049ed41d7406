"""The results of a benchmark: rows, variants that are missing, and the verdicts on the goals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from benchmarks.machine import one_line
from selkern.measure.timing import Spread, ratios


@dataclass(frozen=True, kw_only=True)
class Row:
    """One quantity of one variant.

    Attributes:
        workload: article, layer, infer, ...
        case: which shape, batch or setting of it.
        quantity: such as "forward", "train step", "held for backward".
        variant: whose code.
        unit: of `samples`: ms, MiB, images/s, ...
        samples: one number per round, or one alone where it was counted.
        layout: the memory format it ran in, where there was a choice: the faster one, by trial.
        against: the variant of the same workload, case and quantity that it is compared with.
        more_is_better: whether a larger number is the better one.
    """

    workload: str
    case: str
    quantity: str
    variant: str
    unit: str
    samples: tuple[float, ...]
    layout: str = ""
    against: str = ""
    more_is_better: bool = False

    @property
    def spread(self) -> Spread:
        """Median and quartiles."""
        return Spread.of(self.samples)

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What names this row among all."""
        return self.workload, self.case, self.quantity, self.variant


@dataclass(frozen=True)
class Missing:
    """A variant that could not be measured, and why."""

    workload: str
    variant: str
    reason: str


@dataclass
class Results:
    """All rows and what is missing, as they come."""

    rows: list[Row] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)

    def lacks(self, workload: str, variant: str, reason: object) -> None:
        """Name a variant as missing, once."""
        entry = Missing(workload, variant, one_line(reason))
        if entry not in self.missing:
            self.missing.append(entry)

    def add(self, other: Results) -> None:
        """Take over another's rows."""
        self.rows += other.rows
        self.missing += [entry for entry in other.missing if entry not in self.missing]

    def row(self, workload: str, case: str, quantity: str, variant: str) -> Row | None:
        """One row by its four names."""
        return next((row for row in self.rows if row.key == (workload, case, quantity, variant)), None)

    def advantage(self, row: Row) -> Spread | None:
        """How many times better a row is than the one it is compared with; above 1 is better."""
        base = self.row(row.workload, row.case, row.quantity, row.against) if row.against else None
        if base is None or base is row or not all(row.samples) or not all(base.samples):
            return None
        if row.more_is_better:
            return ratios(row.samples, base.samples)
        return ratios(base.samples, row.samples)


@dataclass(frozen=True)
class Goal:
    """One line of the goals.

    Attributes:
        number: of the goal there.
        workload, case, quantity, variant: the row it is about.
        against: the row's variant that it is divided by, or that is divided by it; empty for the value itself.
        form: "speed-up" is against / variant, "share" is variant / against, "value" the median itself.
        bound: what is to be reached.
        at_least: whether the bound is the least; False makes it the most.
        unit: of a "value".
    """

    number: int
    workload: str
    case: str
    quantity: str
    variant: str
    against: str
    form: Literal["speed-up", "share", "value"]
    bound: float
    at_least: bool
    unit: str = ""

    def measured(self, results: Results) -> Spread | None:
        """The measured figure, None where one of its rows was not measured."""
        row = results.row(self.workload, self.case, self.quantity, self.variant)
        if row is None or self.form == "value":
            return None if row is None else row.spread
        base = results.row(self.workload, self.case, self.quantity, self.against)
        if base is None:
            return None
        fast, slow = (row, base) if self.form == "speed-up" else (base, row)
        return ratios(slow.samples, fast.samples)

    def reached(self, value: float) -> bool:
        """Whether a median is good enough."""
        return value >= self.bound if self.at_least else value <= self.bound


@dataclass(frozen=True)
class Verdict:
    """A goal and what became of it: reached, missed, or not measured."""

    goal: Goal
    value: Spread | None

    @property
    def word(self) -> str:
        """In one word or three."""
        if self.value is None:
            return "not measured"
        return "reached" if self.goal.reached(self.value.median) else "missed"


def judge(goals: Iterable[Goal], results: Results) -> list[Verdict]:
    """Every goal with its figure, in the order of the table."""
    return [Verdict(goal, goal.measured(results)) for goal in goals]


def cases(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """Workload, case and quantity of the rows, each once, in their order."""
    return list(dict.fromkeys((row.workload, row.case, row.quantity) for row in rows))

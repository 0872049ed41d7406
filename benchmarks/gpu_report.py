"""What the rows of `gpu.py` say: lines of a table, ratios, the goals' verdicts, and what `auto` should take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks import gpu_plan as plan
from benchmarks.gpu_plan import COMPILED, KERNELS, WHOLE, Row, Stage
from benchmarks.machine import number

OF_COPY, OF_FLOOR, TIMES_COMPILED, TIMES_RESNEXT = 0.85, 0.60, 1.5, 1.0  # the goals


@dataclass
class Results:
    """All results.

    Attributes:
        tiny: times mean nothing.
        machine: what they depend on.
        rows: in the order they came.
        left_out: titles of jobs for which no time was left, or that were not asked for.
    """

    tiny: bool
    machine: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def row(self, part: str, what: str, case: str, variant: str) -> Row | None:
        """The row of these names, where it was measured."""
        wanted = (part, what, case, variant)
        return next((r for r in self.rows if (r.part, r.what, r.case, r.variant) == wanted and r.ms), None)

    def best(self, part: str, what: str, case: str, variants: Iterable[str]) -> Row | None:
        """The fastest of some variants."""
        rows = [row for variant in variants if (row := self.row(part, what, case, variant))]
        return min(rows, key=_time_of_one, default=None)

    @property
    def copy(self) -> float | None:
        """GB/s that this card copies, read and written together."""
        return _rate(self.row("ceiling", "copy", "device memory", "torch"), "gbyte")

    def product(self, dtype: str) -> float | None:
        """TFLOP/s of its matrix products; float32 by tf32, as convolutions take it."""
        name = "tf32" if dtype == "float32" else dtype
        return _rate(self.row("ceiling", "matmul", name, "torch"), "tflop")

    @property
    def wrong(self) -> bool:
        """Whether a kernel gave a wrong result."""
        return any(row.failed for row in self.rows)


def _time_of_one(row: Row) -> float:
    assert row.ms is not None
    return row.ms / (row.batch or 1)


def _rate(row: Row | None, amount: str) -> float | None:
    """Of GB or TFLOP in a second."""
    given = None if row is None else getattr(row, amount)
    return None if row is None or row.ms is None or given is None else 1e3 * float(given) / row.ms


def text(row: Row, results: Results) -> str:
    """One row as a line."""
    name = " | ".join(word for word in (row.part, row.what, row.case, row.variant) if word)
    if row.part == "correct" and not row.error:
        return f"{name} | ok, largest error {number(row.value)} of {number(row.bound)} allowed"
    if row.error:
        return f"{name} | {row.error}"
    words = [f"{number(row.ms)} ms [{number(row.low)}, {number(row.high)}]"]
    for amount, unit, ceiling in (
        ("gbyte", "GB/s", results.copy),
        ("tflop", "TFLOP/s", results.product(row.case.rpartition(", ")[2])),
    ):
        rate = _rate(row, amount)
        if rate is not None:
            share = f" ({rate / ceiling:.0%} of the ceiling)" if ceiling and row.part != "ceiling" else ""
            words.append(f"{rate:,.1f} {unit}{share}")
    if row.images_per_s is not None:
        words.append(f"{row.images_per_s:,.0f} images/s at batch {row.batch}")
    words += [f"{row.peak_gib:.1f} GiB at most"] if row.peak_gib is not None else []
    words += ["(interpreted: the time means nothing)"] if results.tiny else []
    return f"{name} | {', '.join(words)}"


def ratios(results: Results) -> list[str]:
    """How many times faster ours are than the others, work by work."""
    lines, seen = [], set()
    for row in results.rows:
        key = (row.part, row.what, row.case)
        ours = results.best(*key, ("triton", plan.OURS, plan.OURS_COMPILED))
        if key in seen or ours is None or row.part in ("ceiling", "correct", "graph"):
            continue
        seen.add(key)
        others = {other.variant: other for other in results.rows if (other.part, other.what, other.case) == key}
        words = [
            f"{_time_of_one(other) / _time_of_one(ours):.2f}x {name}"
            for name, other in others.items()
            if other.ms and other is not ours
        ]
        lines += [f"{' | '.join(key)}: {ours.variant} is {', '.join(words)}"] if words else []
    return lines


@dataclass(frozen=True)
class Verdict:
    """A goal, its figure, None where it was not measured, and whether it is reached."""

    goal: str
    value: float | None
    bound: float

    @property
    def word(self) -> str:
        """In one word or two."""
        return "not measured" if self.value is None else "reached" if self.value >= self.bound else "missed"

    def __str__(self) -> str:
        value = "" if self.value is None else f"{self.value:.2f} "
        return f"{self.word}: {value}of at least {self.bound:.2f}, {self.goal}"


def verdicts(results: Results) -> list[Verdict]:
    """Every goal; none where times mean nothing."""
    if results.tiny:
        return []
    judged, copy = [], results.copy
    for stage in plan.SK50:
        for what in ("Select", "Fuse"):
            row = results.row("kernel", f"fuse_select: {what}", stage.case("bfloat16"), "triton")
            value = _share(_rate(row, "gbyte"), copy)
            judged.append(Verdict(f"{what}, stage {stage.number}: share of the copy bandwidth", value, OF_COPY))
    unit = results.row("unit", "forward", plan.SK50[0].case("bfloat16"), plan.OURS)
    judged.append(
        Verdict("unit of stage 1, forward: share of its floor's speed", _share(_rate(unit, "gbyte"), copy), OF_FLOOR)
    )
    step = ("train", "step", "bfloat16")
    ours = results.best(*step, (plan.OURS, plan.OURS_COMPILED))
    for goal, others, bound in (
        (f"{plan.TIMM_SK_COMPILED}", (plan.TIMM_SK_COMPILED,), TIMES_COMPILED),
        (
            f"{plan.TIMM_RESNEXT} eager, in its faster layout",
            (plan.TIMM_RESNEXT, f"{plan.TIMM_RESNEXT}, NCHW"),
            TIMES_RESNEXT,
        ),
    ):
        other = results.best(*step, others)
        value = _share(_speed(ours), _speed(other))
        judged.append(Verdict(f"training of SKNet-50: images/s over those of {goal}", value, bound))
    return judged


def _speed(row: Row | None) -> float | None:
    return None if row is None else row.images_per_s


def _share(value: float | None, of: float | None) -> float | None:
    return value / of if value is not None and of else None


def winners(results: Results) -> list[str]:
    """For every kernel and dtype a line: the entry of `ops/kernels.py: MEASURED`, or why there is none.

    Counted is forward and backward together, each stage as often as SKNet-50 has units there.
    """
    lines = []
    card = results.machine.get("gpu")
    for kernel in KERNELS:
        for dtype, those in (("bfloat16", plan.stages(results.tiny)), ("float32", plan.stages(results.tiny)[1:2])):
            name = f"{kernel}, {card}, {dtype}"
            times = _times(results, kernel, dtype, those)
            if results.tiny or any(row.failed and kernel in row.what for row in results.rows):
                reason = "times mean nothing" if results.tiny else "gives wrong results"
                lines.append(f"# {name}: {reason}")
            elif times is None:
                lines.append(f"# {name}: not measured at every stage, eager and compiled")
            else:
                ours, eager, compiled = times
                figures = f"{eager / ours:.2f}x eager, {compiled / ours:.2f}x compiled"
                entry = f'("{kernel}", "{card}", torch.{dtype}),  # {figures}'
                lines.append(entry if ours < min(eager, compiled) else f"# {name}: lost, {figures}")
    return lines


def _times(results: Results, kernel: str, dtype: str, those: Sequence[Stage]) -> tuple[float, float, float] | None:
    """Milliseconds in all units of those stages: ours, eager in the faster layout, compiled."""
    totals = [0.0, 0.0, 0.0]
    for stage in those:
        for i, variants in enumerate((("triton",), ("eager", "eager, NCHW"), (COMPILED,))):
            row = results.best("kernel", f"{kernel}: {WHOLE}", stage.case(dtype), variants)
            if row is None or row.ms is None:
                return None
            totals[i] += stage.units * row.ms
    return (totals[0], totals[1], totals[2]) if those else None


def summary(results: Results) -> str:
    """What comes after all rows."""
    blocks = [
        ("ours against the others, of time:", ratios(results)),
        ("goals:", [str(verdict) for verdict in verdicts(results)]),
        ("not measured:", results.left_out),
        ("errors:", [text(row, results) for row in results.rows if row.error]),
        ("for MEASURED of src/selkern/ops/kernels.py:", winners(results)),
    ]
    return "\n\n".join("\n".join([title, *(f"  {each}" for each in lines)]) for title, lines in blocks if lines)


def as_json(results: Results, seconds: float) -> dict[str, Any]:
    """Everything, ready for JSON; rows without what does not apply to them."""
    return {
        "tiny": results.tiny,
        "seconds": round(seconds, 1),
        "machine": results.machine,
        "copy_gb_per_s": results.copy,
        "rows": [
            {name: value for name, value in asdict(row).items() if value not in (None, "")} for row in results.rows
        ],
        "verdicts": [{**asdict(verdict), "word": verdict.word} for verdict in verdicts(results)],
        "measured": winners(results),
        "left_out": results.left_out,
        "correct": not results.wrong,
    }

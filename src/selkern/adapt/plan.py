"""What `selectify` does to a network, as a table for people and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from selkern.adapt.exact import Differences

_MANY = 3  # rows with one reason that are still shown one by one


@dataclass(frozen=True)
class Row:
    """One convolution.

    Attributes:
        module: its name.
        was: the convolution, and the norm and activation that go with it.
        becomes: the unit: the windows of its branches, what further ones convolve with; empty where left out.
        parameters: before and after, of all that the row names.
        macs: multiply-adds of one image, before and after.
        reason: why it is left as it is; empty where it is changed.
    """

    module: str
    was: str
    becomes: str
    parameters: tuple[int, int]
    macs: tuple[int, int]
    reason: str = ""


@dataclass(frozen=True)
class Plan:
    """What becomes of a network.

    Attributes:
        rows: a convolution each, in the order they run.
        parameters: of the network, before and after.
        macs: multiply-adds of one image, before and after; convolutions and matrix products count.
        differences: of its outputs on the example, measured.

    `str(plan)` is a table.
    """

    rows: tuple[Row, ...]
    parameters: tuple[int, int]
    macs: tuple[int, int]
    differences: Differences

    @property
    def changed(self) -> tuple[str, ...]:
        """Names of the convolutions that become units."""
        return tuple(row.module for row in self.rows if not row.reason)

    @property
    def left_out(self) -> dict[str, str]:
        """Names of those that were asked for and stay as they are, with the reason."""
        return {row.module: row.reason for row in self.rows if row.reason}

    def to_json(self) -> str:
        """Everything, as JSON."""
        return json.dumps(asdict(self), indent=1)

    def __str__(self) -> str:
        head = ["module", "was", "becomes", "parameters", "MMACs"]
        same = Counter(row.reason for row in self.rows if row.reason)
        body = [_cells(row) for row in self.rows if same[row.reason] <= _MANY]
        body += [_together(reason, count, self.rows) for reason, count in same.items() if count > _MANY]
        total = [f"{len(self.changed)} of {len(self.rows)}", "", "", _change(*self.parameters), _macs(*self.macs)]
        lines = _aligned([head, *body, total])
        lines.insert(1, "-" * max(map(len, lines)))
        modes = [("in eval mode", self.differences.evaluating), ("in train mode", self.differences.training)]
        seen = ", ".join(f"{'not measured' if apart is None else f'{apart:g}'} {mode}" for mode, apart in modes)
        return "\n".join([*lines, f"largest difference on the example: {seen}"])


def _together(reason: str, count: int, rows: Sequence[Row]) -> list[str]:
    """One line for many that stay as they are for one reason."""
    alike = [row for row in rows if row.reason == reason]
    numbers = f"{sum(row.parameters[0] for row in alike):,}", _mega(sum(row.macs[0] for row in alike))
    return [f"{alike[0].module} and {count - 1} more", "", f"as they are: {reason}", *numbers]


def _cells(row: Row) -> list[str]:
    if row.reason:
        return [row.module, row.was, f"as it is: {row.reason}", f"{row.parameters[0]:,}", _mega(row.macs[0])]
    return [row.module, row.was, row.becomes, _change(*row.parameters), _macs(*row.macs)]


def _change(before: int, after: int) -> str:
    return f"{before:,} -> {after:,}" if before != after else f"{before:,}"


def _macs(before: int, after: int) -> str:
    return f"{_mega(before)} -> {_mega(after)}"


def _mega(macs: int) -> str:
    return f"{macs / 1e6:,.1f}" if macs >= 1e7 else f"{macs / 1e6:.2f}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns side by side, the last two to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    left = len(widths) - 2
    return [
        "  ".join(
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]

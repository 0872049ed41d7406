"""Tables with a column of 0 and 1 for each class, in place of one of labels."""

from __future__ import annotations

from collections.abc import Sequence

from selkern.data.bad_rows import NEARLY_ALL
from selkern.data.table import Table

_FLAGS = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}


def binary_columns(table: Table, taken: Sequence[int]) -> dict[int, str]:
    """{column: its name} of those that hold 0 or 1 in every row; fewer than two are none.

    Args:
        taken: columns that hold something else, such as the paths.
    """
    rows = [cells for _, cells in table.rows if len(cells) == len(table.columns)]
    free = [at for at in range(len(table.columns)) if at not in taken]
    found = {at: table.columns[at] for at in free if all(cells[at].strip().lower() in _FLAGS for cells in rows)}
    return found if len(found) > 1 and rows else {}


def class_columns(table: Table, taken: Sequence[int]) -> dict[int, str]:
    """{column: the class it is of} where all columns but those taken hold 0 or 1, no row several 1, few none."""
    found = binary_columns(table, taken)
    if len(found) < len(table.columns) - len(set(taken)):
        return {}
    rows = [cells for _, cells in table.rows if len(cells) == len(table.columns)]
    ones = [len(classes_in(cells, found)) for cells in rows]
    return found if max(ones, default=0) == 1 and sum(ones) > NEARLY_ALL * len(rows) else {}


def classes_in(cells: Sequence[str], columns: dict[int, str]) -> list[str]:
    """The classes whose column of a row holds 1."""
    return [name for at, name in columns.items() if _FLAGS[cells[at].strip().lower()]]

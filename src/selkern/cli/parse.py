"""Command lines as dataclasses, with mistakes as one line."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeVar

import tyro
from tyro.conf import Positional

from selkern.data.table_options import TableOptions
from selkern.errors import UsageError
from selkern.tuning import check_threads

T = TypeVar("T")


Run = Annotated[Positional[str], tyro.conf.arg(metavar="RUN")]
_CODE = "Your code that makes the weights' network, where that is FILE.py:NAME or module:NAME; it is run only if named."
Code = Annotated[str, tyro.conf.arg(help=_CODE)]


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """What every command has that takes trained weights to a data set."""

    data: str | None = None
    """Other data than the run's own, or where those lie now: digits, a folder, .csv or .parquet."""
    split: str = "auto"
    """train, val, test or all; auto is test, or all where other data than the run's have no splits of their own."""
    model: Code = ""
    device: str = "auto"
    """Where to compute: auto (a GPU if there is one), cpu or cuda."""
    threads: int | None = None
    """CPU threads to compute with; by default what a short measurement finds fastest."""
    on_bad_image: Literal["error", "skip"] = "error"
    """An image that cannot be read: end with an error, or skip it and report how many were skipped."""
    table: tyro.conf.OmitArgPrefixes[TableOptions] = field(default_factory=TableOptions)
    json: bool = False
    """Print one JSON object instead of text."""

    def __post_init__(self) -> None:
        check_threads(self.threads)


def parse_known(cls: type[T], argv: list[str], command: str) -> T:
    """What of a command line a dataclass has options for; the rest, a request for help too, is passed over.

    Raises:
        UsageError: as `parse` says.
    """
    words = [word for word in argv if word not in ("-h", "--help")]
    with _one_line_errors(command):
        known, _ = tyro.cli(cls, args=words, prog=f"selkern {command}", return_unknown_args=True)
    return known


def parse(cls: type[T], argv: list[str], command: str, default: T | None = None) -> T:
    """A command line as a dataclass.

    Raises:
        UsageError: a mistake, as one line instead of tyro's box.
        SystemExit: with code 0, after help was asked for and printed.
    """
    with _one_line_errors(command):
        if default is None:
            return tyro.cli(cls, args=argv, prog=f"selkern {command}")
        return tyro.cli(cls, args=argv, prog=f"selkern {command}", default=default)


@contextlib.contextmanager
def _one_line_errors(command: str) -> Iterator[None]:
    """Within the block, the box that tyro prints for a mistake becomes an error of ours."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            yield
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(*_one_line(printed.getvalue(), command)) from None


def _one_line(box: str, command: str) -> tuple[str, ...]:
    """What, where and what to do, out of the box that tyro prints: a title, what is wrong, a rule, advice."""
    box = re.sub(r"\x1b\[[\d;]*m", "", box)  # on a terminal it is coloured
    # Where the terminal knows no box characters, the box has no sides, and a rule beneath its title too.
    indented = [re.sub(r"^[│╭╰]|[│╮╯]$", "", line).rstrip() for line in box.strip().splitlines()[1:]]
    lines = [line.strip() for line in indented]
    rules = [i for i, line in enumerate(lines) if re.fullmatch("─+|-{9,}", line)]
    if rules and rules[0] == 0:
        indented, lines, rules = indented[1:], lines[1:], [i - 1 for i in rules[1:]]
    rule = rules[0] if rules else len(lines)
    what = " ".join(" ".join(lines[:rule]).split())
    # A message of ours, from the validation of the options; a bar alone may be the user's.
    if (ours := re.fullmatch(r"Error parsing [A-Za-z][\w.]*: (.+? \| .+? \| .+)", what)) is not None:
        return tuple(ours[1].split(" | ", 2))
    if what.startswith("Missing from "):  # a line for each option, and beneath it, further in, what it is for
        depths = [len(line) - len(line.lstrip()) for line in indented[1:rule]]
        what = f"missing: {', '.join(lines[i] for i, depth in enumerate(depths, start=1) if depth == min(depths))}"
    near = re.search(r"Perhaps you meant:.*?(--[\w.-]+)", box, flags=re.DOTALL)
    return what, f"selkern {command}", f"did you mean {near[1]}?" if near else f"see `selkern {command} --help`"

"""A sign of life on stderr: a live line on a terminal, elsewhere plain lines: within 2 s, then ever fewer.

The lines come from a thread of their own, so that they come while one long step, a folder of many files or the first
batch of slow workers says nothing by itself. Nothing is ever written to stdout, and a screen that is gone is no error.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm
    from typing_extensions import Self

GAPS = (1.5, 8.5, 20.0, 30.0, 60.0)  # s of silence before each plain line of a part; then always the last
_BEAT = 0.4  # s between two looks of the thread
_FORMAT = "{desc}  {rate_noinv_fmt}  eta {remaining} {bar}"  # whose text counts
_FORMAT_COUNT = "{desc}  {n_fmt}/{total_fmt}{unit}  {rate_noinv_fmt}  eta {remaining} {bar}"
_FORMAT_OPEN = "{desc}  {elapsed}"
_FORMAT_OPEN_COUNT = "{desc}  {n_fmt}{unit}  {elapsed}"  # where nobody knows how many there will be


def say(text: str) -> None:
    """A line on stderr, where there is one: print would take stdout in its place."""
    with suppress(OSError, ValueError):  # a reader that has left, or a stream that is closed
        if sys.stderr is not None:
            print(text, file=sys.stderr, flush=True)


def on_terminal() -> bool:
    """Whether somebody watches: stderr is a terminal."""
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # closed
        return False


_SHOWN: list[Progress] = []  # those whose block is entered, the innermost last


def doing(text: str) -> None:
    """What goes on now, for whoever shows a progress around it: a part that takes long need not be handed one."""
    if _SHOWN and _SHOWN[-1].pid == os.getpid():  # not one that a forked process has from its parent
        _SHOWN[-1].advance(0, text)


def advance_open(count: int) -> None:
    """So many more are done of what goes on now, where nobody knows how many there will be."""
    if _SHOWN and _SHOWN[-1].pid == os.getpid() and _SHOWN[-1].total is None:
        _SHOWN[-1].advance(count)


class Progress:
    """How far something is, shown within the block.

    Args:
        what: that goes on, such as "evaluating".
        total: how many there are; None where nobody knows.
        done: of them, those that are behind us at the start.
        unit: what is counted.
        count: whether the live line says how many are done; False where the text does, in units of its own.
        quiet: say nothing at all (ranks other than 0).
        write: how a line of how far it is is said; by default on stderr with the time of day.
        clock: seconds, for tests.
        terminal: whether there is a live line; None looks at stderr.
        beat: whether a thread writes the lines; else `tick` does, when it is called.

    Example:
        >>> with Progress("reading", total=3) as line:
        ...     for _ in range(3):
        ...         line.advance(1)
    """

    def __init__(
        self,
        what: str,
        *,
        total: int | None = None,
        done: int = 0,
        unit: str = "images",
        count: bool = True,
        quiet: bool = False,
        write: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
        terminal: bool | None = None,
        beat: bool = True,
    ) -> None:
        self.text, self.total, self.done, self.unit, self.quiet = what, total, done, unit, quiet
        self._count = count
        self._write, self._clock, self._beat = write or _stamped, clock, beat
        self._terminal = terminal
        self._first, self._started = done, clock()
        self._said, self._lines = self._started, 0  # when a line was said last, and how many of ours there were
        self._bar: tqdm[Any] | None = None
        self._lock = threading.RLock()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self.pid = 0  # of the process that shows it

    def __enter__(self) -> Self:
        if self.quiet:
            return self
        self._started = self._said = self._clock()
        if on_terminal() if self._terminal is None else self._terminal:
            from tqdm import tqdm

            self._bar = tqdm(
                desc=self.text,
                total=self.total,
                initial=self.done,
                unit=f" {self.unit}",
                leave=False,
                smoothing=0.05,
                bar_format=self._format(),
                **_size(),
            )
        if self._beat:
            self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)
            self._thread.start()
        self.pid = os.getpid()
        _SHOWN.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self in _SHOWN:
            _SHOWN.remove(self)
        self._end.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._bar.close()
            self._bar = None

    def advance(self, count: int = 1, text: str | None = None) -> None:
        """So many more are done; `text` says in other words what goes on."""
        with self._lock:
            self.done += count
            self.text = self.text if text is None else text
            if self._bar is not None:
                self._bar.bar_format = self._format()
                with suppress(OSError, ValueError):
                    self._bar.set_description_str(self.text, refresh=False)
                    self._bar.update(count)

    def show(self, text: str, total: int | None = None) -> None:
        """Something else goes on; with `total`, it is counted anew, with 0 not any more."""
        with self._lock:
            self.text, self._lines = text, 0
            if self.total is None and total is None:  # what was counted is not what comes now
                self.done = self._first = 0
            if total is not None:
                self.total, self.done, self._first, self._started = total or None, 0, 0, self._clock()
                if self._bar is not None:
                    self._bar.bar_format = self._format()
                    self._bar.set_description_str(text, refresh=False)
                    self._bar.reset(total)
            if self._bar is not None:
                with suppress(OSError, ValueError):
                    self._bar.set_description_str(text)

    def say(self, text: str) -> None:
        """A line that stays, without disturbing the live one."""
        if self.quiet:
            return
        with self._lock:
            self._said = self._clock()
            with self._aside():
                say(text)

    def answer(self, text: str) -> None:
        """A line of the answer on stdout, without disturbing the live one.

        Raises:
            BrokenPipeError: the reader of the answer has left.
        """
        with self._lock, self._aside():
            print(text, flush=True)

    def tick(self) -> None:
        """Renew the live line, or say a plain one if it is time."""
        with self._lock:
            now = self._clock()
            if self._bar is not None:
                with suppress(OSError, ValueError):
                    self._bar.refresh()
            elif now - self._said >= GAPS[min(self._lines, len(GAPS) - 1)]:
                self._said, self._lines = now, self._lines + 1
                self._write(self.line(now))

    def line(self, now: float) -> str:
        """How far it is: "evaluating  300/5,000 images  150 images/s  31 s left"."""
        seconds, counted = now - self._started, self.done - self._first
        parts = [self.text]
        if self.total is not None:
            parts.append(f"{self.done:,}/{self.total:,} {self.unit}")
        elif self.done:
            parts.append(f"{self.done:,} {self.unit}")
        if counted and seconds > 0:
            rate = counted / seconds
            parts.append(f"{rate:,.{0 if rate >= 10 else 1}f} {self.unit}/s")
            if self.total is not None:
                parts.append(f"{_duration((self.total - self.done) / rate)} left")
        return "  ".join([*parts, f"{_duration(math.floor(seconds))} so far"] if not counted else parts)

    def _format(self) -> str:
        """What the live line says."""
        if self.total:
            return _FORMAT_COUNT if self._count else _FORMAT
        return _FORMAT_OPEN_COUNT if self.done and self._count else _FORMAT_OPEN

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Without the live line within the block."""
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._bar.clear()
        yield
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._bar.refresh()

    def _watch(self) -> None:
        while not self._end.wait(_BEAT):
            self.tick()


def _size() -> dict[str, Any]:
    """How the live line knows its width: from the terminal, or 80 columns where that does not know it (0 x 0)."""
    try:
        columns, _ = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):  # no terminal beneath the stream
        columns = 0
    return {"dynamic_ncols": True} if columns else {"ncols": 80, "nrows": 24}


def _stamped(text: str) -> None:
    say(f"{datetime.now().astimezone().isoformat(timespec='seconds')} {text}")


def _duration(seconds: float) -> str:
    """For a reader: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{math.ceil(max(seconds, 0))} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def aligned(rows: Sequence[Sequence[str]], least: int = 0) -> Iterator[str]:
    """The lines of a table: the first column flush left and at least so wide, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        padded = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        yield "   ".join((f"{name:{max(widths[0], least)}}", *padded))

"""What a person sees while a study is going: one live line on a terminal, a line per run that ended elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence


class Progress:
    """How far a study is.

    Args:
        total: runs of the study.
        ready: of them, those that were done before.
    """

    def __init__(self, total: int, ready: int) -> None:
        self.total, self.ready, self.ended = total, ready, ready
        self._started, self._shown = time.monotonic(), ""

    def done(self, name: str) -> None:
        """A run has ended."""
        self.ended += 1
        self.say(f"{self.ended}/{self.total} done: {name}{self._left()}")

    def show(self, running: Sequence[str]) -> None:
        """Renew the live line."""
        line = f"{self.ended}/{self.total} done, running {', '.join(running)}{self._left()}"
        if sys.stderr.isatty() and line != self._shown:
            print(f"\r\x1b[K{line[:200]}", end="", file=sys.stderr, flush=True)
            self._shown = line

    def say(self, text: str) -> None:
        """A line that stays."""
        print(f"\r\x1b[K{text}" if sys.stderr.isatty() else text, file=sys.stderr, flush=True)
        self._shown = ""

    def _left(self) -> str:
        """The time that is left at the pace so far, once there is one."""
        done = self.ended - self.ready
        if not done or self.ended == self.total:
            return ""
        left = (time.monotonic() - self._started) / done * (self.total - self.ended)
        return f", {left / 60:.0f} min left" if left >= 90 else f", {left:.0f} s left"

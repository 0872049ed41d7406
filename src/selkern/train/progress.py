"""What a person sees while a run is going: one live line on a terminal, one plain line per epoch elsewhere."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm


class Progress:
    """The live line (tqdm, on stderr) and the lines that stay, which also go to the run's log.txt.

    Args:
        log: the log file; None where nothing is to be written or said (ranks other than 0).
    """

    def __init__(self, log: Path | None) -> None:
        self.log = log
        self._bar: tqdm[Any] | None = None

    def begin(self, images: int, done: int) -> None:
        """Open the live line: `images` of the whole run, of which `done` are behind us."""
        self._bar = tqdm(
            total=images,
            initial=done,
            unit=" img",
            disable=self.log is None or not sys.stderr.isatty(),
            dynamic_ncols=True,
            smoothing=0.05,
            bar_format="{desc}  {rate_fmt}  eta {remaining} {bar}",
        )

    def advance(self, images: int, text: str) -> None:
        """Move the live line on by some images."""
        if self._bar is not None:
            self._bar.set_description_str(text, refresh=False)
            self._bar.update(images)

    def say(self, text: str) -> None:
        """A line that stays: on the screen without disturbing the live line, and in the log with the time."""
        if self.log is None:
            return
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        with self.log.open("a") as file:
            file.write(f"{now} {text}\n")
        tqdm.write(text if sys.stderr.isatty() else f"{now} {text}", file=sys.stderr)

    def end(self) -> None:
        """Close the live line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

"""What a person sees while a run is going: one live line on a terminal, one plain line per epoch elsewhere."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from selkern.files import append
from selkern.train.tally import Tally


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
        append(self.log, f"{now} {text}\n")
        tqdm.write(text if sys.stderr.isatty() else f"{now} {text}", file=sys.stderr)

    def end(self) -> None:
        """Close the live line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def step_line(tally: Tally, epoch: int, epochs: int, step: int, steps: int, lr: float) -> str:
    """The live line of an epoch, counted from 0, after so many of its steps."""
    n = max(tally.images, 1)
    return (
        f"epoch {epoch + 1}/{epochs}  step {step}/{steps}  "
        f"loss {tally.loss / n:.3f}  top1 {tally.right / n:.1%}  lr {lr:.2g}"
    )


def epoch_line(row: dict[str, float], epochs: int, best: bool) -> str:
    """The line that stays of an epoch, from its row of metrics.csv."""
    return (
        f"epoch {row['epoch']:.0f}/{epochs}  loss {row['train_loss']:.3f}  top1 {row['train_top1']:.1%}  "
        f"val loss {row['val_loss']:.3f}  val top1 {row['val_top1']:.2%}{' (best)' if best else ''}  "
        f"{row['images_per_s']:.0f} img/s  {row['seconds']:.0f} s"
        + (f"  {row['skipped']:.0f} images skipped" if row["skipped"] else "")
    )

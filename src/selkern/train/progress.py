"""What a person sees while a run is going: the live line or plain lines of `selkern.progress`, and the log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from selkern.io import append
from selkern.progress import Progress, on_terminal, say


@dataclass
class Tally:
    """Sums over the images that were trained on in the epoch so far.

    Attributes:
        loss: summed over images, nats.
        right: images whose likeliest class was the true one.
        images: how many there were.
        seconds: they took.
        skipped: images that could not be read and are not among them.
    """

    loss: float = 0.0
    right: float = 0.0
    images: int = 0
    seconds: float = 0.0
    skipped: int = 0

    @classmethod
    def merge(cls, ranks: Sequence[Tally]) -> Tally:
        """All ranks as one; they worked at the same time, so the longest counts."""
        loss, right, images, skipped = (
            sum(getattr(t, name) for t in ranks) for name in ("loss", "right", "images", "skipped")
        )
        return cls(loss, right, images, max(t.seconds for t in ranks), skipped)


class RunLog:
    """How far a run is, and the lines that stay, which also go to the run's log.txt.

    Args:
        log: the log file; None where nothing is to be written or said (ranks other than 0).
    """

    def __init__(self, log: Path | None) -> None:
        self.log = log
        self._line: Progress | None = None

    def begin(self, images: int, done: int, text: str) -> None:
        """Show from here on how far it is: `images` of the whole run, of which `done` are behind us."""
        self._line = Progress(text, total=images, done=done, count=False, quiet=self.log is None)
        self._line.__enter__()

    def advance(self, images: int, text: str) -> None:
        """So many more images are done."""
        if self._line is not None:
            self._line.advance(images, text)

    def say(self, text: str) -> None:
        """A line that stays: on the screen without disturbing the live line, and in the log with the time."""
        if self.log is None:
            return
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        append(self.log, f"{now} {text}\n")
        (say if self._line is None else self._line.say)(text if on_terminal() else f"{now} {text}")

    def end(self) -> None:
        """Show nothing any more."""
        if self._line is not None:
            self._line.__exit__(None, None, None)
            self._line = None


def step_line(tally: Tally, epoch: int, epochs: int, step: int, steps: int, lr: float) -> str:
    """What goes on in an epoch, counted from 0, after so many of its steps."""
    n = tally.images
    measured = f"loss {tally.loss / n:.3f}  top1 {tally.right / n:.1%}  " if n else ""
    return f"epoch {epoch + 1}/{epochs}  step {step}/{steps}  {measured}lr {lr:.2g}"


def epoch_line(row: dict[str, float], epochs: int, best: bool) -> str:
    """The line that stays of an epoch, from its row of metrics.csv."""
    return (
        f"epoch {row['epoch']:.0f}/{epochs}  loss {row['train_loss']:.3f}  top1 {row['train_top1']:.1%}  "
        f"val loss {row['val_loss']:.3f}  val top1 {row['val_top1']:.2%}{' (best)' if best else ''}  "
        f"{row['images_per_s']:.0f} img/s  {row['seconds']:.0f} s"
        + (f"  {row['skipped']:.0f} images skipped" if row["skipped"] else "")
    )

"""Sums over an epoch's images, of one rank or of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


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

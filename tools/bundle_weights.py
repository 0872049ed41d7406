"""Put the best weights of a finished run into the package, with where they come from.

    python tools/bundle_weights.py runs/train/sknet_mini-digits digits

The run must have its evaluation.json (every run with a report has). At most 1.5 MB, so that the package stays small.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from selkern.models import weights

LIMIT = 1_500_000  # bytes


def main(run: Path, name: str) -> None:
    """Copy the weights with test figures, command and commit on their card."""
    best = run / "weights" / "best.safetensors"
    card = weights.read_card(best)
    figures = json.loads((run / "evaluation.json").read_text())
    metrics = {f"test_{key}": figures[key] for key in ("images", "top1", "top1_low", "top1_high", "loss")}
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    source = {**card.source, "commit": commit}
    target = Path(weights.__file__).parent / "bundled" / f"{card.model}.{name}.safetensors"
    target.parent.mkdir(exist_ok=True)
    card = replace(card, metrics={**card.metrics, **metrics}, source=source)
    weights.save_weights(target, weights.read_tensors(best), card)
    size = target.stat().st_size
    print(f"{target}: {size / 1e6:.2f} MB, test top-1 {figures['top1']:.2%}")
    if size > LIMIT:
        target.unlink()
        sys.exit(f"error: {size} bytes | {target} | at most {LIMIT}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python tools/bundle_weights.py RUN NAME")
    main(Path(sys.argv[1]), sys.argv[2])

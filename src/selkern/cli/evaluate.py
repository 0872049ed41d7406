"""`selkern evaluate`: accuracy of trained weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from selkern.cli.greet import greet
from selkern.cli.parse import ImageOptions, Run, parse
from selkern.errors import UsageError, printable
from selkern.progress import Progress, say
from selkern.tuning import measured_threads, tune

if TYPE_CHECKING:
    from selkern.evaluation import Evaluation

_MANY, _FEW = 100, 10  # classes: of more than so many, so few are shown at either end


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(ImageOptions):
    """Measure trained weights: top-1, top-5, loss, and every class."""

    run: Run
    """A run's folder or name, latest, a weights file, bundled weights (sknet_mini.digits), or hf-hub:user/name."""
    image_size: int | None = None
    """Side of the network's input, px; by default the weights' own. The paper gives figures at 224 and at 320."""
    eval_crop: float | None = None
    """Share of the resized image's side that the centre crop keeps; by default the weights' own."""
    output: Path | None = None
    """Folder for predictions.csv, confusion.csv, per_class.csv and evaluation.json; no file is ever overwritten."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.output is not None and self.output.suffix.lower() in (".csv", ".json", ".jsonl", ".txt"):
            raise UsageError("a file, where several are written", f"--output {self.output}", "give a folder")


def main(argv: list[str]) -> int:
    """`selkern evaluate`."""
    options = parse(EvaluateOptions, argv, "evaluate")
    greet(f"evaluating {options.run}")
    with Progress("starting") as line:
        from selkern import evaluation
        from selkern.inference.images import choose_images
        from selkern.inference.network import at_size, load
        from selkern.inference.predict import make_folder, write_evaluation

        if options.output is not None:
            make_folder(options.output)
        tune(threads=options.threads)
        line.show("loading the network")
        loaded = load(options.run, options.device, options.model, exported=True)
        own = loaded.preprocess
        loaded = at_size(loaded, options.image_size, options.eval_crop)
        line.show("listing the images")
        chosen = choose_images(loaded, options.data, options.split, on_bad=options.on_bad_image, table=options.table)
        source, split = chosen.source, chosen.split
        for text in chosen.lines:
            line.say(text)
        if options.threads is None and (best := measured_threads(loaded.model, loaded.preprocess.size, len(split))):
            line.say(str(best))
        line.show("evaluating", total=len(split))
        result = evaluation.evaluate(
            loaded.model, split, source.classes, loaded.preprocess, on_bad=options.on_bad_image, seen=line.advance
        )
    result.require_numbers(split)
    shown = {"image_size": loaded.preprocess.size, "eval_crop": loaded.preprocess.crop}
    if options.output is not None:
        write_evaluation(result, split, options.output, shown)
    for reason in result.skipped:
        say(f"warning: skipped: {reason}")
    if options.json:
        print(json.dumps({"model": loaded.card.model, **chosen.to_dict(), **shown, **result.to_dict()}))
        return 0
    counts = f"{len(result):,} images"
    if result.skipped:
        counts = f"{len(result):,} of {len(split):,} images, {len(result.skipped):,} could not be read"
    print(f"{loaded.card.model} on {source.name}, {split.name} split, {counts}")
    if loaded.preprocess != own:
        now = loaded.preprocess
        print(f"input {now.size} px, centre crop {now.crop:g}; the weights' own: {own.size} px, {own.crop:g}")
    _print(result, "per_class.csv" if options.output is not None else "--output FOLDER")
    if options.output is not None:
        print(f"written: {options.output}")
    return 0


def _print(result: Evaluation, rest: str) -> None:
    """The figures, and every class; of many the worst and the best.

    Args:
        rest: where all classes are.
    """
    low, high = result.top1_interval
    print(f"top1 {result.top1:.2%} (95 % interval {low:.2%} to {high:.2%})  top5 {result.top5:.2%}  ", end="")
    print(f"loss {result.loss:.4f} nats")
    name, share = result.largest
    if share < 1 and not result.above_chance:
        print(f"not better than always naming the largest class ({printable(name)}, {share:.2%})")
    rows = result.per_class()
    if len(rows) <= _MANY:
        _print_classes(rows)
        return
    ranked = sorted((row for row in rows if row[1]), key=lambda row: row[2])
    few = min(_FEW, len(ranked) // 2)
    print(f"of {len(ranked):,} classes with images, of {len(rows):,} in all, the {few} worst:")
    _print_classes(ranked[:few])
    print(f"the {few} best (all: {rest}, or --json):")
    _print_classes(ranked[len(ranked) - few :])


def _print_classes(rows: Sequence[tuple[str, int, float]]) -> None:
    width = max((len(name) for name, *_ in rows), default=0)
    for name, n, right in rows:
        print(
            f"  {name:{width}}  {n:6,} image{'s' if n > 1 else ' '}  {right:7.2%}"
            if n
            else f"  {name:{width}}       0 images"
        )

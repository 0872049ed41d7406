"""`selkern evaluate`: accuracy of trained weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from selkern.cli.greet import greet
from selkern.cli.parse import ImageOptions, Run, parse
from selkern.errors import UsageError, printable
from selkern.progress import Progress, say
from selkern.tuning import measured_threads, tune


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(ImageOptions):
    """Measure trained weights: top-1, top-5, loss, and every class."""

    run: Run
    """A run's folder or name, latest, a weights file, bundled weights (sknet_mini.digits), or hf-hub:user/name."""
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
        from selkern.inference.network import load
        from selkern.inference.predict import make_folder, write_evaluation

        if options.output is not None:
            make_folder(options.output)
        tune(threads=options.threads)
        line.show("loading the network")
        loaded = load(options.run, options.device, options.model, exported=True)
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
    if options.output is not None:
        write_evaluation(result, split, options.output)
    for reason in result.skipped:
        say(f"warning: skipped: {reason}")
    if options.json:
        print(json.dumps({"model": loaded.card.model, **chosen.to_dict(), **result.to_dict()}))
        return 0
    low, high = result.top1_interval
    counts = f"{len(result):,} images"
    if result.skipped:
        counts = f"{len(result):,} of {len(split):,} images, {len(result.skipped):,} could not be read"
    print(f"{loaded.card.model} on {source.name}, {split.name} split, {counts}")
    print(f"top1 {result.top1:.2%} (95 % interval {low:.2%} to {high:.2%})  top5 {result.top5:.2%}  ", end="")
    print(f"loss {result.loss:.4f} nats")
    name, share = result.largest
    if share < 1 and not result.above_chance:
        print(f"not better than always naming the largest class ({printable(name)}, {share:.2%})")
    width = max(len(name) for name in result.classes)
    for name, n, right in result.per_class():
        print(
            f"  {name:{width}}  {n:6,} image{'s' if n > 1 else ' '}  {right:7.2%}"
            if n
            else f"  {name:{width}}       0 images"
        )
    if options.output is not None:
        print(f"written: {options.output}")
    return 0

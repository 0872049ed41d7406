"""`selkern predict`: the likeliest classes of images."""

from __future__ import annotations

import json
import signal
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from selkern.cli.greet import greet
from selkern.cli.parse import Code, Run, parse
from selkern.errors import Interrupted, UsageError
from selkern.io import require_new
from selkern.progress import Progress, say
from selkern.tuning import check_threads, measured_threads, tune


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Name the likeliest classes of images."""

    run: Run
    """A run's folder or name, latest, a weights file, bundled weights (sknet_mini.digits), or hf-hub:user/name."""
    paths: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="PATH...")]
    """Image files and folders."""
    model: Code = ""
    top_k: int = 5
    """Classes shown per image."""
    output: Path | None = None
    """A new .csv (path, class, probability, class_2, ..., error) or .jsonl for the answers, written row by row."""
    device: str = "auto"
    """Where to compute: auto (a GPU if there is one), cpu or cuda."""
    threads: int | None = None
    """CPU threads to compute with; by default what a short measurement finds fastest."""
    json: bool = False
    """Print one JSON object per line instead of text."""

    def __post_init__(self) -> None:
        check_threads(self.threads)
        if self.top_k < 1:
            raise UsageError(f"top-k is {self.top_k}", "--top-k", "must be at least 1")
        if self.output is not None:
            if self.output.suffix.lower() not in (".csv", ".jsonl"):
                raise UsageError("neither .csv nor .jsonl", f"--output {self.output}", "give a file named so")
            require_new(self.output)


def main(argv: list[str]) -> int:
    """`selkern predict`; 3 where an image could not be read."""
    options = parse(PredictOptions, argv, "predict")
    greet(f"predicting with {options.run}")
    done = unreadable = 0
    with ExitStack() as stack:
        line = stack.enter_context(Progress("starting"))
        from selkern.inference import predict as predicting
        from selkern.inference.network import load
        from selkern.inference.predict import new_prediction_file

        tune(threads=options.threads)
        line.show("listing the images")
        images = predicting.list_images(options.paths, lambda text: line.say(f"note: {text}"))
        line.show("loading the network")
        loaded = load(options.run, options.device, options.model, exported=True)
        top_k = min(options.top_k, len(loaded.card.classes))
        file = None if options.output is None else stack.enter_context(new_prediction_file(options.output, top_k))
        for text in predicting.notes_on(images, loaded.preprocess.levels):
            line.say(f"note: {text}")
        if options.threads is None and (best := measured_threads(loaded.model, loaded.preprocess.size, len(images))):
            line.say(str(best))
        line.show("predicting", total=len(images))
        try:
            for answer in predicting.predict(loaded, images, top_k=top_k, seen=line.advance):
                done, unreadable = done + 1, unreadable + bool(answer.error)
                if file is not None:
                    file.add(answer)
                if options.json:
                    line.answer(json.dumps(asdict(answer), ensure_ascii=False))
                elif file is None and answer.error:
                    line.say(f"error: {answer.error}")
                elif file is None:
                    pairs = zip(answer.classes, answer.probabilities, strict=True)
                    line.answer("\t".join((answer.path, *(f"{name} {p:.3f}" for name, p in pairs))))
        except KeyboardInterrupt:
            there = "" if file is None else f"; {file.rows:,} are in {file.path}"
            raise Interrupted(signal.SIGINT, f"stopped after {done:,} of {len(images):,} images{there}") from None
    if file is not None:
        kind = "the column" if file.path.suffix.lower() == ".csv" else "the field"
        bad = f", {unreadable:,} of them could not be read (see {kind} error)" if unreadable else ""
        (say if options.json else print)(f"{file.path}: {done:,} images{bad}")
    return 3 if unreadable else 0

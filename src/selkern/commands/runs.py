"""The commands that train networks and use trained ones: train, evaluate, analyze, predict.

Each function takes the words after the command's name, calls one function, prints what it returns, and gives the exit
code. Nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from selkern import __version__
from selkern.errors import Interrupted, SelkernError, UsageError, printable
from selkern.progress import Progress, say
from selkern.tuning import tune

if TYPE_CHECKING:
    from selkern.train.defaults import Defaults
    from selkern.train.options import TrainOptions


def train(argv: list[str]) -> int:
    """`selkern train`, and with `--resume` its continuation."""
    argv = [part for word in argv for part in (word.split("=", 1) if word.startswith("--resume=") else [word])]
    if "--resume" in argv:
        at = argv.index("--resume") + 1
        if at == len(argv) or argv[at].startswith("-"):
            argv = [*argv[:at], "latest", *argv[at:]]
        from selkern.cli_options import ResumeOptions, parse

        options = parse(ResumeOptions, argv, "train --resume")
        _greet(f"resuming {options.resume}")
        with Progress("starting", quiet=not _is_main()):
            from selkern.train import job
            from selkern.train.run_folder import RunFolder

            tune(training=True)
        run = job.resume(
            RunFolder.find(options.resume),
            options.device,
            options.workers,
            data=options.data,
            epochs=options.epochs,
            extend=options.extend,
        )
    else:
        asked, defaults = _train_options(argv)
        _greet(f"{asked.model} on {asked.data}, recipe {asked.recipe}")
        with Progress("starting", quiet=not _is_main()):
            from selkern.train import job

            tune(training=True)
        run = job.train(asked, defaults)
    if run is not None:  # rank 0
        print(_next_commands(run.path))
    return 0


def _greet(text: str) -> None:
    """The first line, before anything heavy is imported."""
    if _is_main():
        say(f"selkern {__version__}: {printable(text)}")


def _is_main() -> bool:
    """Whether this process is the one that speaks."""
    return int(os.environ.get("RANK", "0")) == 0


def _train_options(argv: list[str]) -> tuple[TrainOptions, Defaults]:
    """Options from the flags, on top of defaults that follow from some of them, and those defaults."""
    from selkern.cli_options import parse, parse_known
    from selkern.train.defaults import Asked, choose_defaults
    from selkern.train.options import TrainOptions

    helping = not {"-h", "--help"}.isdisjoint(argv)
    try:
        asked = parse_known(Asked, argv, "train")
        with Progress(f"looking at {printable(asked.data)}", quiet=helping or not _is_main()):
            defaults = choose_defaults(asked, fetch=not helping)
    except SelkernError as error:
        if not helping:
            raise
        defaults = choose_defaults(Asked())  # help is given whatever else is wrong
        say(f"note: the defaults below are those of the digits, since the command as it stands fails: {error}")
    return parse(TrainOptions, argv, "train", defaults.options), defaults


def _next_commands(run: Path) -> str:
    report = run / "report.html"
    lines = [f"report: {report}"] if report.is_file() else []
    lines += ["next:"]
    lines += [
        f"  selkern {words.format(shlex.quote(str(run)))}"
        for words in ("predict {} IMAGE...", "evaluate {}", "analyze {}")
    ]
    return "\n".join(lines)


def evaluate(argv: list[str]) -> int:
    """`selkern evaluate`."""
    from selkern.cli_options import EvaluateOptions, parse

    options = parse(EvaluateOptions, argv, "evaluate")
    _greet(f"evaluating {options.run}")
    with Progress("starting") as line:
        from selkern.analysis import evaluation
        from selkern.train.choose import choose_images
        from selkern.train.loaded import load
        from selkern.train.outputs import make_folder, write_evaluation

        if options.output is not None:
            make_folder(options.output)
        tune()
        line.show("loading the network")
        loaded = load(options.run, options.device)
        line.show("listing the images")
        chosen = choose_images(loaded, options.data, options.split, on_bad=options.on_bad_image, table=options.table)
        source, split = chosen.source, chosen.split
        for text in chosen.lines:
            line.say(text)
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


def analyze(argv: list[str]) -> int:
    """`selkern analyze`."""
    from selkern.cli_options import AnalyzeOptions, parse

    options = parse(AnalyzeOptions, argv, "analyze")
    _greet(f"analyzing {options.run}")
    with Progress("starting"):
        from selkern.analysis.studies import Plan
        from selkern.analysis.words import of_studies
        from selkern.train import analyze as analyzing
        from selkern.train.loaded import load
        from selkern.train.others import is_other, load_other

        tune()
    other = is_other(options.run)
    if not other and (options.arguments or options.image_size):
        raise UsageError(
            "is for networks of others", "--with" if options.arguments else "--image-size", "leave it out: weights tell"
        )
    with Progress("loading the network"):
        loaded = (
            load_other(
                options.run,
                options.data,
                arguments=options.arguments,
                size=options.image_size,
                device=options.device,
                on_bad=options.on_bad_image,
                table=options.table,
            )
            if other
            else load(options.run, options.device)
        )
    analysis = analyzing.analyze(
        loaded,
        options.data,
        options.split,
        options.output,
        options.on_bad_image,
        Plan(images=options.images, field_images=options.field_images, looks=options.looks, zooms=options.zooms),
        options.boxes,
        options.table,
        say,
    )
    said = of_studies(analysis.studies, analysis.evaluation)
    top1 = analysis.evaluation.top1
    if options.json:
        above, found = analysis.evaluation.above_chance, analysis.studies.to_dict()
        report = {"report": str(analysis.page), "top1": top1, "above_chance": above, "studies": found}
        print(json.dumps({**report, "said": said, "notes": analysis.notes}))
        return 0
    for note in analysis.notes:
        say(f"note: {note}")
    print(f"top1 {top1:.2%} on {len(analysis.evaluation):,} images")
    print("\n".join(said.get("main", ["this network has no selective-kernel units to study"])))
    print(f"report: {analysis.page}")
    return 0


def predict(argv: list[str]) -> int:
    """`selkern predict`; 3 where an image could not be read."""
    from selkern.cli_options import PredictOptions, parse

    options = parse(PredictOptions, argv, "predict")
    _greet(f"predicting with {options.run}")
    done = unreadable = 0
    with ExitStack() as stack:
        line = stack.enter_context(Progress("starting"))
        from selkern.train import predict as predicting
        from selkern.train.loaded import load
        from selkern.train.outputs import new_prediction_file

        tune()
        line.show("listing the images")
        images = predicting.list_images(options.paths, lambda text: line.say(f"note: {text}"))
        line.show("loading the network")
        loaded = load(options.run, options.device)
        top_k = min(options.top_k, len(loaded.card.classes))
        file = None if options.output is None else stack.enter_context(new_prediction_file(options.output, top_k))
        for text in predicting.notes_on(images, loaded.preprocess.levels):
            line.say(f"note: {text}")
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

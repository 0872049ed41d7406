"""The `selkern` program: reads the command line, calls one function, prints what it returns.

Nothing heavy is imported before a command needs it, so that help and usage errors are immediate.
"""

from __future__ import annotations

import difflib
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selkern import __version__
from selkern.errors import Interrupted, ResourceError, SelkernError, UsageError

if TYPE_CHECKING:
    from selkern.train.options import TrainOptions


def _train(argv: list[str]) -> int:
    argv = [part for word in argv for part in (word.split("=", 1) if word.startswith("--resume=") else [word])]
    if "--resume" in argv:
        at = argv.index("--resume") + 1
        if at == len(argv) or argv[at].startswith("-"):
            argv = [*argv[:at], "latest", *argv[at:]]
        from selkern.cli_options import ResumeOptions, parse

        options = parse(ResumeOptions, argv, "train --resume")
        from selkern.train.job import resume
        from selkern.train.run_folder import RunFolder

        run = resume(RunFolder.find(options.resume), options.device, options.workers)
    else:
        asked = _train_options(argv)
        print(
            f"selkern {__version__}: {asked.model} on {asked.data}, recipe {asked.recipe}",
            file=sys.stderr,
            flush=True,
        )
        from selkern.train.job import train

        run = train(asked)
    if run is not None:  # rank 0
        print(_next_commands(run.path))
    return 0


def _train_options(argv: list[str]) -> TrainOptions:
    """Options from the flags, on top of the recipe's, which follow from --recipe or else from the data."""
    from selkern.cli_options import parse
    from selkern.train.options import TrainOptions, recipe_named

    def given(flag: str, default: str) -> str:
        values = [argv[i + 1] for i, word in enumerate(argv[:-1]) if word == flag]
        values += [word.partition("=")[2] for word in argv if word.startswith(f"{flag}=")]
        return values[-1] if values else default

    name = given("--recipe", "digits" if given("--data", "digits") == "digits" else "cifar")
    default = replace(TrainOptions(), recipe=name, training=recipe_named(name))
    return parse(TrainOptions, argv, "train", default)


def _next_commands(run: Path) -> str:
    report = run / "report.html"
    lines = [f"report: {report}"] if report.is_file() else []
    lines += ["next:"]
    lines += [
        f"  selkern {words.format(shlex.quote(str(run)))}"
        for words in ("predict {} IMAGE...", "evaluate {}", "analyze {}")
    ]
    return "\n".join(lines)


def _evaluate(argv: list[str]) -> int:
    from selkern.cli_options import EvaluateOptions, parse

    options = parse(EvaluateOptions, argv, "evaluate")
    from selkern.analysis.evaluation import evaluate
    from selkern.train.loaded import load, open_data, pick_split

    loaded = load(options.run, options.device)
    source = open_data(loaded, options.data)
    result = evaluate(loaded.model, pick_split(source, options.split), source.classes, loaded.preprocess)
    if options.json:
        print(json.dumps({"model": loaded.card.model, "split": options.split, **result.to_dict()}))
        return 0
    low, high = result.top1_interval
    print(f"{loaded.card.model} on {source.name}, {options.split} split, {len(result):,} images")
    print(f"top1 {result.top1:.2%} (95 % interval {low:.2%} to {high:.2%})  top5 {result.top5:.2%}  ", end="")
    print(f"loss {result.loss:.4f} nats")
    width = max(len(name) for name in result.classes)
    for name, n, right in result.per_class():
        print(f"  {name:{width}}  {n:6,} images  {right:7.2%}" if n else f"  {name:{width}}       0 images")
    return 0


def _analyze(argv: list[str]) -> int:
    from selkern.cli_options import AnalyzeOptions, parse

    options = parse(AnalyzeOptions, argv, "analyze")
    from selkern.analysis.report import findings
    from selkern.train.job import analyze
    from selkern.train.loaded import load

    analysis = analyze(load(options.run, options.device), options.data, options.split, options.output)
    study = analysis.study
    if options.json:
        rows = study.to_rows() if study else []
        print(json.dumps({"report": str(analysis.page), "top1": analysis.evaluation.top1, "selection": rows}))
        return 0
    print(f"top1 {analysis.evaluation.top1:.2%} on {len(analysis.evaluation):,} images")
    print("\n".join(findings(study)) if study else "this network has no selective-kernel units to study")
    print(f"report: {analysis.page}")
    return 0


def _predict(argv: list[str]) -> int:
    from selkern.cli_options import PredictOptions, parse

    options = parse(PredictOptions, argv, "predict")
    if options.top_k < 1:
        raise UsageError(f"top-k is {options.top_k}", "--top-k", "must be at least 1")
    from selkern.train.loaded import load
    from selkern.train.predict import list_images, predict

    images = list_images(options.paths)
    unreadable = 0
    for answer in predict(load(options.run, options.device), images, top_k=options.top_k):
        unreadable += bool(answer.error)
        if options.json:
            print(json.dumps(asdict(answer), ensure_ascii=False), flush=True)
        elif answer.error:
            print(f"error: {answer.error}", file=sys.stderr)
        else:
            pairs = zip(answer.classes, answer.probabilities, strict=True)
            print(answer.path, *(f"{name} {p:.3f}" for name, p in pairs), sep="\t", flush=True)
    return 3 if unreadable else 0


def _models(argv: list[str]) -> int:
    from selkern.cli_options import ModelsOptions, parse

    options = parse(ModelsOptions, argv, "models")
    from selkern.models.registry import list_models

    names = list_models(options.pattern)
    if not names:
        raise UsageError(f"no model fits {options.pattern!r}", "pattern", "`selkern models` lists all")
    rows = [_model_row(name) for name in names]
    if options.json:
        print(json.dumps(rows))
        return 0
    print(f"{'':24}{'counted':>11}{'':>18}   the paper's")
    print(f"{'name':24}{'params':>11}{'GMACs':>9}{'input':>9}   {'params':>7}{'GMACs':>7}{'error':>9}  table")
    for row in rows:
        counted = f"{row['name']:24}{row['parameters'] / 1e6:>9.3f} M{row['macs'] / 1e9:>9.3f}{row['input_size']:>6} px"
        paper = row["paper"]
        figures = [] if paper is None else [paper["parameters"], paper["gmacs"], paper["error"]]
        cells = "".join(f"{'-' if value is None else value:>7}" for value in figures)
        source = "" if paper is None else f" %  {paper['table']}{', from memory' if paper['recalled'] else ''}"
        print(f"{counted}   {cells}{source}".rstrip())
    print(
        "\nparams in millions, for 1,000 classes (10 below 64 px); GMACs: billions of multiply-adds at the input size"
    )
    return 0


def _model_row(name: str) -> dict[str, Any]:
    """A network's counted cost, with the paper's figures beside it where it has some."""
    import torch

    from selkern.models.cost import count
    from selkern.models.paper import PUBLISHED
    from selkern.models.registry import architecture, create_model

    paper, size = PUBLISHED.get(name), architecture(name).input_size
    with torch.device("meta"):
        model = create_model(name, num_classes=1000 if size >= 64 else 10)
    cost = count(model, size)
    return {
        "name": name,
        "num_classes": model.num_classes,
        "input_size": size,
        **asdict(cost),
        "paper": None if paper is None else asdict(paper),
    }


def _convert(argv: list[str]) -> int:
    from selkern.cli_options import ConvertOptions, parse

    options = parse(ConvertOptions, argv, "convert")
    from selkern.models.convert import convert

    classes = None
    if options.classes is not None:
        if not options.classes.is_file():
            raise UsageError("no such file", str(options.classes), "give a text file with one class per line")
        classes = tuple(line for line in options.classes.read_text(encoding="utf-8").splitlines() if line)
    card = convert(options.source, options.target, options.model, classes=classes)
    print(f"{options.target}: {card.model}, {len(card.classes):,} classes")
    return 0


COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "train": (
        _train,
        "train a network, evaluate it, and report what its neurons chose (`--resume` continues)",
    ),
    "evaluate": (_evaluate, "accuracy of a run or a weights file on its data or yours"),
    "predict": (_predict, "the likeliest classes of image files and folders"),
    "analyze": (_analyze, "what the selective kernels chose, and the report"),
    "convert": (_convert, "weights of timm, Caffe or a torch state dict to a file that describes itself"),
    "models": (_models, "the networks, their parameters and multiply-adds"),
}

HELP = f"""usage: selkern COMMAND [OPTIONS]

Selective-kernel networks (SK attention, SKNet) for PyTorch, version {__version__}.

commands:
{chr(10).join(f"  {name:10}{text}" for name, (_, text) in COMMANDS.items())}

`selkern train` with no options trains on the digits in the box, in minutes, and ends in a report.
`selkern COMMAND --help` shows a command's options; `--debug` anywhere shows the traceback of an error."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit code: 0, 2 usage, 3 data, 4 checkpoint, 5 resources, 6 numerics, 130 or 143 stopped."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        code = _dispatch(words)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a reader that has left is noticed, and not when Python ends
        return code
    except SelkernError as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return stop.exit_code
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if words[0] in ("-V", "--version"):
        print(f"selkern {__version__}")
        return 0
    if words[0] not in COMMANDS:
        near = difflib.get_close_matches(words[0], COMMANDS, n=1)
        fix = f"did you mean {near[0]}?" if near else f"one of {', '.join(COMMANDS)}"
        raise UsageError(f"unknown command {words[0]!r}", "selkern", fix)
    try:
        return COMMANDS[words[0]][0](words[1:])
    except SystemExit as stop:  # help was asked for and printed
        return int(stop.code or 0)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "out of memory" in str(error):
            raise ResourceError("out of memory", words[0], "use a smaller --batch-size, or --accumulate 2") from error
        raise


if __name__ == "__main__":
    sys.exit(main())

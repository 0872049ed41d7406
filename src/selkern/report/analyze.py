"""`selkern analyze`: evaluate trained weights, study what their neurons chose, write the report and the tables."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selkern.data.boxes import objects_of
from selkern.data.preprocess import Preprocess
from selkern.data.scenes import SceneSplit, SceneTruth
from selkern.data.sources import Split
from selkern.data.table_options import TableOptions
from selkern.errors import ResourceError, UsageError
from selkern.evaluation import Evaluation, OnBad, evaluate
from selkern.inference.images import Chosen, choose_images
from selkern.inference.network import Loaded, load
from selkern.inference.predict import write_predictions
from selkern.io import new_folder, write_atomic, write_csv
from selkern.models.cost import count
from selkern.progress import Progress as Line
from selkern.report.look import render_look
from selkern.report.page import Report, draw, make_examples, pick_examples, render
from selkern.selection.analyses import Plan, Run, Studies
from selkern.selection.observe import Observed
from selkern.selection.plots import to_png, to_svg
from selkern.selection.scale import Truth
from selkern.train.distributed import Ranks, pick_device
from selkern.train.options import read_options
from selkern.train.progress import RunLog
from selkern.train.run_folder import RunFolder, command, locked, versions


@dataclass(frozen=True)
class Analysis:
    """What `analyze` found: the evaluation, the studies of the selection, the page of both, and remarks on the data."""

    evaluation: Evaluation
    studies: Studies
    page: Path
    notes: tuple[str, ...] = ()


def analyze(
    loaded: Loaded,
    data: str | None = None,
    split_name: str = "auto",
    output: Path | None = None,
    on_bad: OnBad = "error",
    plan: Plan | None = None,
    boxes: Path | None = None,
    table: TableOptions | None = None,
    say: Callable[[str], None] = lambda _line: None,
) -> Analysis:
    """Evaluate weights, study their selection, and write report.html with its figures and tables.

    Args:
        data: None takes what the weights' run was trained on.
        split_name: as `choose` takes it.
        output: folder to write into; None takes the run's own, and one within it for other images than its test
            images, whose report is not to take the place of the run's.
        on_bad: "skip" leaves out images that cannot be read; the report says how many.
        plan: how much is studied.
        boxes: a table of the objects' sizes, see `data.boxes.objects_of`.
        table: how to read data that are a table, see `open_source`.
        say: called with a line when a study begins, and with remarks on the images.

    Ctrl+C during the studies ends them; the report has those that are done.

    Raises:
        UsageError: the weights lie in no run and no output is given.
    """
    if output is None and loaded.run is None:
        raise UsageError("nowhere to write the report", "--output", "give a folder")
    with Line("listing the images"):
        chosen = choose_images(loaded, data, split_name, on_bad=on_bad, table=table)
    source, split = chosen.source, chosen.split
    for line in chosen.lines:
        say(line)
    folder = report_folder(loaded, chosen, output)
    started = time.monotonic()
    # Channels are for the study of known sizes alone.
    observed = Observed(loaded.model, channels=boxes is not None or isinstance(split, SceneSplit))
    with Line("evaluating", total=len(split)) as shown, observed.watching():
        evaluation = evaluate(
            loaded.model,
            split,
            source.classes,
            loaded.preprocess,
            on_bad=on_bad,
            seen=shown.advance,
            after=observed.add,
        )
    evaluation.require_numbers(split)
    truths = [split.truth(index) for index in range(len(split))] if isinstance(split, SceneSplit) else []
    truth, remarks = _truth(split, truths, boxes, loaded.preprocess, evaluation, on_bad)
    runner = Run(
        loaded.model,
        split,
        loaded.preprocess,
        source.classes,
        evaluation.indices,
        truth=truth,
        plan=plan,
        observed=observed,
        predicted=evaluation.top[:, 0],
    )
    studies = runner.all(lambda name: say(f"studying: {name}"), lambda result: write_tables(result, folder))
    sizes = np.array([truths[i].scale for i in evaluation.indices]) if truths else None
    notes = [f"{truth.scale:.1f}x" for truth in truths] or None
    right, wrong = (
        make_examples(split, loaded.preprocess, evaluation, positions, studies.main, observed, notes)
        for positions in pick_examples(evaluation, sizes)
    )
    report = Report(
        title=f"{loaded.card.model} on {Path(source.name).name or source.name}",
        model=loaded.card.model,
        data="digit scenes" if source.kind == "digits" else source.name,
        split=split.name,
        evaluation=evaluation,
        cost=count(loaded.model, loaded.preprocess.size, loaded.card.in_chans),
        input_size=loaded.preprocess.size,
        rows=loaded.run.read_metrics() if loaded.run else [],
        studies=studies,
        right=right,
        wrong=wrong,
        provenance=_provenance(loaded, time.monotonic() - started),
        notes=(*chosen.lines, *_skipped(evaluation), *remarks, *studies.notes),
    )
    write_predictions(evaluation, split, folder / f"predictions_{split.name}.csv")
    with Line("drawing the report"):
        page = write_report(report, folder)
    return Analysis(evaluation, studies, page, (*remarks, *studies.notes))


def report_run(run: RunFolder, device: str = "auto", code: str = "") -> Analysis | None:
    """Analyze the best weights of a finished run whose options ask for a report; None where they do not.

    Args:
        code: as for `load`.

    Raises:
        SelkernError: as `analyze` says; ResourceError where another process trains the run.
    """
    options = read_options(run.path)
    if not options.report:
        return None
    log = RunLog(run.log)
    with locked(run.path, Ranks(0, 1, pick_device(device)), log.say):
        log.say("evaluating and analyzing the best weights")
        analysis = analyze(load(str(run.path), device, code), on_bad=options.on_bad_image)
        log.say(f"test top1 {analysis.evaluation.top1:.2%} on {len(analysis.evaluation):,} images")
    return analysis


def report_folder(loaded: Loaded, chosen: Chosen, output: Path | None) -> Path:
    """The folder for a report, made: as asked for, the run's own, or a new one within it."""
    run = None if loaded.run is None else loaded.run.path
    if output is None and run is not None and chosen.is_test_of_run:
        output = run
    try:
        if output is not None:
            output.mkdir(parents=True, exist_ok=True)
            return output
        assert run is not None  # seen before
        return new_folder(run / "reports", f"{Path(chosen.source.name).stem or 'data'}-{chosen.split.name}")
    except OSError as error:
        raise ResourceError(
            f"cannot make the folder ({error.strerror})", str(output or run), "give another --output"
        ) from error


def _truth(
    split: Split,
    truths: Sequence[SceneTruth],
    boxes: Path | None,
    preprocess: Preprocess,
    evaluation: Evaluation,
    on_bad: OnBad,
) -> tuple[Truth | None, tuple[str, ...]]:
    """What is known of the objects' sizes, from the user's table or the drawing of the scenes; and remarks on it."""
    if boxes is not None:
        objects = objects_of(boxes, split, preprocess, evaluation.classes, evaluation.indices.tolist(), on_bad)
        grouped = objects.groups is not None
        clusters = objects.indices if objects.groups is None else objects.groups
        unit = "size of the object, px of the network's input"
        return Truth(objects.indices, objects.sizes, clusters, unit, "groups" if grouped else ""), objects.notes
    if not truths:
        return None, ()
    scale, digits = np.array([truth.scale for truth in truths]), np.array([truth.digit for truth in truths])
    return Truth(np.arange(len(truths)), scale, digits, "size of the object, times 8 px", "original digits"), ()


def _skipped(evaluation: Evaluation) -> list[str]:
    """A remark on images that could not be read, if there were any."""
    n = len(evaluation.skipped)
    return [f"{n:,} of {n + len(evaluation):,} images could not be read and are not counted"] if n else []


def _provenance(loaded: Loaded, seconds: float) -> dict[str, str]:
    source = {f"trained with {name}": str(value) for name, value in loaded.card.source.items()}
    return {
        "report made by": command(),
        "weights": str(loaded.path),
        **source,
        "analyzed with": ", ".join(f"{name} {value}" for name, value in versions().items()),
        "evaluation and analysis": f"{seconds:.0f} s",
    }


def write_report(report: Report, folder: Path) -> Path:
    """Write the page, a page for each image looked at, the figures as files, and the tables; the page's path."""
    drawn = draw(report)
    plots, looks = folder / "plots", folder / "looks"
    plots.mkdir(exist_ok=True)
    for name, figure in drawn.items():
        write_atomic(plots / f"{name}.png", to_png(figure))
        write_atomic(plots / f"{name}.svg", to_svg(figure))
    write_atomic(folder / "evaluation.json", json.dumps(report.evaluation.to_dict(), indent=1))
    write_csv(folder / "per_class.csv", ("class", "images", "right"), report.evaluation.per_class())
    write_tables(report.studies, folder)
    for number, look in enumerate(report.studies.looks, 1):
        assert report.studies.selected is not None
        looks.mkdir(exist_ok=True)
        write_atomic(looks / f"{number}.html", render_look(look, report.studies.selected, "../report.html"))
    page = folder / "report.html"
    write_atomic(page, render(report, drawn))
    return page


def write_tables(studies: Studies, folder: Path) -> None:
    """Write studies.json and a CSV for each study that is done."""
    tables = studies.to_dict()
    if not tables:
        return
    (folder / "studies").mkdir(exist_ok=True)
    write_atomic(folder / "studies.json", json.dumps(tables, indent=1))
    for name, rows in {**tables, **studies.channels()}.items():
        write_csv(folder / "studies" / f"{name}.csv", list(rows[0]), [list(row.values()) for row in rows])

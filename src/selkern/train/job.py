"""The jobs that commands run: train or resume, evaluate, analyze, and write the report of a run."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from selkern.analysis.evaluation import Evaluation, OnBad, evaluate
from selkern.analysis.figures import image_grid, to_png
from selkern.analysis.report import Report, draw, make_examples, pick_examples, render
from selkern.analysis.scale import ScaleStudy, studied_units, true_scale, zoom_sweep
from selkern.data.order import TrainOrder
from selkern.data.scenes import SceneSplit, SceneTruth
from selkern.data.sources import Source, Split, open_source
from selkern.errors import CheckpointError, ResourceError, UsageError
from selkern.files import write_atomic, write_csv
from selkern.layers.memory import set_memory
from selkern.models.backbone import Backbone
from selkern.models.cost import count
from selkern.models.registry import create_model
from selkern.train.distributed import Ranks, join
from selkern.train.loaded import Loaded, find_weights, load, open_data, pick_split
from selkern.train.loop import Training
from selkern.train.options import TrainOptions, read_options
from selkern.train.progress import Progress
from selkern.train.run_folder import RunFolder, command, versions

SWEEP_IMAGES = 1000  # of the centre-crop sweep, each seen at every enlargement


@dataclass(frozen=True)
class Analysis:
    """What `analyze` found: the evaluation, the study of the selection if there is one, and the page of both."""

    evaluation: Evaluation
    study: ScaleStudy | None
    page: Path


def train(options: TrainOptions) -> RunFolder | None:
    """Train a new run, with its report; the run's folder on rank 0, None on the others.

    Raises:
        SelkernError: as `Training.fit`, `open_source` and `create_model` say.
        Interrupted: the run was asked to stop and has saved its state.
    """
    # torchrun started all processes again after one was lost: it is this run that goes on, not a new one.
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) and (run := RunFolder.unfinished(options)):
        return resume(run, options.device)
    with join(options.device) as ranks:
        source = open_source(options.data, seed=options.seed, val_fraction=options.val_fraction)
        model = _new_model(options, source)
        # Built again in `Training`; here it refuses a batch size that cannot be before a folder is made.
        TrainOrder(len(source.train), options.training.batch_size, options.seed, ranks.rank, ranks.world)
        run = RunFolder(ranks.from_main(RunFolder.create(options).path if ranks.main else Path()))
        progress = Progress(run.log if ranks.main else None)
        training = Training(options, source, model, run, ranks, progress)
        if ranks.main:
            run.start(options, source)
            draw_first_batch(training)
        _announce(training, progress)
        training.fit()
    return _finish(run, options, ranks, progress)


def resume(
    run: RunFolder,
    device: str = "auto",
    workers: int | None = None,
    *,
    epochs: int | None = None,
    extend: Literal["keep", "rescale"] | None = None,
) -> RunFolder | None:
    """Continue a run in its own folder, from its newest sound state; only device, workers and epochs may differ.

    Args:
        epochs: another number than the run was started with.
        extend: what then becomes of the learning rate, see `Recipe.extended`.

    Raises:
        CheckpointError: no sound state, or a run that is finished.
        UsageError: as `Recipe.extended` says.
    """
    options = read_options(run.path)
    if epochs is not None and epochs != options.training.epochs:
        options = replace(options, training=options.training.extended(epochs, extend))
    with join(device) as ranks:
        split_csv = run.split_csv if run.split_csv.is_file() else None
        source = open_source(options.data, seed=options.seed, val_fraction=options.val_fraction, split_csv=split_csv)
        progress = Progress(run.log if ranks.main else None)
        now = options if workers is None else replace(options, workers=workers)
        training = Training(now, source, _new_model(now, source), run, ranks, progress)
        if ranks.from_main(run.has_state):
            training.restore()
        else:  # killed before the first one was saved, a run starts from its beginning
            training.rewind()
            if ranks.main:
                draw_first_batch(training)
        if not training.finished:
            if ranks.main:
                write_atomic(run.path / "config.yaml", options.to_yaml())
            progress.say(f"resuming {run.path} at epoch {training.epoch + 1}, step {training.step + 1}")
            training.fit()
        elif not options.report or run.report.is_file():
            fix = "give more --epochs and --extend, or train a new one with --weights to go on from it"
            raise CheckpointError("this run is finished", str(run.path), fix)
    return _finish(run, options, ranks, progress)


def draw_first_batch(training: Training) -> None:
    """plots/train_batch.png, augmented and labelled: a wrong label or augmentation is seen before hours are lost."""
    drawn = [training.samples[key] for key in next(iter(training.order))[:32]]
    good = [sample for sample in drawn if not isinstance(sample, str)]  # a text is the reason why it cannot be read
    if good:
        names = training.source.classes
        captions = [names[s.label] if s.lam == 1 else f"{s.lam:.0%} {names[s.label]}, {names[s.partner]}" for s in good]
        figure = image_grid(np.stack([sample.pixels for sample in good]), captions)
        training.run.plots.mkdir(exist_ok=True)
        write_atomic(training.run.plots / "train_batch.png", to_png(figure))


def _new_model(options: TrainOptions, source: Source) -> Backbone:
    torch.manual_seed(options.seed)
    weights = None if options.weights is None else find_weights(options.weights)
    model = create_model(options.model, num_classes=len(source.classes), weights=weights)
    return set_memory(model, options.training.memory)


def _announce(training: Training, progress: Progress) -> None:
    options, source = training.options, training.source
    parameters = sum(p.numel() for p in training.stepper.model.parameters())
    progress.say(
        f"{options.model} ({parameters / 1e6:.2f} M parameters) on {source.name}: {len(source.train):,} training, "
        f"{len(source.val):,} validation, {len(source.test):,} test images, {len(source.classes)} classes"
    )
    for note in source.notes:
        progress.say(f"note: {note}")
    progress.say(f"run folder {training.run.path}; {training.ranks.world} process(es) on {training.ranks.device.type}")


def _finish(run: RunFolder, options: TrainOptions, ranks: Ranks, progress: Progress) -> RunFolder | None:
    if not ranks.main:
        return None
    if options.report:
        progress.say("evaluating and analyzing the best weights")
        analysis = analyze(load(str(run.path), str(ranks.device)), on_bad=options.on_bad_image)
        progress.say(f"test top1 {analysis.evaluation.top1:.2%} on {len(analysis.evaluation):,} images")
    return run


def analyze(
    loaded: Loaded,
    data: str | None = None,
    split_name: str = "test",
    output: Path | None = None,
    on_bad: OnBad = "error",
) -> Analysis:
    """Evaluate weights, study their selection, and write report.html with its figures and tables.

    Args:
        data: None takes what the weights' run was trained on.
        output: folder to write into; None takes the run's own.
        on_bad: "skip" leaves out images that cannot be read; the report tells how many.

    Raises:
        UsageError: the weights lie in no run and no output is given.
    """
    folder = output or (loaded.run.path if loaded.run else None)
    if folder is None:
        raise UsageError("nowhere to write the report", "--output", "give a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ResourceError(
            f"cannot make the folder ({error.strerror})", str(folder), "give another --output"
        ) from error
    source = open_data(loaded, data)
    split = pick_split(source, split_name)
    started = time.monotonic()
    evaluation = evaluate(loaded.model, split, source.classes, loaded.preprocess, on_bad=on_bad)
    truths = [split.truth(index) for index in range(len(split))] if isinstance(split, SceneSplit) else []
    study = study_selection(loaded, split, truths, evaluation.indices)
    sizes = np.array([truths[i].scale for i in evaluation.indices]) if truths else None
    notes = [f"{truth.scale:.1f}x" for truth in truths] or None
    right, wrong = (
        make_examples(loaded.model, split, loaded.preprocess, evaluation, positions, study, notes)
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
        study=study,
        right=right,
        wrong=wrong,
        provenance=_provenance(loaded, time.monotonic() - started),
        notes=(*source.notes, *_skipped(evaluation)),
    )
    write_predictions(evaluation, split, folder / f"predictions_{split.name}.csv")
    return Analysis(evaluation, study, write_report(report, folder))


def _skipped(evaluation: Evaluation) -> list[str]:
    """A remark on images that could not be read, if there were any."""
    n = len(evaluation.skipped)
    return [f"{n:,} of {n + len(evaluation):,} images could not be read and are not counted"] if n else []


def study_selection(
    loaded: Loaded, split: Split, truths: Sequence[SceneTruth], readable: NDArray[np.int64]
) -> ScaleStudy | None:
    """The study that the data allows: true scale where it is known, else the sweep of centre crops."""
    if not studied_units(loaded.model):
        return None
    if truths:
        scale, digits = np.array([truth.scale for truth in truths]), np.array([truth.digit for truth in truths])
        return true_scale(loaded.model, split, loaded.preprocess, scale, digits)
    chosen = readable[np.unique(np.linspace(0, len(readable) - 1, min(SWEEP_IMAGES, len(readable))).astype(int))]
    return zoom_sweep(loaded.model, split, loaded.preprocess, chosen.tolist())


def _provenance(loaded: Loaded, seconds: float) -> dict[str, str]:
    source = {f"trained with {name}": str(value) for name, value in loaded.card.source.items()}
    return {
        "report made by": command(),
        "weights": str(loaded.path),
        **source,
        "analyzed with": ", ".join(f"{name} {value}" for name, value in versions().items()),
        "evaluation and analysis": f"{seconds:.0f} s",
    }


def write_predictions(evaluation: Evaluation, split: Split, path: Path) -> None:
    """One row per image: where it is, its class, the predicted one and its probability."""
    names = evaluation.classes
    rows = [
        (split.where(int(index)), names[label], names[top[0]], f"{p[0]:.6f}")
        for index, label, top, p in zip(
            evaluation.indices, evaluation.labels, evaluation.top, evaluation.top_p, strict=True
        )
    ]
    write_csv(path, ("image", "label", "predicted", "probability"), rows)


def write_report(report: Report, folder: Path) -> Path:
    """Write the page, the figures as PNG, the per-class and selection tables; the page's path."""
    drawn = draw(report)
    plots = folder / "plots"
    plots.mkdir(exist_ok=True)
    for name, figure in drawn.items():
        write_atomic(plots / f"{name}.png", to_png(figure))
    write_atomic(folder / "evaluation.json", json.dumps(report.evaluation.to_dict(), indent=1))
    write_csv(folder / "per_class.csv", ("class", "images", "right"), report.evaluation.per_class())
    if report.study is not None:
        write_atomic(folder / "selection.json", json.dumps(report.study.to_rows(), indent=1))
    page = folder / "report.html"
    write_atomic(page, render(report, drawn))
    return page

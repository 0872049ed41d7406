"""Train a new run, or continue one."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from selkern.adapt.groups import new_parameters
from selkern.data.levels import parse_levels, show_levels
from selkern.data.loader import Sample
from selkern.data.sheet import draw_grid
from selkern.data.sources import Source
from selkern.data.splitting import names_some
from selkern.data.survey import settle_levels
from selkern.errors import CheckpointError, UsageError
from selkern.io import write_atomic
from selkern.layers.memory import set_memory
from selkern.progress import Progress
from selkern.train.defaults import Defaults, fit_batch, open_training
from selkern.train.distributed import Ranks, join
from selkern.train.loop import Training, make_order, settled_shuffle
from selkern.train.machines import begun, note_agents, require_alike, require_shared, shared_options
from selkern.train.network import Construction, code_of, new_network
from selkern.train.options import PATIENCE, PRETRAINED, TrainOptions, check_timeout
from selkern.train.progress import RunLog
from selkern.train.recipe import Recipe
from selkern.train.run_data import RunData, trained_before, write_inputs
from selkern.train.run_folder import RunFolder, find_weights, locked, name_of, require_readable
from selkern.tuning import Threads, environment_decides, measured_threads


def train(options: TrainOptions, defaults: Defaults | None = None) -> RunFolder | None:
    """Train a new run; its folder on rank 0, None on the others.

    Args:
        options: of the run.
        defaults: what the options were made from, with the data opened for that; shown at the start.

    Raises:
        SelkernError: as `Training.fit`, `open_source` and `create_model` say.
        Interrupted: the run was asked to stop and has saved its state.
    """
    with ExitStack() as held:
        with join(options.device, options.timeout_minutes) as ranks:
            # torchrun started all processes again after one was lost: it is this run that goes on, not a new one.
            if (mine := begun(ranks, options)) is not None:
                kept = shared_options(ranks, mine)
                return _go_on(mine, kept, ranks, held, model=options.model, asked=False)
            require_shared(ranks, Path(options.output))
            with Progress("listing the images", quiet=not ranks.main) as line:
                source = (defaults and defaults.source) or open_training(options)
                for split in (source.val, source.test) if options.report else (source.val,):
                    require_readable(split)
                options, source = _settled(options, source, ranks.world, defaults)
                require_alike(ranks, options, source)
                line.show("building the network")
                model, how, table = _new_network(options, source)
                # Built again in `Training`; here it refuses a batch size that cannot be before a folder is made.
                make_order(options, source.train, ranks.rank, ranks.world)
                # Without defaults this is no user's command, and whoever calls has set the threads.
                on_cpu = ranks.world == 1 and ranks.device.type == "cpu"
                threads = _threads(model, options, source) if on_cpu and defaults is not None else None
                options = options if threads is None else replace(options, threads=threads.count)
            first = _file_of(options.weights)  # "latest" is soon this run
            run = RunFolder(ranks.of_main(lambda: RunFolder.create(options).path))
            log = RunLog(run.log if ranks.main else None)
            held.enter_context(locked(run.path, ranks, log.say))
            note_agents(ranks, run)
            with Progress("reading the first images", quiet=not ranks.main):
                training = Training(options, source, model, how, run, ranks, log)
                if ranks.main:
                    write_inputs(run.path, options.data, source, first, how, run.write_split(source))
                    run.start(options, source)
                    draw_first_batch(training)
            _announce(training, log, defaults)
            for row in table.splitlines():
                log.say(row)
            if threads is not None:
                log.say(str(threads))
            for warning in trained_before(first, source, source.test):
                log.say(warning)
            training.fit()
        return run if ranks.main else None


def resume(
    run: RunFolder | str,
    device: str = "auto",
    workers: int | None = None,
    *,
    data: str | None = None,
    threads: int | None = None,
    epochs: int | None = None,
    extend: Literal["keep", "rescale"] | None = None,
    model: str = "",
    patience: float = PATIENCE,
) -> RunFolder | None:
    """Continue a run in its own folder, from its newest sound state.

    Only device, workers, threads and epochs may differ.

    Images that are gone are as ones that cannot be read, and keep their place, so that the order of all others holds.

    Args:
        run: its folder, or a word that `RunFolder.find` takes; rank 0 finds it for all.
        data: where the run's data lie now; None looks where they were, and beside the run.
        threads: that were set for this process; None sets those that the run was started with, if it says.
        epochs: another number than the run was started with.
        extend: what then becomes of the learning rate, see `Recipe.extended`.
        model: the user's own code that makes the run's network, where the run names such: it is run only if named here.
        patience: minutes to wait for another rank.

    Raises:
        CheckpointError: no such run, no sound state, or a run that is finished.
        ResourceError: another process trains it.
        UsageError: as `Recipe.extended` says.
        DataError: the run's data are not found, or other data are given.
    """
    check_timeout(patience)
    with ExitStack() as held, join(device, patience) as ranks:
        folder = run if isinstance(run, RunFolder) else RunFolder(ranks.of_main(lambda: RunFolder.find(run).path))
        options = shared_options(ranks, folder)
        if epochs is not None and epochs != options.training.epochs:
            options = replace(options, training=options.training.extended(epochs, extend))
        return _go_on(folder, options, ranks, held, workers, data=data, threads=threads, model=model)


def _go_on(
    run: RunFolder,
    options: TrainOptions,
    ranks: Ranks,
    held: ExitStack,
    workers: int | None = None,
    *,
    data: str | None = None,
    threads: int | None = None,
    model: str = "",
    asked: bool = True,
) -> RunFolder | None:
    """`resume`, of processes that have joined.

    Args:
        held: keeps the run's lock.
        asked: whether a user asked for it, to whom a run that is finished is an error; torchrun may come too late.
    """
    if threads is None and options.threads is not None and not environment_decides():
        torch.set_num_threads(options.threads)
    log = RunLog(run.log if ranks.main else None)
    held.enter_context(locked(run.path, ranks, log.say))
    note_agents(ranks, run)
    with Progress("listing the images", quiet=not ranks.main) as line:
        known = RunData(run)
        place = ranks.from_main(known.place(data) if ranks.main else "")
        source = known.open_at(place, classes=known.classes, keep_gone=True)
        line.show("building the network")
        options = replace(options, model=code_of(options.model, model, str(run.path)))
        now = options if workers is None else replace(options, workers=workers)
        has_state = ranks.from_main(run.has_state)
        network = _network_of(known, options.model, source, begun=has_state)
        training = Training(now, source, *network, run, ranks, log)
        if has_state:
            training.restore()
        else:  # killed before the first one was saved, a run starts from its beginning
            training.rewind()
            if ranks.main:
                draw_first_batch(training)
    if not training.finished:
        if ranks.main:
            write_atomic(run.path / "config.yaml", options.to_yaml())
            known.keep(place, source, training.how)
            if changed := known.changed(source):
                what = f"at least {len(changed):,} images have changed since the run was started"
                log.say(f"warning: {what}; it goes on with them as they are: {names_some(changed)}")
        for note in source.notes:
            log.say(f"note: {note}")
        log.say(f"resuming {run.path} at epoch {training.epoch + 1}, step {training.step + 1}")
        training.fit()
    elif not options.report or run.report.is_file():
        if not asked:
            log.say(f"{run.path} is finished already")
            return None
        fix = "give more --epochs and --extend, or train a new one with --weights to go on from it"
        raise CheckpointError("this run is finished", str(run.path), fix)
    return run if ranks.main else None


def draw_first_batch(training: Training) -> None:
    """plots/train_batch.png, augmented and labelled: a wrong label or augmentation is seen before hours are lost."""
    drawn = [training.samples[key] for key in next(iter(training.order))[:32]]
    good = [sample for sample in drawn if isinstance(sample, Sample)]
    if good:
        names = training.source.classes
        captions = [names[s.label] if s.lam == 1 else f"{s.lam:.0%} {names[s.label]}, {names[s.partner]}" for s in good]
        training.run.plots.mkdir(exist_ok=True)
        write_atomic(training.run.plots / "train_batch.png", draw_grid([sample.pixels for sample in good], captions))


def _threads(model: nn.Module, options: TrainOptions, source: Source) -> Threads | None:
    """The threads that a measurement of the training chooses and sets; None where the user did, or it is small."""
    recipe = options.training
    if options.threads is not None:
        return None
    images = recipe.epochs * len(source.train)
    return measured_threads(model, recipe.image_size, images, training=True, batch=recipe.batch_size)


def _file_of(weights: str | None) -> Path | None:
    """The file of a run's first weights, if they lie in one."""
    return None if weights in (None, PRETRAINED) else find_weights(str(weights))


def _new_network(options: TrainOptions, source: Source) -> tuple[nn.Module, Construction, str]:
    """The network, how it is built, and what `selectify` changed of it."""
    torch.manual_seed(options.seed)
    recipe = options.training
    model, how, table = new_network(
        options.model,
        len(source.classes),
        recipe.image_size,
        weights=_file_of(options.weights) or options.weights,
        arguments=options.arguments,
        pattern=options.selectify,
        memory=recipe.memory,
    )
    if recipe.lr_new != Recipe.lr_new and not new_parameters(model):
        what = f"lr_new is {recipe.lr_new:g}, and nothing was added to the network"
        raise UsageError(what, "--lr-new", "add --selectify, or leave it out")
    return model, how, table


def _network_of(known: RunData, word: str, source: Source, *, begun: bool) -> tuple[nn.Module, Construction]:
    """A run's network: its tensors come from the state where it has begun, so that the first weights may be gone.

    Args:
        word: the name by which it is made.
    """
    options, inputs = replace(known.options, model=word), known.inputs
    if begun and inputs is not None and (inputs.weights or inputs.network):
        torch.manual_seed(options.seed)
        how = Construction.of_dict(options.model, len(source.classes), inputs.norms, inputs.network)
        return set_memory(how.build(), options.training.memory), how
    if inputs is not None and inputs.weights:
        options = replace(options, weights=inputs.weights)
    model, how, _ = _new_network(options, source)
    return model, how


def _settled(
    options: TrainOptions, source: Source, ranks: int, defaults: Defaults | None
) -> tuple[TrainOptions, Source]:
    """Options in which the levels of deep pixels and the batch fit the data, and the source with remarks on both."""
    levels, notes = settle_levels(source.train, parse_levels(options.training.white_level))
    asked = defaults is None or defaults.batch_asked
    recipe, batch_notes = fit_batch(options.training, len(source.train), ranks, source.name, asked=asked)
    if levels != "full":
        recipe = replace(recipe, white_level=show_levels(levels))
    options = replace(options, training=recipe, shuffle=settled_shuffle(options, source.train))
    return options, replace(source, notes=(*source.notes, *notes, *batch_notes))


def _announce(training: Training, log: RunLog, defaults: Defaults | None) -> None:
    options, source = training.options, training.source
    parameters = sum(p.numel() for p in training.stepper.model.parameters())
    log.say(
        f"{options.model} ({parameters / 1e6:.2f} M parameters) on {source.name}: {len(source.train):,} training, "
        f"{len(source.val):,} validation, {len(source.test):,} test images, {len(source.classes)} classes"
    )
    if defaults is not None:
        log.say(defaults.line(options, training.order.steps_per_epoch))
    for note in (*source.notes, *(defaults.notes(options) if defaults is not None else ())):
        log.say(f"note: {note}")
    run, name = training.run.path, name_of(options)
    taken = "" if run.name == name else f" ({name} exists already)"
    log.say(f"run folder {run}{taken}; {training.ranks.world} process(es) on {training.ranks.device.type}")

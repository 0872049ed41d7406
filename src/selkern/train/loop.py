"""The training loop: one epoch after the other, each ended by a validation and a saved state.

Nothing in it depends on how the run came here: order and augmentation follow from (seed, epoch, index), the
learning rate from the step, and everything else is in the state that `_save` writes and `restore` reads.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal

import torch
from torch import nn

from selkern.data.loader import Batch, Samples, make_loader, require_going
from selkern.data.order import TrainOrder
from selkern.data.sources import Source, Split
from selkern.data.split import Grouped
from selkern.errors import CheckpointError, DataError, Interrupted, NumericsError, UsageError
from selkern.evaluation import Evaluation, evaluate
from selkern.io import require_space
from selkern.train.distributed import Ranks
from selkern.train.network import Construction
from selkern.train.options import TrainOptions
from selkern.train.progress import RunLog, Tally, epoch_line, step_line
from selkern.train.run_folder import BadFiles, RunFolder, make_card
from selkern.train.state import State, load_state, point_to, save_state
from selkern.train.step import NotFinite, Stepper
from selkern.train.stop import StopRequest
from selkern.tuning import Pace

_ROLLBACKS = 5  # in a row without an epoch between them; more are a sign that the recipe itself diverges


def settled_shuffle(options: TrainOptions, split: Split) -> Literal["auto", "full", "shards"]:
    """What ``--shuffle auto`` is for the training images; it stays auto where they lie in no shards.

    Raises:
        UsageError: shards are asked for, and there are none.
    """
    if isinstance(split, Grouped):
        return options.shuffle if options.shuffle != "auto" else "shards" if split.far else "full"
    if options.shuffle == "shards":
        raise UsageError("the data are no tar shards", "--shuffle shards", "leave it out, or make shards: data pack")
    return options.shuffle


def make_order(options: TrainOptions, split: Split, rank: int, world: int) -> TrainOrder:
    """Which training images come when, on one of the processes."""
    by_shard = isinstance(split, Grouped) and settled_shuffle(options, split) == "shards"
    groups = split.groups if by_shard else None  # type: ignore[attr-defined]  # it is Grouped
    return TrainOrder(len(split), options.training.batch_size, options.seed, rank, world, groups)


class Training:
    """A run in this process: its model, optimizer and position, and `fit` to bring it to its end."""

    def __init__(
        self,
        options: TrainOptions,
        source: Source,
        model: nn.Module,
        how: Construction,
        run: RunFolder,
        ranks: Ranks,
        log: RunLog,
    ) -> None:
        self.options, self.recipe, self.source = options, options.training, source
        self.run, self.ranks, self.log, self.how = run, ranks, log, how
        self.preprocess = self.recipe.preprocess
        self.stepper = Stepper(model, self.recipe, ranks, log.say)
        self.order = make_order(options, source.train, ranks.rank, ranks.world)
        self.samples = Samples(source.train, self.preprocess, self.recipe.augment, options.seed)
        self.loader = make_loader(self.samples, self.order, options.workers)
        self.bad = BadFiles(run.bad_files, log.say)
        self.epoch, self.step = 0, 0  # the next step to do: number within the epoch
        self.avoided: list[tuple[int, int]] = []  # (epoch, step) of batches that are passed over after a rollback
        self.rollbacks = 0
        self.rows: list[dict[str, float]] = []
        self.pace = Pace()

    @property
    def done(self) -> int:
        """Steps behind us, over all epochs."""
        return self.epoch * self.order.steps_per_epoch + self.step

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.epoch >= self.recipe.epochs

    def fit(self) -> None:
        """Train from the present position to the last epoch.

        Raises:
            Interrupted: SIGINT or SIGTERM came; the state is saved.
            DataError: an image cannot be read, where that is an error, or not one of an epoch's can.
            NumericsError: loss, gradient or weights are not finite; the last good state stays.
            ResourceError: the disk has no room for the run's states.
        """
        steps, batch = self.order.steps_per_epoch, self.recipe.batch_size
        if self.ranks.main:
            require_space(self.run.path, 3 * self.stepper.state_bytes)  # two that are kept, and the one being written
        self.log.begin(self.recipe.epochs * steps * batch, self.done * batch, self._line())
        try:
            with StopRequest() as stop:
                if self.options.on_nan == "rollback" and not self.ranks.from_main(self.run.has_state):
                    self._save()  # something to go back to
                while not self.finished:
                    try:
                        self._train_epoch(stop)
                        self._finish_epoch(stop)
                    except NotFinite as error:
                        self._roll_back(error)
        finally:
            self.loader._iterator = None  # ends the workers now; left to the garbage collector it takes 5 s for each
            self.log.end()

    def restore(self) -> None:
        """Take up the newest saved state that is sound.

        Raises:
            CheckpointError: there is none, or it is of another model.
        """
        largest = 8 * sum(t.nbytes for t in self.stepper.model.state_dict().values()) + (64 << 20)
        loaded = load_state(self.run.state, largest)
        states = self.ranks.gather((loaded.folder.name, (loaded.folder / "manifest.json").read_bytes()))
        for rank, (name, manifest) in enumerate(states):
            if (name, manifest) != states[0]:
                what = f"process {rank} reads {name}, process 0 another {states[0][0]}"
                raise CheckpointError(
                    what, str(self.run.state), "see that all machines see the same folder, and resume"
                )
        place = loaded.state.progress
        try:
            self.stepper.load(loaded.state.tensors)
            self.epoch, self.step, self.rows = place["epoch"], place["step"], list(place["rows"])
            self.avoided = [(epoch, step) for epoch, step in place["avoided"]]
            self.stepper.parts = place["parts"]
            self.stepper.tally = Tally(**place["tally"]) if self.ranks.main else Tally()
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            fix = "resume with the version and the config.yaml it was started with"
            raise CheckpointError("the state does not fit the model", str(self.run.state), fix) from error
        if self.ranks.main:
            for reason in loaded.damaged:
                self.log.say(f"warning: {reason}; going on from {loaded.folder.name}")
            if loaded.damaged:
                point_to(loaded.folder)
        self.rewind()

    def rewind(self) -> None:
        """Bring the files of the run to the present position: what comes after it is done again."""
        if self.ranks.main:
            self.run.clear()
            self.run.write_metrics(self.rows)
            self.run.cut_order(self.epoch, self.step)
        self.ranks.gather(None)  # no rank goes on before these files are as they were

    def _train_epoch(self, stop: StopRequest) -> None:
        self.stepper.net.train()
        self.order.seek(self.epoch, self.step)
        started = saved = time.monotonic()
        tally = self.stepper.tally
        before = tally.seconds
        self.pace.restart(started)
        for batch in self.loader:
            if (self.epoch, self.step) not in self.avoided:
                self._train_step(batch)
            self.step += 1
            now = time.monotonic()
            tally.seconds = before + now - started
            self.log.advance(self.recipe.batch_size, self._line())
            if remark := self.pace.slowed(self.recipe.batch_size, now):
                self.log.say(f"{remark}{self._fewer_threads()}")
            # One answer for all ranks, whose clocks and signals differ: a signal's number, 1 to save, 0 for nothing.
            asked = self.ranks.maximum(stop.signum or int(self.ranks.main and self._is_due(now - saved)))
            if asked:
                self._save()
                saved = now
            if asked > 1:
                raise self._interrupted(asked)

    def _fewer_threads(self) -> str:
        """What to do about a busy machine, where the number of threads may matter."""
        if self.ranks.device.type != "cpu" or self.ranks.world > 1 or torch.get_num_threads() == 1:
            return ""
        run = shlex.quote(str(self.run.path))
        return f"; --threads 1 may be faster: Ctrl+C, then selkern train --resume {run} --threads 1"

    def _is_due(self, seconds: float) -> bool:
        """Whether a state is to be saved now, so many seconds after the last one."""
        every = self.options.save_steps
        return seconds > self.options.save_minutes * 60 or bool(every and self.done % every == 0)

    def _train_step(self, batch: Batch) -> None:
        require_going(batch, self.options.on_bad_image)
        self.bad.note(batch.bad)
        if self.options.log_order:
            self.run.log_order(self.ranks.rank, self.epoch, self.step, batch.indices.tolist())
        try:
            self.stepper.step(batch, self._lr(), frozen=self.epoch < self.recipe.freeze_epochs)
        except NotFinite as error:
            files = [self.source.train.where(index) for index in batch.indices.tolist()]
            self.log.say(f"images of epoch {self.epoch + 1}, step {self.step + 1}: {', '.join(files)}")
            more = f" and {len(files) - 2} more in log.txt" if len(files) > 2 else ""
            raise NotFinite(f"{error} (images: {', '.join(files[:2])}{more})") from error

    def _interrupted(self, signum: int) -> Interrupted:
        run = shlex.quote(str(self.run.path))
        return Interrupted(signum, f"state saved; continue with: selkern train --resume {run}")

    def _roll_back(self, error: NotFinite) -> None:
        """Go back to the newest state and pass over the batch at which a number was not finite, if that is wanted.

        Raises:
            NumericsError: it is not, or it has not helped so far.
        """
        where = f"{self.run.path}, epoch {self.epoch + 1}, step {self.step + 1}"
        at = (self.epoch, self.step)
        self.rollbacks += 1
        if self.options.on_nan == "stop":
            raise NumericsError(str(error), where, "lower --lr, set --clip 1, or --on-nan rollback") from error
        if self.rollbacks > _ROLLBACKS:
            what = f"{error}, after {_ROLLBACKS} rollbacks"
            raise NumericsError(what, where, "train anew with a lower --lr or --clip 1") from error
        self.restore()
        self.avoided.append(at)
        self._save()  # so that a kill from here on passes over the same batches
        self.log.say(
            f"warning: {error} at epoch {at[0] + 1}, step {at[1] + 1}; back to epoch {self.epoch + 1}, "
            f"step {self.step + 1}, and that batch is passed over"
        )

    def _finish_epoch(self, stop: StopRequest) -> None:
        self.stepper.check_weights()
        tally = Tally.merge(self.ranks.gather(self.stepper.tally))
        self.stepper.tally = tally if self.ranks.main else Tally()
        self._share_bad_files()
        if not tally.images and tally.skipped:
            what = f"none of {tally.skipped} training images could be read"
            raise DataError(what, self.options.data, f"see {self.run.bad_files}")
        if self.ranks.main:
            self.bad.weigh(self.source.train, self.source.classes)
        if not tally.images:
            what = "every batch of the epoch had to be passed over"
            raise NumericsError(what, str(self.run.path), "train anew with a lower --lr or --clip 1")
        val = self._validate(self._leave_on(stop))
        row = {
            "epoch": self.epoch + 1,
            "step": (self.epoch + 1) * self.order.steps_per_epoch,
            "lr": self._lr(self.step - 1),
            "train_loss": tally.loss / tally.images,
            "train_top1": tally.right / tally.images,
            "val_loss": val.loss,
            "val_top1": val.top1,
            "val_top5": val.top5,
            "skipped": tally.skipped + len(val.skipped),
            "images_per_s": tally.images / tally.seconds,
            "seconds": tally.seconds,
        }
        best = all(row["val_top1"] > old["val_top1"] for old in self.rows)
        self.rows.append(row)
        self.epoch, self.step, self.stepper.tally = self.epoch + 1, 0, Tally()
        self.rollbacks = 0
        if self.ranks.main:
            card = make_card(self.options, self.source.classes, row, self.how)
            self.run.keep_weights(self.stepper.averaged.state_dict(), card, best)
            self.run.write_metrics(self.rows)
        self._save()
        self.log.say(epoch_line(row, self.recipe.epochs, best))

    def _validate(self, between: Callable[[], None]) -> Evaluation:
        self.ranks.share_buffers(self.stepper.averaged)  # all ranks measure the weights that rank 0 keeps
        seen = 0

        def show(images: int) -> None:
            nonlocal seen
            seen += images
            share = f"validating {seen:,}/{mine:,}"
            self.log.advance(0, f"epoch {self.epoch + 1}/{self.recipe.epochs}  {share}")

        mine = -(-len(self.source.val) // self.ranks.world)
        show(0)
        result = evaluate(
            self.stepper.averaged,
            self.source.val,
            self.source.classes,
            self.preprocess,
            workers=self.options.workers,
            share=(self.ranks.rank, self.ranks.world),
            autocast=self.stepper.autocast(),
            on_bad=self.options.on_bad_image,
            between=between,
            seen=show,
        )
        self.bad.note(result.skipped)
        self._share_bad_files()
        val = Evaluation.merge(self.ranks.gather(result))
        if not len(val):
            raise DataError("no validation image could be read", self.options.data, f"see {self.run.bad_files}")
        return val

    def _leave_on(self, stop: StopRequest) -> Callable[[], None]:
        """What ends a validation when a signal has come: the state is that after the epoch's last step."""

        def check() -> None:
            if stop.signum:
                if self.ranks.main:
                    self._write(self.stepper.tally)
                raise self._interrupted(stop.signum)

        return check

    def _share_bad_files(self) -> None:
        """Every rank's unreadable images in one bad_files.csv."""
        self.bad.add(self.ranks.gather(self.bad.rows))
        if self.ranks.main:
            self.bad.write()

    def _save(self) -> None:
        """Write the state of the run. Every rank takes part, since each has its own tally; rank 0 writes.

        Raises:
            NotFinite: a weight is not finite; the state before stays the newest.
        """
        self.stepper.check_weights()
        tally = Tally.merge(self.ranks.gather(self.stepper.tally))
        self._share_bad_files()
        if self.ranks.main:
            self._write(tally)

    def _write(self, tally: Tally) -> None:
        progress: dict[str, Any] = {
            "epoch": self.epoch,
            "step": self.step,
            "finished": self.finished,
            "tally": asdict(tally),
            "rows": self.rows,
            "avoided": self.avoided,
            "parts": self.stepper.parts,
        }
        save_state(self.run.state, self.done, State(self.stepper.tensors(), progress))

    def _lr(self, step: int | None = None) -> float:
        done = self.done if step is None else self.done - self.step + step
        return self.recipe.lr_at(done, self.order.steps_per_epoch)

    def _line(self) -> str:
        steps, lr = self.order.steps_per_epoch, self._lr(max(self.step - 1, 0))
        return step_line(self.stepper.tally, self.epoch, self.recipe.epochs, self.step, steps, lr)

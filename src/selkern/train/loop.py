"""The training loop: one epoch after the other, each ended by a validation and a saved state.

Nothing in it depends on how the run came here: order and augmentation follow from (seed, epoch, index), the
learning rate from the step, and everything else is in the state that `_save` writes and `_restore` reads.
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from selkern.analysis.evaluation import Evaluation, evaluate, to_input
from selkern.data.loader import Batch, Samples, make_loader
from selkern.data.order import TrainOrder
from selkern.data.sources import Source
from selkern.errors import CheckpointError, DataError, Interrupted, NumericsError
from selkern.models.backbone import Backbone
from selkern.models.weights import Card, save_weights
from selkern.train.distributed import Ranks
from selkern.train.optim import make_ema, make_optimizer, set_lr
from selkern.train.options import TrainOptions
from selkern.train.progress import Progress
from selkern.train.run_folder import RunFolder, command, versions
from selkern.train.state import State, load_optimizer, load_state, optimizer_tensors, save_state
from selkern.train.stop import StopRequest


@dataclass
class Tally:
    """Sums over the images that this rank has trained on in the epoch so far."""

    loss: float = 0.0
    right: float = 0.0
    images: int = 0
    seconds: float = 0.0

    @classmethod
    def merge(cls, ranks: Sequence[Tally]) -> Tally:
        """All ranks as one; they worked at the same time, so the longest counts."""
        loss, right, images = (sum(getattr(t, name) for t in ranks) for name in ("loss", "right", "images"))
        return cls(loss, right, images, max(t.seconds for t in ranks))


class Training:
    """A run in this process: its model, optimizer and position, and `fit` to bring it to its end."""

    def __init__(
        self,
        options: TrainOptions,
        source: Source,
        model: Backbone,
        run: RunFolder,
        ranks: Ranks,
        progress: Progress,
    ) -> None:
        self.options, self.recipe, self.source = options, options.training, source
        self.run, self.ranks, self.progress = run, ranks, progress
        self.preprocess = self.recipe.preprocess
        self.model = model.to(ranks.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(self.model, self.recipe)
        self.ema = make_ema(self.model, self.recipe)
        self.net: nn.Module = DistributedDataParallel(self.model) if ranks.world > 1 else self.model
        self.order = TrainOrder(len(source.train), self.recipe.batch_size, options.seed, ranks.rank, ranks.world)
        self.samples = Samples(source.train, self.preprocess, self.recipe.augment, options.seed)
        self.loader = make_loader(self.samples, self.order, options.workers)
        self.epoch, self.step = 0, 0  # the next step to do: number within the epoch
        self.tally = Tally()
        self.rows: list[dict[str, float]] = []

    @property
    def averaged(self) -> nn.Module:
        """The model that is evaluated and whose weights are kept: the moving average where there is one."""
        return self.model if self.ema is None else self.ema.module

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.epoch >= self.recipe.epochs

    def autocast(self) -> torch.autocast:
        """The context of every forward pass."""
        bf16 = self.recipe.precision == "bf16"
        if self.recipe.precision == "auto":
            bf16 = self.ranks.device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.autocast(self.ranks.device.type, dtype=torch.bfloat16, enabled=bf16)

    def fit(self) -> None:
        """Train from the present position to the last epoch.

        Raises:
            Interrupted: SIGINT or SIGTERM came; the state is saved.
            DataError: a training image cannot be read.
            NumericsError: the loss is not finite; the last good state stays.
        """
        steps, batch = self.order.steps_per_epoch, self.recipe.batch_size
        self.progress.begin(self.recipe.epochs * steps * batch, (self.epoch * steps + self.step) * batch)
        try:
            with StopRequest() as stop:
                while not self.finished:
                    self._train_epoch(stop)
                    self._finish_epoch()
        finally:
            self.loader._iterator = None  # ends the workers now; left to the garbage collector it takes 5 s for each
            self.progress.end()

    def restore(self) -> None:
        """Take up the newest saved state.

        Raises:
            CheckpointError: there is none, it is damaged, or it is of another model.
        """
        state = load_state(self.run.state)
        try:
            self.model.load_state_dict(dict(state.tensors["model"]))
            load_optimizer(self.optimizer, state.tensors["optimizer"])
            if self.ema is not None:
                self.ema.load_state_dict(dict(state.tensors["ema"]))
        except (RuntimeError, ValueError, KeyError) as error:
            fix = "resume with the version and the config.yaml it was started with"
            raise CheckpointError("the state does not fit the model", str(self.run.state), fix) from error
        place = state.progress
        self.epoch, self.step, self.rows = place["epoch"], place["step"], list(place["rows"])
        self.tally = Tally(**place["tally"]) if self.ranks.main else Tally()
        if self.ranks.main:
            self.run.write_metrics(self.rows)

    def _train_epoch(self, stop: StopRequest) -> None:
        self.net.train()
        self.order.seek(self.epoch, self.step)
        started = saved = time.monotonic()
        before = self.tally.seconds
        for batch in self.loader:
            self._train_step(batch)
            self.step += 1
            now = time.monotonic()
            self.tally.seconds = before + now - started
            self.progress.advance(self.recipe.batch_size, self._line())
            if signum := self.ranks.maximum(stop.signum):
                self._save()
                run = shlex.quote(str(self.run.path))
                raise Interrupted(signum, f"state saved; continue with: selkern train --resume {run}")
            if now - saved > self.options.save_minutes * 60:
                self._save()
                saved = time.monotonic()

    def _train_step(self, batch: Batch) -> None:
        if batch.bad:
            raise DataError.from_line(batch.bad[0])
        set_lr(self.optimizer, self._lr())
        self.optimizer.zero_grad()
        if self.options.log_order:
            self._log_order(batch)
        parts = [part for part in torch.arange(len(batch.labels)).chunk(self.recipe.accumulate) if len(part)]
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            waits = isinstance(self.net, DistributedDataParallel) and not last
            with self.net.no_sync() if waits else nullcontext():  # type: ignore[operator]
                self._backward(batch, part, len(part) / len(batch.labels))
        if self.recipe.clip:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update_parameters(self.model)

    def _backward(self, batch: Batch, part: Tensor, share: float) -> None:
        device = self.ranks.device
        labels, partners, lam = (t[part].to(device) for t in (batch.labels, batch.partners, batch.lam))
        with self.autocast():
            logits = self.net(to_input(batch.images[part], self.preprocess, device))
            smoothing = self.recipe.label_smoothing
            losses = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
            if self.recipe.augment.mixup or self.recipe.augment.cutmix:
                other = F.cross_entropy(logits, partners, label_smoothing=smoothing, reduction="none")
                losses = lam * losses + (1 - lam) * other
        loss = losses.mean()
        value = loss.item()
        if not math.isfinite(value):
            where = f"{self.run.path}, epoch {self.epoch + 1}, step {self.step + 1}"
            raise NumericsError(f"the loss is {value}", where, "lower --lr, or set --clip 1")
        (loss * share).backward()  # type: ignore[no-untyped-call]
        self.tally.loss += value * len(labels)
        self.tally.right += (logits.argmax(dim=1) == labels).sum().item()
        self.tally.images += len(labels)

    def _finish_epoch(self) -> None:
        share = (self.ranks.rank, self.ranks.world)
        self.ranks.share_buffers(self.averaged)  # all ranks measure the weights that rank 0 keeps
        mine = evaluate(
            self.averaged,
            self.source.val,
            self.source.classes,
            self.preprocess,
            workers=self.options.workers,
            share=share,
            autocast=self.autocast(),
        )
        val = Evaluation.merge(self.ranks.gather(mine))
        tally = Tally.merge(self.ranks.gather(self.tally))
        row = {
            "epoch": self.epoch + 1,
            "step": (self.epoch + 1) * self.order.steps_per_epoch,
            "lr": self._lr(self.step - 1),
            "train_loss": tally.loss / tally.images,
            "train_top1": tally.right / tally.images,
            "val_loss": val.loss,
            "val_top1": val.top1,
            "val_top5": val.top5,
            "images_per_s": tally.images / tally.seconds,
            "seconds": tally.seconds,
        }
        best = all(row["val_top1"] > old["val_top1"] for old in self.rows)
        self.rows.append(row)
        self.epoch, self.step, self.tally = self.epoch + 1, 0, Tally()
        if self.ranks.main:
            self._keep_weights(row, best)
            self.run.write_metrics(self.rows)
        self._save()
        self.progress.say(_epoch_line(row, self.recipe.epochs, best))

    def _keep_weights(self, row: dict[str, float], best: bool) -> None:
        card = Card(
            model=self.options.model,
            classes=self.source.classes,
            preprocess=self.preprocess.to_dict(),
            metrics={name: row[name] for name in ("val_top1", "val_top5", "val_loss")},
            source={
                "command": command(),
                "data": self.options.data,
                "seed": self.options.seed,
                "epoch": row["epoch"],
                **versions(),
            },
        )
        state = self.averaged.state_dict()
        save_weights(self.run.last, state, card)
        if best:
            save_weights(self.run.best, state, card)

    def _save(self) -> None:
        """Write the state of the run. Every rank takes part, since each has its own tally; rank 0 writes."""
        tally = Tally.merge(self.ranks.gather(self.tally))
        if not self.ranks.main:
            return
        tensors: dict[str, dict[str, Tensor]] = {
            "model": self.model.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer),
        }
        if self.ema is not None:
            tensors["ema"] = self.ema.state_dict()
        progress: dict[str, Any] = {
            "epoch": self.epoch,
            "step": self.step,
            "finished": self.finished,
            "tally": asdict(tally),
            "rows": self.rows,
        }
        save_state(self.run.state, self.epoch * self.order.steps_per_epoch + self.step, State(tensors, progress))

    def _lr(self, step: int | None = None) -> float:
        within = self.step if step is None else step
        steps = self.order.steps_per_epoch
        return self.recipe.lr_at(self.epoch * steps + within, steps)

    def _line(self) -> str:
        t = self.tally
        return (
            f"epoch {self.epoch + 1}/{self.recipe.epochs}  step {self.step}/{self.order.steps_per_epoch}  "
            f"loss {t.loss / t.images:.3f}  top1 {t.right / t.images:.1%}  lr {self._lr(self.step - 1):.2g}"
        )

    def _log_order(self, batch: Batch) -> None:
        with (self.run.path / f"order.rank{self.ranks.rank}.csv").open("a") as file:
            file.writelines(f"{self.epoch},{self.step},{index}\n" for index in batch.indices.tolist())


def _epoch_line(row: dict[str, float], epochs: int, best: bool) -> str:
    return (
        f"epoch {row['epoch']:.0f}/{epochs}  loss {row['train_loss']:.3f}  top1 {row['train_top1']:.1%}  "
        f"val loss {row['val_loss']:.3f}  val top1 {row['val_top1']:.2%}{' (best)' if best else ''}  "
        f"{row['images_per_s']:.0f} img/s  {row['seconds']:.0f} s"
    )

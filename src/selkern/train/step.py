"""One optimizer step: forward and backward in parts, numbers that are not finite found, smaller parts if need be."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from selkern.adapt.groups import new_parameters
from selkern.data.loader import Batch
from selkern.errors import ResourceError, ran_out_of_memory
from selkern.evaluation import to_input
from selkern.train.distributed import Ranks
from selkern.train.network import classifier_of
from selkern.train.progress import Tally
from selkern.train.recipe import LEAST, Recipe
from selkern.train.state import load_optimizer, optimizer_tensors


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """SGD or AdamW over three groups: decayed weights; norms and biases without decay; the classifier's bias.

    Where the recipe treats the backbone, the classifier and what `selectify` adds differently, the first two are there
    for each. A group keeps its factor on the recipe's learning rate as `lr_factor`, and whether it is of a backbone
    that may be frozen.
    """
    head = classifier_of(model)
    head_bias = getattr(head, "bias", None)
    classifier = {*head.parameters()} if head is not None else set()
    new = new_parameters(model)
    alike: dict[tuple[bool, float], list[nn.Parameter]] = {}  # by whether they may be frozen, and their factor
    apart = recipe.lr_backbone != 1 or recipe.freeze_epochs > 0
    for p in model.parameters():
        if p.requires_grad and p is not head_bias:
            backbone = apart and p not in new and p not in classifier
            factor = recipe.lr_backbone if backbone else recipe.lr_new if p in new else 1.0
            alike.setdefault((backbone, factor), []).append(p)
    groups: list[dict[str, Any]] = []
    for frozen, factor in sorted(alike, reverse=True):
        part, shared = alike[frozen, factor], {"lr_factor": factor, "frozen": frozen}
        groups.append({"params": [p for p in part if p.ndim > 1], "weight_decay": recipe.weight_decay, **shared})
        groups.append({"params": [p for p in part if p.ndim <= 1], "weight_decay": 0.0, **shared})
    if head_bias is not None:
        groups.append({"params": [head_bias], "weight_decay": 0.0, "lr_factor": recipe.bias_lr, "frozen": False})
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum)
    return torch.optim.AdamW(groups, lr=recipe.lr)


def set_lr(optimizer: torch.optim.Optimizer, lr: float, *, frozen: bool = False) -> None:
    """Give every group its share of the learning rate; `frozen` leaves the backbone as it is."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if frozen and group["frozen"] else lr * group["lr_factor"]


def make_ema(model: nn.Module, recipe: Recipe) -> AveragedModel | None:
    """The moving average of weights and BatchNorm statistics, if the recipe wants one."""
    if not recipe.ema:
        return None
    average = get_ema_multi_avg_fn(recipe.ema)  # type: ignore[no-untyped-call]
    return AveragedModel(model, multi_avg_fn=average, use_buffers=True)


class NotFinite(Exception):
    """A loss, gradient or weight is NaN or infinite; the text says which."""


class Stepper:
    """The model with its optimizer and moving average, and `step` to teach it one batch.

    Attributes:
        parts: in which a batch is worked through; more of them after memory has run out.
        tally: of the epoch so far.
    """

    def __init__(self, model: nn.Module, recipe: Recipe, ranks: Ranks, say: Callable[[str], None]) -> None:
        self.recipe, self.ranks, self.say = recipe, ranks, say
        self.model = model.to(ranks.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(self.model, recipe)
        self.ema = make_ema(self.model, recipe)
        self.net: nn.Module = DistributedDataParallel(self.model) if ranks.world > 1 else self.model
        self.parts = recipe.accumulate
        self.tally = Tally()

    @property
    def averaged(self) -> nn.Module:
        """The model that is evaluated and whose weights are kept: the moving average where there is one."""
        return self.model if self.ema is None else self.ema.module

    def autocast(self) -> torch.autocast:
        """The context of every forward pass."""
        bf16 = self.recipe.precision == "bf16"
        if self.recipe.precision == "auto":
            bf16 = self.ranks.device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.autocast(self.ranks.device.type, dtype=torch.bfloat16, enabled=bf16)

    def step(self, batch: Batch, lr: float, *, frozen: bool = False) -> None:
        """One optimizer step, or none where images that cannot be read leave too few of the batch.

        Raises:
            NotFinite: loss or gradient is; no weight has changed, on any rank.
            ResourceError: memory ends even with the smallest parts.
        """
        self.tally.skipped += len(batch.bad)
        if self.ranks.maximum(-len(batch.labels)) > -LEAST:
            return
        before = [buffer.clone() for buffer in self.model.buffers()]
        while True:
            try:
                losses, right = self._gradients(batch)
                break
            except (RuntimeError, MemoryError) as error:
                if not ran_out_of_memory(error) or self.ranks.world > 1:  # the others wait for this rank's gradients
                    raise
            self._halve(len(batch.labels))
            for buffer, value in zip(self.model.buffers(), before, strict=True):  # BatchNorm's statistics, once only
                buffer.copy_(value)
        self._check(losses)
        set_lr(self.optimizer, lr, frozen=frozen)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        self.tally.loss += sum(losses)
        self.tally.right += right
        self.tally.images += len(batch.labels)

    def _gradients(self, batch: Batch) -> tuple[list[float], float]:
        """Gradients of a batch; its summed loss part by part, and how many images were right."""
        self.optimizer.zero_grad()
        n = len(batch.labels)
        parts = torch.arange(n).tensor_split(min(self.parts, n // LEAST))
        sums: list[float] = []
        right = 0.0
        for number, part in enumerate(parts):
            waits = isinstance(self.net, DistributedDataParallel) and number < len(parts) - 1
            with self.net.no_sync() if waits else nullcontext():  # type: ignore[operator]
                loss, hits = self._part(batch, part)
                (loss * (len(part) / n)).backward()  # type: ignore[no-untyped-call]
            sums.append(loss.item() * len(part))
            right += hits
        return sums, right

    def _part(self, batch: Batch, part: Tensor) -> tuple[Tensor, float]:
        """Mean loss of some images of a batch, and how many of them were right."""
        device, augment = self.ranks.device, self.recipe.augment
        labels, partners, lam = (t[part].to(device) for t in (batch.labels, batch.partners, batch.lam))
        with self.autocast():
            logits = self.net(to_input(batch.images[part], self.recipe.preprocess, device))
            smoothing = self.recipe.label_smoothing
            losses = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
            if augment.mixup or augment.cutmix:
                other = F.cross_entropy(logits, partners, label_smoothing=smoothing, reduction="none")
                losses = lam * losses + (1 - lam) * other
        return losses.mean(), (logits.argmax(dim=1) == labels).sum().item()

    def _check(self, losses: Sequence[float]) -> None:
        """Clip the gradient, and raise where it or the loss is not finite. Gradients are equal on all ranks by now."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        wrong = next((f"the loss is {value}" for value in losses if not math.isfinite(value)), None)
        if wrong is None and not math.isfinite(norm.item()):
            wrong = f"the gradient is {norm.item()}"
        if self.ranks.maximum(int(wrong is not None)):
            raise NotFinite(wrong or "another process has a loss that is not finite")
        if self.recipe.clip:
            nn.utils.clip_grads_with_norm_(self.model.parameters(), self.recipe.clip, norm)

    def _halve(self, images: int) -> None:
        """Twice as many parts, each half as large. Raises ResourceError where they are as small as they can be."""
        self.optimizer.zero_grad()
        most = images // LEAST
        if self.parts >= most:
            fix = "use a smaller --image-size, --memory lean, or a smaller --model"
            raise ResourceError(f"out of memory with {LEAST} images at once", "training", fix)
        self.parts = min(2 * self.parts, most)
        self.say(
            f"note: out of memory: each batch in {self.parts} parts from now on (as --accumulate {self.parts}); "
            "the step is the same but for BatchNorm's statistics, which see fewer images at once"
        )

    def check_weights(self) -> None:
        """Raise NotFinite, on all ranks, where a weight or a statistic is: nothing such is ever saved."""
        modules = dict.fromkeys((self.averaged, self.model))  # one and the same without a moving average
        named = [item for module in modules for item in module.state_dict().items()]
        broken = [name for name, t in named if t.is_floating_point() and not torch.isfinite(t).all()]
        if self.ranks.maximum(int(bool(broken))):
            raise NotFinite(
                f"{broken[0]} is not finite" if broken else "another process has weights that are not finite"
            )

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Everything that a saved state needs of model, optimizer and moving average."""
        groups = {"model": self.model.state_dict(), "optimizer": optimizer_tensors(self.optimizer)}
        if self.ema is not None:
            groups["ema"] = self.ema.state_dict()
        return groups

    def load(self, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        """The inverse of `tensors`. Raises RuntimeError, ValueError or KeyError for what does not fit."""
        self.model.load_state_dict(dict(groups["model"]))
        load_optimizer(self.optimizer, groups["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(dict(groups["ema"]))

    @property
    def state_bytes(self) -> int:
        """Size of a saved state, also before the optimizer has made its own."""
        model = sum(t.nbytes for t in self.model.state_dict().values())
        return model * (1 + (self.ema is not None) + (1 if self.recipe.optimizer == "sgd" else 2))

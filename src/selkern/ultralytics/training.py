"""The trainer that puts selective kernels into the network it has loaded, and keeps them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import nn
from ultralytics.engine.model import Model
from ultralytics.models import yolo
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import LOGGER

from selkern.adapt.selectify import selectify, selectify_plan
from selkern.adapt.unit import Form
from selkern.adapt.where import Where
from selkern.errors import UsageError
from selkern.layers.parts import Norm
from selkern.ultralytics.hooks import mark, units

_TASKS = {"classify": "Classification", "detect": "Detection", "obb": "OBB", "pose": "Pose", "segment": "Segmentation"}
_MERGED = ("Conv2", "RepConv", "RepVGGDW")  # whose branches fuse() adds up: they have to stay convolutions


class Selective:
    """What a trainer of ultralytics gets in front of it: its network has selective kernels.

    Attributes:
        selection: arguments of `selkern.selectify`.
    """

    selection: ClassVar[dict[str, Any]] = {}

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
        """The network, with the weights, and then with selective kernels; those that the weights have are kept."""
        network = super().get_model(cfg=cfg, weights=weights, verbose=verbose)  # type: ignore[misc]
        kept = units(network)
        if kept:
            LOGGER.info(f"selkern: keeps the {len(kept)} selective kernels of the weights")
        elif getattr(self, "resume", False):
            fix = "leave trainer= and selectify= out, or start a new run"
            raise UsageError("the run to resume has no selective kernels", "resume", fix)
        else:
            put_kernels(network, **self.selection)
        return network


def put_kernels(network: Any, where: Where = "auto", **options: Any) -> None:
    """Change a network of ultralytics in place, by `selkern.selectify`.

    Raises:
        UsageError: as `selkern.selectify`.
    """
    side = max(128, 4 * int(torch.as_tensor(network.stride).max()))  # maps of four positions a side, and more
    weight = next(network.parameters())
    generator = torch.Generator().manual_seed(0)
    example = torch.rand(2, network.yaml.get("channels", 3), side, side, generator=generator).to(weight)
    plan = selectify_plan(network, example=example, where=where, **options)
    chosen = {name for name in plan.changed if not _is_merged(network, name)}
    if not chosen:
        reasons = "; ".join(f"{name} {reason}" for name, reason in list(plan.left_out.items())[:3])
        raise UsageError("no convolution can be changed", f"where={where!r}", reasons or "give other modules")
    selectify(network, example=example, where=lambda name, _: name in chosen, inplace=True, **options)
    mark(network)
    before, after = plan.parameters[0], sum(p.numel() for p in network.parameters())
    LOGGER.info(f"selkern: {len(chosen)} selective kernels, {before:,} -> {after:,} parameters; results are unchanged")
    LOGGER.info(f"selkern: they are {', '.join(sorted(chosen))}")


def _is_merged(network: nn.Module, name: str) -> bool:
    """Whether a convolution is in a module whose branches are added up for inference."""
    parts = name.split(".")
    around = [network.get_submodule(".".join(parts[:n])) for n in range(1, len(parts))]
    return any(kind.__name__ in _MERGED for module in around for kind in type(module).__mro__)


def trainer(
    where: Where = "auto",
    *,
    base: Any = None,
    branches: int = 2,
    form: Form = "residual",
    groups: int = 32,
    reduction: int = 16,
    min_width: int = 32,
    gate_norm: Norm = "layer",
    budget: float = 0.10,
) -> Any:
    """A trainer for `YOLO(...).train(trainer=...)` that puts selective kernels into the network that was loaded.

    No row is inserted, so all weights transfer, and the network computes what it did, to the last bit, until training
    moves it. Checkpoints hold the changed network. They validate, predict, export, resume and train again as any
    other, with this trainer or ultralytics' own. Convolutions that fuse() adds up (RepConv) stay as they are.

    Args:
        where: which convolutions, as in `selkern.selectify`; names begin with `model.`, as in "model.8.*".
        base: trainer to build on; None takes the one of ultralytics for the task.
        branches, form, groups, reduction, min_width, gate_norm, budget: as in `selkern.selectify`.

    Returns:
        A function that makes the trainer.

    Example:
        >>> YOLO("yolov8n.pt").train(data="coco8.yaml", trainer=trainer("model.8.*"))  # doctest: +SKIP
    """
    options = {"groups": groups, "reduction": reduction, "min_width": min_width, "gate_norm": gate_norm}
    selection = {"where": where, "branches": branches, "form": form, "budget": budget, **options}

    def make(*args: Any, **arguments: Any) -> Any:
        kind = base or _of_task((arguments.get("overrides") or {}).get("task") or "detect")
        made: Any = type(
            f"Selective{kind.__name__}", (Selective, kind), {"selection": selection, "__module__": __name__}
        )
        return made(*args, **arguments)

    return make


def _of_task(task: str) -> Any:
    if task not in _TASKS:
        fix = f"one of {', '.join(_TASKS)}; or give base=the trainer's class"
        raise UsageError(f"there is no selective trainer for the task {task}", "trainer", fix)
    return getattr(getattr(yolo, task), f"{_TASKS[task]}Trainer")


class SelectiveTrainer(Selective, DetectionTrainer):  # type: ignore[misc]
    """The trainer of detectors that chooses the convolutions itself: `trainer()` as a class."""


@contextmanager
def training_with(where: Where) -> Iterator[None]:
    """Within the block every `train()` of ultralytics that is given no trainer puts in selective kernels."""
    before, make = Model.train, trainer

    def train(self: Any, trainer: Any = None, **arguments: Any) -> Any:
        chosen = trainer or make(where, base=self._smart_load("trainer"))
        return before(self, trainer=chosen, **arguments)

    Model.train = train
    try:
        yield
    finally:
        Model.train = before

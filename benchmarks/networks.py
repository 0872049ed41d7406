"""Workloads of whole networks: SKNet-50 beside timm's with the same weights and beside its twins without SK."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import goals as names
from benchmarks import peers
from benchmarks.layers import bare
from benchmarks.processes import run_child
from benchmarks.results import Row
from benchmarks.session import FAILURES, Session
from selkern.errors import PackageError, UsageError
from selkern.measure.bench import forward, in_layouts
from selkern.measure.memory import held_for_backward
from selkern.measure.timing import Job
from selkern.models.registry import create_model

_TWINS = {names.PLAIN_TWIN: "resnext50_32x4d", names.SE_TWIN: "seresnext50_32x4d"}
_SMALL_TWINS = {names.PLAIN_TWIN: "resnet_mini", names.SE_TWIN: "seresnet_mini"}
_BF16_TOLERANCE = 0.05  # eight bits of each factor, through fifty layers; torch's own cast errs by 0.005
_MEMORY_BATCH = 4


def infer(session: Session) -> None:
    """SKNet-50's inference at several batches, and what bfloat16 changes."""
    for batch in session.batches:
        model, x = _network(session), torch.randn(batch, 3, session.side, session.side)
        peers.vary_norms(model)
        _infer_batch(session, model.eval(), x)
    _agreement(session)


def _infer_batch(session: Session, model: nn.Module, x: Tensor) -> None:
    with torch.inference_mode():
        expected = model(x)
    case = names.network_case(len(x), session.side)
    compare = session.compare("infer", case, names.FORWARD, against=names.TIMM, expected=expected, per=len(x))
    compare.offer(names.TIMM, lambda: in_layouts(peers.timm_network(session.network, model), x, forward))
    compare.offer(names.OURS, lambda: in_layouts(model, x, forward))
    compare.offer(names.FOLDED, lambda: {"": partial(forward, peers.folded(model, x), x)})
    half = partial(peers.folded, model, x, dtype=torch.bfloat16)
    compare.offer(names.FOLDED_BF16, lambda: {"": partial(forward, half(), x)}, tolerance=_BF16_TOLERANCE)
    if session.compile:
        compare.offer(names.TIMM_COMPILED, lambda: _compiled(peers.timm_network(session.network, model), x))
        compare.offer(names.FOLDED_COMPILED, lambda: {"": partial(forward, peers.folded(model, x, compile=True), x)})
    compare.offer(names.BARE, lambda: bare(model, x), tolerance=None)
    for variant in _TWINS:
        twin = partial(build, variant, session)
        compare.offer(variant, lambda make=twin: in_layouts(make().eval(), x, forward), tolerance=None)  # type: ignore[misc]
    compare.run()


def _compiled(model: nn.Module, x: Tensor) -> dict[str, Job]:
    compiled: Any = torch.compile(model, options={"freezing": True})
    return {"": partial(forward, compiled, x)}


def _agreement(session: Session) -> None:
    """Share of digit scenes to which the folded bfloat16 network gives the class that the original gives."""
    session.say(f"infer: {names.DIGITS}, {names.AGREEMENT}")
    try:
        from selkern.data.preprocess import Preprocess
        from selkern.data.scenes import CLASSES, SceneSplit
        from selkern.evaluation import evaluate

        model = create_model("sknet_mini", weights="digits").eval()
        assert model.card is not None
        preprocess = Preprocess.from_dict(model.card.preprocess)
        half = peers.folded(model, torch.randn(2, 3, preprocess.size, preprocess.size), dtype=torch.bfloat16)
        scenes = SceneSplit("test", 100 if session.trial else 3000, 0)
        first, second = (
            evaluate(net, scenes, CLASSES, preprocess, device=torch.device("cpu")).top[:, 0] for net in (model, half)
        )
    except FAILURES as error:
        session.results.lacks("infer", f"{names.FOLDED_BF16} ({names.AGREEMENT})", error)
        return
    share = 100 * float((first == second).mean())
    session.results.rows.append(
        Row(
            workload="infer",
            case=names.DIGITS,
            quantity=names.AGREEMENT,
            variant=names.FOLDED_BF16,
            unit="%",
            samples=(share,),
            more_is_better=True,
        )
    )


def train(session: Session) -> None:
    """A training step of SKNet-50: forward, backward, SGD."""
    batch = 2 if session.trial else session.train_batch
    x, labels = torch.randn(batch, 3, session.side, session.side), torch.arange(batch) % session.classes
    torch.manual_seed(0)
    model = _network(session).train()
    expected = F.cross_entropy(copy.deepcopy(model)(x), labels).detach()
    case = names.network_case(batch, session.side)
    compare = session.compare("train", case, names.STEP, against=names.TIMM, expected=expected, per=batch)
    for variant in _trained():
        tolerance = None if variant in _TWINS else 0.01  # of the loss
        compare.offer(variant, partial(_steps, partial(build, variant, session, model), x, labels), tolerance=tolerance)
    compare.run()


def _steps(make: Callable[[], nn.Module], x: Tensor, labels: Tensor) -> dict[str, Job]:
    def step(model: nn.Module, given: Tensor) -> object:
        if model not in optimizers:
            optimizers[model] = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        optimizer = optimizers[model]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(given), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    optimizers: WeakKeyDictionary[nn.Module, torch.optim.SGD] = WeakKeyDictionary()
    return in_layouts(make().train(), x, step)


def memory(session: Session, variants: tuple[str, ...] | None = None) -> None:
    """MiB per image that a training step of SKNet-50 holds, and by which it makes a fresh process grow."""
    batch = 2 if session.trial else _MEMORY_BATCH
    case = names.memory_case(session.side)
    x = torch.randn(batch, 3, session.side, session.side)
    for variant in _trained() if variants is None else variants:
        session.say(f"memory: {variant}")
        settings = {"variant": variant, "batch": batch, "trial": session.trial}
        measures: dict[str, Callable[[], float]] = {
            names.HELD: partial(_held, variant, session, x),
            names.GROWTH: partial(_growth, settings),
        }
        for quantity, measure in measures.items():
            try:
                value = measure()
            except FAILURES as error:
                session.results.lacks("memory", f"{variant} ({quantity})", error)
                continue
            row = Row(
                workload="memory",
                case=case,
                quantity=quantity,
                variant=variant,
                unit="MiB/image",
                samples=(value,),
                against=names.TIMM if variant != names.TIMM else "",
            )
            session.results.rows.append(row)


def _held(variant: str, session: Session, x: Tensor) -> float:
    """MiB per image that autograd holds."""
    model = build(variant, session).train()
    return held_for_backward(model, partial(model, x)) / len(x)


def _growth(settings: dict[str, Any]) -> float:
    """MiB per image by which a fresh process grows."""
    return float(run_child("memory", settings)["grown"])


def _trained() -> tuple[str, ...]:
    return names.TIMM, *names.MEMORY.values(), *_TWINS


def _network(session: Session) -> nn.Module:
    return create_model(session.network, num_classes=session.classes)


def build(variant: str, session: Session, model: nn.Module | None = None) -> nn.Module:
    """A network by the name of its variant, with the weights of `model` where it is one with selective kernels.

    Raises:
        PackageError: timm cannot be imported, or this version keeps memory in one way only.
        UsageError: no such variant.
    """
    if variant in _TWINS:
        twin = (_SMALL_TWINS if session.trial else _TWINS)[variant]
        return create_model(twin, num_classes=session.classes)
    own = _network(session) if model is None else copy.deepcopy(model)
    if variant == names.TIMM:
        return peers.timm_network(session.network, own)
    mode = next((mode for mode, name in names.MEMORY.items() if name == variant), None)
    if mode is None:
        raise UsageError("unknown variant", variant, f"one of {', '.join(_trained())}")
    try:
        changed: nn.Module = peers.of_ours("set_memory")(own, mode)
    except PackageError:
        if mode == "default":
            return own
        raise
    return changed

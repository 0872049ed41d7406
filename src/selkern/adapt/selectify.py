"""`selectify`: selective kernels in any network, which computes what it did before until training moves it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import nn

from selkern.adapt.chains import Chain, Survey, survey
from selkern.adapt.exact import (
    FAILURES,
    Differences,
    Example,
    Outputs,
    check_flags,
    check_model,
    compare,
    difference,
    duplicate,
    refuses,
    seeded,
)
from selkern.adapt.plan import Plan, Row
from selkern.adapt.unit import Design, Form, Origin, SelectiveConv
from selkern.adapt.where import Where, added_macs, choose, refused
from selkern.errors import UsageError, first_line
from selkern.layers.parts import NORMS, Norm, evaluating, positive

Model = TypeVar("Model", bound=nn.Module)
# A widened kernel may take another algorithm: a sum of thousands of products in another order, layer after layer.
_ROUNDING = 1e-3


def selectify(
    model: Model,
    *,
    example: Any = None,
    where: Where = "auto",
    branches: int = 2,
    form: Form = "residual",
    groups: int = 32,
    reduction: int = 16,
    min_width: int = 32,
    gate_norm: Norm = "layer",
    budget: float = 0.10,
    pointwise: bool = False,
    inplace: bool = False,
) -> Model:
    """Put selective kernels into a network that is there already, such as a pretrained one.

    Convolutions become units of several branches (`SelectiveConv`). Branch 1 is the convolution that was there, with
    its weights; each further branch sees more, and starts equal to the first. So the network computes what it did, in
    eval and in train mode, until training moves the new weights, which have a gradient from the first step on. The norm
    and the activation that follow a convolution are found by the flow of tensors in one pass over the example; each
    branch has its own copy of them. What cannot be changed is left as it is: `selectify_plan` gives the reasons.

    Args:
        model: any network that runs on the example and can be copied.
        example: a batch of its input, on its device; a tuple for several arguments, a dict for named ones. Two images
            or more, so that it also runs in train mode.
        where: which convolutions. "auto" is every spatial one of the last half of the network, from the end, as far as
            the budget goes. Else "last 2 stages" (a stage is all maps of one size), a glob over the names of modules
            (`"layer4.*.conv2"`; `"layer4"` means all within), several globs, with commas between or in a list, a
            compiled regular expression that is searched for in the convolutions' names, or a function of name and
            module.
        branches: M, with the first; branch m sees m - 1 positions more on every side.
        form: "residual": U_m is made of the first convolution's result plus that of a 3x3 convolution, grouped and
            dilated, zero at first. Almost no cost, and equal to the last bit. "widened": a kernel of its own, larger
            by 2 (m - 1), that holds the first one in its middle and zeros around it. Costs more than the first, and
            is equal up to rounding.
        groups: largest cardinality of the residual form's convolutions (32 as in SKNet-50); where the first is
            depthwise they are too, and never have fewer groups than the first.
        reduction: r of the gate, and `min_width` L: its descriptor has max(C / r, L) numbers.
        gate_norm: norm of the gate's descriptor. "layer" learns from one image as from many, so that small batches of
            large images train as well; "batch" as in the paper.
        budget: largest share of added multiply-adds, for "auto".
        pointwise: change 1x1 convolutions too (their further branches are 3x3).
        inplace: change the model itself instead of a copy.

    Returns:
        The changed network; the model itself, if `inplace`. Weights keep their names in all that is unchanged;
        `conv1.weight` of a unit is `conv1.conv.weight`, its norm `conv1.norm.*`. Padding other than zeros is
        kept for the further branches: maps must be larger than it.

    Raises:
        UsageError: an argument outside its range; no example, or one that the model does not run on, or that gives no
            finite number; nothing that matches or can be changed; a model with units already; a scripted or compiled
            one, lazy modules, meta. The model is left as it was.

    Example:
        >>> import torch, selkern
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.BatchNorm2d(16), torch.nn.ReLU(),
        ...     torch.nn.Conv2d(16, 16, 3, padding=1), torch.nn.BatchNorm2d(16), torch.nn.ReLU())
        >>> x = torch.randn(2, 3, 8, 8)
        >>> selective = selkern.selectify(model, example=x, where="*")
        >>> torch.equal(selective(x), model(x))
        True
        >>> with selkern.record(selective) as selection:
        ...     _ = selective(x)
        >>> {name: tuple(a.shape) for name, a in selection.items()}
        {'0': (2, 2, 16), '3': (2, 2, 16)}
    """
    design = _design(branches, form, groups, reduction, min_width, gate_norm)
    return changed(model, example, where, design, budget=budget, pointwise=pointwise, inplace=inplace)[0]


def changed(
    model: Model,
    example: Any,
    where: Where,
    design: Design,
    *,
    budget: float = 0.10,
    pointwise: bool = False,
    inplace: bool = False,
) -> tuple[Model, Plan]:
    """What `selectify` returns, and the plan that `selectify_plan` would: both of one trial."""
    check_flags("selectify", inplace=inplace)
    done = _prepare(model, example, where, design, budget, pointwise)
    if not done.chains:
        raise _nothing_changeable(done.plan, model)
    target = model if inplace else duplicate(model)
    put_units(target, done.chains, design)
    return target, done.plan  # type: ignore[return-value]


def selectify_plan(
    model: nn.Module,
    *,
    example: Any = None,
    where: Where = "auto",
    branches: int = 2,
    form: Form = "residual",
    groups: int = 32,
    reduction: int = 16,
    min_width: int = 32,
    gate_norm: Norm = "layer",
    budget: float = 0.10,
    pointwise: bool = False,
) -> Plan:
    """What `selectify` would do with the same arguments: tried on a copy, and measured; the model is left as it is.

    Returns:
        `Plan`: a row for each convolution that was asked for, with its cost before and after or the reason why it stays
        as it is, and the largest difference of the outputs on the example. `print` shows a table.

    Raises:
        UsageError: as `selectify`, but a network in which nothing can be changed is a plan.

    Example:
        >>> import torch, selkern
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
        >>> selkern.selectify_plan(model, example=torch.randn(2, 3, 8, 8), where="0").changed
        ('0',)
    """
    design = _design(branches, form, groups, reduction, min_width, gate_norm)
    return _prepare(model, example, where, design, budget, pointwise).plan


def _design(branches: int, form: Form, groups: int, reduction: int, min_width: int, gate_norm: Norm) -> Design:
    if isinstance(branches, bool) or not isinstance(branches, int) or branches < 2:
        raise UsageError(f"branches must be a whole number of at least 2, got {branches!r}", "selectify")
    numbers = {"groups": groups, "reduction": reduction, "min_width": min_width}
    try:
        for name, value in numbers.items():
            positive(name, value)
    except ValueError as error:
        raise UsageError(str(error), "selectify") from error
    if form not in ("residual", "widened"):
        raise UsageError(f"form must be 'residual' or 'widened', got {form!r}", "selectify")
    if not callable(gate_norm) and gate_norm not in NORMS:
        what = f"gate_norm must be one of {', '.join(NORMS)} or a function of the channel count, got {gate_norm!r}"
        raise UsageError(what, "selectify")
    return Design(branches, form, groups, reduction, min_width, gate_norm)


@dataclass(frozen=True)
class _Prepared:
    plan: Plan
    chains: tuple[Chain, ...]


def _prepare(model: nn.Module, example: Any, where: Where, design: Design, budget: float, pointwise: bool) -> _Prepared:
    """Try the change on copies."""
    check_model(model)
    check_flags("selectify", pointwise=pointwise)
    if any(isinstance(module, SelectiveConv) for module in model.modules()):
        fix = "give the network as it was before; deselectify gives it back before training"
        raise UsageError("holds selective kernels of selectify already", type(model).__name__, fix)
    if not isinstance(budget, (int, float)) or not 0 <= budget < math.inf:
        raise UsageError(f"budget must be a share of at least 0, such as 0.1, got {budget!r}", "selectify")
    run = Example.of(example)
    looked_at = duplicate(model)
    with evaluating(looked_at), seeded(model):
        try:
            surveyed = survey(looked_at, *run.fresh())
        except FAILURES as error:
            raise refuses(model, error) from error
    choice = choose(surveyed, dict(model.named_modules()), where, design, budget, pointwise)
    unchanged = [*choice.left_out]
    chains = []
    for chain in choice.chains:
        if design.form == "widened" and not chain.keeps_weight:
            unchanged.append(refused(chain, "makes its weight anew in every pass, which a widened kernel cannot hold"))
        else:
            chains.append(chain)
    exact, differences = _verified(model, run, chains, unchanged, design)
    return _Prepared(_plan(looked_at, surveyed, exact, unchanged, design, differences), tuple(exact))


def _verified(
    model: nn.Module, example: Example, chains: list[Chain], unchanged: list[Chain], design: Design
) -> tuple[list[Chain], Differences]:
    """The chains that are equal on the example when they are changed; the others join the unchanged, with a reason."""
    expected = Outputs.of(duplicate(model), example)
    if not chains:
        return [], Differences(0.0, None if expected.trained is None else 0.0)
    try:
        differences = _tried(model, example, expected, chains, design)
        reason = _reason(differences, expected, design)
    except FAILURES as error:
        reason = str(error) or type(error).__name__
    if not reason:
        return chains, differences
    together = reason
    again = Outputs.of(duplicate(model), example)
    if difference(expected.evaluated, again.evaluated) or difference(expected.trained, again.trained):
        fix = "it must give the same twice, so that it can be compared: seed it in its forward"
        raise UsageError("gives other outputs in a second run on the same example", type(model).__name__, fix)
    kept = []
    for chain in chains:  # which of them is it? each by itself
        try:
            reason = _reason(_tried(model, example, expected, [chain], design), expected, design)
        except FAILURES as error:
            reason = f"cannot be replaced here: {first_line(error)}"
        if reason:
            unchanged.append(refused(chain, reason))
        else:
            kept.append(chain)
    if len(kept) == len(chains):
        raise UsageError(
            f"each unit by itself can be put in, not all: {together}", type(model).__name__, "change fewer"
        )
    return _verified(model, example, kept, unchanged, design)


def _tried(
    model: nn.Module, example: Example, expected: Outputs, chains: Sequence[Chain], design: Design
) -> Differences:
    """How far a changed copy is from the model; raises what it raises."""
    with seeded(model):
        changed = duplicate(model)
        put_units(changed, chains, design)
    calls: dict[str, int] = {}
    for chain in chains:
        unit = changed.get_submodule(chain.name)
        unit.register_forward_hook(lambda *_, name=chain.name: calls.update({name: calls.get(name, 0) + 1}))
    differences = compare(expected, changed, example)
    for chain in chains:
        if not calls.get(chain.name):
            raise RuntimeError(f"{chain.name} is called past its name")
    return differences


def _reason(differences: Differences, expected: Outputs, design: Design) -> str:
    """Why a change is not exact enough; empty if it is."""
    apart = differences.evaluating or 0.0
    if design.form == "residual":
        apart = max(apart, differences.training or 0.0)
        return f"is not exact here: outputs differ by {apart:.1e}" if apart else ""
    # In train mode a norm over a few values makes much of rounding: it is shown, and decides nothing.
    largest = max(
        (t.abs().max().item() for t in expected.evaluated if t.is_floating_point() and t.numel()), default=1.0
    )
    return f"is not equal here: outputs differ by {apart:.1e}" if apart > _ROUNDING * (largest or 1.0) else ""


def put_units(model: nn.Module, chains: Iterable[Chain], design: Design) -> None:
    """Put a unit in the place of each convolution, and Identity in that of the norm and activation that it takes."""
    for chain in chains:
        assert chain.geometry is not None
        conv = model.get_submodule(chain.name)
        norm = nn.Identity() if chain.norm is None else model.get_submodule(chain.norm)
        act = _clamp(*chain.clamp) if chain.clamp else nn.Identity()
        act = model.get_submodule(chain.act) if chain.act is not None else act
        origin = Origin(chain.name, chain.norm, chain.act)
        put(model, chain.name, SelectiveConv(conv, norm, act, chain.geometry, design, origin))
        for name, part in ((chain.norm, norm), (chain.act, act)):
            if name is not None:
                put(model, name, nn.Identity().train(part.training))


def _clamp(low: float, high: float) -> nn.Module:
    """The unit's own form of an activation that stays behind it."""
    return nn.ReLU(inplace=True) if (low, high) == (0.0, math.inf) else nn.Hardtanh(low, high, inplace=True)


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module where another was."""
    parent, _, last = name.rpartition(".")
    model.get_submodule(parent)._modules[last] = module


def _plan(
    model: nn.Module,
    surveyed: Survey,
    chains: Sequence[Chain],
    unchanged: Sequence[Chain],
    design: Design,
    differences: Differences,
) -> Plan:
    """The table; the model is a copy."""
    parameters = sum(p.numel() for p in model.parameters())
    was = {chain.name: _was(model, chain) for chain in (*chains, *unchanged)}
    before = {chain.name: _size(model, _parts(chain)) for chain in (*chains, *unchanged)}
    with seeded(model):
        put_units(model, chains, design)
    rows = {}
    for chain in chains:
        unit = model.get_submodule(chain.name)
        assert isinstance(unit, SelectiveConv)
        sizes = before[chain.name], _size(model, [chain.name])
        macs = chain.macs, chain.macs + added_macs(chain, design)
        rows[chain.name] = Row(chain.name, was[chain.name], _becomes(chain, unit, design), sizes, macs)
    for chain in unchanged:
        sizes, macs = (before[chain.name],) * 2, (chain.macs,) * 2
        rows[chain.name] = Row(chain.name, was[chain.name], "", sizes, macs, chain.refusal)
    order = [chain.name for chain in surveyed.chains if chain.name in rows]
    added = sum(row.macs[1] - row.macs[0] for row in rows.values())
    total = parameters, sum(p.numel() for p in model.parameters())
    return Plan(tuple(rows[name] for name in order), total, (surveyed.macs, surveyed.macs + added), differences)


def _parts(chain: Chain) -> list[str]:
    return [name for name in (chain.name, chain.norm, chain.act) if name is not None]


def _size(model: nn.Module, names: Iterable[str]) -> int:
    return sum(p.numel() for name in names for p in model.get_submodule(name).parameters())


def _was(model: nn.Module, chain: Chain) -> str:
    conv = type(chain.module).__name__
    if chain.geometry is not None:
        conv = f"{chain.geometry} {chain.geometry.in_channels}-{chain.geometry.out_channels}"
    return ", ".join([conv, *(type(model.get_submodule(name)).__name__ for name in _parts(chain)[1:])])


def _becomes(chain: Chain, unit: SelectiveConv, design: Design) -> str:
    assert chain.geometry is not None
    shapes = [chain.geometry.further(m, design) for m in range(1, design.branches)]
    sign = "+ " if design.form == "residual" else ""
    further = ", ".join(f"{sign}{shape}" for shape in shapes)
    return f"SK of {', '.join(map(str, unit.extents))}: {further}; d {unit.gate.fc1.out_features}"


def _nothing_changeable(plan: Plan, model: nn.Module) -> UsageError:
    reasons = list(dict.fromkeys(f"{name} {reason}" for name, reason in plan.left_out.items()))
    fix = "; ".join(reasons[:3]) + (f"; and {len(reasons) - 3} more" if len(reasons) > 3 else "")
    return UsageError("nothing can be changed", type(model).__name__, fix or "it has no spatial convolution")

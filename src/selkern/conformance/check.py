"""`check`: is this selective-kernel code what the paper and the authors' prototxt say? Rule by rule, with evidence.

The rules (`rules.py`) are held against what really ran (`trace.py`, `anatomy.py`), so any code that runs can be asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from selkern.conformance.anatomy import Anatomy, find_anatomies
from selkern.conformance.rules import NETWORK_RULES, TOLERANCE, UNIT_RULES, UnitRule
from selkern.conformance.trace import trace
from selkern.errors import UsageError
from selkern.layers.parts import evaluating
from selkern.selection.record import label_of


@dataclass(frozen=True)
class Finding:
    """One rule held against all units, or against the whole.

    Attributes:
        rule: what is asked.
        source: where it is written.
        holds: whether it is obeyed everywhere.
        evidence: what was seen, alike cases once; of a broken rule the broken cases.
        units: labels of the units that break it.
    """

    rule: str
    source: str
    holds: bool
    evidence: tuple[str, ...]
    units: tuple[str, ...] = ()


@dataclass(frozen=True)
class Conformance:
    """What `check` found.

    Attributes:
        units: labels of the units, SK_3_4 or a module's path.
        parameters: of the whole model.
        findings: one per rule that can be asked.
    """

    units: tuple[str, ...]
    parameters: int
    findings: tuple[Finding, ...]

    @property
    def broken(self) -> tuple[Finding, ...]:
        """The rules that are not obeyed."""
        return tuple(finding for finding in self.findings if not finding.holds)


def check(model: nn.Module, *inputs: Any) -> Conformance:
    """Hold the rules of the paper and the prototxt against any selective-kernel module or network.

    The model runs twice in eval mode, without gradients: on the batch, and on its first image alone.

    Args:
        model: a layer, or a whole network; it is left as it was.
        inputs: what its forward takes. The first axis of every tensor is the batch, of 5 images best: a number that
            is none of branches or channels, so that axes can be distinguished.

    Raises:
        UsageError: no unit ran: nothing whose softmax or sigmoid weighs two or more maps.

    Example:
        >>> import torch, selkern
        >>> x = torch.randn(5, 64, 8, 12)
        >>> [finding.rule for finding in selkern.check(selkern.SKAttention(64, group=2), x).broken][-1]
        'the gate is linear, BN, ReLU, linear'
        >>> selkern.check(selkern.SelectiveKernel(64), x).broken
        ()
    """
    images = next((len(leaf) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)), 0)
    with evaluating(model):
        nodes, output = trace(model, inputs)
        units = find_anatomies(nodes, images)
        if not units:
            fix = "a unit is a softmax over branches that weighs their maps; larger images may help"
            raise UsageError("no selective-kernel unit ran", type(model).__name__, fix)
        alone = _alone(model, inputs, output)
    labels = tuple(label_of(unit.path) or type(model).__name__ for unit in units)
    findings = [finding for rule in UNIT_RULES if (finding := _of_units(rule, units, labels)) is not None]
    for rule in NETWORK_RULES:
        if (verdict := rule.judge(model, nodes, units)) is not None:
            findings.append(Finding(rule.text, rule.source, verdict[0], (verdict[1],)))
    return Conformance(labels, sum(p.numel() for p in model.parameters()), (*findings, alone))


def _of_units(rule: UnitRule, units: list[Anatomy], labels: tuple[str, ...]) -> Finding | None:
    verdicts = [(label, rule.judge(unit)) for label, unit in zip(labels, units, strict=True)]
    asked = [(label, *verdict) for label, verdict in verdicts if verdict is not None]
    if not asked:
        return None
    broken = [(label, seen) for label, holds, seen in asked if not holds]
    evidence = [seen for _, seen in broken] or [seen for *_, seen in asked]
    return Finding(
        rule.text, rule.source, not broken, tuple(dict.fromkeys(evidence)), tuple(label for label, _ in broken)
    )


@torch.no_grad()
def _alone(model: nn.Module, inputs: tuple[Any, ...], together: Any) -> Finding:
    """Whether the first image comes out as it did beside the others."""
    text, source = "an image's output is its own, alone or in a batch", "Eq. 1 to 6"
    first = tree_map_only(Tensor, lambda tensor: tensor[:1], inputs)
    try:
        single = model(*first)
    except (RuntimeError, ValueError, IndexError) as error:
        return Finding(text, source, False, (f"fails on one image: {str(error).splitlines()[0]}",))
    worst = 0.0
    for got, batch in zip(tree_leaves(single), tree_leaves(together), strict=True):
        if got.shape != batch[:1].shape:
            seen = f"one image gives {tuple(got.shape)}, a batch {tuple(batch.shape)}"
            return Finding(text, source, False, (seen,))
        worst = max(worst, (got - batch[:1]).abs().max().item() / (batch[:1].abs().max().item() or 1.0))
    seen = "below 1e-6" if worst < 1e-6 else f"{worst:.0e}"
    return Finding(text, source, worst < TOLERANCE, (f"largest difference {seen}",))

"""Which convolutions to change: names, patterns, functions, stages, or as many of the last as a budget allows."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import nn

from selkern.adapt.chains import Chain, Survey
from selkern.adapt.unit import Design
from selkern.errors import UsageError

Where = str | re.Pattern[str] | Callable[[str, nn.Module], bool] | Sequence[str]
_STAGES = re.compile(r"last (?:(\d+) )?stages?")


@dataclass(frozen=True)
class Choice:
    """What is to be changed, and what was asked for and cannot be, with the reason."""

    chains: tuple[Chain, ...]
    left_out: tuple[Chain, ...]


def choose(
    surveyed: Survey, names: Iterable[str], where: Where, design: Design, budget: float, pointwise: bool
) -> Choice:
    """The convolutions that `where` means; see `selectify`.

    Raises:
        UsageError: nothing matches.
    """
    if isinstance(where, str) and where == "auto":
        return _auto(surveyed, design, budget)
    if isinstance(where, str) and (stages := _STAGES.fullmatch(where)):
        asked = _last_stages(surveyed, int(stages[1] or 1))
    else:
        asked = [chain for chain in surveyed.chains if _matches(where, chain)]
        if not asked:
            raise _nothing_matches(where, names)
    taken, left = [], []
    for chain in asked:
        if not chain.refusal and not chain.spatial and not pointwise:
            left.append((chain, "is 1x1, which pointwise=True takes as well"))
        elif chain.refusal:
            left.append((chain, chain.refusal))
        else:
            taken.append(chain)
    return Choice(tuple(taken), tuple(refused(chain, reason) for chain, reason in left))


def refused(chain: Chain, reason: str) -> Chain:
    """The chain as one that is not changed."""
    return replace(chain, refusal=reason)


def added_macs(chain: Chain, design: Design) -> int:
    """Multiply-adds that a unit has more than its convolution, for one image; norms and Select do not count."""
    assert chain.geometry is not None
    width = max(chain.geometry.out_channels // design.reduction, design.min_width)
    further = sum(chain.geometry.further(m, design).weights() for m in range(1, design.branches))
    return further * chain.positions + width * chain.geometry.out_channels * (1 + design.branches)


def _auto(surveyed: Survey, design: Design, budget: float) -> Choice:
    """The spatial convolutions of the last half, from the end, as far as the budget goes."""
    ran = [chain for chain in surveyed.chains if chain.spatial or (chain.refusal and chain.size)]
    spatial = [chain for chain in ran if chain.spatial and not chain.refusal]
    last = spatial[len(spatial) // 2 :]
    start = ran.index(last[0]) if last else len(ran)
    left = [chain for chain in ran[start:] if chain.refusal and chain.refusal != "its map has one position"]
    if not last:
        left = [chain for chain in surveyed.chains if chain.refusal]
    rest, taken = budget * surveyed.macs, []
    for chain in reversed(last):
        cost = added_macs(chain, design)
        if cost <= rest:
            rest -= cost
            taken.append(chain)
        else:
            left.append(refused(chain, f"is beyond the budget of {budget:.0%} more multiply-adds"))
    order = {chain.name: i for i, chain in enumerate(surveyed.chains)}
    left.sort(key=lambda chain: order[chain.name])
    return Choice(tuple(reversed(taken)), tuple(left))


def _last_stages(surveyed: Survey, count: int) -> list[Chain]:
    """The convolutions whose results have the last `count` sizes of maps."""
    maps = [chain for chain in surveyed.chains if chain.geometry is not None and (chain.spatial or chain.positions > 1)]
    sizes = list(dict.fromkeys(chain.size for chain in reversed(maps)))
    if not 1 <= count <= len(sizes):
        raise UsageError(f"last {count} stages", "where", f"the network has maps of {len(sizes)} sizes on this example")
    return [chain for chain in maps if chain.size in sizes[:count]]


def _matches(where: Where, chain: Chain) -> bool:
    """Whether a pattern means a convolution: its name, or that of a module around it."""
    if isinstance(where, str):
        parts = chain.name.split(".")
        return any(fnmatchcase(".".join(parts[:n]), where) for n in range(1, len(parts) + 1))
    if isinstance(where, re.Pattern):
        return where.search(chain.name) is not None
    if callable(where):
        return bool(where(chain.name, chain.module))
    return any(_matches(each, chain) for each in where)


def _nothing_matches(where: Where, names: Iterable[str]) -> UsageError:
    if callable(where):
        return UsageError("where() is true for no convolution", "where")
    pattern = where if isinstance(where, str) else where.pattern if isinstance(where, re.Pattern) else ", ".join(where)
    return UsageError(f"no convolution matches {pattern!r}", "where", nearest(pattern, names))


def nearest(pattern: str, names: Iterable[str]) -> str:
    """What to do about a pattern that matches nothing: the most similar names."""
    near = difflib.get_close_matches(pattern, [name for name in names if name], n=3, cutoff=0.3)
    return f"nearest modules: {', '.join(near)}" if near else "names are those of model.named_modules()"

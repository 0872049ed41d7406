"""Which convolutions to change: names, patterns, functions, stages, or as many of the last as a budget allows."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from selkern.adapt.chains import Chain, Survey
from selkern.adapt.exact import FAILURES
from selkern.adapt.unit import Design
from selkern.errors import UsageError, first_line

Pattern = str | re.Pattern[str] | Callable[[str, nn.Module], bool]
Where = Pattern | Sequence[str]
_STAGES = re.compile(r"last (?:(\d+) )?stages?")
_COMMAS = re.compile(r",(?![^\[\]]*\])")  # not those of a glob's [1,2]
_SHOWN = 3  # names in a hint


@dataclass(frozen=True)
class Choice:
    """What is to be changed, and what was asked for and cannot be, with the reason."""

    chains: tuple[Chain, ...]
    left_out: tuple[Chain, ...]


def choose(
    surveyed: Survey,
    modules: Mapping[str, nn.Module],
    where: Where,
    design: Design,
    budget: float,
    pointwise: bool,
) -> Choice:
    """The convolutions that `where` means, in a network of these modules; see `selectify`.

    Raises:
        UsageError: no pattern, or one that nothing matches, in a network that has convolutions.
    """
    fix = "give a glob over names, such as 'layer4.*', several, a compiled regular expression, or a function"
    asked_for = patterns(where, "where", _is_pattern, fix)
    if not surveyed.chains:
        return Choice((), ())
    alone = asked_for[0] if len(asked_for) == 1 and isinstance(asked_for[0], str) else ""
    if alone == "auto":
        return _auto(surveyed, design, budget)
    if stages := _STAGES.fullmatch(alone):
        asked = _last_stages(surveyed, int(stages[1] or 1))
    else:
        asked = _matching(surveyed, modules, asked_for)
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


def _matching(surveyed: Survey, modules: Mapping[str, nn.Module], asked_for: Sequence[Pattern]) -> list[Chain]:
    """The convolutions that any of some patterns means, each of which must mean one."""
    chosen: set[str] = set()
    for pattern in asked_for:
        meant = {chain.name for chain in surveyed.chains if _matches(pattern, chain)}
        if not meant:
            raise _nothing_matches(pattern, surveyed, modules)
        chosen |= meant
    return [chain for chain in surveyed.chains if chain.name in chosen]


def _matches(pattern: Pattern, chain: Chain) -> bool:
    """Whether a pattern means a convolution: its name, or that of a module around it."""
    if isinstance(pattern, str):
        return any(fnmatchcase(name, pattern) for name in _around(chain.name))
    if isinstance(pattern, re.Pattern):
        return pattern.search(chain.name) is not None
    try:
        return bool(pattern(chain.name, chain.module))
    except FAILURES as error:
        what = f"where() fails on {chain.name}: {first_line(error)}"
        raise UsageError(what, "where", "give a function of a name and a module") from error


def _around(name: str) -> list[str]:
    """The names of the modules around one, from the outermost, and its own."""
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts) + 1)]


def _nothing_matches(pattern: Pattern, surveyed: Survey, modules: Mapping[str, nn.Module]) -> UsageError:
    names = [chain.name for chain in surveyed.chains]
    text = "" if callable(pattern) else pattern.pattern if isinstance(pattern, re.Pattern) else pattern
    near = nearest(text, dict.fromkeys(outer for name in names for outer in _around(name)))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    every = f"its convolutions are {', '.join(names[:_SHOWN])}{more}"
    fix = f"nearest names with a convolution: {near}" if near else every
    if callable(pattern):
        return UsageError("where() is true for no convolution", "where", fix)
    module = modules.get(text) if isinstance(pattern, str) else None
    if module is None:
        return UsageError(f"no convolution matches {text!r}", "where", fix)
    kind = type(module).__name__
    article = "an" if kind[0] in "AEIOU" else "a"
    what = "without a convolution" if any(True for _ in module.children()) else "not a convolution"
    return UsageError(f"{text} is {article} {kind}, {what}", "where", fix)


def nearest(pattern: str, names: Iterable[str]) -> str:
    """The names most similar to a pattern, with commas between; empty where none is similar."""
    word = re.sub(r"[^\w.]+", "", pattern).strip(".")  # what a glob or a regular expression says besides its signs
    return ", ".join(difflib.get_close_matches(word, [name for name in names if name], n=_SHOWN, cutoff=0.5))


def patterns(given: Any, argument: str, fits: Callable[[Any], bool], fix: str) -> list[Any]:
    """What an argument names, one by one: a pattern, several with commas between, or a list of them.

    Args:
        given: the argument.
        argument: its name.
        fits: whether something can be a pattern.
        fix: what to do where it cannot.

    Raises:
        UsageError: no pattern, an empty one, or something else.
    """
    given = _split(given) if isinstance(given, str) else given
    several = isinstance(given, Iterable) and not isinstance(given, (str, bytes, Tensor, nn.Module))
    asked = list(given) if several and not fits(given) else [given]
    if not asked:
        raise UsageError("no pattern is given", argument, fix)
    for one in asked:
        if not fits(one):
            raise UsageError(f"{reprlib.repr(one)} is no pattern", argument, fix)
        if isinstance(one, str) and not one.strip():
            what = "the pattern is empty" if len(asked) == 1 else "one of the patterns is empty"
            raise UsageError(what, argument, "give a name or a glob, such as 'layer4.*'")
    return asked


def _is_pattern(given: object) -> bool:
    if isinstance(given, re.Pattern):
        return isinstance(given.pattern, str)
    return isinstance(given, str) or (callable(given) and not isinstance(given, nn.Module))


def _split(text: str) -> str | list[str]:
    """Several patterns with commas between, one by one; a comma at the end counts for nothing."""
    pieces = [piece.strip() for piece in _COMMAS.split(text)]
    while len(pieces) > 1 and not pieces[-1]:
        pieces.pop()
    return pieces if len(pieces) > 1 else pieces[0]

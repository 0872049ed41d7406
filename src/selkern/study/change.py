"""Networks that differ from one of the zoo in some fields of their architecture."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

from selkern.errors import UsageError
from selkern.layers.selective_kernel import Branch
from selkern.models.backbone import Row
from selkern.models.trunk import Architecture
from selkern.train.options import build

_LARGEST = 1 << 16  # channels and the like


@dataclass(frozen=True, kw_only=True)
class _Change:
    """Fields of `Architecture` that plain values can be given for; see there."""

    depths: tuple[int, ...] | None = None
    mids: tuple[int, ...] | None = None
    outs: tuple[int, ...] | None = None
    strides: tuple[int, ...] | None = None
    stem: int | None = None
    stem_kernel: int | None = None
    stem_stride: int | None = None
    stem_pool: bool | None = None
    mixer: str | None = None
    groups: int | None = None
    reduction: int | None = None
    min_width: tuple[int, ...] | None = None


def changed(row: Row, change: Any, where: str) -> Row:
    """A row of an architecture table with fields replaced."""
    if not isinstance(change, dict):
        raise UsageError("change is no mapping", where, "give fields of an architecture, such as mids: [32, 48, 64]")
    if not change:
        return row
    if not isinstance(row, Architecture):
        raise UsageError("only networks on the residual trunk can be changed", where, "choose another model")
    plain = dict(change)
    told: dict[str, Any] = {}
    if "kernels" in plain:
        kernels = plain.pop("kernels")
        if not isinstance(kernels, list) or not kernels:
            raise UsageError(f"kernels is {kernels!r}", where, "give a list such as [3, 5]")
        told["kernels"] = tuple(_kernel(kernel, where) for kernel in kernels)
    if "plain_kernel" in plain:
        told["plain_kernel"] = _kernel(plain.pop("plain_kernel"), where)
    if type(plain.get("min_width")) is int:
        told["min_width"] = plain.pop("min_width")
    asked = build(_Change, plain, where)
    told |= {name: value for name, value in vars(asked).items() if value is not None}
    numbers = [n for value in told.values() for n in (value if isinstance(value, tuple) else (value,))]
    if any(type(number) is int and not 1 <= number <= _LARGEST for number in numbers):
        raise UsageError("a size of the network is out of range", where, f"give whole numbers from 1 to {_LARGEST:,}")
    try:
        made = replace(row, **told)
    except UsageError as error:
        raise placed(error, where) from error
    if isinstance(made.min_width, tuple) and len(made.min_width) != len(made.depths):
        raise UsageError(f"min_width has {len(made.min_width)} numbers", where, "give one, or one for each stage")
    return made


def named(base: str, change: dict[str, Any]) -> str:
    """What a changed network is called, by its change alone: `resnet_mini(mids=[36,64,88])`."""
    told = (f"{field}={json.dumps(change[field], separators=(',', ':'))}" for field in sorted(change))
    return f"{base}({', '.join(told)})" if change else base


def _kernel(value: Any, where: str) -> int | Branch:
    """A number as the paper builds it (a dilated 3x3), or a mapping of a `Branch`'s fields."""
    try:
        if type(value) is int:
            Branch.of(value)
            return value
        if isinstance(value, dict) and "kernel_size" in value:
            return build(Branch, value, where)
    except ValueError as error:
        raise placed(error, where) from error
    raise UsageError(f"a kernel is {value!r}", where, "give an odd number, or kernel_size, dilation and groups")


def placed(error: ValueError, where: str) -> UsageError:
    """An error about a network or a recipe as one about a place in the study's file."""
    if isinstance(error, UsageError):
        return UsageError(error.what, where, error.fix)
    return UsageError(str(error), where, "change the arm")

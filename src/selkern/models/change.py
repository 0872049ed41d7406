"""Names of networks that differ from a row of a table in some fields: `resnet_mini(mids=[36,64,88])`."""

from __future__ import annotations

import ast
import json
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any

from selkern.errors import UsageError
from selkern.layers.selective_kernel import Branch
from selkern.models.backbone import Row
from selkern.models.trunk import Architecture

MAX_SIZE = 1 << 16  # channels and the like
MAX_NAME = 2_000  # characters: names come with weights files too


def split_name(name: str) -> tuple[str, dict[str, Any]]:
    """A network's name as that of its base and the fields in brackets; nothing but literals is read.

    Raises:
        UsageError: brackets that hold anything but `field=value`.
    """
    if "(" not in name:
        return name, {}
    try:
        if len(name) > MAX_NAME:
            raise ValueError(f"it has over {MAX_NAME:,} characters")
        call = ast.parse(name.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError("it is not MODEL(field=value)")
        given = {keyword.arg: _literal(keyword.value) for keyword in call.keywords}
        if None in given or len(given) < len(call.keywords):
            raise ValueError("every field is given once, by name")
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        what = f"the model's name cannot be read ({str(error).splitlines()[0]})"
        raise UsageError(what, reprlib.repr(name), "write it as in resnet_mini(mids=[36,64,88])") from error
    return call.func.id, {str(field): value for field, value in given.items()}


def _literal(node: ast.expr) -> Any:
    """The value of a literal of Python, or of JSON, as `join_name` writes them."""
    if isinstance(node, ast.Name) and node.id in ("true", "false"):
        return node.id == "true"
    return ast.literal_eval(node)


def join_name(base: str, change: Mapping[str, Any]) -> str:
    """The name of a network with fields changed, the same for the same fields: `resnet_mini(mids=[36,64,88])`."""
    base, given = split_name(base)
    given |= change
    pairs = (f"{field}={json.dumps(given[field], separators=(',', ':'))}" for field in sorted(given))
    return f"{base}({', '.join(pairs)})" if given else base


def change_row(row: Row, change: Any, where: str) -> Row:
    """A row of an architecture table with fields replaced.

    Args:
        row: of `trunk.ARCHITECTURES`; others cannot be changed.
        change: plain values by field, as YAML or a name in brackets has them; `kernels` takes mappings of `Branch`.
        where: for errors.

    Raises:
        UsageError: no mapping, an unknown field, a value of a wrong type or out of range, a network that cannot be.
    """
    if not isinstance(change, dict):
        raise UsageError("change is no mapping", where, "give fields of an architecture, such as mids: [32, 48, 64]")
    if not change:
        return row
    if not isinstance(row, Architecture):
        raise UsageError("only networks on the residual trunk can be changed", where, "choose another model")
    values: dict[str, Any] = {}
    for field, value in change.items():
        if field not in _READERS:
            raise UsageError(f"unknown field {reprlib.repr(field)}", where, f"one of {', '.join(_READERS)}")
        values[field] = _READERS[field](value, field, where)
    try:
        made = replace(row, **values)
    except UsageError as error:
        raise placed(error, where) from error
    if isinstance(made.min_width, tuple) and len(made.min_width) != len(made.depths):
        raise UsageError(f"min_width has {len(made.min_width)} numbers", where, "give one, or one for each stage")
    return made


def placed(error: ValueError, where: str) -> UsageError:
    """An error about a network or a recipe as one about the place that names it."""
    if isinstance(error, UsageError):
        return UsageError(error.what, where, error.fix)
    return UsageError(str(error), where, "change the network's fields")


def _wrong(field: str, value: Any, where: str, fix: str) -> UsageError:
    return UsageError(f"{field} is {reprlib.repr(value)}", where, f"give {fix}")


def _number(value: Any, field: str, where: str) -> int:
    if type(value) is not int:
        raise _wrong(field, value, where, "a whole number")
    if not 1 <= value <= MAX_SIZE:
        fix = f"give whole numbers from 1 to {MAX_SIZE:,}"
        raise UsageError(f"a size of the network is out of range ({field})", where, fix)
    return value


def _numbers(value: Any, field: str, where: str) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or not value:
        raise _wrong(field, value, where, "a list of whole numbers")
    return tuple(_number(number, field, where) for number in value)


def _number_or_numbers(value: Any, field: str, where: str) -> int | tuple[int, ...]:
    return (_numbers if isinstance(value, (list, tuple)) else _number)(value, field, where)


def _switch(value: Any, field: str, where: str) -> bool:
    if type(value) is not bool:
        raise _wrong(field, value, where, "true or false")
    return value


def _mixer(value: Any, field: str, where: str) -> str:
    if not isinstance(value, str):
        raise _wrong(field, value, where, "a word")
    return value  # `Architecture` knows the words


def _kernel(value: Any, _field: str, where: str) -> int | Branch:
    """A number as the paper builds it (a dilated 3x3), or a mapping of a `Branch`'s fields."""
    try:
        if type(value) is int:
            Branch.of(_number(value, "kernels", where))
            return value
        if isinstance(value, dict) and "kernel_size" in value and value.keys() <= {f.name for f in fields(Branch)}:
            return Branch(**{name: _number(number, name, where) for name, number in value.items()})
    except ValueError as error:
        raise placed(error, where) from error
    fix = "give an odd number, or kernel_size, dilation and groups"
    raise UsageError(f"a kernel is {reprlib.repr(value)}", where, fix)


def _kernels(value: Any, field: str, where: str) -> tuple[int | Branch, ...]:
    if not isinstance(value, (list, tuple)) or not value:
        raise _wrong(field, value, where, "a list such as [3, 5]")
    return tuple(_kernel(kernel, field, where) for kernel in value)


_READERS: dict[str, Callable[[Any, str, str], Any]] = {
    "depths": _numbers,
    "mids": _numbers,
    "outs": _numbers,
    "strides": _numbers,
    "stem": _number,
    "stem_kernel": _number,
    "stem_stride": _number,
    "stem_pool": _switch,
    "mixer": _mixer,
    "kernels": _kernels,
    "plain_kernel": _kernel,
    "groups": _number,
    "reduction": _number,
    "min_width": _number_or_numbers,
}

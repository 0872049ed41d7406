"""A study's file as plain values: YAML that says everything once, and holds nothing that could grow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from selkern.errors import UsageError

REQUIRED = ("title", "claim", "baseline", "arms")
_LARGEST = 1 << 16  # bytes of a study's file
_LONGEST_WORD = 4200  # characters; YAML makes a number of 1:1:1:... in quadratic time


def load(path: Path) -> tuple[str, dict[str, Any]]:
    """Text and entries of a file. Raises UsageError where it is no mapping, or has an entry twice or not at all."""
    where, fix = str(path), "see docs/studies.md"
    if path.stat().st_size > _LARGEST:
        raise UsageError(f"larger than {_LARGEST:,} bytes", where, "give a study's file")
    text = path.read_text(encoding="utf-8")
    if max(map(len, text.split()), default=0) > _LONGEST_WORD:
        raise UsageError(f"a word of over {_LONGEST_WORD:,} characters", where, fix)
    try:
        _refuse_twice(yaml.compose(text, Loader=yaml.SafeLoader), where)
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # UsageError is a ValueError
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"not YAML ({str(error).splitlines()[0]})", where, fix) from error
    if not isinstance(values, dict):
        raise UsageError("no mapping of entries", where, fix)
    if missing := [name for name in REQUIRED if name not in values]:
        raise UsageError(f"{missing[0]} is missing", where, fix)
    return text, values


def _refuse_twice(node: Any, where: str) -> None:
    """Raise UsageError where a mapping has a key twice (YAML would keep the last) or an alias (which could nest)."""
    seen: set[int] = set()
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            raise UsageError("an alias", where, "write the entry out")
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if twice := [key for key in keys if keys.count(key) > 1]:
                raise UsageError(f"{twice[0]!r} is there twice", where, "remove one of them")
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value

"""Kernels run in Triton's interpreter, on the CPU, for the length of one test.

The interpreter is chosen where a function is decorated, by an environment variable. Other tests of the same process
may have imported Triton without it, and start processes that must not have it. So here functions that were decorated
for a GPU are replaced by their interpreted forms, and put back afterwards.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every kernel in the modules of `selkern.ops.triton` that are imported by now, and the ones of Triton it calls."""
    triton = pytest.importorskip("triton", reason="no kernels without Triton")
    tl, decorated = triton.language, triton.runtime.jit.JITFunction
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    # Where one kernel function calls another, the interpreter puts its own functions into these and leaves them there.
    touched = [tl, tl.core, tl.math, tl.tensor, tl.core.tensor_descriptor_base]
    before = [_members(each) for each in touched]
    ours = [module for name, module in sys.modules.items() if name.startswith("selkern.ops.triton")]
    for module in (tl, tl.standard, *ours):
        for name, value in inspect.getmembers(module, lambda value: isinstance(value, decorated)):
            monkeypatch.setattr(module, name, triton.jit(value.fn))
    yield
    for each, members in zip(touched, before, strict=True):
        for name, value in _members(each).items():
            if name not in members:
                delattr(each, name)
            elif value is not members[name]:
                setattr(each, name, members[name])


def _members(owner: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(owner).items() if callable(value) or isinstance(value, property)}

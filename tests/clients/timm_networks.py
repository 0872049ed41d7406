"""A pytest plugin for timm's own tests: of their networks they run ours alone, with what is asked of any.

In a process of its own, with two environment variables: `SELKERN_NETWORKS`, names with commas between, and
`SELKERN_CANNOT_APPLY`, names of tests that are left out.
"""

from __future__ import annotations

import gc
import os
from typing import Any

import pytest
from shim import timm_or_skip

timm: Any = timm_or_skip()
import selkern.timm  # noqa: E402, F401 - registers our networks

NETWORKS = set(os.environ["SELKERN_NETWORKS"].split(","))
CANNOT_APPLY = set(os.environ["SELKERN_CANNOT_APPLY"].split(","))
_list_models = timm.list_models


def list_models(filter: Any = "", module: Any = "", **options: Any) -> list[str]:  # noqa: ARG001 - timm's names
    """Our networks among those that a test lists, from whichever modules of timm's it would take them."""
    return [name for name in _list_models(filter, **options) if name.partition(".")[0] in NETWORKS]


timm.list_models = list_models


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests of networks of timm's, and those that cannot apply."""
    ours: list[pytest.Item] = []
    others: list[pytest.Item] = []
    for item in items:
        name = getattr(item, "callspec", None) and item.callspec.params.get("model_name")  # type: ignore[attr-defined]
        applies = isinstance(name, str) and name.partition(".")[0] in NETWORKS
        test = getattr(item, "originalname", item.name)
        (ours if applies and test not in CANNOT_APPLY else others).append(item)
    config.hook.pytest_deselected(items=others)
    items[:] = ours


def pytest_runtest_logfinish() -> None:
    """Free a test's networks, which hold themselves in cycles, before the next one's come on top."""
    gc.collect()

"""timm for the tests, also where the torchvision beside it was built for another torch and cannot be imported.

Such a torchvision fails while it registers fake versions of operators that its missing library did not define.
Defining their signatures is enough for all that timm's networks use of it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

import pytest
from torch import library as torch_library

_kept: list[Any] = []  # a library's definitions go when it does


def fix_torchvision() -> None:
    """Make `import torchvision` work; does nothing where it is absent, imported already, or healthy.

    It raises a RuntimeError, not an ImportError, so that `pytest.importorskip` would let it through.
    """
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library: Any = torch_library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        _kept.append(library)
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")


def timm_or_skip() -> ModuleType:
    """timm, or a skip of the whole test file where it is not installed."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed: pip install -c constraints.txt timm", allow_module_level=True)
    fix_torchvision()
    return importlib.import_module("timm")

"""The package from outside: a light import, names that resolve, docstring examples that run."""

from __future__ import annotations

import doctest
import subprocess
import sys
from importlib import import_module

import pytest

import selkern


def test_importing_the_package_imports_no_torch() -> None:
    code = "import selkern, sys; print([m for m in ('torch', 'numpy', 'safetensors') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", selkern.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(selkern, name).__name__ == name
    assert name in dir(selkern)


def test_the_public_names_are_these() -> None:
    expected = ["Attention", "Branch", "MLPAttention", "SKAttention", "SKFusion", "SelectiveKernel"]
    expected += ["check", "create_model", "deselectify", "export", "fold", "from_pretrained", "insert", "list_models"]
    expected += ["param_groups", "record", "selectify", "selectify_plan", "set_kernels", "set_memory"]
    assert selkern.__all__ == expected


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'selkern' has no attribute 'SKNet'"):
        _ = selkern.SKNet


# module, number of statements its examples hold at least
EXAMPLES = [
    ("layers.fusion", 3),
    ("layers.selective_kernel", 3),
    ("layers.article", 4),
    ("models.backbone", 4),
    ("models.registry", 6),
    ("selection.record", 4),
    ("conformance.check", 4),
    ("deploy.fold", 3),
    ("layers.memory", 3),
    ("adapt.selectify", 6),
    ("adapt.insert", 3),
    ("adapt.undo", 4),
    ("adapt.groups", 4),
]


@pytest.mark.parametrize(("module", "least"), EXAMPLES)
def test_docstring_examples(module: str, least: int, capsys: pytest.CaptureFixture[str]) -> None:
    result = doctest.testmod(import_module(f"selkern.{module}"))
    assert result.failed == 0, capsys.readouterr().out
    assert result.attempted >= least

"""The Python examples of the README and the guide run as they are printed."""

from __future__ import annotations

from pathlib import Path

import pytest
from shim import timm_or_skip

timm_or_skip()

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md"])
def test_python_blocks_run(page: str) -> None:
    blocks = [block.split("```")[0] for block in (ROOT / page).read_text().split("```python\n")[1:]]
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), {})

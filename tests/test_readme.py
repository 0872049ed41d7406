"""The Python examples of the README and the guide run as they are printed."""

from __future__ import annotations

from pathlib import Path

import pytest
from shim import timm_or_skip

timm_or_skip()

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("page", ["README.md", "docs/guide.md"])
def test_python_blocks_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [block.split("```")[0] for block in (ROOT / page).read_text().split("```python\n")[1:]]
    assert blocks
    monkeypatch.chdir(tmp_path)  # where some write files
    for block in blocks:
        exec(compile(block, page, "exec"), {})

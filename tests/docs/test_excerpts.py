"""What pages quote of the code is in the code: excerpts, messages of errors, and the names of the API."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import selkern

ROOT = Path(__file__).parents[2]
DOCS, SOURCE = ROOT / "docs", ROOT / "src" / "selkern"
EXCERPT = re.compile(r'```python title="([^"]+)"\n(.*?)```', re.DOTALL)
QUOTED = [
    (page.name, *hit.groups()) for page in sorted(DOCS.glob("*.md")) for hit in EXCERPT.finditer(page.read_text())
]
HEADINGS = re.findall(r"^### `(.+)`$", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
# Beside the public names: what people import by its module.
MODULES = ("selkern.errors", "selkern.timm", "selkern.ultralytics")


def texts(path: Path) -> Iterator[str]:
    """The strings of a file, with an ellipsis for each value that is put in."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.fixture(scope="module")
def messages() -> set[str]:
    return {text for path in SOURCE.rglob("*.py") for text in texts(path)}


def test_there_are_excerpts_and_messages() -> None:
    assert len(QUOTED) >= 8
    assert len(HEADINGS) >= 30
    assert len(set(HEADINGS)) == len(HEADINGS)


@pytest.mark.parametrize(("page", "file", "text"), QUOTED)
def test_an_excerpt_is_the_code(page: str, file: str, text: str) -> None:
    assert text in (ROOT / file).read_text(encoding="utf-8"), f"docs/{page} quotes {file} as it is no more"


@pytest.mark.parametrize("heading", HEADINGS)
def test_a_message_is_one_of_ours(heading: str, messages: set[str]) -> None:
    assert any(text == heading or text.startswith(heading) for text in messages), "no message reads like this"


def test_a_message_that_is_not_ours_is_noticed(messages: set[str]) -> None:
    assert not any(text.startswith("the disk is on fire") for text in messages)


def documented() -> set[str]:
    """The objects that the API page has."""
    names = set()
    for module, options in re.findall(
        r"^::: (\S+)\n((?: +\S.*\n)*)", (DOCS / "api.md").read_text() + "\n", re.MULTILINE
    ):
        members = re.search(r"members: \[(.+)\]", options)
        names |= {f"{module}.{name}" for name in members[1].split(", ")} if members else {module}
    return names


@pytest.mark.parametrize("name", selkern.__all__)
def test_the_api_has_every_public_name(name: str) -> None:
    value = getattr(selkern, name)
    assert f"{value.__module__}.{name}" in documented()


def test_the_api_has_the_public_modules_and_nothing_that_is_not_there() -> None:
    page = (DOCS / "api.md").read_text()
    for module in MODULES:
        assert f"::: {module}\n" in page
    for name in sorted(documented()):
        if name in MODULES or name.startswith("selkern.ultralytics"):
            continue  # which need packages of their own
        module, _, attribute = name.rpartition(".")
        assert hasattr(import_module(module), attribute), name


@pytest.mark.parametrize("path", sorted((DOCS / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path: Path) -> None:
    cells = [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)


def test_the_unit_from_scratch_takes_40_lines() -> None:
    cells = json.loads((DOCS / "notebooks" / "unit.ipynb").read_text(encoding="utf-8"))["cells"]
    (source,) = ("".join(cell["source"]) for cell in cells if "class Unit" in "".join(cell["source"]))
    assert len(source.splitlines()) <= 40

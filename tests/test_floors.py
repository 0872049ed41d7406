"""The house stands: imports run downward, files stay small, and the map names every one of them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "selkern"
FILES = sorted(SOURCE.rglob("*.py"))
NAMES = [str(path.relative_to(SOURCE)) for path in FILES]

FLOORS = {
    "errors": 0,
    "io": 0,
    "extras": 0,
    "progress": 0,
    "tuning": 1,
    "ops": 1,
    "data": 1,
    "layers": 2,
    "models": 3,
    "convert": 3,
    "evaluation": 4,
    "conformance": 6,
    "deploy": 4,
    "measure": 4,
    "selection": 5,
    "runtimes": 6,
    "timm": 6,
    "adapt": 7,
    "ultralytics": 8,
    "train": 8,
    "inference": 9,
    "report": 10,
    "explore": 10,
    "study": 11,
    "cli": 12,
}
SAME_FLOOR = {
    ("io", "errors"),
    ("extras", "errors"),
    ("models", "convert"),
    ("convert", "models"),
}  # the one may use the other


def part_of(module: str) -> str:
    """`data` for selkern.data.order; empty for selkern itself."""
    return module.split(".")[1] if "." in module else ""


def imports_of(path: Path) -> set[str]:
    """Every selkern module that a file imports, at its top, inside functions, and for its types."""
    result: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            result |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            result |= {alias.name for alias in node.names}
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import"
    return {name for name in result if name.split(".")[0] == "selkern"}


def broken_rules(importer: str, imported: str) -> str:
    """Why a part may not import another; empty if it may."""
    if imported in ("", "__version__") or importer == imported or (importer, imported) in SAME_FLOOR:
        return ""
    if imported not in FLOORS:
        return ""  # a public name of the package itself
    return "" if FLOORS[importer] > FLOORS[imported] else f"{importer} imports {imported}"


def test_imports_run_downward() -> None:
    for path in FILES:
        part = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if part != "__init__":  # which opens every floor, each when it is asked for
            broken = {broken_rules(part, part_of(module)) for module in imports_of(path)} - {""}
            assert not broken, path


ALLOWED = {"ops": {"ops", "errors"}, "layers": {"layers", "ops", "errors"}}  # what people import needs nothing else


def test_operator_and_layers_import_nothing_outside_themselves_and_errors() -> None:
    for part, allowed in ALLOWED.items():
        modules = [path for path in FILES if path.relative_to(SOURCE).parts[0] == part]
        assert modules
        parts = {part_of(module) for path in modules for module in imports_of(path)}
        assert parts <= allowed, f"{part} imports {parts - allowed}"


def test_the_rule_can_fail() -> None:
    assert broken_rules("layers", "models")
    assert broken_rules("models", "selection")
    assert broken_rules("data", "layers")
    assert not broken_rules("train", "data")


def test_no_import_cycles() -> None:
    modules = {
        f"selkern.{name.removesuffix('.py').replace('/', '.')}": path for name, path in zip(NAMES, FILES, strict=True)
    }
    needs = {module: imports_of(path) & modules.keys() for module, path in modules.items()}
    while needs:
        free = {module for module, others in needs.items() if not others & needs.keys()}
        assert free, f"a cycle among {sorted(needs)}"
        needs = {module: others for module, others in needs.items() if module not in free}


def test_files_are_short_and_say_what_they_are() -> None:
    for path in FILES:
        text = path.read_text()
        assert len(text.splitlines()) <= 500, path
        assert ast.get_docstring(ast.parse(text)), path


def test_the_map_of_files_is_what_the_modules_say() -> None:
    check = [sys.executable, str(ROOT / "tools" / "file_map.py"), "--check"]
    assert subprocess.run(check, check=False).returncode == 0, "run tools/file_map.py"

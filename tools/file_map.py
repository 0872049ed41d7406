"""The table of files in docs/architecture.md, out of the first lines of the modules' docstrings.

python tools/file_map.py            write it
python tools/file_map.py --check    end with 1 where it is not as the modules say
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "selkern"
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- files: tools/file_map.py -->\n", "<!-- /files -->\n"


def rows() -> list[str]:
    """A row for every module that is not a bare package."""
    lines = ["| file | what it holds |", "|---|---|"]
    paths = sorted(SOURCE.rglob("*.py"), key=lambda path: (len(path.relative_to(SOURCE).parts) > 1, str(path)))
    for path in paths:
        name = path.relative_to(SOURCE).as_posix()
        if name.endswith("/__init__.py"):
            continue
        text = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
        lines.append(f"| `{name}` | {' '.join(text.split()).rstrip('.').replace('|', '/')} |")
    return lines


def page(text: str) -> str:
    """The page with the table as the modules say."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "\n".join(rows()) + "\n" + END + after


def main() -> int:
    """Write the table, or check it."""
    text = PAGE.read_text(encoding="utf-8")
    now = page(text)
    if "--check" in sys.argv[1:]:
        return int(now != text)
    PAGE.write_text(now, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

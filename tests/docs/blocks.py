"""Blocks of code on the pages that people read, and which of them the tests run.

A block is not run where the paragraph before it begins with "*Not run", and a line of the shell where its comment
begins with "not run:": both are seen by the reader. Excerpts of the source have a title and are compared with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECORDS = {"log.md"}  # what was run on its day
PAGES = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name not in RECORDS)]
PAGES.append(ROOT / "CONTRIBUTING.md")
FENCE = re.compile(r"^```(\w*)([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NOT_RUN = "*Not run"


@dataclass(frozen=True)
class Block:
    """One block of a page: its language ("" is the shell's), what stands behind it, and its text."""

    page: str
    line: int
    language: str
    extra: str
    text: str
    runs: bool

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    def commands(self) -> Iterator[str]:
        """The lines of the shell that are run, continued ones as one, without comments."""
        for line in self.text.replace("\\\n", " ").splitlines():
            command, _, comment = line.partition(" #")
            if command.strip() and not line.startswith("#") and not comment.strip().startswith("not run:"):
                yield command.strip()

    def is_first(self, command: str) -> bool:
        """Whether no page before has the same line, which is run once."""
        return _FIRST[plain(command)] is self


def plain(command: str) -> str:
    """A line with the newest run as any other."""
    return command.replace(" latest", " RUN")


def blocks_of(page: Path) -> list[Block]:
    """All blocks of a page, in its order."""
    text, name = page.read_text(encoding="utf-8"), str(page.relative_to(ROOT))
    result = []
    for hit in FENCE.finditer(text):
        before = text[: hit.start()].rstrip("\n").rpartition("\n\n")[2]
        number = text.count("\n", 0, hit.start()) + 1
        runs = not before.lstrip().startswith(NOT_RUN) and not hit[2]
        result.append(Block(name, number, hit[1], hit[2].strip(), hit[3], runs))
    return result


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PYTHON = [block for block in BLOCKS if block.language == "python" and block.runs]
_SHELL = [block for block in BLOCKS if block.language in ("", "sh") and block.runs]
_FIRST = {plain(command): block for block in reversed(_SHELL) for command in block.commands()}
SHELL = [block for block in _SHELL if any(block.is_first(command) for command in block.commands())]

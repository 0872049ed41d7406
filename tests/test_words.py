"""The words of the project are those of its field: a list of phrases that no file of ours uses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Phrase and what is written instead.
BANNED = {
    r"(?<!\.)\b(?:tells?|told|telling)\b": "says, shows, returns, message",
    r"\bstands? here\b": "is in",
    r"\b(?:is for \w+ to see to|sees? to it|see to)\b": "checks",
    r"\b(?:networks|weights|modules|files|models) of others\b": "third-party",
    r"\bin the box\b|\bboxed\b": "bundled",
    r"\bRemade\b|\bstand-ins?\b": "Recomputable, proxies",
    r"\b_?(?:DEEPEST|OFTENEST)\b": "MAX_DEPTH, MAX_VISITS",
    r"\bsick\b": "not finite",
    r"\bfound =|\bin found\b": "result, rows (as the name of a variable)",
}
PATTERN = re.compile("|".join(f"({pattern})" for pattern in BANNED), re.IGNORECASE)
FOLDERS = ("src", "tests", "benchmarks", "tools", "docs")
SUFFIXES = {".py", ".md", ".j2", ".yaml", ".toml", ".css"}
# Records of what was said or measured on its day, and this list.
EXEMPT = {ROOT / "docs" / "log.md", ROOT / "CHANGELOG.md", Path(__file__)}


def files() -> list[Path]:
    inside = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES]
    plans = set((ROOT / "src" / "selkern" / "study" / "plans").glob("*.yaml"))  # results name their SHA-256
    return sorted({*inside, *ROOT.glob("*.md"), ROOT / "pyproject.toml"} - EXEMPT - plans)


def banned_in(text: str) -> list[str]:
    """`line: word` for every word of the list."""
    return [f"{number}: {hit[0]}" for number, line in enumerate(text.splitlines(), 1) for hit in PATTERN.finditer(line)]


def test_no_foreign_words() -> None:
    lines = [
        f"{path.relative_to(ROOT)}:{hit}" for path in files() for hit in banned_in(path.read_text(encoding="utf-8"))
    ]
    assert not lines, "\n".join(lines)


@pytest.mark.parametrize("text", ["It tells the size", "networks of others", "weights in the box", "TOLD = 1"])
def test_the_list_is_looked_for(text: str) -> None:
    assert banned_in(text)

"""Hooks of the site (mkdocs.yml): files outside docs/ that pages link to become part of it; formulas become MathML."""

from __future__ import annotations

import html
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from latex2mathml.converter import convert
from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "build" / "notebooks"  # as tools/notebooks.py has run them
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md")  # of the repository's root, in the navigation
LINK = re.compile(r"(\]\()([^)#\s]+)")
TAG = re.compile(r"\\tag\{(\d+)\}")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def linked(source: Path) -> list[Path]:
    """The files of the repository that a page links to."""
    targets = [target for _, target in LINK.findall(source.read_text(encoding="utf-8")) if "://" not in target]
    paths = [(source.parent / target).resolve() for target in targets]
    return [path for path in paths if path.is_relative_to(ROOT) and path.is_file()]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the notebooks that were run, and what pages link to and docs/ does not hold: results of studies, plans."""
    for path in sorted(NOTEBOOKS.rglob("*")):
        if path.suffix in (".md", ".png", ".svg"):
            files.append(File.generated(config, f"notebooks/{path.relative_to(NOTEBOOKS)}", abs_src_path=str(path)))
    known = {Path(file.abs_src_path) for file in files if file.abs_src_path}
    waiting = [ROOT / name for name in PAGES]
    waiting += [path for file in files.documentation_pages() for path in linked(Path(file.abs_src_path or ""))]
    while waiting:
        path = waiting.pop()
        if path in known:
            continue
        known.add(path)
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
        if path.suffix == ".md":
            waiting += linked(path)
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: object) -> str:
    """Links as they lead within the site, where the repository's root and docs/ are one folder."""
    source = Path(page.file.abs_src_path or "")
    places = {Path(file.abs_src_path): file.src_uri for file in files if file.abs_src_path}
    notebooks = ROOT / "docs" / "notebooks"
    if source.is_relative_to(NOTEBOOKS):
        source = notebooks / source.name  # whose links it has
    else:
        places |= {notebooks / f"{made.stem}.ipynb": f"notebooks/{made.name}" for made in NOTEBOOKS.glob("*.md")}

    def moved(hit: re.Match[str]) -> str:
        place = places.get((source.parent / hit[2]).resolve())
        return hit[0] if place is None else hit[1] + os.path.relpath(place, Path(page.file.src_uri).parent)

    return LINK.sub(moved, markdown)


def on_page_content(content: str, **_: object) -> str:
    """LaTeX between dollars as MathML, which browsers draw with the reader's fonts."""

    def drawn(hit: re.Match[str]) -> str:
        tex = html.unescape(hit[2])
        if hit[1] == "span":
            return str(convert(tex, display="inline"))
        number = TAG.search(tex)
        shown = f"<span>({number[1]})</span>" if number else ""
        return f'<div class="formula" tabindex="0">{convert(TAG.sub("", tex), display="block")}{shown}</div>'

    return FORMULA.sub(drawn, content)

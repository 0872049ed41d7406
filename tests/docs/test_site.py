"""The site that `make docs` has built: it asks no other host for anything, every page fits and can be searched."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from chromium import ABSENT, CHROMIUM, files_at, launched

import selkern

SITE = Path(__file__).parents[2] / "site"
pytestmark = [
    pytest.mark.exhaustive,
    # Elsewhere a site that is there may be of another day.
    pytest.mark.skipif(find_spec("mkdocs") is None, reason="run by `make docs`, which builds the site"),
]
PAGES = sorted(str(path.relative_to(SITE)) for path in SITE.rglob("*.html"))
WIDTHS = ((390, "dark"), (1400, "light"))
# What a page loads by itself; links that are followed by a click may lead anywhere.
LOADED = re.compile(
    r'<(?:script|img|iframe|source|video|audio|embed)\b[^>]*?\bsrc="([^"]+)"|<link\b[^>]*?\bhref="([^"]+)"'
)
STYLED = re.compile(r"url\(\s*[\"']?([^\"')]+)|@import\s+[\"']([^\"']+)")


def elsewhere(text: str, pattern: re.Pattern[str]) -> list[str]:
    """Addresses on other hosts among those that a text makes a browser load."""
    addresses = [address for hit in pattern.findall(text) for address in hit if address]
    return [address for address in addresses if re.match(r"(?:\w+:)?//", address)]


def test_the_pages_are_there() -> None:
    names = {"start", "data", "selectify", "analysis", "studies", "guarantees", "paper", "relatives", "imagenet"}
    names |= {"troubleshooting", "api", "architecture", "notebooks/unit", "notebooks/pretrained", "notebooks/report"}
    assert {f"{name}.html" for name in names} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_loads_nothing_from_elsewhere(page: str) -> None:
    text = (SITE / page).read_text(encoding="utf-8")
    assert elsewhere(text, LOADED) == []
    assert elsewhere(text, STYLED) == []


def test_the_styles_load_nothing_from_elsewhere() -> None:
    for style in SITE.rglob("*.css"):
        assert elsewhere(style.read_text(encoding="utf-8"), STYLED) == [], style


@pytest.mark.parametrize("text", ['<img alt="" src="https://a.b/c.png">', '<link rel="x" href="//fonts.b/c">'])
def test_an_address_elsewhere_is_noticed(text: str) -> None:
    assert elsewhere(text, LOADED)


def test_every_public_name_has_a_place() -> None:
    text = (SITE / "api.html").read_text(encoding="utf-8")
    for name in selkern.__all__:
        assert re.search(rf'id="[\w.]+\.{name}"', text), name


def test_formulas_are_drawn_and_notebooks_have_run() -> None:
    assert (SITE / "paper.html").read_text(encoding="utf-8").count("<math") >= 8
    for name in ("unit", "pretrained", "report"):
        text = (SITE / "notebooks" / f"{name}.html").read_text(encoding="utf-8")
        assert "was run when the page was made" in text
        assert "Traceback" not in text
    assert len(list((SITE / "notebooks" / "report_files").glob("*.png"))) == 3


def test_the_explorer_is_there_and_linked() -> None:
    assert 'href="explorer/index.html"' in (SITE / "analysis.html").read_text(encoding="utf-8")
    assert (SITE / "explorer" / "index.html").is_file()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The site on a port of the loopback address."""
    with files_at(SITE) as at:
        yield at


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip(ABSENT)
    with launched(sync_api) as started:
        yield started


@pytest.mark.parametrize(("width", "scheme"), WIDTHS)
def test_every_page_fits_and_asks_no_other_host(width: int, scheme: str, browser: Any, address: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    for name in PAGES:
        page.goto(address + name, wait_until="networkidle" if name.startswith("explorer") else "load")
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        broken = "[...document.images].filter(e => e.complete && e.src && !e.naturalWidth).map(e => e.src)"
        assert page.evaluate(broken) == [], name
    assert [url for url in asked if not url.startswith((address, "data:"))] == []
    assert said == []
    page.close()


def test_the_search_finds_a_message(browser: Any, address: str) -> None:
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.goto(address + "index.html")
    page.get_by_placeholder("Search").click()
    page.wait_for_function("document.querySelector('.md-search-result__meta').textContent.includes('Type to start')")
    page.get_by_placeholder("Search").press_sequentially("Git LFS pointer")  # it listens to keys
    page.wait_for_selector(".md-search-result__item")
    assert "Troubleshooting" in page.inner_text(".md-search-result")
    page.close()

"""The report in a real browser: it asks for nothing, every figure is seen, nothing is wider than the screen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import ABSENT, CHROMIUM, launched
from tiny import make_options, train

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = [
    pytest.mark.usefixtures("tiny_networks"),
    pytest.mark.skipif(CHROMIUM is None, reason=ABSENT),
]
WIDTHS = (390, 1000, 1400)  # px: a phone, a tablet, a desk


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with launched(sync_api) as started:
        yield started


@pytest.fixture(scope="module")
def report(data: Path, tmp_path_factory: pytest.TempPathFactory, tiny_networks: None) -> Path:
    """A report with every section but those of known sizes."""
    assert tiny_networks is None
    options = make_options(data, tmp_path_factory.mktemp("runs"), model="sk_tiny", report=True)
    return train(options).report


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_stands_alone_and_fits(width: int, browser: Any, report: Path) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(report.as_uri())
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
    assert said == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = page.evaluate(
        "[...document.querySelectorAll('figure svg, .example img')].map(e => {"
        "const b = e.getBoundingClientRect(); return [b.left, b.right, b.width, b.height]})"
    )
    assert len(boxes) >= 8
    for left, right, wide, high in boxes:
        assert left >= 0
        assert right <= width
        assert wide > 60
        assert high > 40
    heads = page.evaluate("[...document.querySelectorAll('h2')].map(e => e.textContent)")
    assert heads[:4] == [
        "What the neurons chose",
        "What does choosing buy?",
        "The window that neurons really use",
        "Where it looks",
    ]
    page.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_a_page_of_one_image_fits(width: int, browser: Any, report: Path) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(report.as_uri())
    links = page.locator("a[href^='looks/']")
    assert links.count() == 3
    links.first.click()
    assert page.url == (report.parent / "looks" / "1.html").as_uri()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("figure svg").count() == 2
    page.get_by_text("to the report").click()
    assert page.url == report.as_uri()
    page.close()


def test_tables_that_are_too_wide_scroll_by_themselves(browser: Any, report: Path) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 900})
    page.goto(report.as_uri())
    inside = page.evaluate(
        "[...document.querySelectorAll('table')].every(t => t.closest('.scroll') && "
        "t.closest('.scroll').getBoundingClientRect().right <= 390)"
    )
    assert inside
    page.close()

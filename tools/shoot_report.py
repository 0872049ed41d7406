"""Pictures of a run's report for the README, taken by Chromium.

python tools/shoot_report.py RUN [--into docs/images]
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

SHOTS = {  # name: page, width and height of the screen in px, heading to scroll to
    "report_desk": ("report.html", 1000, 1150, "What the neurons chose"),
    "report_phone": ("report.html", 390, 1150, "What does choosing buy?"),
    "report_image": ("looks/2.html", 760, 1150, ""),
}


def main() -> None:
    """Open the pages and write a PNG of each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--into", type=Path, default=Path("docs/images"))
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, (file, width, height, heading) in SHOTS.items():
            page = browser.new_page(viewport={"width": width, "height": height})
            page.goto((options.run / file).resolve().as_uri())
            if heading:
                page.get_by_role("heading", name=heading).evaluate("e => e.scrollIntoView()")
            page.screenshot(path=options.into / f"{name}.png")
            print(options.into / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main()

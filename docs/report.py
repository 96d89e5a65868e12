"""Draws the README's picture of a report: `python docs/report.py RUN docs/report.png`.

RUN is what `make demo` leaves (`demo_run`). It needs playwright (extra `dev`) and Debian's chromium, or another on the PATH.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

WIDTH, MOST_BYTES = 1400, 300_000
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main(run: str, picture: str) -> None:
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser_path is None:
        sys.exit("no chromium on the PATH (apt-get install chromium)")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 1600}, color_scheme="light")
        page.set_default_timeout(600_000)  # a busy machine can be slow
        page.goto((Path(run).resolve() / "report.html").as_uri())
        page.wait_for_selector("html[data-ready=yes]", state="attached")
        page.wait_for_selector("#map[data-painted]")
        height = page.evaluate("document.getElementById('map-panel').getBoundingClientRect().bottom + 20")
        page.screenshot(path=picture, clip={"x": 0, "y": 0, "width": WIDTH, "height": height})
        browser.close()
    size = Path(picture).stat().st_size
    print(f"{picture}: {size:,} bytes")
    if size > MOST_BYTES:
        sys.exit(f"that is more than {MOST_BYTES:,}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python docs/report.py RUN PICTURE.png")
    main(sys.argv[1], sys.argv[2])

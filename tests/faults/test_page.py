"""The page of a whole run over hostile rows, in a real browser: nothing in it runs, nothing is fetched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sample_rows import alpaca_rows
from spoken import tell

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no chromium on this machine (apt-get install chromium)", allow_module_level=True)

INJECTED = (
    "<script>window.__ran = 1</script>",
    "</script><script>window.__ran = 2</script>",
    "</textarea></title></style><img src=x onerror='window.__ran = 3'>",
    '"><svg/onload=window.__ran=4>',
    "' onmouseover='window.__ran = 5' autofocus onfocus='window.__ran = 6",
    "javascript:window.__ran=7",
    "${window.__ran=8} {{ constructor.constructor('window.__ran=9')() }} <!--",
    "<iframe srcdoc='<script>parent.__ran = 10</script>'></iframe>",
    "https://example.invalid/a.png <link rel=stylesheet href=https://example.invalid/a.css>",
    "\u202e\x1b]0;x\x07 __proto__ constructor",
)


def hostile_rows() -> list[dict[str, Any]]:
    """Rows with code in every field, in values and in names."""
    rows: list[dict[str, Any]] = []
    for i, row in enumerate(alpaca_rows(30)):
        code = INJECTED[i % len(INJECTED)]
        rows.append({**row, "input": code, "category": code, code: code, "__proto__": {"x": code}, "number": i})
        rows[-1]["instruction" if i % 2 else "output"] += " " + code
    return rows


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def test_nothing_of_the_data_runs(browser: Any, run_words: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "<img src=x onerror=window.__ran=11>"
    folder.mkdir()
    data = folder / "'\"><script>window.__ran=12<script>.jsonl"
    lines = [json.dumps(row) for row in hostile_rows()]
    broken = [json.dumps({"instruction": code, "output": 3, code: code}) for code in INJECTED] + list(INJECTED)
    data.write_text("\n".join([*lines, *broken]) + "\n")
    out = folder / "RUN"
    words = [
        "run",
        "--data",
        str(data),
        *run_words[3:],
        "--clusters",
        "auto",
        "--stratify",
        "category",
        "--out",
        str(out),
    ]
    told = tell(*words)
    assert told.is_clean(0)
    assert not set(told.text) & set("\x1b\x07\u202e")
    seen: list[str] = []
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    context.set_default_timeout(120_000)
    page = context.new_page()
    page.on("request", lambda request: seen.append(request.url))
    page.on("dialog", lambda dialog: (seen.append(dialog.message), dialog.dismiss()))
    page.on("pageerror", lambda error: seen.append(str(error)))
    page.goto((out / "report.html").as_uri())
    page.wait_for_selector("html[data-ready=yes]", state="attached")
    page.locator("#filter-more").click()
    for select in ("#map-colour", "#map-view"):
        for value in page.locator(f"{select} option").evaluate_all("options => options.map(o => o.value)"):
            page.locator(select).select_option(value)
    for text in ("<script>", "onerror", "javascript:", "__proto__", "iframe"):
        page.locator("#search").fill(text)
        page.wait_for_selector("main:not([aria-busy=true])")
        page.locator("#samples button.sample").first.click()
        assert text in page.locator("#detail").inner_text()
        page.mouse.move(400, 400)
        page.keyboard.press("Escape")
    assert page.evaluate("window.__ran ?? null") is None
    assert page.evaluate("Object.prototype.x ?? null") is None
    assert page.locator("iframe, object, embed, main img, a[href^=javascript]").count() == 0
    assert seen == [(out / "report.html").as_uri()]
    context.close()
    before = (out / "pruned.jsonl").read_bytes()
    assert tell(*words).is_clean(0)
    assert (out / "pruned.jsonl").read_bytes() == before

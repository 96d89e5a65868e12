"""The report in headless Chromium: it is used as people use it. Skipped where there is no browser to drive."""

from __future__ import annotations

import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from report_runs import HOSTILE, MIXED, hostile_samples, make_run, varied_samples, with_picture

from instruct_prune.report.html import write_report
from instruct_prune.rows import open_data
from instruct_prune.rows.row import Reject, Row
from instruct_prune.run.folder import RunFolder
from instruct_prune.select.projection import principal_components

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("no chromium on this machine (apt-get install chromium)", allow_module_level=True)

DATA = Path(__file__).parents[2] / "data_samples" / "alpaca.jsonl"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass
class Opened:
    """A page and all that went wrong on it."""

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def count(self) -> str:
        self.page.wait_for_selector("main:not([aria-busy=true])")
        return str(self.page.locator("#filter-count").inner_text())

    def rows(self) -> int:
        """Rows that pass the filters, as the bar says."""
        return int(self.count().split()[0].replace(",", ""))

    def sides(self) -> list[int]:
        """Rows in the table of kept and in that of dropped samples."""
        return [int(text.replace(",", "")) for text in self.page.locator("#samples h3 small").all_inner_texts()]


Open = Callable[..., Opened]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def open_page(browser: Any, path: Path, script: str = "", **options: Any) -> Opened:
    context = browser.new_context(viewport={"width": 1400, "height": 900}, **options)
    context.set_default_timeout(120_000)  # two busy cores can be slow
    if script:
        context.add_init_script(script)
    found = Opened(context.new_page())
    found.page.on("console", lambda m: found.errors.append(m.text) if m.type in ("error", "warning") else None)
    found.page.on("pageerror", lambda e: found.errors.append(str(e)))
    found.page.on("request", lambda r: found.requests.append(r.url))
    found.page.on("dialog", lambda d: (found.errors.append(d.message), d.dismiss()))
    found.page.goto(path.as_uri())
    found.page.wait_for_selector("html[data-ready=yes]", state="attached")
    found.page.wait_for_selector("#map[data-painted]")
    return found


@pytest.fixture
def opened(browser: Any) -> Iterator[Open]:
    """Opens pages that close with the test."""
    pages: list[Opened] = []

    def opener(path: Path, **options: Any) -> Opened:
        pages.append(open_page(browser, path, **options))
        return pages[-1]

    yield opener
    for opened in pages:
        opened.page.context.close()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run over the project's own sample data, with its report."""
    rows = [row for row in open_data([str(DATA)]) if isinstance(row, Row)]
    last = len(rows)
    rejects = [Reject(last + i, "alpaca.jsonl", last + i, "the field output is empty", "output") for i in range(3)]
    folder = make_run(
        tmp_path_factory.mktemp("demo") / "run", [*rows, *rejects], subnets=MIXED, duplicates=[(3, 2), (5, 2), (9, 8)]
    )
    write_report(folder, rows)
    return folder


@pytest.fixture(scope="module")
def demo_page(demo: RunFolder, browser: Any) -> Opened:
    return open_page(browser, demo / "report.html")


@pytest.fixture
def one(demo_page: Opened) -> Opened:
    """The demo's report, as it is when just opened."""
    page = demo_page.page
    page.keyboard.press("Escape")
    page.locator("[data-drag=lasso]").click()
    page.locator("#zoom-fit").click()
    if page.locator("#reset").is_enabled():
        page.locator("#reset").click()
    if page.locator("#filter-fields").is_visible():
        page.locator("#filter-more").click()
    demo_page.count()
    demo_page.errors.clear()
    return demo_page


def painted(page: Any) -> int:
    """Pixels of the map that are not empty."""
    return int(
        page.evaluate(
            """() => {
                const map = document.getElementById('map-canvas'), copy = document.createElement('canvas');
                [copy.width, copy.height] = [map.width, map.height];
                const context = copy.getContext('2d', { willReadFrequently: true });
                context.drawImage(map, 0, 0);
                const { data } = context.getImageData(0, 0, copy.width, copy.height);
                return data.filter((value, i) => i % 4 === 3 && value > 0).length;
            }"""
        )
    )


def box_of(page: Any) -> dict[str, float]:
    page.locator("#map").scroll_into_view_if_needed()
    box: dict[str, float] = page.locator("#map").bounding_box()
    return box


def drag(page: Any, points: list[tuple[float, float]]) -> None:
    """Filter by dragging over the map, along points given as shares of its width and height."""
    box = box_of(page)
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for x, y in places[1:]:
        page.mouse.move(x, y, steps=6)
    page.mouse.up()
    page.locator(".chip", has_text="region of the map").wait_for()  # plotly answers a tenth of a second later


def shares_of_map(folder: RunFolder) -> np.ndarray:
    """float [n, 2]: where each row lies on the map, as shares of its width and (from the top) height."""
    vectors = np.load(folder / "embeddings.npy")
    xy = principal_components(vectors, np.arange(len(vectors))).xy
    low, high = xy.min(axis=0), xy.max(axis=0)
    room = 0.03 * (high - low)
    shares = (xy - low + room) / (high - low + 2 * room)
    shares[:, 1] = 1 - shares[:, 1]
    return shares


def test_all_views_are_drawn_and_nothing_is_fetched(demo: RunFolder, one: Opened) -> None:
    page = one.page
    assert painted(page) > 1000
    for chart in ("#score-chart", "#curves-chart", "#shifts .chart"):
        assert page.locator(f"{chart} .main-svg").first.is_visible()
    assert page.locator("#score-chart .bars .point").count() > 20
    assert page.locator("#curves-chart .scatterlayer .trace").count() >= 9  # three bands and their medians
    assert page.locator("#clusters tbody tr").count() == 8
    assert page.locator("#samples tbody tr").count() == 30
    assert page.locator("#rejected tbody tr").count() == 3
    assert page.locator("#duplicates .group").count() == 2
    assert one.errors == []
    assert one.requests == [(demo / "report.html").as_uri()]


def test_numbers_are_those_of_the_selection(demo: RunFolder, one: Opened) -> None:
    page = one.page
    selection = pandas.read_parquet(demo / "selection.parquet")
    clusters = pandas.read_parquet(demo / "clusters.parquet")
    number = lambda place: int(page.locator(place).inner_text().replace(",", ""))  # noqa: E731
    assert number("#glance-kept") == selection.selected.sum()
    assert number("#glance-scored") == one.rows() == len(selection)
    assert one.sides() == [selection.selected.sum(), (~selection.selected).sum()]
    by_cluster = selection.merge(clusters).groupby("cluster")
    for line in page.locator("#clusters tbody tr").all():
        cells = line.locator("th, td").all_inner_texts()
        group = by_cluster.get_group(int(line.locator("button.name").get_attribute("data-group")))
        assert [int(cells[1]), int(cells[2])] == [len(group), group.selected.sum()]
        assert float(cells[4]) == pytest.approx(group.score.mean(), abs=6e-4)
    hardest = selection[selection.selected].sort_values("score", ascending=False).head(5)
    first = page.locator("#samples table").first.locator("tbody tr")
    for i, (row_id, score) in enumerate(zip(hardest.row_id, hardest.score, strict=True)):
        cells = first.nth(i).locator("td").all_inner_texts()
        assert (int(cells[0]), float(cells[1])) == (row_id, pytest.approx(score, abs=6e-4))


def test_lasso_filters_all_views_and_reset_restores(demo: RunFolder, one: Opened) -> None:
    page = one.page
    everything = one.rows()
    drag(page, [(0.2, 0.1), (0.55, 0.1), (0.55, 0.8), (0.2, 0.8), (0.2, 0.12)])
    x, y = shares_of_map(demo).T
    inside = (x > 0.2) & (x < 0.55) & (y > 0.1) & (y < 0.8)
    assert 0 < one.rows() < everything
    assert abs(one.rows() - inside.sum()) <= 2  # the pointer stops at whole pixels
    assert sum(one.sides()) == one.rows()
    assert page.locator("#clusters th").nth(2).inner_text() == "In filter"
    assert sum(int(t) for t in page.locator("#clusters tbody td:nth-child(3)").all_inner_texts()) == one.rows()
    page.wait_for_selector(f"#map[data-painted='{one.rows()}']")
    page.locator("#reset").click()
    assert one.rows() == everything
    assert sum(one.sides()) == everything
    assert page.locator("#reset").is_disabled()
    assert page.locator("#map-plot .select-outline").count() == 0
    assert one.errors == []


def test_box_and_zoom(demo: RunFolder, one: Opened) -> None:
    page = one.page
    page.locator("[data-drag=select]").click()
    drag(page, [(0.1, 0.3), (0.5, 0.9)])
    x, y = shares_of_map(demo).T
    assert abs(one.rows() - ((x > 0.1) & (x < 0.5) & (y > 0.3) & (y < 0.9)).sum()) <= 2
    page.locator(".chip").click()
    assert one.rows() == len(x)
    page.locator("#zoom-in").click()
    page.locator("#map").press("ArrowRight")
    drag(page, [(0.1, 0.1), (0.9, 0.9)])
    # what is seen is 70% of the padded map, moved by a tenth of it
    seen = (x > 0.22 + 0.07) & (x < 0.92 - 0.07) & (y > 0.15 + 0.07) & (y < 0.85 - 0.07)
    assert abs(one.rows() - seen.sum()) <= 3


def test_search_finds(demo: RunFolder, one: Opened) -> None:
    rows = [row for row in open_data([str(DATA)]) if isinstance(row, Row)]
    expected = [row.row_id for row in rows if "prime" in " ".join(m.text for m in row.messages).lower()]
    assert expected
    one.page.keyboard.press("/")
    one.page.keyboard.type("Prime")
    assert one.rows() == len(expected)
    shown = {int(text) for text in one.page.locator("#samples tbody td:first-child").all_inner_texts()}
    assert shown == set(expected) or (len(expected) > 15 and shown < set(expected))
    one.page.locator("#search").fill("no row has this text")
    assert one.rows() == 0
    one.page.locator("#search").fill("")
    assert one.rows() == len(rows)


def test_cluster_click_filters_and_filters_add_up(demo: RunFolder, one: Opened) -> None:
    page = one.page
    joined = pandas.read_parquet(demo / "selection.parquet").merge(pandas.read_parquet(demo / "clusters.parquet"))
    button = page.locator("#clusters button.name").first
    members = joined[joined.cluster == int(button.get_attribute("data-group"))]
    button.click()
    assert one.rows() == len(members)
    assert one.sides() == [members.selected.sum(), (~members.selected).sum()]
    page.locator("#filter-more").click()
    page.locator("#filter-fields select").first.select_option(label="kept")
    assert one.rows() == members.selected.sum()
    page.get_by_label("score from").fill("2.5")
    page.get_by_label("score from").press("Enter")
    page.keyboard.press("Tab")
    assert one.rows() == (members.selected & (members.score >= 2.5)).sum()
    assert page.locator(".chip").count() == 3
    page.locator("#clusters button.name").first.click()  # again: the filter goes
    left = joined[joined.selected & (joined.score >= 2.5)]
    assert one.rows() == len(left)


def test_score_range_by_dragging(demo: RunFolder, one: Opened) -> None:
    page = one.page
    plot = page.locator("#score-chart .nsewdrag").bounding_box()
    middle = plot["y"] + plot["height"] / 2
    page.mouse.move(plot["x"] + 0.3 * plot["width"], middle)
    page.mouse.down()
    page.mouse.move(plot["x"] + 0.7 * plot["width"], middle, steps=8)
    page.mouse.up()
    one.count()
    low, high = (
        float(v) for v in page.locator(".chip").inner_text().removeprefix("score ").removesuffix(" ×").split(" to ")
    )
    score = pandas.read_parquet(demo / "selection.parquet").score
    assert abs(one.rows() - ((score >= low) & (score <= high)).sum()) <= 1  # the chip shows three decimals
    assert 0 < one.rows() < len(score)


def test_a_row_is_read_whole_by_keyboard(demo: RunFolder, one: Opened) -> None:
    page = one.page
    button = page.locator("#samples button.sample").first
    button.focus()
    page.keyboard.press("Enter")
    detail = page.locator("#detail")
    assert detail.is_visible()
    row = int(page.locator("#detail-title").inner_text().split()[1])
    rows = {r.row_id: r for r in open_data([str(DATA)]) if isinstance(r, Row)}
    assert detail.locator("pre").last.inner_text().strip() == rows[row].messages[-1].text.strip()
    assert detail.locator(".plainlist").last.locator("li").count() == 4  # its nearest neighbours
    assert page.locator("#curves-chart .legendtext", has_text=f"row {row}").count() == 1
    page.keyboard.press("Escape")
    assert not detail.is_visible()
    assert button.evaluate("b => b === document.activeElement")
    assert one.errors == []


def test_keyboard_stays_where_it_was(one: Opened) -> None:
    page = one.page
    focused = lambda: page.evaluate("document.activeElement.dataset.key ?? document.activeElement.id")  # noqa: E731
    page.locator("#clusters button.name").nth(2).focus()
    before = focused()
    page.keyboard.press("Enter")
    one.count()
    assert page.locator("#clusters button.name[aria-pressed=true]").count() == 1
    assert focused() == before  # though the table was drawn anew
    page.keyboard.press("Enter")
    one.count()
    assert focused() == before
    page.locator("#samples button.sort", has_text="Row").first.focus()
    page.keyboard.press("Enter")
    assert focused() == "sort row"
    page.locator("#samples button.sort", has_text="Score").first.click()
    page.locator("#clusters button.name").first.click()
    one.count()  # the button can be pressed once the filter shows
    page.locator("#reset").focus()
    page.keyboard.press("Enter")
    one.count()
    assert focused() == "filter-more"


def test_every_button_and_field_is_reached_by_tab(one: Opened) -> None:
    page = one.page
    page.locator("#filter-more").click()
    controls = page.locator(":is(button, select, input, a[href], summary):visible:not(:disabled)")
    assert controls.count() > 60
    assert controls.evaluate_all("all => all.filter(e => e.tabIndex < 0).length") == 0
    named = controls.evaluate_all(
        "all => all.filter(e => !(e.innerText || e.ariaLabel || e.labels?.length || e.title).toString().trim()).length"
    )
    assert named == 0  # none without a name
    assert page.locator("#map").evaluate("map => map.tabIndex") == 0


def test_rows_near_the_boundary(demo: RunFolder, one: Opened) -> None:
    page = one.page
    page.locator("#sides").select_option(label="near the boundary")
    near = sum(one.sides())
    page.locator("#filter-more").click()
    page.get_by_label("near the boundary of the pools").check()
    assert one.rows() == near
    assert 0 < near < len(shares_of_map(demo)) / 4
    page.locator("#sides").select_option(index=0)
    assert sum(one.sides()) == near


def test_hover_and_click_on_the_map(demo: RunFolder, one: Opened) -> None:
    page = one.page
    x, y = shares_of_map(demo)[7].tolist()
    box = box_of(page)
    place = (box["x"] + x * box["width"], box["y"] + y * box["height"])
    page.mouse.move(*place)
    page.locator("#map-tip").wait_for(state="visible")
    assert "score" in page.locator("#map-tip b").inner_text()
    page.mouse.click(*place)
    assert page.locator("#detail").is_visible()
    assert one.rows() == len(shares_of_map(demo))  # a click is not a lasso


def test_every_colour_and_view_can_be_chosen(demo: RunFolder, one: Opened) -> None:
    page = one.page
    for select in ("#map-colour", "#map-view"):
        for value in page.locator(f"{select} option").evaluate_all("options => options.map(o => o.value)"):
            page.locator(select).select_option(value)
            page.wait_for_timeout(60)
            assert painted(page) > 1000
            assert page.locator("#map-legend").inner_text()
    assert one.errors == []


def test_theme_and_print(demo: RunFolder, opened: Open) -> None:
    one = opened(demo / "report.html", color_scheme="dark")
    page = one.page
    background = lambda: page.evaluate("getComputedStyle(document.body).backgroundColor")  # noqa: E731
    dark = background()
    page.locator("#theme").click()
    assert background() != dark
    page.emulate_media(media="print")
    assert not page.locator("#filterbar").is_visible()
    assert page.locator("#samples").is_visible()
    assert one.errors == []


def test_without_webgl(demo: RunFolder, opened: Open) -> None:
    script = """const real = HTMLCanvasElement.prototype.getContext;
    HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
        return /webgl/.test(kind) ? null : real.call(this, kind, ...rest); };"""
    one = opened(demo / "report.html", script=script)
    assert painted(one.page) > 1000
    assert one.errors == []


def test_hostile_data_stay_text(tmp_path: Path, opened: Open) -> None:
    rows = hostile_samples()
    rejects = [Reject(len(rows) + i, text[:500], i, text[:500], text[:50]) for i, text in enumerate(HOSTILE)]
    rejects = [r for r in rejects if "\ud800" not in r.reason]
    folder = make_run(tmp_path / "run", [*rows, *rejects], warnings=list(HOSTILE[:5]), duplicates=[(42, 40), (43, 40)])
    write_report(folder, rows)
    one = opened(folder / "report.html")
    page = one.page
    page.locator("#filter-more").click()
    for view in ("#map-colour", "#map-view"):
        for value in page.locator(f"{view} option").evaluate_all("options => options.map(o => o.value)"):
            page.locator(view).select_option(value)
    for text in ("<script>", "onerror", "javascript:", "__hacked=7", "\\u202e", "\\x00", "xxxxxxxx", "example.invalid"):
        page.locator("#search").fill(text)
        assert one.rows() >= 2
        page.locator("#samples button.sample").first.click()
        assert text in page.locator("#detail pre").first.inner_text()
        page.keyboard.press("Escape")
    page.locator("#reset").click()
    one.count()
    assert page.evaluate("window.__hacked") is None
    assert (
        page.locator("main img, main a[href^=javascript], main iframe, main object, body > script:not([type])").count()
        == 1
    )
    for width in (390, 800, 1400):
        page.set_viewport_size({"width": width, "height": 900})
        wide = page.evaluate("document.scrollingElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, width  # a line of a megabyte does not widen the page
    assert one.requests == [(folder / "report.html").as_uri()]
    assert one.errors == []


def test_two_runs_on_one_page(tmp_path: Path, opened: Open) -> None:
    rows = varied_samples(200)
    first, second = make_run(tmp_path / "one", rows), make_run(tmp_path / "two", rows, method="hardest", keep=0.2)
    write_report(first, rows, others=[second])
    one = opened(first / "report.html")
    page = one.page
    a = set(pandas.read_parquet(first / "selection.parquet").query("selected").row_id)
    b = set(pandas.read_parquet(second / "selection.parquet").query("selected").row_id)
    cells = page.locator("#compare tbody tr").nth(1).locator("td").all_inner_texts()
    assert [int(cell) for cell in cells[:4]] == [len(b), len(a & b), len(b - a), len(a - b)]
    page.locator("#sides").select_option(index=1)
    assert one.sides() == [len(a - b), len(b - a)]
    page.locator("#map-colour").select_option(label="agreement with two")
    page.locator("#map-legend button", has_text="both keep it").click()
    assert one.rows() == len(a & b)
    assert one.errors == []


def test_policy_stops_foreign_script_and_network(demo: RunFolder, opened: Open) -> None:
    one = opened(demo / "report.html")
    done = one.page.evaluate(
        """async () => {
            const script = document.createElement('script');
            script.textContent = 'window.__ran = 1';
            document.body.append(script);
            const holder = document.createElement('div');
            holder.innerHTML = '<img src=x onerror="window.__ran = 2"><a id=foreign href="javascript:window.__ran = 3">x</a>';
            document.body.append(holder);
            document.getElementById('foreign').click();
            // Later: while the driver evaluates, it lifts the policy's ban on eval.
            setTimeout(() => { try { (0, eval)('window.__ran = 4'); } catch {} }, 100);
            const fetched = await fetch('https://example.invalid/').then(() => 'fetched', error => error.name);
            await new Promise(resolve => setTimeout(resolve, 300));
            return [window.__ran ?? null, fetched];
        }"""
    )
    assert done == [None, "TypeError"]
    assert not any("example.invalid" in address for address in one.requests)
    assert any("Content Security Policy" in text for text in one.errors)


@pytest.mark.parametrize(
    "options", [{"keep": None}, {"keep": None, "clusters": None}, {"clusters": None, "method": "random"}]
)
def test_runs_without_all_stages(tmp_path: Path, opened: Open, options: dict[str, Any]) -> None:
    rows = varied_samples(80)
    folder = make_run(tmp_path / "run", rows, **options)
    write_report(folder, rows)
    one = opened(folder / "report.html")
    assert painted(one.page) > 500
    assert one.rows() == 80
    assert len(one.sides()) == (1 if options.get("keep", 1) is None else 2)
    assert not one.page.locator("#clusters-panel").is_visible()  # clusters are made with a selection
    assert one.errors == []


def test_pictures_are_shown(tmp_path: Path, opened: Open) -> None:
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (
            (b"IHDR", struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(b"\0\xff\0\0\0\xff\0" * 2)),
            (b"IEND", b""),
        )
    )
    rows = [with_picture(row, png) if row.row_id % 2 == 0 else row for row in varied_samples(40)]
    folder = make_run(tmp_path / "run", rows)
    write_report(folder, rows)
    one = opened(folder / "report.html")
    pictures = one.page.locator("#samples img")
    assert pictures.count() == sum(
        int(text) % 2 == 0 for text in one.page.locator("#samples tbody td:first-child").all_inner_texts()
    )
    assert pictures.first.evaluate("async i => { await i.decode(); return i.naturalWidth; }") == 2
    assert one.errors == []


def test_rows_whose_text_is_not_in_the_page(tmp_path: Path, opened: Open) -> None:
    rows = varied_samples(300)
    folder = make_run(tmp_path / "run", rows)
    write_report(folder, rows, samples=40)
    one = opened(folder / "report.html")
    assert one.rows() == 300
    assert sum(one.sides()) == 40
    assert "40 of the 300 rows" in one.page.locator("#samples-note").inner_text()

"""How long the report takes to write, how large it is, and how soon a browser shows it: 50,000 and 500,000 rows.

    python recipes/benchmarks/report.py                      # needs a few GB of room for temporary files
    python recipes/benchmarks/report.py --run RUN            # of a run that is there already

The runs are made up, without a model: texts of about 110 words, five subnets, embeddings of 384 numbers in 100 clusters,
three further columns, 5% near-duplicates. The browser (playwright, with Debian's chromium or another on the PATH) is
headless and has no GPU; without one, only the file is measured. First paint is the browser's own measure; "drawn" is when
map, charts and tables all stand; "filter" is from the click on a cluster until all views show it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from instruct_prune import Budget, DataConfig, Pool, ScoreTable, Selection, SubnetSpec, select_rows
from instruct_prune.report.html import write_report
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.records import EmbedFacts, EncodeFacts, RowsFacts, ScoreFacts, SelectFacts, TokenCounts
from instruct_prune.run.rows import read_rows, rows_of
from instruct_prune.score.health import Health, SubnetHealth
from instruct_prune.select.data import Clusters
from instruct_prune.storage import row_ids_hash

WIDTH, GROUPS, COPIES, KEEP = 384, 100, 0.05, 0.3
SUBNETS = (SubnetSpec("dense"), *(SubnetSpec("magnitude", density) for density in (0.8, 0.64, 0.512, 0.4096)))
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000, 500_000])
    parser.add_argument("--run", type=Path, help="open the report of this run instead of making any")
    parser.add_argument("--keep-files", type=Path, help="folder in which the made-up runs stay")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, numpy {np.__version__}, Python {sys.version.split()[0]}")
    print(f"{'rows':>10}{'write s':>9}{'MB':>7}{'first paint s':>15}{'drawn s':>9}{'filter s':>10}")
    if options.run:
        page = options.run / "report.html"
        print_line(len(RunFolder(options.run).read_selection()), float("nan"), page)
        return
    for n in options.rows:
        with tempfile.TemporaryDirectory() as temporary:
            folder = make_run((options.keep_files or Path(temporary)) / f"run-{n}", n)
            began = time.perf_counter()
            page = write_report(folder, rows_of(folder))
            print_line(n, time.perf_counter() - began, page)


def print_line(n: int, seconds: float, page: Path) -> None:
    shown = opened(page)
    times = (
        "".join(f"{t:>{width}.2f}" for t, width in zip(shown, (15, 9, 10), strict=True)) if shown else "  no browser"
    )
    print(f"{n:>10,}{seconds:>9.2f}{page.stat().st_size / 1e6:>7.2f}{times}", flush=True)


def opened(page: Path) -> tuple[float, float, float] | None:
    """Seconds until the first paint, until all is drawn, and from a click on a cluster until all views are filtered."""
    browser_path = next(filter(None, map(shutil.which, BROWSERS)), None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if browser_path is None:
        return None
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-gpu"])
        tab = browser.new_page(viewport={"width": 1400, "height": 900})
        tab.set_default_timeout(180_000)
        tab.goto(page.resolve().as_uri())
        tab.wait_for_selector("html[data-ready=yes]", state="attached")
        tab.wait_for_selector("#map[data-painted]")
        drawn = float(tab.evaluate("performance.now()"))
        first = float(tab.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
        filtered = tab.evaluate(
            """async () => {
                const began = performance.now();
                document.querySelector('#clusters button.name').click();
                await new Promise(resolve => {
                    const look = () => document.querySelector('main').ariaBusy === 'true' ? requestAnimationFrame(look) : resolve();
                    requestAnimationFrame(look);
                });
                return performance.now() - began;
            }"""
        )
        browser.close()
    return first / 1000, drawn / 1000, float(filtered) / 1000


def write_rows(path: Path, n: int) -> None:
    rng = np.random.default_rng(0)
    words = np.array(["".join(rng.choice(list("aeiounrstlmdk"), rng.integers(2, 10))) for _ in range(5000)])
    with open(path, "w", encoding="utf-8") as file:
        for i in range(n):
            picked = words[(rng.pareto(1, 12 + int(rng.gamma(2, 50))) * 20).astype(int) % len(words)].tolist()
            row = {"instruction": " ".join(picked[:12]), "output": " ".join(["so", *picked[12:]])}
            columns = {"category": f"topic {i % 9}", "source": f"forum {i % 4}", "quality": i * 7919 % 1000 / 1000}
            file.write(json.dumps(row | columns) + "\n")


def make_run(path: Path, n: int) -> RunFolder:
    """The run folder that scoring, embedding and selecting leave behind."""
    rng = np.random.default_rng(1)
    folder = RunFolder(path)
    folder.create()
    write_rows(folder / "rows.jsonl", n)
    read_rows(folder, DataConfig((str(folder / "rows.jsonl"),)))
    folder.begin(EncodeFacts, {}, (RowsFacts,))
    folder.finish(EncodeFacts("no model", None, {}, encoded=n, scorable=n, notes=(), seconds=1.0))
    table = make_scores(n, rng)
    folder.begin(ScoreFacts, {}, (RowsFacts, EncodeFacts))
    folder.write_scores(table)
    folder.finish(score_facts(table))
    clusters = make_embeddings(folder, n, rng)
    folder.begin(EmbedFacts, {}, (EncodeFacts,))
    folder.finish(EmbedFacts("none", WIDTH, seconds=1.0))
    folder.write_clusters(clusters)
    selection = make_selection(table, clusters, rng)
    folder.begin(SelectFacts, {"keep": KEEP, "keep_tokens": None, "seed": 0, "score": None}, (ScoreFacts, EmbedFacts))
    folder.write_selection(selection)
    folder.finish(select_facts(table, selection))
    return folder


def score_facts(table: ScoreTable) -> ScoreFacts:
    n = len(table)
    rho = np.atleast_2d(np.corrcoef(table.losses.T))
    subnets = tuple(
        SubnetHealth(s.name, float(table.losses[:, j].mean()), float(rho[0, j]), 0.9, collapsed=False, identical_to=())
        for j, s in enumerate(SUBNETS)
    )
    health = Health(subnets, tuple(tuple(row) for row in rho.tolist()), unigram_loss=6.5)
    tokens = int(table.n_prompt.sum() + table.n_response.sum()) * len(SUBNETS)
    return ScoreFacts(
        model="no model", dtype="float32", score="dlc", ladder=SUBNETS, collapsed=(), health=health, read=n, scored=n,
        rejected=0, tokens=tokens, passes=tuple(s.name for s in SUBNETS), unit="tokens", processes=1, device="none",
        switching_seconds=0.1, scoring_seconds=9.0, seconds=10.0, left_whole={},
    )  # fmt: skip


def make_selection(table: ScoreTable, clusters: Clusters, rng: np.random.Generator) -> Selection:
    """FlexRand over the clusters, with some rows near-duplicates of others."""
    n = len(table)
    names = tuple(f"cluster {i}" for i in range(GROUPS))
    pool = Pool(table.row_id, table.score, table.n_response, clusters.labels, names)
    twins = np.full(n, -1, dtype=np.int64)
    copies = np.sort(rng.choice(np.arange(1, n), round(COPIES * n), replace=False))
    leaders = rng.integers(0, n, len(copies))
    free = ~np.isin(leaders, copies)  # who stands for another has none standing for it
    twins[copies[free]] = leaders[free]
    return select_rows(pool, Budget(rows=round(KEEP * n)), duplicate_of=twins)


def select_facts(table: ScoreTable, selection: Selection) -> SelectFacts:
    kept = selection.selected
    response, whole = table.n_response.astype(np.int64), table.n_response.astype(np.int64) + table.n_prompt
    assert selection.duplicate_of is not None
    return SelectFacts(
        scored=len(table), kept=int(kept.sum()), dropped=int((~kept).sum()), score=table.score_name,
        tokens=TokenCounts(int(response.sum()), int(response[kept].sum()), int(whole.sum()), int(whole[kept].sum())),
        duplicates=int((selection.duplicate_of >= 0).sum()), contaminated=0, unstable=None,
        selected_hash=row_ids_hash(selection.kept), params=dict(selection.params), clustered=True, strata=GROUPS,
        seconds=0.1,
    )  # fmt: skip


def make_scores(n: int, rng: np.random.Generator) -> ScoreTable:
    base = rng.gamma(4, 0.5, n)[:, None]
    density = np.array([1.0, *(spec.value for spec in SUBNETS[1:])])
    losses = (base * (2 - density) + rng.normal(0, 0.1, (n, len(SUBNETS)))).astype(np.float32)
    return ScoreTable(
        row_id=np.arange(n),
        content_hash=np.full(n, "0"),
        status=np.full(n, "ok"),
        n_prompt=rng.integers(20, 120, n, dtype=np.int32),
        n_response=(rng.gamma(2, 70, n) + 1).astype(np.int32),
        n_cut=np.zeros(n, dtype=np.int32),
        losses=losses,
        subnets=SUBNETS,
        score=losses.mean(axis=1),
        score_name="dlc",
        backbone="none",
    )


def make_embeddings(folder: RunFolder, n: int, rng: np.random.Generator) -> Clusters:
    """Written block by block, so that half a million rows need no memory."""
    centers = rng.standard_normal((GROUPS, WIDTH), dtype=np.float32)
    labels, off = rng.integers(0, GROUPS, n).astype(np.int32), np.empty(n, dtype=np.float32)
    vectors = np.lib.format.open_memmap(folder / "embeddings.npy", mode="w+", dtype=np.float32, shape=(n, WIDTH))
    for start in range(0, n, 50_000):
        part = slice(start, min(start + 50_000, n))
        noise = rng.standard_normal((part.stop - start, WIDTH), dtype=np.float32)
        block = centers[labels[part]] + noise
        vectors[part] = block / np.linalg.norm(block, axis=1, keepdims=True)
        off[part] = np.linalg.norm(noise, axis=1)
    vectors.flush()
    np.save(folder / "embeddings_rows.npy", np.arange(n))
    return Clusters(np.arange(n), labels, off, centers)


if __name__ == "__main__":
    main()

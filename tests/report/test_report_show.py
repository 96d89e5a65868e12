"""The run in the terminal."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pandas
from report_runs import HOSTILE, make_run, sample, varied_samples
from rich.console import Console

from instruct_prune.report.show import show
from instruct_prune.rows.row import Row
from instruct_prune.run.folder import RunFolder


def shown(folder: RunFolder, rows: list[Row]) -> str:
    console = Console(file=io.StringIO(), width=140, force_terminal=False)
    show(folder, rows, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


def test_summary_clusters_and_examples(tmp_path: Path) -> None:
    rows = varied_samples(200)
    folder = make_run(tmp_path / "run", rows, duplicates=[(4, 3)])
    text = shown(folder, rows)
    assert "200 read = 200 scored + 0 rejected" in text
    assert "200 scored = 60 kept + 140 dropped" in text
    assert "1 rows are near-duplicates" in text
    joined = pandas.read_parquet(folder / "selection.parquet").merge(pandas.read_parquet(folder / "clusters.parquet"))
    for cluster, group in joined.groupby("cluster"):
        line = rf"{len(group)} +{group.selected.sum()} +\d+% +{group.score.mean():.3f} +cluster {cluster}\b"
        assert re.search(line, text)
    selection = joined.sort_values("score", kind="stable")
    for side in (selection[selection.selected], selection[~selection.selected]):
        for row in (side.iloc[0], side.iloc[-1]):
            assert re.search(rf"{row.row_id} +{row.score:.3f} +{row.reason} +Question {row.row_id} ", text)


def test_without_a_selection(tmp_path: Path) -> None:
    rows = varied_samples(30)
    text = shown(make_run(tmp_path / "run", rows, keep=None, clusters=None), rows)
    assert "30 scored" in text
    assert "scored, from the easiest to the hardest" in text
    assert "kept" not in text


def test_hostile_text_is_shown_not_obeyed(tmp_path: Path) -> None:
    rows = [sample(i, f"[/red]{text[:2000]}", f"[bold]{text[:2000]}") for i, text in enumerate(HOSTILE)]
    folder = make_run(tmp_path / "run", rows, keep=0.5, clusters=None, warnings=["[bold]\x1b[31m"])
    text = shown(folder, rows)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "[bold]\\x1b[31m" in text
    assert text.count("[/red]") == 8  # four rows of either side

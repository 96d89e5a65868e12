"""What ``report``, ``show``, ``compare`` and the summary say of a selection towards a target."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sample_rows import alpaca_rows, write_jsonl

from instruct_prune.cli import main
from instruct_prune.report.facts import seconds_by_stage
from instruct_prune.report.tables import read_records, read_tables
from instruct_prune.run.folder import RunFolder


@pytest.fixture(scope="module")
def aimed(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, tiny_embedder_folder: Path) -> Path:
    """40 rows of two sources; a target of rows 5 and 6 and one of row 20; row 9 repeats a test."""
    folder = tmp_path_factory.mktemp("aimed")
    rows = [row | {"source": "even" if i % 2 == 0 else "odd"} for i, row in enumerate(alpaca_rows(40))]
    write_jsonl(folder / "pool.jsonl", rows)
    write_jsonl(folder / "dev.jsonl", rows[5:7])
    write_jsonl(folder / "other.jsonl", rows[20:21])
    write_jsonl(folder / "tests.jsonl", rows[9:10])
    words = ["--data", str(folder / "pool.jsonl"), "--model", str(tiny_model_folder), "--subnets", "dense"]
    words += ["--embedder", str(tiny_embedder_folder), "--by", "rds", "--keep", "4"]
    words += ["--target", f"dev={folder / 'dev.jsonl'}", f"other={folder / 'other.jsonl'}"]
    words += ["--decontaminate", str(folder / "tests.jsonl")]
    assert main(["run", *words, "--out", str(folder / "RUN")]) == 0
    return folder


def test_the_report_says_who_took_which_row(aimed: Path) -> None:
    numbers = json.loads((aimed / "RUN" / "report.json").read_text())
    target = numbers["target"]
    assert (target["by"], target["column"]) == ("rds", "source")
    dev, other = target["tasks"]
    assert (dev["name"], dev["file"], dev["queries"], dev["rows"]) == ("dev", "dev.jsonl", 2, 2)
    assert (other["name"], other["queries"], other["rows"]) == ("other", 1, 2)
    assert dev["repeats"]["text"] == 2
    # Turn 0: row 5 for dev 0; 1: row 20 for other 0; 2: row 6 for dev 1; 3: another row for other 0.
    took = {(query["task"], query["row"]): query["took"] for query in target["queries"]}
    assert took[("dev", 0)] == [5]
    assert took[("dev", 1)] == [6]
    assert took[("other", 0)][0] == 20
    assert len(took[("other", 0)]) == 2
    assert dev["sources"] == [["even", 1, 0.5, 0.5], ["odd", 1, 0.5, 0.5]]
    assert target["queries"][0]["text"].startswith(alpaca_rows(40)[5]["instruction"])
    aim = read_tables(RunFolder(aimed / "RUN")).aim
    assert aim is not None
    assert aim.turn[[5, 20, 6]].tolist() == [0, 1, 2]
    assert numbers["contaminated"] == {"count": 1, "rows": [[9, str(aimed / "tests.jsonl"), 1, "text"]]}
    page = (aimed / "RUN" / "report.html").read_text()
    assert 'id="targets-panel"' in page
    assert 'id="contaminated-panel"' in page


def test_the_target_takes_time_too(aimed: Path) -> None:
    seconds = seconds_by_stage(read_records(RunFolder(aimed / "RUN")))
    assert list(seconds) == ["read", "encode", "score", "embed", "target", "select"]
    assert seconds["target"] > 0


def test_show_prints_a_query_beside_what_it_took(aimed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(aimed / "RUN")]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "target, compared by rds" in told
    assert f"dev 0 {alpaca_rows(40)[5]['instruction']}" in told
    assert "took 5 1.000" in told
    assert "picked by other 0" in told


def test_a_page_without_a_target_has_no_such_section(aimed: Path) -> None:
    out = aimed / "RUN"
    assert main(["select", str(out), "--keep", "4", "--method", "random"]) == 0
    assert main(["report", str(out)]) == 0
    assert json.loads((out / "report.json").read_text())["target"] is None
    assert 'id="targets-panel"' not in (out / "report.html").read_text()


def test_selections_towards_targets_are_compared(
    aimed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    out, other = aimed / "RUN", tmp_path / "OTHER"
    shutil.copytree(out, other)
    assert main(["select", str(out), "--keep", "4"]) == 0
    assert main(["target", str(other), "--target", str(aimed / "other.jsonl"), "--by", "embedding"]) == 0
    assert main(["select", str(other), "--keep", "4"]) == 0
    assert main(["compare", str(out), str(other), "--json"]) == 0
    tables = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["selection"] for row in tables[0]["rows"]][1:3] == ["RUN", "OTHER"]
    assert main(["report", str(out), str(other)]) == 0

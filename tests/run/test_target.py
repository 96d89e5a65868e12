"""Selection towards a target by the real command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sample_rows import alpaca_rows

from instruct_prune import Run, SelectConfig, TargetConfig
from instruct_prune.cli import main
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.records import ScoreFacts, SelectFacts
from instruct_prune.run.target_facts import TargetFacts

Play = Callable[..., Path]


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, tiny_embedder_folder: Path) -> Path:
    """A run over 40 rows with a target of three of them, by gradients."""
    folder = tmp_path_factory.mktemp("target")
    write(folder / "pool.jsonl", alpaca_rows(40))
    write(folder / "dev.jsonl", alpaca_rows(40)[5:8])
    words = ["--data", str(folder / "pool.jsonl"), "--model", str(tiny_model_folder), "--subnets", "dense"]
    words += ["--embedder", str(tiny_embedder_folder), "--dtype", "float32"]
    assert (
        main(["run", *words, "--target", str(folder / "dev.jsonl"), "--keep", "6", "--out", str(folder / "RUN")]) == 0
    )
    return folder


def selection(out: Path) -> dict[str, list[object]]:
    table = pq.read_table(out / "selection.parquet")
    found: dict[str, list[object]] = table.filter(table.column("selected")).to_pydict()
    return found


def test_rows_that_are_the_queries_are_taken_first(scored: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = scored / "RUN"
    facts = RunFolder(out).facts(TargetFacts)
    assert [(t.name, t.read, t.queries, t.repeated) for t in facts.tasks] == [("dev", 3, 3, 3)]
    kept = selection(out)
    first = {row: query for row, query, turn in zip(kept["row_id"], kept["target_row"], kept["target_turn"], strict=True) if turn < 3}  # type: ignore[operator]  # fmt: skip
    assert first == {5: 0, 6: 1, 7: 2}
    assert len(kept["row_id"]) == 6
    assert set(kept["target_task"]) == {"dev"}
    by_turn = dict(zip(kept["target_turn"], kept["similarity"], strict=True))
    assert [round(float(by_turn[turn]), 3) for turn in range(3)] == [1, 1, 1]  # type: ignore[arg-type]


def test_pool_is_not_scored_again(scored: Path) -> None:
    out = scored / "RUN"
    before = RunFolder(out).require(ScoreFacts)
    stamp = (out / "scores.parquet").stat().st_mtime_ns
    sketches = (out / "states" / "gradient_dense.npy").stat().st_mtime_ns
    write(scored / "other.jsonl", alpaca_rows(40)[20:22])
    more = f"other={scored / 'other.jsonl'}"
    assert main(["target", "--out", str(out), "--target", f"dev={scored / 'dev.jsonl'}", more]) == 0
    assert main(["select", "--out", str(out), "--keep", "6"]) == 0
    assert (out / "scores.parquet").stat().st_mtime_ns == stamp
    assert (out / "states" / "gradient_dense.npy").stat().st_mtime_ns == sketches
    assert RunFolder(out).require(ScoreFacts) == before
    kept = selection(out)
    # Two tasks take turns, and each begins with its own first query.
    in_turn = sorted(zip(kept["target_turn"], kept["target_task"], kept["row_id"], strict=True))  # type: ignore[type-var]
    assert [(task, row) for _, task, row in in_turn][:4] == [("dev", 5), ("other", 20), ("dev", 6), ("other", 21)]


def aim(scored: Path, by: str, file: str = "dev.jsonl") -> int:
    return main(["target", "--out", str(scored / "RUN"), "--target", str(scored / file), "--by", by])


def select(scored: Path, *words: str) -> int:
    return main(["select", "--out", str(scored / "RUN"), "--keep", "3", *words])


def stamps(folder: Path) -> dict[str, int]:
    """When each file was written."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_ways_to_compare_stand_side_by_side(scored: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = scored / "RUN"
    assert aim(scored, "gradient") == 0
    before = stamps(out / "targets")
    for by in ("rds", "embedding"):
        assert aim(scored, by) == 0
        assert select(scored, "--by", by) == 0
        assert selection(out)["row_id"] == [5, 6, 7]
        assert RunFolder(out).facts(SelectFacts).params["by"] == by
    # The rows of the tasks, their items and the gradients are as they were.
    assert {name: stamp for name, stamp in stamps(out / "targets").items() if name in before} == before
    assert select(scored) == 0  # the default, which was measured
    assert RunFolder(out).facts(SelectFacts).params["by"] == "gradient"
    assert aim(scored, "gradient") == 0
    assert "done before, skipped" in capfd.readouterr().err


def test_a_way_that_was_not_measured_is_refused_with_the_command_that_does(
    scored: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(scored / "third.jsonl", alpaca_rows(40)[30:32])
    assert aim(scored, "rds", "third.jsonl") == 0
    assert select(scored, "--by", "gradient") == 2  # of the target before
    told = capfd.readouterr().err
    command = f"instruct-prune target {scored / 'RUN'} --target third={scored / 'third.jsonl'} --by gradient"
    assert command in " ".join(told.split())
    assert select(scored) == 0  # the only way that there is
    assert selection(scored / "RUN")["target_row"].count(0) >= 1
    assert select(scored, "--by", "gradeint") == 2
    assert "Did you mean 'gradient'?" in capfd.readouterr().err
    assert select(scored, "--by", "rds", "--method", "random") == 2
    assert "Use --method targeted" in capfd.readouterr().err
    assert main(command.split()[1:]) == 0
    assert select(scored, "--by", "gradient") == 0


def test_a_pool_is_measured_once_for_all_targets(scored: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    """Also where scoring did not read the vectors."""
    out = tmp_path / "RUN"
    words = ["--data", str(scored / "pool.jsonl"), "--model", str(tiny_model_folder), "--subnets", "dense"]
    assert main(["score", *words, "--dtype", "float32", "--out", str(out)]) == 0
    assert main(["target", str(out), "--target", str(scored / "dev.jsonl"), "--by", "rds"]) == 0
    before = stamps(out / "targets" / "pool")
    write(scored / "fourth.jsonl", alpaca_rows(40)[10:13])
    assert main(["target", str(out), "--target", str(scored / "fourth.jsonl"), "--by", "rds"]) == 0
    assert len(before) == 1
    assert stamps(out / "targets" / "pool") == before
    assert main(["select", str(out), "--keep", "3"]) == 0
    assert selection(out)["row_id"] == [10, 11, 12]


def test_a_selection_of_another_target_is_stale(scored: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = scored / "RUN"
    assert aim(scored, "rds") == 0
    assert select(scored, "--by", "rds") == 0
    assert aim(scored, "gradient") == 0  # one more way to compare changes nothing for the selection
    assert main(["export", "--out", str(out)]) == 0
    assert aim(scored, "rds", "other.jsonl") == 0
    capfd.readouterr()
    assert main(["export", "--out", str(out)]) == 2
    assert "the target by rds stage has changed" in capfd.readouterr().err
    assert select(scored) == 0
    assert main(["export", "--out", str(out)]) == 0


def test_sketches_are_those_of_one_process_and_any_batch(scored: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    words = ["--data", str(scored / "pool.jsonl"), "--model", str(tiny_model_folder), "--subnets", "dense"]
    words += ["--dtype", "float32", "--probes", "gradient", "--batch-tokens", "300"]
    assert main(["score", *words, "--out", str(tmp_path / "RUN")]) == 0
    found = np.load(tmp_path / "RUN" / "states" / "gradient_dense.npy").astype(np.float32)
    there = np.load(scored / "RUN" / "states" / "gradient_dense.npy").astype(np.float32)
    np.testing.assert_allclose(found, there, atol=2e-4)  # half precision on disk


@pytest.mark.parametrize(
    ("target", "says"),
    [
        (["nosuch.jsonl"], "no such file"),
        (["a=POOL", "a=POOL"], "two tasks are called 'a'"),
        (["../a=POOL"], "begins with a letter or digit"),
        (["EMPTY"], "has no rows"),
        (["BLANK"], "none of its 2 rows can be encoded"),
    ],
)
def test_bad_targets(scored: Path, target: list[str], says: str, capfd: pytest.CaptureFixture[str]) -> None:
    (scored / "empty.jsonl").write_text("")
    write(scored / "blank.jsonl", [{"instruction": "a", "output": ""}] * 2)
    names = {"POOL": "pool.jsonl", "EMPTY": "empty.jsonl", "BLANK": "blank.jsonl"}
    for short, name in names.items():
        target = [text.replace(short, str(scored / name)) for text in target]
    assert main(["target", "--out", str(scored / "RUN"), "--target", *target]) == 2
    assert says in capfd.readouterr().err


def test_in_python(scored: Path) -> None:
    run = Run(scored / "RUN")
    run.target(str(scored / "dev.jsonl"), by="rds")
    assert run.select(SelectConfig(keep=3, by="rds")).kept.tolist() == [5, 6, 7]
    run.target(TargetConfig((f"a={scored / 'dev.jsonl'}", f"b={scored / 'other.jsonl'}")), by="rds")
    assert run.select(SelectConfig(keep=2)).kept.tolist() == [5, 20]

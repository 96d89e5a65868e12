"""Selection towards a target by the real command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sample_rows import alpaca_rows

from instruct_prune.cli import main
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.records import ScoreFacts, TargetFacts

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
    assert (facts.by, [(t.name, t.read, t.queries, t.repeated) for t in facts.tasks]) == (
        "gradient",
        [("dev", 3, 3, 3)],
    )
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


@pytest.mark.parametrize("by", ["rds", "embedding"])
def test_other_ways_to_compare(scored: Path, by: str) -> None:
    out = scored / "RUN"
    assert main(["target", "--out", str(out), "--target", str(scored / "dev.jsonl"), "--by", by]) == 0
    assert main(["select", "--out", str(out), "--keep", "3"]) == 0
    assert selection(out)["row_id"] == [5, 6, 7]


def test_a_selection_of_another_target_is_stale(scored: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = scored / "RUN"
    assert main(["target", "--out", str(out), "--target", str(scored / "dev.jsonl"), "--by", "rds"]) == 0
    assert main(["select", "--out", str(out), "--keep", "3"]) == 0
    assert main(["target", "--out", str(out), "--target", str(scored / "dev.jsonl"), "--by", "gradient"]) == 0
    assert main(["export", "--out", str(out)]) == 2
    assert "target stage has changed" in capfd.readouterr().err
    assert main(["select", "--out", str(out), "--keep", "3"]) == 0
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

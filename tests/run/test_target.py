"""Selection towards a target by the real command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sample_rows import alpaca_rows, write_jsonl

from instruct_prune import Run, SelectConfig, TargetConfig
from instruct_prune.cli import main
from instruct_prune.measure.parts import PartStore
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.measuring import Measuring
from instruct_prune.run.records import ScoreFacts, SelectFacts
from instruct_prune.run.target_facts import TargetFacts

Play = Callable[..., Path]


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path, tiny_embedder_folder: Path) -> Path:
    """A run over 40 rows with a target of three of them, by gradients."""
    folder = tmp_path_factory.mktemp("target")
    write_jsonl(folder / "pool.jsonl", alpaca_rows(40))
    write_jsonl(folder / "dev.jsonl", alpaca_rows(40)[5:8])
    words = ["--data", str(folder / "pool.jsonl"), "--model", str(tiny_model_folder), "--subnets", "dense"]
    words += ["--embedder", str(tiny_embedder_folder), "--dtype", "float32", "--by", "gradient"]
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
    assert [(t.name, t.read, t.queries) for t in facts.tasks] == [("dev", 3, 3)]
    assert facts.tasks[0].repeats["text"] == 3
    repeats = pq.read_table(out / "targets" / "repeats.parquet").to_pylist()
    assert [row for row in repeats if row["how"] == "text"] == [
        {"row_id": 5 + i, "task": "dev", "target_row": i, "how": "text"} for i in range(3)
    ]
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
    write_jsonl(scored / "other.jsonl", alpaca_rows(40)[20:22])
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
    before = {name: stamp for name, stamp in stamps(out / "targets").items() if not name.startswith("by/rds")}
    for by in ("rds", "embedding"):
        assert aim(scored, by) == 0
        assert select(scored, "--by", by) == 0
        assert selection(out)["row_id"] == [5, 6, 7]
        assert RunFolder(out).facts(SelectFacts).params["by"] == by
    # The rows of the tasks, their items and the gradients are as they were.
    assert {name: stamp for name, stamp in stamps(out / "targets").items() if name in before} == before
    assert select(scored) == 0  # the default, which was measured
    assert RunFolder(out).facts(SelectFacts).params["by"] == "rds"
    assert aim(scored, "gradient") == 0
    assert "done before, skipped" in capfd.readouterr().err


def test_a_way_that_was_not_measured_is_refused_with_the_command_that_does(
    scored: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(scored / "third.jsonl", alpaca_rows(40)[30:32])
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
    # Losses that were read beside the gradients, in one pass, are those of a pass without.
    with_gradients = RunFolder(scored / "RUN").read_scores().losses
    np.testing.assert_allclose(RunFolder(out).read_scores().losses, with_gradients, atol=1e-5)
    assert RunFolder(scored / "RUN").facts(ScoreFacts).passes == ("dense_gradients",)
    assert main(["target", str(out), "--target", str(scored / "dev.jsonl"), "--by", "rds"]) == 0
    before = stamps(out / "targets" / "pool")
    write_jsonl(scored / "fourth.jsonl", alpaca_rows(40)[10:13])
    assert main(["target", str(out), "--target", str(scored / "fourth.jsonl"), "--by", "rds"]) == 0
    assert len(before) == 1
    assert stamps(out / "targets" / "pool") == before
    assert main(["select", str(out), "--keep", "3"]) == 0
    assert selection(out)["row_id"] == [10, 11, 12]


def test_a_target_that_is_added_by_run_asks_for_no_scoring(
    scored: Path, tiny_model_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "--data", str(scored / "pool.jsonl"), "--model", str(tiny_model_folder), "--dtype", "float32"]
    words += ["--embedder", "model:mean", "--keep", "3", "--out", str(tmp_path / "RUN")]
    assert main(words) == 0
    before = (tmp_path / "RUN" / "scores.parquet").stat().st_mtime_ns
    for by in ("rds", "gradient"):
        assert main([*words, "--target", str(scored / "dev.jsonl"), "--by", by]) == 0
        assert "score: done before, skipped" in capfd.readouterr().err
        assert selection(tmp_path / "RUN")["row_id"] == [5, 6, 7]
    assert (tmp_path / "RUN" / "scores.parquet").stat().st_mtime_ns == before


def test_a_selection_of_another_target_is_stale(scored: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = scored / "RUN"
    assert aim(scored, "rds") == 0
    assert select(scored, "--by", "rds") == 0
    assert aim(scored, "gradient") == 0  # one more way to compare changes nothing for the selection
    assert main(["export", "--out", str(out)]) == 0
    assert aim(scored, "rds", "other.jsonl") == 0
    assert "takes the place of the last one (dev)" in capfd.readouterr().err
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
    write_jsonl(scored / "blank.jsonl", [{"instruction": "a", "output": ""}] * 2)
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


# ---- rows that must not be in the data ----


def fates(out: Path) -> dict[int, tuple[str, str | None, int | None, str | None]]:
    table = pq.read_table(out / "selection.parquet").to_pylist()
    return {
        row["row_id"]: (row["reason"], row["repeats_file"], row["repeats_line"], row["repeats_how"]) for row in table
    }


def test_rows_of_a_test_are_taken_out_and_named(scored: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out, tests = scored / "RUN", scored / "tests.jsonl"
    assert aim(scored, "rds") == 0
    rows = alpaca_rows(40)
    # A row as it is, and one that holds 13 words of row 12 in a format that no reader knows.
    shared = " ".join(f"{rows[12]['instruction']} {rows[12]['output']}".split())
    tests.write_text(json.dumps(rows[6]) + "\n")
    other = write_jsonl(scored / "benchmark.jsonl", [{"stem": f"Q: {shared}", "choices": ["a", "b"], "gold": 1}])  # type: ignore[dict-item]
    assert select(scored, "--by", "rds", "--decontaminate", str(tests), str(other), "--dedup", "0.99") == 0
    found = fates(out)
    assert found[6] == ("contaminated", str(tests), 1, "text")
    assert found[12] == ("contaminated", str(other), 1, "13-gram")
    assert sorted(row for row, fate in found.items() if fate[1] is not None) == [6, 12]
    facts = RunFolder(out).facts(SelectFacts)
    assert (facts.kept, facts.contaminated) == (3, 2)
    captured = capfd.readouterr()
    assert "2 of 40 rows repeat one of 2 rows (1 by text, 1 by 13-gram)" in captured.err
    assert "2 rows were dropped because they repeat" in captured.out


def test_embeddings_find_more_where_a_threshold_is_given(scored: Path) -> None:
    out, tests = scored / "RUN", write_jsonl(scored / "near.jsonl", alpaca_rows(40)[9:10])
    words = ["--method", "random", "--decontaminate", str(tests)]
    assert select(scored, *words) == 0
    assert [row for row, fate in fates(out).items() if fate[1]] == [9]
    vectors = np.load(out / "embeddings.npy")
    cosine = vectors @ vectors[9]
    fourth = float(np.sort(cosine)[-4])
    assert select(scored, *words, "--decontaminate-above", str(fourth - 1e-4)) == 0
    found = {row: fate[3] for row, fate in fates(out).items() if fate[1]}
    assert found == {int(row): "text" if row == 9 else "embedding" for row in np.argsort(cosine)[-4:]}
    assert select(scored, *words, "--decontaminate-above", "-1") == 2
    assert select(scored, "--method", "random", "--decontaminate-above", "0.9") == 2


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "does not exist"), ("", "has no rows"), ('{"a": 1}\n', "no rows with text"), ('{"a": "x"}\n{"a', "line 2")],
)
def test_bad_files_to_decontaminate_by(
    scored: Path, content: str | None, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    file = scored / f"bad{len(content or 'none')}.jsonl"
    if content is not None:
        file.write_text(content)
    assert select(scored, "--method", "random", "--decontaminate", str(file)) == 2
    assert says in " ".join(capfd.readouterr().err.split())


# ---- budgets, kills, processes ----


def test_more_tasks_than_rows(scored: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = [f"t{i}={scored / 'dev.jsonl'}" for i in range(4)]
    assert main(["target", str(scored / "RUN"), "--target", *words, "--by", "rds"]) == 0
    assert select(scored) == 2
    assert "4 tasks and the budget 3 rows" in capfd.readouterr().err


def test_killed_and_run_again_it_is_the_same(
    scored: Path, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pass over the pool is stopped in its midst, and then the pass over the target."""
    words = ["--data", str(scored / "pool.jsonl"), "--model", str(tiny_model_folder), "--subnets", "dense"]
    whole, killed = tmp_path / "WHOLE", tmp_path / "KILLED"
    for out in (whole, killed):
        assert main(["score", *words, "--dtype", "float32", "--out", str(out)]) == 0
    command = ["--target", str(scored / "dev.jsonl"), "--by", "gradient"]
    assert main(["target", str(whole), *command]) == 0
    write_part = PartStore.write
    for last in (3, 1):
        written: list[str] = []

        def stop(self: PartStore, name: str, chunk: int, columns: object, most: int = last) -> None:
            if len(written) == most:  # noqa: B023
                raise KeyboardInterrupt
            written.append(name)  # noqa: B023
            write_part(self, name, chunk, columns)  # type: ignore[arg-type]

        monkeypatch.setattr(PartStore, "write", stop)
        assert main(["target", str(killed), *command]) == 130
        assert main(["select", str(killed), "--keep", "3"]) == 2
    monkeypatch.undo()
    assert main(["target", str(killed), *command]) == 0
    files = sorted(str(p.relative_to(whole)) for p in (whole / "targets").rglob("*.npy"))
    assert len(files) == 4
    for name in files:
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    assert not (killed / "parts").exists()


def test_parts_of_a_target_that_was_given_up_are_not_those_of_another(
    scored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command for one target is stopped when its rows are measured, and then another target of the same shape is given."""
    out = tmp_path / "RUN"
    shutil.copytree(scored / "RUN", out)
    first = write_jsonl(tmp_path / "first.jsonl", alpaca_rows(40)[14:17])
    second = write_jsonl(tmp_path / "second.jsonl", alpaca_rows(40)[24:27])
    save = Measuring.save_queries
    monkeypatch.setattr(Measuring, "save_queries", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main(["target", str(out), "--target", f"dev={first}", "--by", "rds"]) == 130
    monkeypatch.setattr(Measuring, "save_queries", save)
    assert main(["target", str(out), "--target", f"dev={second}", "--by", "rds"]) == 0
    assert main(["select", str(out), "--keep", "3", "--by", "rds"]) == 0
    assert selection(out)["row_id"] == [24, 25, 26]


@pytest.mark.slow
def test_two_processes_select_the_same(scored: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    """The pool is measured by both, the target by the main one alone when the other has left."""
    words = [
        "--data",
        str(scored / "pool.jsonl"),
        "--model",
        str(tiny_model_folder),
        "--subnets",
        "dense",
        "--keep",
        "9",
    ]
    words += [
        "--dtype",
        "float32",
        "--embedder",
        "model",
        "--target",
        str(scored / "dev.jsonl"),
        "--batch-tokens",
        "64",
    ]
    assert main(["run", *words, "--out", str(tmp_path / "ONE")]) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*launcher, "instruct_prune", "run", *words, "--out", str(tmp_path / "TWO")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert fates_of_targets(tmp_path / "TWO") == fates_of_targets(tmp_path / "ONE")


def fates_of_targets(out: Path) -> list[tuple[object, ...]]:
    table = pq.read_table(out / "selection.parquet").to_pylist()
    return [(row["row_id"], row["selected"], row["target_row"], row["target_turn"]) for row in table]


def test_a_target_in_another_format_is_warned_of(scored: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = alpaca_rows(40)[:2]
    turns = [
        [{"role": "user", "content": r["instruction"]}, {"role": "assistant", "content": r["output"]}] for r in rows
    ]
    (scored / "chat.jsonl").write_text("".join(json.dumps({"messages": each}) + "\n" for each in turns))
    assert aim(scored, "rds", "chat.jsonl") == 0
    told = " ".join(capfd.readouterr().err.split())
    assert "WARNING: the target chat is in the format messages, the pool in alpaca" in told
    assert "can do harm" in told


def test_one_gradient_sketch_a_run(scored: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--data", str(scored / "pool.jsonl"), "--subnets", "dense", "--probes", "gradient", "gradient@1024"]
    model = str(RunFolder(scored / "RUN").facts(ScoreFacts).model)
    assert main(["score", *words, "--model", model, "--out", str(tmp_path / "RUN")]) == 2
    assert "both read gradients" in capfd.readouterr().err

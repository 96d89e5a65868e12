"""``--dedup-first``: what need not be scored is not scored, is counted, and is never kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sample_rows import alpaca_rows, write_jsonl

from instruct_prune import Run
from instruct_prune.cli import main
from instruct_prune.measure import engine
from instruct_prune.rows.row import Message, Row
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.records import EmbedFacts, ScoreFacts, SelectFacts
from instruct_prune.run.row_facts import beside_text

N, COPIED, TESTED = 30, (2, 7, 11), 5
SAME = ("scores.parquet", "measured.parquet", "set_aside.parquet", "states/rows.npy", "states/mean_dense.npy")


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Bits may differ between numbers of threads."""


def rows() -> list[dict[str, str]]:
    """30 rows that differ, copies of three of them in another case, and a row without a response."""
    plain = alpaca_rows(N)
    copies = [{key: value.upper() for key, value in plain[i].items()} for i in COPIED]
    return [*plain, *copies, {"instruction": "Nothing?", "input": "", "output": ""}]


@pytest.fixture
def words(tmp_path: Path, tiny_model_folder: Path, tiny_embedder_folder: Path) -> list[str]:
    data = write_jsonl(tmp_path / "rows.jsonl", rows())
    test = write_jsonl(tmp_path / "test.jsonl", rows()[TESTED : TESTED + 1])
    model = ["--model", str(tiny_model_folder), "--dtype", "float32", "--batch-tokens", "256", "--probes", "mean"]
    subnets = ["--subnets", "dense", "magnitude:0.7", "--embedder", str(tiny_embedder_folder)]
    # A tiny embedder's vectors are all alike: at a cosine of 1 the words alone decide.
    choice = ["--keep", "8", "--clusters", "2", "--dedup", "1.0", "--decontaminate", str(test), "--dedup-first"]
    return ["--data", str(data), *model, *subnets, *choice]


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Positions of the rows that went through the dense model."""
    found: list[int] = []
    real = engine.measure_chunk

    def measure(model: Any, planned: Any, batches: Any, advance: Any) -> Any:
        found.extend(int(i) for batch in batches for i in batch.rows if planned.name == "dense")
        return real(model, planned, batches, advance)

    monkeypatch.setattr(engine, "measure_chunk", measure)
    return found


def set_aside(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(out / "set_aside.parquet").to_pylist()
    return found


def test_what_goes_is_not_scored_is_counted_and_is_dropped_with_its_reason(
    words: list[str], tmp_path: Path, ran: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["run", *words, "--out", str(out)]) == 0
    told = capsys.readouterr()
    gone = set_aside(out)
    assert [row["reason"] for row in gone].count("duplicate") == 3
    assert [
        (row["row_id"], row["repeats_line"], row["repeats_how"]) for row in gone if row["reason"] == "contaminated"
    ] == [(TESTED, 1, "text")]
    for row in gone:
        if row["reason"] == "duplicate":
            assert abs(row["duplicate_of"] - row["row_id"]) >= N - max(COPIED)
    away = {row["row_id"] for row in gone}
    assert sorted(ran) == [i for i in range(N + 3) if i not in away]
    assert "34 read = 29 scored + 1 rejected + 4 set aside; 29 scored + 4 set aside = 8 kept + 25 dropped" in told.out
    assert "dedup first: 4 of 33 rows are set aside and not scored (3 near-duplicates, 1 that repeat" in told.err

    scores = pq.read_table(out / "scores.parquet").to_pandas()
    assert set(scores.row_id[scores.status == "set_aside"]) == away
    assert scores.loss_dense[scores.status == "set_aside"].isna().all()
    assert len((out / "rejected.jsonl").read_text().splitlines()) == 1

    run = Run(out)
    selection = run.selection
    assert len(selection) == 33
    assert not away & set(selection.kept.tolist())
    frame = selection.to_pandas().set_index("row_id")
    assert {row["row_id"]: row["reason"] for row in gone} == frame.reason[sorted(away)].to_dict()
    assert frame.stratum[sorted(away)].isna().all()
    assert {row.row_id for row in run.rows(kept=False)} == set(range(N + 3)) - set(selection.kept.tolist())
    facts = RunFolder(out).facts(SelectFacts)
    assert (facts.scored, facts.kept, facts.dropped, facts.duplicates, facts.contaminated) == (29, 8, 25, 3, 1)
    counts = json.loads((out / "report.json").read_text())["counts"]
    assert counts["read"] == counts["scored"] + counts["rejected"] + counts["set_aside"] == 34
    assert counts["scored"] + counts["set_aside"] == counts["kept"] + counts["dropped"]
    assert main(["show", str(out)]) == 0
    assert "29 scored + 1 rejected + 4 set aside" in capsys.readouterr().out
    assert main(["export", str(out), "--to", "viewer"]) == 0
    assert len(pq.read_table(out / "viewer.parquet")) == 29


def test_the_same_command_does_nothing_and_others_are_refused(
    words: list[str], tmp_path: Path, ran: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(["run", *words, "--out", str(out)]) == 0
    before = (out / "scores.parquet").read_bytes()
    ran.clear()
    assert main(["run", *words, "--out", str(out)]) == 0
    assert ran == []
    assert (out / "scores.parquet").read_bytes() == before
    capsys.readouterr()
    assert main(["run", *[w for w in words if w != "--dedup-first"], "--out", str(out)]) == 2
    assert "dedup_first" in capsys.readouterr().err
    away = set_aside(out)[0]["row_id"]
    (tmp_path / "keep.txt").write_text(f"{away}\n")
    assert main(["select", str(out), "--keep", "8", "--must-keep", str(tmp_path / "keep.txt")]) == 2
    assert f"row {away} (and 0 more) must be kept, and was set aside before scoring" in capsys.readouterr().err
    assert main(["select", str(out), "--keep", "29"]) == 0
    assert "29 scored + 4 set aside = 29 kept + 4 dropped" in capsys.readouterr().out


def test_rows_that_must_be_kept_are_scored(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "keep.txt").write_text(f"{N}\n{COPIED[0]}\n")
    out = tmp_path / "run"
    assert main(["run", *words, "--must-keep", str(tmp_path / "keep.txt"), "--out", str(out)]) == 0
    assert not {N, COPIED[0]} & {row["row_id"] for row in set_aside(out)}
    assert {N, COPIED[0]} <= set(Run(out).selection.kept.tolist())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (["--dedup-keep", "hardest"], "goes by scores"),
        (["--embedder", "model"], "read while it scores"),
        (["--keep", "31"], "31"),
    ],
)
def test_what_cannot_be_is_refused(
    change: list[str], told: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], ran: list[int]
) -> None:
    assert main(["run", *words, *change, "--out", str(tmp_path / "run")]) == 2
    assert told in capsys.readouterr().err
    assert ran == []


def test_it_needs_to_know_what_goes(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = [*words[: words.index("--dedup")], "--dedup-first"]
    assert main(["run", *bare, "--out", str(tmp_path / "run")]) == 2
    assert "give --dedup 0.95, --decontaminate FILE" in capsys.readouterr().err


def test_the_data_themselves_are_no_test(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], ran: list[int]
) -> None:
    words[words.index("--decontaminate") + 1] = words[1]
    assert main(["run", *words, "--out", str(tmp_path / "run")]) == 2
    assert "nothing left to score" in capsys.readouterr().err
    assert ran == []


def test_a_killed_run_goes_on_with_the_rows_that_were_left(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert main(["run", *words, "--out", str(whole)]) == 0
    real, parts = engine.measure_chunk, [0]

    def measure(*args: Any) -> Any:
        parts[0] += 1
        if parts[0] == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(engine, "measure_chunk", measure)
    assert main(["run", *words, "--out", str(out)]) == 130
    made = (out / "set_aside.parquet").stat().st_mtime_ns
    assert main(["run", *words, "--out", str(out)]) == 0
    assert (out / "set_aside.parquet").stat().st_mtime_ns == made
    for name in (*SAME, "selection.parquet", "pruned.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def test_edited_data_are_updated_to_the_bytes_of_a_run_from_scratch(
    words: list[str], tmp_path: Path, ran: list[int]
) -> None:
    """A row that was set aside and stands for itself now is measured; one that has a copy now is not."""
    data, out = tmp_path / "rows.jsonl", tmp_path / "run"
    assert main(["run", *words, "--out", str(out)]) == 0
    before = {row["row_id"] for row in set_aside(out)}
    edited = rows()
    edited[COPIED[0]]["output"] = "Something else altogether, which is not like the copy."
    edited.append({key: value.lower() for key, value in edited[20].items()})
    write_jsonl(data, edited)
    ran.clear()
    assert main(["run", *words, "--out", str(out), "--update"]) == 0
    measured, after = set(ran), {row["row_id"] for row in set_aside(out)}
    assert COPIED[0] in measured | after
    assert measured <= {COPIED[0], N + 3 + 1, N} | before
    assert main(["run", *words, "--out", str(tmp_path / "scratch")]) == 0
    for name in SAME:
        assert (out / name).read_bytes() == (tmp_path / "scratch" / name).read_bytes(), name


def test_tests_alone_need_no_embedder(words: list[str], tmp_path: Path) -> None:
    at = words.index("--dedup")
    bare = [*words[:at], *words[at + 2 :], "--embedder", "model:mean"]
    out = tmp_path / "run"
    assert main(["run", *bare, "--out", str(out)]) == 0
    folder = RunFolder(out)
    assert [row["row_id"] for row in set_aside(out)] == [TESTED]
    assert TESTED not in np.load(out / "embeddings_rows.npy").tolist()
    assert len(np.load(out / "embeddings.npy")) == 32
    aside = folder.facts(ScoreFacts).aside
    assert aside is not None
    assert (aside.duplicates, aside.contaminated) == (0, 1)
    assert folder.facts(EmbedFacts).embedder == "model:mean"


def test_pairs_with_other_rejected_answers_are_no_copies(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [
        {"prompt": f"Question {i}?", "chosen": f"Answer {i}.", "refused": refused}
        for i in range(4)
        for refused in ("No.", "Never.", "no")
    ]
    data = write_jsonl(tmp_path / "pairs.jsonl", pairs)
    words[words.index("--data") + 1] = str(data)
    at = words.index("--decontaminate")
    del words[at : at + 2]
    assert main(["run", *words, "--columns", "rejected=refused", "--out", str(tmp_path / "run")]) == 0
    assert [(row["row_id"], row["duplicate_of"]) for row in set_aside(tmp_path / "run")] == [
        (i, i - 2) for i in (2, 5, 8, 11)
    ]
    capsys.readouterr()


def test_calls_and_thoughts_set_rows_apart() -> None:
    def row(**said: Any) -> Row:
        return Row(
            0, (Message("user", "q"), Message("assistant", "a", trained=True, **said)), "x", 1, b'{"rejected": "r"}'
        )

    def called(name: str, number: str) -> dict[str, Any]:
        return {"tool_calls": ({"id": number, "type": "function", "function": {"name": name, "arguments": {}}},)}

    assert beside_text(row(), None) == ""
    assert beside_text(row(**called("f", "1")), None) == beside_text(row(**called("f", "2")), None)
    different = [row(), row(**called("f", "1")), row(**called("g", "1")), row(reasoning="so"), row(reasoning="thus")]
    assert len({beside_text(each, None) for each in different}) == 5
    assert beside_text(row(), "rejected") != ""

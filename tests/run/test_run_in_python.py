"""What `Run` gives back of a run: its facts, its encoder, its rows; and never what is stale."""

from __future__ import annotations

from pathlib import Path

import datasets
import numpy as np
import pytest
from sample_rows import alpaca_rows, write_jsonl

from instruct_prune import DataConfig, InputError, Run, ScoreConfig, SelectConfig
from instruct_prune.encode.store import TokenStore


@pytest.fixture
def run(tmp_path: Path, tiny_model_folder: Path) -> Run:
    """20 rows, one of them without a response; 6 are kept."""
    rows = [*alpaca_rows(19), {"instruction": "Say nothing.", "input": "", "output": ""}]
    data = write_jsonl(tmp_path / "rows.jsonl", [*rows[:4], rows[-1], *rows[4:-1]])
    run = Run(tmp_path / "run")
    run.score(DataConfig((str(data),)), ScoreConfig(str(tiny_model_folder), subnets=("dense",), dtype="float32"))
    run.select(SelectConfig(keep=6, clusters="none", seed=1))
    return run


def test_facts_and_encoder(run: Run, tiny_model_folder: Path) -> None:
    assert run.model == run.facts.model == str(tiny_model_folder)
    assert (run.facts.template, run.facts.turns, run.facts.overlong, run.facts.max_length) == (
        "alpaca",
        "all",
        "truncate",
        512,
    )
    store = TokenStore.open(Path(run.folder.path) / "items")
    rows = list(run.rows(kept=None))
    for row, encoded in zip(rows, run.encoder().encode(rows), strict=True):
        tokens = store[row.row_id]
        np.testing.assert_array_equal(encoded.input_ids, tokens.ids)
        np.testing.assert_array_equal(encoded.response_mask, tokens.response_mask)
    assert max(len(row.input_ids) for row in run.encoder(max_length=20).encode(rows)) == 20


def test_kept_and_dropped_rows_are_all_that_is_scored(run: Run) -> None:
    kept, dropped, scored = ([row.row_id for row in run.rows(kept=which)] for which in (True, False, None))
    assert scored == [i for i in range(20) if i != 4]
    assert len(kept) == 6
    assert sorted(kept + dropped) == scored
    assert kept == sorted(kept)
    assert [row.row_id for row in run.rows()] == kept


def test_an_export_of_another_selection_is_refused(run: Run) -> None:
    with pytest.raises(InputError, match="instruct-prune export"):
        run.kept()
    run.export()
    assert len(run.kept()) == 6
    run.select(SelectConfig(keep=3, clusters="none"))
    with pytest.raises(InputError, match="export stage is stale"):
        run.kept()
    assert len(list(run.rows())) == 3
    run.export()
    assert len(run.kept()) == 3


def test_kept_rows_have_the_columns_of_any_of_them(tmp_path: Path, tiny_model_folder: Path) -> None:
    rows = alpaca_rows(4)
    rows[1]["note"], rows[2]["shots"] = "mine", "a.png"
    several = ["a.png", "b.png"] if hasattr(datasets, "Json") else "b.png"  # columns of several types need datasets 4.7
    rows[3]["shots"] = several
    run = Run(tmp_path / "run")
    run.score(rows, ScoreConfig(str(tiny_model_folder), dtype="float32"))
    run.select(SelectConfig(keep=4, clusters="none"))
    run.export()
    kept = run.kept()
    assert list(kept["note"]) == [None, "mine", None, None]
    assert list(kept["shots"]) == [None, None, "a.png", several]


def test_no_selection_of_rows_that_were_scored_anew(run: Run, tiny_model_folder: Path) -> None:
    run.export()
    data = DataConfig(str(run.folder.path.parent / "rows.jsonl"))
    run.score(data, ScoreConfig(str(tiny_model_folder), subnets=("dlc",), dtype="float32", restart="read"))
    for stale in (run.rows, run.kept):
        with pytest.raises(InputError, match="select"):
            stale()
    assert len(list(run.rows(kept=None))) == 19


def test_selection_that_was_interrupted(run: Run) -> None:
    manifest = (run.folder / "manifest.json").read_bytes()
    run.select(SelectConfig(keep=3, clusters="none"))
    (run.folder / "manifest.json").write_bytes(manifest)  # killed after the table was written, before the manifest was
    with pytest.raises(InputError, match=r"not as the select stage left it.*instruct-prune select"):
        run.rows()


def test_no_run(tmp_path: Path) -> None:
    run = Run(tmp_path / "none")
    for call in (run.rows, run.kept, run.encoder):
        with pytest.raises(InputError, match="no such run folder"):
            call()
    with pytest.raises(InputError, match="no such run folder"):
        _ = run.facts
    assert not (tmp_path / "none").exists()

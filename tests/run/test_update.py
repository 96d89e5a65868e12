"""Edited data: what was measured before is not measured again, and every byte is that of a run from scratch."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from adapter_folders import save_adapter
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import on_two_processes
from sample_rows import alpaca_rows, write_jsonl
from transformers import AutoModelForCausalLM

from instruct_prune.cli import main
from instruct_prune.measure import engine
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.records import ScoreFacts

N = 48
SAME = ("scores.parquet", "measured.parquet", "states/rows.npy", "states/mean_dense.npy")


@pytest.fixture(scope="module")
def words(tiny_model_folder: Path) -> list[str]:
    subnets = ["--subnets", "dense", "magnitude:0.7", "alone", "--probes", "mean"]
    return ["--model", str(tiny_model_folder), "--dtype", "float32", "--batch-tokens", "256", *subnets, "--quiet"]


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Bits may differ between numbers of threads."""


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Positions of the rows that went through the model in dense passes over whole rows, as parts are made."""
    return counted(monkeypatch)


def counted(monkeypatch: pytest.MonkeyPatch, stop_after: int = 10**9) -> list[int]:
    """Notes rows; after so many parts the run is interrupted."""
    rows: list[int] = []
    real, parts = engine.measure_chunk, [0]

    def measure(model: Any, planned: Any, batches: Any, advance: Any) -> Any:
        parts[0] += 1
        if parts[0] > stop_after:
            raise KeyboardInterrupt
        rows.extend(int(i) for batch in batches for i in batch.rows if planned.name == "dense")
        return real(model, planned, batches, advance)

    monkeypatch.setattr(engine, "measure_chunk", measure)
    return rows


def score(data: Path, out: Path, words: list[str], *more: str) -> int:
    return main(["score", "--data", str(data), "--out", str(out), *words, *more])


def same_bytes(one: Path, two: Path) -> None:
    for name in SAME:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    records = [RunFolder(path).record(ScoreFacts) for path in (one, two)]
    assert records[0] is not None
    assert records[1] is not None
    assert records[0].config == records[1].config


def edited(rows: list[dict[str, str]], seed: int) -> tuple[list[dict[str, str]], int]:
    """Rows removed, changed, added and put in another order; and how many are new."""
    rng = random.Random(seed)
    rows = [dict(row) for row in rows]
    rng.shuffle(rows)
    rows = rows[rng.randrange(0, 8) :]
    changed = rng.sample(range(len(rows)), rng.randrange(0, 5))
    for i in changed:
        rows[i]["output"] += f" Changed {seed % 97}."
    added = rng.randrange(0, 6)
    for i in range(added):
        rows.insert(
            rng.randrange(len(rows)), {"instruction": f"New {i} {seed}.", "input": "", "output": "Yes. " * (i + 1)}
        )
    if rng.random() < 0.5:
        rows.insert(rng.randrange(len(rows)), dict(rows[0]))  # a row twice is measured once
    return rows, len(changed) + added


@settings(max_examples=6, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_any_edit_gives_the_bytes_of_a_run_from_scratch(
    seed: int, words: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("edit")
    data, out = folder / "rows.jsonl", folder / "run"
    rows = alpaca_rows(N)
    write_jsonl(data, rows)
    assert score(data, out, words) == 0
    rows, new = edited(rows, seed)
    write_jsonl(data, rows)
    with pytest.MonkeyPatch.context() as patch:
        ran = counted(patch)
        assert score(data, out, words, "--update") == 0
        assert len(ran) == new
    assert not (out / "before").exists()
    assert score(data, folder / "scratch", words) == 0
    same_bytes(out, folder / "scratch")


def test_rows_of_another_run_are_reused_and_the_run_itself_is_refused(
    words: list[str], tmp_path: Path, ran: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    rows = alpaca_rows(N)
    small, large = write_jsonl(tmp_path / "small.jsonl", rows[:30]), write_jsonl(tmp_path / "large.jsonl", rows[::-1])
    assert score(small, tmp_path / "a", words) == 0
    ran.clear()
    assert score(large, tmp_path / "b", [w for w in words if w != "--quiet"], "--reuse", str(tmp_path / "a")) == 0
    assert sorted(ran) == list(range(18)), "the last 18 rows, which come first here"
    told = capsys.readouterr().err
    assert "not measured again: 30 (dense), 30 (magnitude_0700), 30 (alone)" in told
    assert "note: what was measured before differs" not in told
    assert score(large, tmp_path / "scratch", words) == 0
    same_bytes(tmp_path / "b", tmp_path / "scratch")
    assert score(large, tmp_path / "b", words, "--reuse", str(tmp_path / "b")) == 2
    assert "is --out itself" in capsys.readouterr().err
    assert score(large, tmp_path / "c", words, "--reuse", str(tmp_path / "nothing")) == 2
    assert score(large, tmp_path / "c", words, "--reuse", str(tmp_path / "a"), "--update") == 2


def test_changed_data_are_refused_with_the_way_to_update(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(20))
    assert score(data, tmp_path / "a", words) == 0
    write_jsonl(data, alpaca_rows(21))
    assert score(data, tmp_path / "a", words) == 2
    assert "or --update, which reads the data again and measures the rows that are new" in capsys.readouterr().err


def test_what_was_measured_in_another_way_is_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(20))
    assert score(data, tmp_path / "a", words) == 0
    other = [("bfloat16" if word == "float32" else word) for word in words]
    assert score(data, tmp_path / "b", other, "--reuse", str(tmp_path / "a")) == 2
    assert 'dtype: "float32" -> "bfloat16"' in capsys.readouterr().err


def test_a_subnet_that_was_not_measured_is_measured_and_the_others_are_not(
    words: list[str], tmp_path: Path, ran: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(20))
    assert score(data, tmp_path / "a", words) == 0
    more = [("magnitude:0.7,0.5" if word == "magnitude:0.7" else word) for word in words]
    ran.clear()
    assert score(data, tmp_path / "b", more, "--reuse", str(tmp_path / "a")) == 0
    assert ran == []
    capsys.readouterr()
    assert score(data, tmp_path / "dry", words, "--reuse", str(tmp_path / "a"), "--dry-run") == 0
    assert "nothing to measure" in capsys.readouterr().out
    old, new = (pq.read_table(tmp_path / name / "scores.parquet").to_pandas() for name in ("a", "b"))
    assert old.loss_dense.equals(new.loss_dense)
    assert np.isfinite(new.loss_magnitude_0500).all()


OWN = """
from contextlib import contextmanager

@contextmanager
def halved(module, value, seed):
    weight = module.get_output_embeddings().weight
    weight.data.mul_({})
    yield
    weight.data.div_({})
"""


def test_a_subnet_of_ones_own_may_be_added_and_not_changed_or_left_out(
    words: list[str],
    tmp_path: Path,
    ran: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(20))
    monkeypatch.chdir(tmp_path)
    for name, factor in (("mine_one", 0.5), ("mine_two", 0.25)):
        (tmp_path / f"{name}.py").write_text(OWN.format(factor, factor))
    one, both = (
        ["--subnets", "dense", *more, *words[words.index("--subnets") + 2 :]]
        for more in (["mine_one:halved:0.5"], ["mine_one:halved:0.5", "mine_two:halved:0.75"])
    )
    first = words[: words.index("--subnets")]
    assert score(data, tmp_path / "a", words) == 0
    ran.clear()
    assert score(data, tmp_path / "b", [*first, *one], "--reuse", str(tmp_path / "a")) == 0
    assert score(data, tmp_path / "c", [*first, *both], "--reuse", str(tmp_path / "b")) == 0
    assert ran == []
    table = pq.read_table(tmp_path / "c" / "scores.parquet").to_pandas()
    assert (table.loss_halved_0500_s0 != table.loss_dense).all()
    assert (table.loss_halved_0750_s0 != table.loss_halved_0500_s0).all()
    assert score(data, tmp_path / "d", words, "--reuse", str(tmp_path / "b")) == 2
    assert "may be added, not changed or left out" in capsys.readouterr().err
    # Another code's column of the same name is not taken for this one's.
    other = [
        {"mine_one:halved:0.5": "mine_two:halved:0.5", "mine_two:halved:0.75": "mine_one:halved:0.75"}.get(w, w)
        for w in both
    ]
    assert score(data, tmp_path / "e", [*first, *other], "--reuse", str(tmp_path / "b")) == 0
    swapped = pq.read_table(tmp_path / "e" / "scores.parquet").to_pandas()
    assert swapped.loss_halved_0500_s0.equals(table.loss_halved_0750_s0)
    assert swapped.loss_halved_0750_s0.equals(table.loss_halved_0500_s0)


def test_numbers_that_are_others_than_they_should_be_are_not_taken_over(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a run whose table was edited, or whose model was another than its name says."""
    data = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(20))
    assert score(data, tmp_path / "a", words) == 0
    path = tmp_path / "a" / "scores.parquet"
    table = pq.read_table(path)
    place = table.column_names.index("loss_dense")
    pq.write_table(table.set_column(place, "loss_dense", [np.asarray(table["loss_dense"]) + 1]), path)
    assert score(data, tmp_path / "b", words, "--reuse", str(tmp_path / "a")) == 2
    assert "more than rounding explains" in capsys.readouterr().err


@pytest.mark.parametrize("parts", [0, 1, 5])
def test_an_interrupted_update_goes_on_where_it_stopped(
    parts: int, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = alpaca_rows(N)
    data, out = write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "run"
    assert score(data, out, words) == 0
    rows, new = edited(rows, 5)
    write_jsonl(data, rows)
    with monkeypatch.context() as patch:
        counted(patch, stop_after=parts)
        assert score(data, out, words, "--update") == 130
    assert (out / "before" / "scores.parquet").exists()
    with monkeypatch.context() as patch:
        ran = counted(patch)
        assert score(data, out, words, "--update") == 0
        assert len(ran) <= new
    assert score(data, tmp_path / "scratch", words) == 0
    same_bytes(out, tmp_path / "scratch")


def test_data_that_change_again_before_an_update_is_finished(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = alpaca_rows(N)
    data, out = write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "run"
    assert score(data, out, words) == 0
    write_jsonl(data, edited(rows, 5)[0])
    with monkeypatch.context() as patch:
        counted(patch, stop_after=2)
        assert score(data, out, words, "--update") == 130
    write_jsonl(data, rows[::-1])
    with monkeypatch.context() as patch:
        ran = counted(patch)
        assert score(data, out, words, "--update") == 0
        assert ran == [], "all of these rows were measured at first"
    assert score(data, tmp_path / "scratch", words) == 0
    same_bytes(out, tmp_path / "scratch")


def test_an_adapter_that_is_added_or_changed_is_measured_and_the_others_are_not(
    words: list[str], tiny_model_folder: Path, tmp_path: Path, ran: list[int]
) -> None:
    data, adapter = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(20)), tmp_path / "math"
    more = [*words, "--subnets", "dense", f"adapter:{adapter}"]
    losses: list[Any] = []
    assert score(data, tmp_path / "a", words) == 0
    ran.clear()
    for i, (before, after) in enumerate(("ab", "bc")):
        save_adapter(AutoModelForCausalLM.from_pretrained(tiny_model_folder), adapter, seed=i)
        assert score(data, tmp_path / after, more, "--reuse", str(tmp_path / before)) == 0
        losses.append(pq.read_table(tmp_path / after / "scores.parquet").to_pandas().loss_adapter_math)
    assert ran == []
    assert np.isfinite(losses).all()
    assert not losses[0].equals(losses[1])


def test_without_update_changed_data_are_refused_as_ever(words: list[str], tmp_path: Path) -> None:
    data, out = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(20)), tmp_path / "run"
    assert score(data, out, words) == 0
    write_jsonl(data, alpaca_rows(21))
    assert score(data, out, words) == 2


def test_an_update_of_data_that_did_not_change_does_nothing(words: list[str], tmp_path: Path, ran: list[int]) -> None:
    data, out = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(20)), tmp_path / "run"
    assert score(data, out, words) == 0
    before = (out / "scores.parquet").stat().st_mtime_ns
    ran.clear()
    assert score(data, out, words, "--update") == 0
    assert ran == []
    assert (out / "scores.parquet").stat().st_mtime_ns == before
    assert not (out / "before").exists()


# ---- a ladder that earns its passes ----


@pytest.fixture(scope="module")
def auto_words(tiny_model_folder: Path) -> list[str]:
    model = ["--model", str(tiny_model_folder), "--dtype", "float32", "--batch-tokens", "512"]
    return [*model, "--subnets", "auto", "--tolerance", "0.9", "--quiet"]


def test_auto_saves_passes_and_scores_as_the_whole_ladder_does(
    auto_words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = alpaca_rows(280)
    data, out = write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "auto"
    with monkeypatch.context() as patch:
        counted(patch, stop_after=12)
        assert score(data, out, auto_words) == 130
    assert score(data, out, [word for word in auto_words if word != "--quiet"]) == 0
    assert "auto:     dense alone ranks the pilot's 70 rows" in capsys.readouterr().out
    whole = [word for word in auto_words if word not in ("auto", "--tolerance", "0.9")]
    assert score(data, tmp_path / "whole", [*whole, "dlc"]) == 0

    earned = RunFolder(out).facts(ScoreFacts).earned
    assert earned is not None
    assert earned.saved
    assert earned.predicted == 210
    judge, found = (pq.read_table(path / "scores.parquet").to_pandas() for path in (tmp_path / "whole", out))
    assert "loss_magnitude_0800" not in found.columns or "loss_magnitude_0640" not in found.columns
    assert found.loss_dense.equals(judge.loss_dense)
    pilot = pq.read_table(out / "pilot.parquet").to_pandas()
    assert len(pilot) == 70
    at = pilot.row_id.to_numpy()
    for name in ("loss_dense", "loss_magnitude_0800", "loss_magnitude_0640", "score"):
        np.testing.assert_array_equal(pilot[name], judge[name][at])
    np.testing.assert_array_equal(found.score[at], judge.score[at])
    assert np.corrcoef(found.score, judge.score)[0, 1] > 0.9

    write_jsonl(data, [*rows[3:], *alpaca_rows(290)[280:]])
    assert score(data, out, auto_words, "--update") == 0
    assert score(data, tmp_path / "scratch", auto_words) == 0
    for name in ("scores.parquet", "pilot.parquet"):
        assert (out / name).read_bytes() == (tmp_path / "scratch" / name).read_bytes()


@pytest.mark.slow
def test_two_processes_decide_and_update_as_one_does(auto_words: list[str], tmp_path: Path) -> None:
    rows = alpaca_rows(280)
    data, out = write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "two"

    def twice(*more: str) -> None:
        given = ["--data", str(data), "--out", str(out), *(word for word in auto_words if word != "--quiet")]
        on_two_processes("score", *given, *more)

    twice()
    write_jsonl(data, edited(rows, 3)[0])
    twice("--update")
    assert score(data, tmp_path / "one", auto_words) == 0
    for name in ("scores.parquet", "pilot.parquet", "measured.parquet"):
        assert (out / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_few_rows_go_through_the_whole_ladder(auto_words: list[str], tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(40))
    assert score(data, tmp_path / "run", auto_words) == 0
    facts = RunFolder(tmp_path / "run").facts(ScoreFacts)
    assert facts.earned is None
    assert len(facts.ladder) == 3


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--subnets", "auto", "dense"], "--subnets auto stands alone"),
        (["--subnets", "auto", "--tolerance", "2"], "--tolerance 2: a rank correlation"),
        (["--subnets", "dlc", "--tolerance", "0.5"], "--tolerance 0.5 is for --subnets auto"),
    ],
)
def test_wrong_options_are_told_at_once(
    more: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(4))
    assert main(["score", "--data", str(data), "--out", str(tmp_path / "run"), *more]) == 2
    assert says in capsys.readouterr().err

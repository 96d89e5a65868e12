"""recipes/study.py end to end on a tiny model, its statistics by hand, its page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import study
from sample_rows import alpaca_rows, write_jsonl

SMALL = ["--rank", "4", "--batch-size", "4", "--micro-batch", "4", "--dtype", "float32", "--dropout", "0.0"]
SMALL += ["--learning-rate", "0.01", "--epochs", "2", "--held-out-rows", "12", "--keep", "0.25", "0.5"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study-data")
    write_jsonl(folder / "other.jsonl", alpaca_rows(90)[60:])
    return write_jsonl(folder / "rows.jsonl", alpaca_rows(60))


@pytest.fixture(scope="module")
def words(data: Path, tiny_model_folder: Path, tiny_embedder_folder: Path) -> list[str]:
    names = ["--model", str(tiny_model_folder), "--embedder", str(tiny_embedder_folder)]
    return ["--data", str(data), *names, *SMALL, "--eval", f"other={data.parent / 'other.jsonl'}", "--eval-rows", "10"]


@pytest.fixture(scope="module")
def done(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study") / "study"
    assert study.main([*words, "--out", str(out), "--seeds", "2"]) == 0
    return out


def options(words: list[str], out: Path, *more: str) -> study.Study:
    return study.parse(study.Study, [*words, "--out", str(out), *more], "")


# ---- the whole way ----


def test_every_arm_is_trained_and_measured(done: Path) -> None:
    found = json.loads((done / "study.json").read_text())
    assert found["pool"] == 48
    assert found["sets"] == {"held-out": 12, "other": 10}
    methods = ("random", "easy_diverse", "flexrand", "hardest", "ifd")
    arms = [(arm["arm"], arm["keep"]) for arm in found["arms"]]
    assert arms == [(m, k) for k in (0.25, 0.5) for m in methods] + [("full", 1.0)]
    by_name = {(arm["arm"], arm["keep"]): arm for arm in found["arms"]}
    for (method, keep), arm in by_name.items():
        assert arm["seeds"] == [0, 1]
        assert arm["rows"] == 48 * keep
        assert arm["steps"] == arm["rows"] * 2 / 4
        for name, values in arm["sets"].items():
            assert values["mean"] < found["untrained"][name]  # training helped, on this data
            if method in ("random", "full"):
                assert values["gap"] is values["half"] is None
            else:
                random = by_name["random", keep]["sets"][name]["mean"]
                assert values["gap"] == pytest.approx(values["mean"] - random)
                assert values["half"] > 0


def test_arms_differ_and_nobody_trains_on_held_out_rows(words: list[str], done: Path) -> None:
    given = options(words, done, "--seeds", "2")
    run, pool, sets = study.prepare(given)
    assert len(pool) == 48
    held_out = {row.content_hash for row in sets["held-out"]}
    assert len(held_out) == 12
    assert not held_out & {row.content_hash for row in pool.values()}
    arms = {arm.file: set(arm.rows) for arm in study.make_arms(given, run, pool)}
    assert len(arms) == 2 * (5 * 2 + 1)
    assert all(rows <= set(pool) for rows in arms.values())
    assert arms["full-1-s0"] == set(pool)
    assert arms["random-0.25-s0"] != arms["random-0.25-s1"]
    assert arms["hardest-0.25-s0"] == arms["hardest-0.25-s1"]


def test_page(done: Path) -> None:
    page = (done / "study.md").read_text()
    found = json.loads((done / "study.json").read_text())
    hardest = next(a for a in found["arms"] if a["arm"] == "hardest")["sets"]["other"]
    row = f"| 25% | hardest | 2 | 12 | 6 | {hardest['mean']:.4f} | {hardest['gap']:+.4f} | ± {hardest['half']:.4f} |"
    assert row in page.split("## other")[1]
    assert "2 epochs an arm" in page


def test_finished_arms_are_not_trained_again(words: list[str], done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []
    usual = study.run_arm

    def counting(given: Any, arm: study.Arm, *more: Any) -> Any:
        trained.append(arm.file)
        return usual(given, arm, *more)

    monkeypatch.setattr(study, "run_arm", counting)
    before = json.loads((done / "study.json").read_text())
    (done / "arms" / "ifd-0.5-s1.json").write_text('{"torn')
    again = [*words, "--out", str(done), "--seeds", "2"]
    assert study.main(again) == 0
    assert trained == ["ifd-0.5-s1"]
    after = json.loads((done / "study.json").read_text())
    for one, other in zip(before["arms"], after["arms"], strict=True):
        assert other["sets"]["held-out"]["mean"] == pytest.approx(one["sets"]["held-out"]["mean"], rel=1e-6)
    trained.clear()
    assert study.main([*again, "--learning-rate", "0.02", "--arms", "random", "--keep", "0.25"]) == 0
    assert trained == ["random-0.25-s0", "random-0.25-s1"]  # other options: their results do not count


def test_an_arm_does_not_depend_on_those_before_it(words: list[str], tmp_path: Path) -> None:
    found = []
    for name, arms in (("both", ["random", "ifd"]), ("one", ["ifd"])):
        more = ["--seeds", "1", "--keep", "0.5", "--max-steps", "3", "--arms", *arms]
        assert study.main([*words, "--out", str(tmp_path / name), *more]) == 0
        found.append(json.loads((tmp_path / name / "arms" / "ifd-0.5-s0.json").read_text()))
    assert found[0]["steps"] == 3
    assert found[0]["losses"]["other"] == pytest.approx(found[1]["losses"]["other"], rel=1e-6)
    assert "3 optimiser steps an arm" in (tmp_path / "one" / "study.md").read_text()


# ---- statistics ----


def test_gap_and_interval_by_hand() -> None:
    random = np.asarray([1.0, 2.0, 3.0])  # mean 2, sd 1
    found = study.statistics(np.asarray([2.5]), random)
    assert found["mean"] == 2.5
    assert found["gap"] == 0.5
    assert found["half"] == pytest.approx(4.3027 * np.sqrt(1 + 1 / 3), rel=1e-4)  # Student's t, 2 degrees of freedom
    assert study.statistics(np.asarray([2.5]), np.asarray([1.0])) == {"mean": 2.5, "gap": 1.5, "half": None}
    assert study.statistics(random, np.asarray([])) == {"mean": 2.0, "gap": None, "half": None}


# ---- bad input ----


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--keep", "1.5"], "between 0 and 1"),
        (["--held-out-rows", "60"], "60 rows"),
        (["--eval", "other"], "NAME=FILE"),
        (["--seeds", "0"], "at least 1"),
        (["--packing"], "trains without it"),
        (["--rank", "0"], "at least 1"),
        (["--eval-rows", "0"], "--eval-rows 0: at least 1"),
        (["--arms", "randon"], "Did you mean 'random'?"),
        (["--out", ""], "--out is missing"),
    ],
)
def test_options(words: list[str], done: Path, capsys: pytest.CaptureFixture[str], more: list[str], told: str) -> None:
    assert study.main([*words, "--out", str(done), *more]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error


def test_rows_that_cannot_be_read_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(4))
    data.write_text(data.read_text() + "{torn\n")
    assert len(study.read([str(data)])) == 4
    assert "1 rows cannot be read" in capsys.readouterr().err

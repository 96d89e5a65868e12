"""recipes/study.py end to end on a tiny model, its statistics against closed forms, its plan, its page."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lora
import numpy as np
import pytest
import study
import study_report
import study_rows
import training
from sample_rows import alpaca_rows, write_jsonl

from instruct_prune.errors import InputError
from instruct_prune.models import names as models
from instruct_prune.run.folder import RunFolder
from instruct_prune.score.health import spearman

SMALL = ["--rank", "4", "--batch-size", "4", "--micro-batch", "4", "--dtype", "float32", "--dropout", "0.0"]
SMALL += ["--learning-rate", "0.01", "--epochs", "2", "--held-out-rows", "12", "--keep", "0.25", "0.5"]


@pytest.fixture(scope="module")
def other_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("other") / "other.jsonl", alpaca_rows(90)[60:])


def words(run: Path, out: Path, *more: str) -> list[str]:
    return ["--run-folder", str(run), "--out", str(out), *SMALL, *more]


@pytest.fixture(scope="module")
def done(tiny_run: Path, other_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study") / "study"
    more = ["--eval", f"other={other_set}", "--eval-rows", "10", "--seeds", "2", "--difficulty-rows", "20"]
    assert study.main(words(tiny_run, out, *more)) == 0
    return out


# ---- the whole way ----


def test_every_arm_is_trained_and_measured(done: Path) -> None:
    found = json.loads((done / "study.json").read_text())
    assert found["pool"] == 48
    assert found["sets"] == {"held-out": 12, "other": 10}
    methods = ("random", "easy_diverse", "flexrand", "hardest", "ifd")
    assert [(a["arm"], a["keep"]) for a in found["arms"]] == [(m, k) for k in (0.25, 0.5) for m in methods] + [
        ("full", 1.0)
    ]
    for arm in found["arms"]:
        assert arm["seeds"] == [0, 1]
        assert arm["rows"] == 48 * arm["keep"]
        assert arm["steps"] == arm["rows"] * 2 / 4
        for name, values in arm["sets"].items():
            assert values["mean"] < found["untrained"][name]  # training helped, on this data
            assert values["sd"] >= 0
            assert ("gap" in values) == (arm["arm"] not in ("random", "full"))
    random = next(a for a in found["arms"] if a["arm"] == "random")
    hardest = next(a for a in found["arms"] if a["arm"] == "hardest")
    s = hardest["sets"]["held-out"]
    assert s["gap"] == pytest.approx(s["mean"] - random["sets"]["held-out"]["mean"])
    assert s["interval"][0] <= s["gap"] <= s["interval"][1]
    assert hardest["train_seconds"] > 0


def test_arms_differ_and_nobody_trains_on_held_out_rows(tiny_run: Path, done: Path) -> None:
    options = study_rows.Study(run_folder=str(tiny_run), held_out_rows=12, keep=(0.25,), seeds=2, out="x")
    material = study_rows.prepare(options, RunFolder(tiny_run))
    arms = study_rows.make_arms(options, material)
    held_out = {row.row_id for row in material.evaluations["held-out"]}
    assert len(held_out) == 12
    for arm in arms:
        assert not held_out & set(arm.rows.tolist())
        assert len(arm.rows) == (48 if arm.name == "full" else 12)
    by_name = {arm.file: set(arm.rows.tolist()) for arm in arms}
    assert by_name["random-0.25-s0"] != by_name["random-0.25-s1"]
    assert by_name["hardest-0.25-s0"] == by_name["hardest-0.25-s1"]
    scores = dict(zip(material.table.row_id.tolist(), material.table.score.tolist(), strict=True))
    hardest = sorted(scores, key=lambda i: scores[i])[-12:]
    assert by_name["hardest-0.25-s0"] == set(hardest)


def test_what_predicts_difficulty(tiny_run: Path, done: Path) -> None:
    found = json.loads((done / "study.json").read_text())["difficulty"]
    assert found["rows"] == 20
    assert found["checkpoints"] == 8  # two epochs, every quarter
    names = {"dlc", "lc", "loss", "ifd", "loss_dense", "loss_magnitude_0800", "loss_magnitude_0640", "loss_alone"}
    names |= {"dlc to magnitude_0800", "dlc to magnitude_0640", "response length", "prompt length"}
    assert set(found["rho"]) == names
    result = json.loads((done / "arms" / "full-1-s0.json").read_text())
    table = RunFolder(tiny_run).read_scores()
    rows = np.asarray(result["followed_rows"])
    difficulty = np.asarray(result["followed_losses"]).mean(axis=0)
    assert found["rho"]["loss_dense"][0] == pytest.approx(spearman(table.losses[rows, 0], difficulty))
    assert found["rho"]["loss"] == found["rho"]["loss_dense"]
    ladder = table.losses[rows][:, [spec.name != "alone" for spec in table.subnets]]
    assert found["rho"]["dlc to magnitude_0640"][0] == pytest.approx(spearman(ladder.mean(axis=1), difficulty))
    assert found["rho"]["dlc to magnitude_0800"][0] == pytest.approx(spearman(ladder[:, :2].mean(axis=1), difficulty))
    for rho, low, high in found["rho"].values():
        assert -1 <= low <= rho <= high <= 1
    assert "followed_losses" not in json.loads((done / "arms" / "full-1-s1.json").read_text())


def test_following_rows_does_not_change_what_is_learnt(tiny_run: Path, done: Path) -> None:
    options = training.parse(study_rows.Study, words(tiny_run, done, "--difficulty-rows", "0"), "")
    material = study_rows.prepare(options, RunFolder(tiny_run))
    base = models.load_causal_lm(models.find_model(material.scored.model), "float32")
    arm = study_rows.Arm("full", 1.0, 0, material.table.row_id)
    found = study.run_arm(options, material, arm, base, "float32", None)
    followed = json.loads((done / "arms" / "full-1-s0.json").read_text())
    assert "followed_losses" not in found
    np.testing.assert_allclose(found["losses"]["held-out"], followed["losses"]["held-out"], rtol=1e-5)


def test_page_and_plot(done: Path) -> None:
    page = (done / "study.md").read_text()
    found = json.loads((done / "study.json").read_text())
    hardest = next(a for a in found["arms"] if a["arm"] == "hardest")["sets"]["other"]
    assert f"| 25% | hardest | 2 | {hardest['mean']:.4f} | {hardest['sd']:.4f} | {hardest['gap']:+.4f} |" in page
    assert "the same number of epochs (2)" in page
    assert "| loss_magnitude_0800 |" in page
    tree = ElementTree.parse(done / "study.svg")
    space = "{http://www.w3.org/2000/svg}"
    assert len(tree.findall(f".//{space}circle")) == 2 * 10  # two sets, five arms at two sizes
    dashed = [line for line in tree.findall(f".//{space}line") if line.get("stroke-dasharray")]
    assert len(dashed) == 2  # the full arm


def test_finished_arms_are_not_trained_again(
    tiny_run: Path, done: Path, other_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    usual = study.run_arm

    def counting(options: Any, material: Any, arm: Any, *more: Any) -> Any:
        trained.append(arm.file)
        return usual(options, material, arm, *more)

    monkeypatch.setattr(study, "run_arm", counting)
    before = json.loads((done / "study.json").read_text())["arms"]
    (done / "arms" / "ifd-0.5-s1.json").write_text('{"torn')
    more = ["--eval", f"other={other_set}", "--eval-rows", "10", "--seeds", "2", "--difficulty-rows", "20"]
    assert study.main(words(tiny_run, done, *more)) == 0
    assert trained == ["ifd-0.5-s1"]
    monkeypatch.setattr(study, "measure", None)  # nothing to train: nothing is measured again either
    assert study.main(words(tiny_run, done, *more)) == 0
    assert trained == ["ifd-0.5-s1"]
    after = json.loads((done / "study.json").read_text())["arms"]
    assert [a["sets"]["held-out"]["mean"] for a in after] == pytest.approx(
        [a["sets"]["held-out"]["mean"] for a in before]
    )


def test_an_arm_does_not_depend_on_those_before_it(tiny_run: Path, done: Path, tmp_path: Path, other_set: Path) -> None:
    more = ["--eval", f"other={other_set}", "--eval-rows", "10", "--seeds", "1", "--arms", "random", "ifd"]
    assert study.main(words(tiny_run, tmp_path / "few", *more)) == 0
    for name in ("ifd-0.5-s0", "random-0.25-s0"):
        one, other = (json.loads((out / "arms" / f"{name}.json").read_text()) for out in (done, tmp_path / "few"))
        np.testing.assert_allclose(one["losses"]["other"], other["losses"]["other"], rtol=1e-5)


def test_from_a_dataset(
    tmp_path: Path, tiny_model_folder: Path, tiny_embedder_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", alpaca_rows(40))
    arguments = ["--data", str(data), "--model", str(tiny_model_folder), "--embedder", str(tiny_embedder_folder)]
    arguments += ["--out", str(tmp_path / "study"), *SMALL, "--pool-rows", "16", "--keep", "0.5", "--seeds", "1"]
    arguments += ["--arms", "random", "flexrand", "--equal", "steps", "--max-steps", "2", "--epochs", "3"]
    assert study.main(arguments) == 0
    found = json.loads((tmp_path / "study" / "study.json").read_text())
    assert (found["pool"], found["sets"]["held-out"]) == (16, 12)
    assert {arm["steps"] for arm in found["arms"]} == {2}
    assert "the same number of optimiser steps (2)" in (tmp_path / "study" / "study.md").read_text()
    assert found["seconds"]["score"] > 0


# ---- statistics ----


def test_gap_and_interval_of_a_known_difference() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(2.0, 1.0, size=400)
    noise = rng.normal(0.0, 0.1, size=400)
    found = study_report.statistics((rows - 0.05 + noise)[None], rows[None], seed=0)
    assert found["gap"] == pytest.approx(noise.mean() - 0.05)
    assert found["sd"] is None
    # The pairs' standard error, not that of the rows (which is ten times as large): the normal approximation.
    half = 1.96 * noise.std() / np.sqrt(400)
    assert found["interval"] == pytest.approx([found["gap"] - half, found["gap"] + half], abs=half * 0.1)


def test_seeds_widen_the_interval() -> None:
    rows = np.linspace(1, 3, 100)
    steady = np.stack([rows, rows, rows])
    shaky = steady + np.asarray([[-0.2], [0.0], [0.2]])
    narrow = study_report.statistics(steady, steady, seed=0)["interval"]
    wide = study_report.statistics(shaky, steady, seed=0)["interval"]
    assert narrow == pytest.approx([0.0, 0.0], abs=1e-12)
    assert wide[1] - wide[0] > 0.2
    assert study_report.spread([1.0, 2.0, 3.0]) == {"mean": 2.0, "sd": 1.0}


def test_reading_says_what_the_intervals_say() -> None:
    def arm(name: str, low: float, high: float) -> dict[str, Any]:
        return {"arm": name, "keep": 0.1, "sets": {"s": {"gap": (low + high) / 2, "interval": [low, high]}}}

    told = study_report.reading({"sets": {"s": 9}, "arms": [arm("good", -2, -1), arm("bad", 1, 2), arm("even", -1, 1)]})
    assert (
        told
        == "- s: better than random: good at 0.1; worse: bad at 0.1; no difference that this study can see: 1 of 3."
    )


# ---- the plan ----


def arms_of(*names: str) -> list[study_rows.Arm]:
    return [study_rows.Arm(name, 0.1, 0, np.arange(3)) for name in names]


def test_budget_takes_arms_in_order_and_skips_what_does_not_fit() -> None:
    options = study_rows.Study(budget_minutes=1.0)
    arms = arms_of("random", "flexrand", "full", "ifd", "hardest")
    fits = study.plan(options, arms, [20.0, 20.0, 100.0, 15.0, 10.0], [False] * 5)
    assert fits == [True, True, False, True, False]
    assert study.plan(options, arms, [20.0, 20.0, 100.0, 15.0, 10.0], [True, True, True, False, False]) == [True] * 5
    # Time gone on scoring counts.
    assert study.plan(options, arms, [20.0, 20.0, 100.0, 15.0, 10.0], [False] * 5, 15.0) == [
        True,
        True,
        False,
        False,
        False,
    ]
    with pytest.raises(InputError, match=r"not even random and one other arm.*take 1\.2 minutes"):
        study.plan(options, arms_of("random", "ifd"), [50.0, 20.0], [False] * 2)


def test_quarters_of_epochs() -> None:
    options = study_rows.Study(epochs=1.0, batch_size=4)
    assert study.quarters(80, options) == [5, 10, 15, 20]
    assert study.quarters(160, study_rows.Study(epochs=0.5, batch_size=4)) == [10, 20]
    assert study.quarters(8, options) == [1, 2]


# ---- bad input ----


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--arms", "randon"], "Did you mean 'random'?"),
        (["--keep", "1.5"], "between 0 and 1"),
        (["--equal", "steps"], "needs --max-steps"),
        (["--max-steps", "3"], "say --equal steps"),
        (["--held-out-rows", "60"], "60 scored rows"),
        (["--eval", "other"], "NAME=FILE"),
        (["--selection", "mine=none.parquet"], "there is no file"),
        (["--seeds", "0"], "at least 1"),
        (["--packing"], "without packing"),
        (["--rank", "0"], "at least 1"),
        (["--eval-rows", "0"], "--eval-rows 0: at least 1"),
        (["--budget-minutes", "-1"], "at least 0"),
    ],
)
def test_options(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], told: str
) -> None:
    assert study.main(words(tiny_run, tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error


def test_selections_made_elsewhere(tiny_run: Path) -> None:
    options = study_rows.Study(run_folder=str(tiny_run), held_out_rows=12, arms=("random",), keep=(0.5,), seeds=1)
    options = study_rows.dataclasses.replace(options, selection=(f"mine={tiny_run / 'selection.parquet'}",))
    material = study_rows.prepare(options, RunFolder(tiny_run))
    (mine,) = [arm for arm in study_rows.make_arms(options, material) if arm.name == "mine"]
    kept = set(RunFolder(tiny_run).read_selection().kept.tolist())
    assert set(mine.rows.tolist()) == kept & set(material.rows)
    assert 0 < len(mine.rows) < len(kept)


def test_lm_eval_is_asked_for_in_our_words(
    monkeypatch: pytest.MonkeyPatch, tiny_llama: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    monkeypatch.setitem(study.sys.modules, "lm_eval", None)
    with pytest.raises(InputError, match="pip install lm-eval"):
        study.harness(tiny_llama(), tiny_tokenizer, study_rows.Study(lm_eval=("task",)))


def test_the_base_model_is_left_as_it_was(tiny_run: Path) -> None:
    source = models.find_model(lora.scored_as(str(tiny_run)).model)
    base = models.load_causal_lm(source, "float32")
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    options = study_rows.Study(
        run_folder=str(tiny_run), held_out_rows=12, out=str(tiny_run.parent / "o"), batch_size=4, epochs=1
    )
    material = study_rows.prepare(options, RunFolder(tiny_run))
    arm = study_rows.Arm("random", 0.25, 0, material.table.row_id[:12])
    study.run_arm(options, material, arm, base, "float32", None)
    after = base.state_dict()
    assert before.keys() == after.keys()
    assert all(after[name].equal(tensor) for name, tensor in before.items())
    assert training.response_losses(base, material.evaluations["held-out"]).shape == (12,)

"""`instruct-prune prove` on rows that show pictures: arms are trained and judged with their pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sight_models import conversations, saved

from instruct_prune import Run, load_data
from instruct_prune.cli import main
from instruct_prune.prove.arms import Arm
from instruct_prune.prove.bench import Bench
from instruct_prune.rows.row import Row
from instruct_prune.train import TrainConfig, find_base


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prove-pictures")
    (folder / "rows.json").write_text(json.dumps(conversations(folder, 64)))
    saved("llava", folder / "model")
    words = [
        "--data",
        str(folder / "rows.json"),
        "--model",
        str(folder / "model"),
        "--subnets",
        "visual",
        "--dtype",
        "float32",
    ]
    assert main(["run", *words, "--keep", "20", "--clusters", "none", "--out", str(folder / "run")]) == 0
    return folder


def test_an_untrained_arm_has_the_scored_losses_and_training_learns(scored: Path) -> None:
    run = Run(scored / "run")
    base = find_base(str(scored / "model"), pictures=True)
    rows: list[Row] = list(run.rows(kept=None))[:24]
    encoded = {row.row_id: row for row in base.held.encode(rows)}  # type: ignore[union-attr]
    bench = Bench(base, TrainConfig(dtype="float32", dropout=0.0), encoded, {"all": list(encoded.values())}, None)
    before = {name: weight.clone() for name, weight in bench._model.named_parameters()}
    untrained = bench.run(Arm("untrained", "", 0, (), 0, 0.0, 0.0)).readings["all"]
    losses = dict(zip(run.scores.row_id.tolist(), run.scores.losses[:, 0], strict=True))
    counts = np.asarray([row.response_mask.sum() for row in encoded.values()])
    wanted = np.average([losses[row] for row in encoded], weights=counts)
    assert untrained.per_token == pytest.approx(float(wanted), abs=1e-4)
    trained = bench.run(Arm("random", "", 0, tuple(encoded), 12, 4.0, 1e-2)).readings["all"]
    assert trained.per_token < untrained.per_token - 0.1
    assert all(torch.equal(weight, before[name]) for name, weight in bench._model.named_parameters())


def test_the_command_says_whether_a_selection_is_worth_more(scored: Path) -> None:
    quick = ["--random-arms", "6", "--rule-arms", "1", "--learning-rates", "2e-3", "--dtype", "float32"]
    quick += ["--held-out", "12", "--budget-minutes", "10000", "--extras", "whole", "--epochs", "1"]
    assert main(["prove", "--out", str(scored / "run"), *quick]) == 0
    told = json.loads((scored / "run" / "prove" / "prove.json").read_text())
    assert "selection" in json.dumps(told["tests"])
    assert len(told["arms"]) >= 8


def test_rows_of_a_model_that_takes_no_batches_are_trained_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(conversations(tmp_path, 4)))
    base = find_base(str(saved("mllama", tmp_path / "model")), pictures=True)
    source = load_data([str(tmp_path / "rows.json")])
    rows: list[Row] = [row for row in source if isinstance(row, Row)]
    encoded = {row.row_id: row for row in base.held.encode(rows)}  # type: ignore[union-attr]
    bench = Bench(base, TrainConfig(dtype="float32", dropout=0.0), encoded, {"all": list(encoded.values())}, None)
    untrained = bench.run(Arm("untrained", "", 0, (), 0, 0.0, 0.0)).readings["all"]
    trained = bench.run(Arm("random", "", 0, tuple(encoded), 4, 4.0, 1e-2)).readings["all"]
    assert trained.per_token < untrained.per_token - 0.1

"""recipes/lora.py on rows that show pictures: the tokens that were scored, with what the model is given of the pictures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import lora
import numpy as np
import pytest
import torch
from sight_models import conversations, saved
from test_lora import FAST, ROOT

from instruct_prune import InputError, Run
from instruct_prune.cli import main
from instruct_prune.train import TrainConfig, TrainRow, attach_lora, evaluate, find_base, train, train_rows
from instruct_prune.train.batch import collate_pictured, loss_of_kept

ARCHITECTURES = ["llava", "llava_onevision", "qwen2_vl", "idefics3", "internvl", "gemma3", "paligemma", "mllama"]


@pytest.fixture(scope="module")
def pictured_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RUN: 40 rows with one picture, two or none, 32 of them kept."""
    folder = tmp_path_factory.mktemp("lora-pictures")
    (folder / "rows.json").write_text(json.dumps(conversations(folder, 40)))
    saved("llava", folder / "model")
    words = ["--data", str(folder / "rows.json"), "--model", str(folder / "model"), "--dtype", "float32"]
    kept = ["--keep", "32", "--method", "random", "--clusters", "none"]
    assert main(["run", *words, "--subnets", "dense", *kept, "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def trained(pictured_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lora-pictures-out") / "adapter"
    assert lora.main(["--run-folder", str(pictured_run), "--out", str(out), *FAST, "--merge"]) == 0
    return out


def encoded_of(run: Path) -> tuple[lora.Recipe, lora.Base, list[lora.Encoded]]:
    recipe = lora.Recipe(run_folder=str(run), dtype="float32", dropout=0.0)
    base = find_base(Run(run).model, pictures=True)
    return recipe, base, lora.read_kept(recipe, base)


def test_the_held_out_loss_falls_and_is_that_of_the_saved_adapter(pictured_run: Path, trained: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    facts = json.loads((trained / "training.json").read_text())
    before, after = facts["held_out_loss"]["0"], facts["held_out_loss"][str(facts["steps"])]
    assert after < before - 0.1
    recipe, base, rows = encoded_of(pictured_run)
    held_out = lora.split_rows(rows, 0.1, 0)[1]
    adapted = PeftModel.from_pretrained(base.load(recipe), trained / "adapter")
    assert evaluate(adapted, held_out, held=base.held).per_row.mean() == pytest.approx(after, rel=1e-5)
    assert not [name for name, _ in adapted.named_parameters() if "lora" in name and "language_model" not in name]
    plain = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base.name), trained / "adapter")
    assert {name for name, _ in plain.named_parameters()} == {name for name, _ in adapted.named_parameters()}
    merged = find_base(str(trained / "merged"), pictures=True)  # with the processor beside it
    merged_model = merged.load(recipe)
    assert evaluate(merged_model, held_out, held=merged.held).per_row.mean() == pytest.approx(after, rel=1e-4)


def test_rows_are_the_scored_ones_and_the_untrained_loss_is_the_scorers(pictured_run: Path) -> None:
    recipe, base, rows = encoded_of(pictured_run)
    run = Run(pictured_run)
    assert [row.row_id for row in rows] == run.selection.kept.tolist()
    model = base.load(recipe)
    scored = dict(zip(run.scores.row_id.tolist(), run.scores.losses[:, 0], strict=True))
    found = evaluate(model, rows, held=base.held).per_row
    np.testing.assert_allclose(found, [scored[row.row_id] for row in rows], atol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_the_trainer_minimises_is_the_loss_that_is_measured(name: str, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(conversations(tmp_path, 6)))
    saved(name, tmp_path / "model")
    run = Run(tmp_path / "run")
    words = ["--data", str(tmp_path / "rows.json"), "--model", str(tmp_path / "model"), "--dtype", "float32"]
    assert main(["score", *words, "--subnets", "dense", "--out", str(tmp_path / "run")]) == 0
    base = find_base(str(tmp_path / "model"), pictures=True)
    model = attach_lora(base.load(lora.Recipe(dtype="float32")), lora.Recipe(dropout=0.0))
    assert base.held is not None
    encoded = [row for row in run.encoder().encode(list(run.rows(kept=None))) if row.status.scored]
    rows = train_rows(encoded)

    def loss(rows: list[TrainRow]) -> torch.Tensor:
        batch = collate_pictured(rows, base.held)
        labels = batch.pop("labels")
        return loss_of_kept(model(**batch, use_cache=False), labels, 1)

    groups = [rows] if base.held.shortcuts.batches else [[row] for row in rows]
    found = torch.stack([loss(group) for group in groups]).sum()
    wanted = evaluate(model, encoded, held=base.held).values.sum()
    assert found.item() == pytest.approx(float(wanted), rel=1e-4)
    torch.autograd.backward(found)
    assert any(weight.grad is not None and weight.grad.abs().max() > 0 for weight in model.parameters())


def test_what_cannot_be_is_said(pictured_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--run-folder", str(pictured_run), "--out", str(tmp_path / "out"), *FAST]
    assert lora.main([*words, "--packing"]) == 2
    assert "rows that show pictures cannot share a sequence" in capsys.readouterr().err
    assert lora.main([*words, "--quantize", "4bit"]) == 2
    assert "rows of text alone" in capsys.readouterr().err


def test_rows_of_a_model_that_takes_no_batches_are_not_put_in_one(tmp_path: Path) -> None:
    base = find_base(str(saved("mllama", tmp_path / "model")), pictures=True)
    config = TrainConfig(dtype="float32", micro_batch=2, batch_size=4)
    with pytest.raises(InputError, match="with --micro-batch 1"):
        train(attach_lora(base.load(config), config), [TrainRow(*[np.arange(4)] * 3)] * 8, config, held=base.held)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(pictured_run: Path, trained: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    words = ["--run-folder", str(pictured_run), "--out", str(tmp_path / "two"), *FAST]
    command = [*launcher, str(ROOT / "recipes" / "lora.py"), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (json.loads((folder / "training.json").read_text()) for folder in (trained, tmp_path / "two"))
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=1e-3)
    for step, value in one["held_out_loss"].items():
        assert two["held_out_loss"][step] == pytest.approx(value, rel=1e-3)

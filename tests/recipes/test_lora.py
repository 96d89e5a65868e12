"""recipes/lora.py on tiny models: what is learnt, resumed, merged, split over processes, and refused."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import lora
import numpy as np
import pytest
import torch
from sample_rows import write_jsonl

from instruct_prune import DataConfig, Encoded, Run, ScoreConfig, SelectConfig
from instruct_prune.encode.store import TokenStore
from instruct_prune.run.folder import RunFolder
from instruct_prune.train import IGNORED, TokenLosses, TrainConfig, evaluate, find_base, train_rows
from instruct_prune.train.tracking import tracker_arguments

ROOT = Path(__file__).parents[2]
FAST = ["--rank", "4", "--batch-size", "4", "--micro-batch", "2", "--dtype", "float32", "--dropout", "0.0"]
FAST += ["--epochs", "1", "--learning-rate", "0.01", "--save-steps", "2"]


def words(run: Path, out: Path, *more: str) -> list[str]:
    return ["--run-folder", str(run), "--out", str(out), *FAST, *more]


def adapter(out: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(out / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def trained(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lora") / "adapter"
    assert lora.main(words(tiny_run, out, "--merge")) == 0
    return out


# ---- the whole way ----


def test_adapter_lowers_the_held_out_loss(tiny_run: Path, trained: Path) -> None:
    facts = json.loads((trained / "training.json").read_text())
    before, after = facts["held_out_loss"]["0"], facts["held_out_loss"][str(facts["steps"])]
    assert facts["steps"] == round(27 / 4)  # 30 kept, 3 of them held out
    assert after < before - 0.1
    assert [step for step, _ in facts["losses"]] == list(range(1, facts["steps"] + 1))
    assert not (trained / "checkpoints").exists()
    # The saved adapter is what was measured.
    from peft import PeftModel

    recipe = lora.Recipe(run_folder=str(tiny_run), dtype="float32")
    base = find_base(Run(tiny_run).model)
    _, held_out = lora.split_rows(lora.read_kept(recipe, base), 0.1, 0)
    model = PeftModel.from_pretrained(base.load(recipe), trained / "adapter")
    assert evaluate(model, held_out).per_row.mean() == pytest.approx(after, rel=1e-5)
    merged = find_base(str(trained / "merged")).load(recipe)
    assert evaluate(merged, held_out).per_row.mean() == pytest.approx(after, rel=1e-4)


def kept_of(run: Path, **options: Any) -> list[Encoded]:
    recipe = lora.Recipe(run_folder=str(run), **options)
    return lora.read_kept(recipe, find_base(Run(run).model))


def test_the_rows_are_the_scorers_tokens_and_mask(tiny_run: Path) -> None:
    rows = kept_of(tiny_run)
    store = TokenStore.open(tiny_run / "items")
    kept = RunFolder(tiny_run).read_selection().kept
    assert len(rows) == len(kept) == 30
    for row, sequence, row_id in zip(rows, train_rows(rows), kept, strict=True):
        assert row.row_id == row_id
        tokens = store[int(np.flatnonzero(store.row_id == row_id)[0])]
        np.testing.assert_array_equal(sequence.input_ids, tokens.ids)
        np.testing.assert_array_equal(sequence.labels != IGNORED, tokens.response_mask)


def test_the_held_out_loss_is_the_scorers(tiny_run: Path) -> None:
    table = RunFolder(tiny_run).read_scores()
    run = Run(tiny_run)
    rows = run.encoder().encode(list(run.rows(kept=None)))
    model = find_base(run.model).load(lora.Recipe(dtype="float32"))
    np.testing.assert_allclose(evaluate(model, rows).per_row, table.losses[:, 0], rtol=1e-5)


def test_the_selection_counts_and_not_an_earlier_export(tiny_run: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    Run(tmp_path / "run").select(SelectConfig(keep=7, clusters="4"))
    rows = kept_of(tmp_path / "run")
    assert [row.row_id for row in rows] == RunFolder(tmp_path / "run").read_selection().kept.tolist()
    assert len(rows) == 7


def test_same_command_again_does_nothing_and_another_one_is_refused(
    tiny_run: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (trained / "training.json").stat().st_mtime_ns
    assert lora.main(words(tiny_run, trained)) == 0
    assert (trained / "training.json").stat().st_mtime_ns == before
    assert "trained before" in capsys.readouterr().err
    assert lora.main(words(tiny_run, trained, "--rank", "8")) == 2
    assert "rank: 4 -> 8" in capsys.readouterr().err


# ---- interruption and several processes ----


def test_interrupted_training_ends_in_the_same_adapter(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--dropout", "0.1"]  # its random numbers must go on where they stopped too
    assert lora.main(words(tiny_run, tmp_path / "whole", *more)) == 0
    with monkeypatch.context() as patch:
        looks: list[int] = []

        def stopping(model: Any, rows: Any, held: None) -> TokenLosses:
            looks.append(len(looks))
            if len(looks) == 2:  # the first is before training, the second after its third step
                raise KeyboardInterrupt
            return evaluate(model, rows)

        patch.setattr(lora, "evaluate_shared", stopping)
        assert lora.main(words(tiny_run, tmp_path / "broken", *more, "--eval-steps", "3")) == 130
    assert (tmp_path / "broken" / "checkpoints" / "checkpoint-2").exists()
    assert not (tmp_path / "broken" / "adapter").exists()
    torn = tmp_path / "broken" / "checkpoints" / "checkpoint-4"  # begun, and not finished
    torn.mkdir()
    assert lora.main(words(tiny_run, tmp_path / "broken", *more)) == 0
    assert "resuming from" in capsys.readouterr().err
    whole, resumed = adapter(tmp_path / "whole"), adapter(tmp_path / "broken")
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-5, atol=1e-7)
    losses = [json.loads((tmp_path / n / "training.json").read_text())["losses"] for n in ("whole", "broken")]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tiny_run: Path, trained: Path, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*launcher, str(ROOT / "recipes" / "lora.py"), *words(tiny_run, tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "2 processes" in done.stderr
    one, two = (json.loads((folder / "training.json").read_text()) for folder in (trained, tmp_path / "two"))
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=1e-3)
    for step, value in one["held_out_loss"].items():
        assert two["held_out_loss"][step] == pytest.approx(value, rel=1e-3)
    assert done.stdout.count("held-out loss:") == 1


# ---- bad input ----


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert lora.main(list(arguments)) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    return told.split("lora: error: ")[1]


def test_config_key_that_does_not_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.yaml").write_text("lerning_rate: 0.1\n")
    told = error_of(capsys, "--config", str(tmp_path / "bad.yaml"))
    assert "unknown option 'lerning_rate'. Did you mean 'learning_rate'?" in told


def test_model_that_is_not_there(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = error_of(capsys, *words(tiny_run, tmp_path / "out", "--model", str(tmp_path / "nowhere")))
    assert "there is no such model folder" in told
    assert not (tmp_path / "out").exists()


def test_run_without_a_selection(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    (tmp_path / "run" / "selection.parquet").unlink()
    assert "`instruct-prune select" in error_of(capsys, *words(tmp_path / "run", tmp_path / "out"))
    assert "no such run folder" in error_of(capsys, *words(tmp_path / "none", tmp_path / "out"))
    assert not (tmp_path / "none").exists()


def test_run_over_pictures(picture_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is a run over pictures" in error_of(capsys, *words(picture_run, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_out_that_holds_something_else(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    assert "holds no training" in error_of(capsys, *words(tiny_run, tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_another_template_than_the_manifests(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    told = error_of(capsys, *words(tiny_run, out, "--template", "chat"))
    assert "was scored under the template 'alpaca'" in told
    chat = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}] * 8
    data = write_jsonl(tmp_path / "chat.jsonl", chat)
    told = error_of(capsys, *words(tiny_run, out, "--data", str(data)))
    assert "are written with the template 'chat'" in told


def test_another_models_chat_template(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = [{"role": "user", "content": "Tell me about bread."}, {"role": "assistant", "content": "About old trains."}]
    data = write_jsonl(tmp_path / "chat.jsonl", [{"messages": turns, "number": i} for i in range(8)])
    run = Run(tmp_path / "run")
    run.score(DataConfig((str(data),)), ScoreConfig(str(tiny_model_folder), subnets=("dense",), dtype="float32"))
    run.select(SelectConfig(keep=6, clusters="none", method="random"))
    shutil.copytree(tiny_model_folder, tmp_path / "other")
    template = tmp_path / "other" / "chat_template.jinja"
    template.write_text(template.read_text() + "{# the same turns, another text #}")
    more = ["--model", str(tmp_path / "other"), "--max-steps", "1", "--eval-share", "0.2"]
    told = error_of(capsys, *words(tmp_path / "run", tmp_path / "out", *more))
    assert "another SHA-256" in told
    assert not (tmp_path / "out").exists()
    assert lora.main(words(tmp_path / "run", tmp_path / "out", *more, "--other-template")) == 0


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--batch-size", "3"], "Make it a multiple of 2"),
        (["--eval-share", "1.5"], "give a share"),
        (["--eval-share", "0.99"], "leaves nothing to train on"),
        (["--target-modules", "no_such_proj"], "has none of these"),
        (["--target-modules"], "name modules, or all-linear"),
        (["--rank", "0"], "at least 1"),
        (["--dropout", "1.5"], "--dropout 1.5: give a share"),
        (["--warmup", "-1"], "--warmup -1.0: give a share"),
        (["--max-steps", "-1"], "at least 0"),
        (["--seed", "-1"], "at least 0"),
        (["--eval-steps", "-1"], "at least 0"),
        (["--learning-rate", "nan"], "--learning-rate nan: it must be above 0"),
        (["--epochs", "inf"], "above 0"),
        (["--max-length", "0"], "at least 2 tokens"),
        (["--report-to", "trackio"], "--report-to trackio: it is not installed. pip install trackio"),
    ],
)
def test_options_out_of_range(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], told: str
) -> None:
    assert told in error_of(capsys, *words(tiny_run, tmp_path / "out", *more))


def test_what_must_be_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--out is missing" in error_of(capsys, "--run-folder", "x")
    assert "--run-folder is missing" in error_of(capsys, "--out", "x")
    assert "--model is missing" in error_of(capsys, "--out", "x", "--data", "y.jsonl")


def test_without_a_run_any_file_can_be_trained_on(tiny_run: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    arguments = [
        "--data",
        str(tiny_run / "pruned.jsonl"),
        "--model",
        str(tiny_model_folder),
        "--out",
        str(tmp_path / "o"),
    ]
    more = ["--max-steps", "1", "--eval-share", "0", "--packing", "--max-length", "200"]
    assert lora.main([*arguments, *FAST, *more]) == 0
    assert json.loads((tmp_path / "o" / "training.json").read_text())["steps"] == 1


# ---- trackers ----


def test_tensorboard_has_every_step_and_the_adapter_is_the_same(tiny_run: Path, trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed (extra dev)")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert lora.main(words(tiny_run, tmp_path / "out", "--report-to", "tensorboard")) == 0
    written = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    written.Reload()
    losses = dict(json.loads((tmp_path / "out" / "training.json").read_text())["losses"])
    assert {event.step: event.value for event in written.Scalars("train/loss")} == pytest.approx(losses, abs=1e-4)
    assert all(torch.equal(value, adapter(trained)[name]) for name, value in adapter(tmp_path / "out").items())
    assert lora.main(words(tiny_run, tmp_path / "out")) == 0  # trained before: a tracker changes no adapter


@pytest.mark.parametrize("tracker", ["trackio", "wandb"])
def test_trackers_stay_on_this_machine_and_are_called_by_the_folder(tracker: Any) -> None:
    told = tracker_arguments(TrainConfig(report_to=tracker), Path("adapters/first"))
    assert told == {"report_to": tracker, "run_name": "adapters/first", "trackio_space_id": None}
    assert tracker_arguments(TrainConfig(report_to=tracker), None)["report_to"] == "none"

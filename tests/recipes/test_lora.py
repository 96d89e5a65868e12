"""recipes/lora.py on tiny models: what is learnt, resumed, merged, split over processes, and refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lora
import numpy as np
import pytest
import torch
import training
from sample_rows import write_jsonl

from instruct_prune.encode.item import Encoded, Status
from instruct_prune.encode.store import TokenStore
from instruct_prune.errors import InputError
from instruct_prune.models import names as models
from instruct_prune.run.folder import RunFolder

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


def encoded_rows(tokenizer: Any, texts: list[str]) -> list[Encoded]:
    rows = []
    for i, text in enumerate(texts):
        ids = np.asarray(tokenizer(text)["input_ids"], dtype=np.int32)
        rows.append(Encoded(i, ids, np.arange(len(ids)) >= max(1, len(ids) // 2), Status.OK))
    return rows


TEXTS = [
    "tell me about old trains and the moon",
    "bread and bread",
    "tax law, case 3: about rivers 1 rivers 4",
    "a Python list",
]


# ---- the whole way ----


def test_adapter_lowers_the_held_out_loss(tiny_run: Path, trained: Path) -> None:
    facts = json.loads((trained / "training.json").read_text())
    before, after = facts["held_out_loss"]["0"], facts["held_out_loss"][str(facts["steps"])]
    assert facts["steps"] == round(27 / 4)  # 30 kept, 3 of them held out
    assert after < before - 0.1
    assert [step for step, _ in facts["loss"]] == list(range(1, facts["steps"] + 1))
    assert not (trained / "checkpoints").exists()
    # The saved adapter is what was measured.
    recipe = lora.Recipe(run_folder=str(tiny_run), eval_share=0.1)
    scored = lora.scored_as(str(tiny_run))
    source = models.find_model(scored.model)
    tokenizer = models.load_tokenizer(source)
    rows = lora.read_rows(
        [str(tiny_run / "pruned.jsonl")], lambda f: lora.make_encoder(recipe, scored, tokenizer, 512, f), scored, True
    )
    _, held_out = lora.split_rows(rows, 0.1, 0)
    model = lora.PeftModel.from_pretrained(models.load_causal_lm(source, "float32"), trained / "adapter")
    assert training.response_losses(model, held_out).mean() == pytest.approx(after, rel=1e-5)
    merged = models.load_causal_lm(models.find_model(str(trained / "merged")), "float32")
    assert training.response_losses(merged, held_out).mean() == pytest.approx(after, rel=1e-4)


def test_the_rows_are_the_scorers_tokens_and_mask(tiny_run: Path) -> None:
    scored = lora.scored_as(str(tiny_run))
    tokenizer = models.load_tokenizer(models.find_model(scored.model))
    recipe = lora.Recipe(run_folder=str(tiny_run))
    rows = lora.read_rows(
        [str(tiny_run / "pruned.jsonl")], lambda f: lora.make_encoder(recipe, scored, tokenizer, 512, f), scored, True
    )
    store = TokenStore.open(tiny_run / "tokens")
    kept = RunFolder(tiny_run).read_selection().kept
    assert len(rows) == len(kept) == 30
    for row, row_id in zip(rows, kept, strict=True):
        tokens = store[int(np.flatnonzero(store.row_id == row_id)[0])]
        sequence = training.row_of(row)
        np.testing.assert_array_equal(sequence.ids, tokens.ids)
        np.testing.assert_array_equal(sequence.labels != training.IGNORED, tokens.response_mask)


def test_the_held_out_loss_is_the_scorers(tiny_run: Path) -> None:
    store, table = TokenStore.open(tiny_run / "tokens"), RunFolder(tiny_run).read_scores()
    model = models.load_causal_lm(models.find_model(lora.scored_as(str(tiny_run)).model), "float32")
    rows = [Encoded(i, store[i].ids, store[i].response_mask, Status.OK) for i in range(20)]
    np.testing.assert_allclose(training.response_losses(model, rows), table.losses[:20, 0], rtol=1e-5)


def test_same_command_again_does_nothing_and_another_one_is_refused(
    tiny_run: Path, trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (trained / "training.json").stat().st_mtime_ns
    assert lora.main(words(tiny_run, trained)) == 0
    assert (trained / "training.json").stat().st_mtime_ns == before
    assert "trained before" in capsys.readouterr().err
    assert lora.main(words(tiny_run, trained, "--rank", "8")) == 2
    assert "rank: 4 -> 8" in capsys.readouterr().err


# ---- batches ----


def test_head_on_targets_only_gives_the_same_loss_and_gradients(
    tiny_llama: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    rows = [training.row_of(row) for row in encoded_rows(tiny_tokenizer, TEXTS)]
    losses, gradients = [], []
    for keep_logits in (False, True):
        model = training.attach_lora(tiny_llama(), training.Training(rank=4, dropout=0.0))
        batch = training.collate(rows, keep_logits=keep_logits)
        if keep_logits:
            assert len(batch["logits_to_keep"]) < batch["input_ids"].shape[1]
        else:  # the reference: the model's own loss, with a mask over the padding
            widths = torch.tensor([[len(row.ids)] for row in rows])
            batch["attention_mask"] = (torch.arange(batch["input_ids"].shape[1]) < widths).long()
        loss = model(**batch).loss
        loss.backward()
        losses.append(loss.item())
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_packed_rows_do_not_see_each_other(tiny_llama: Callable[..., Any], tiny_tokenizer: Any) -> None:
    encoded = encoded_rows(tiny_tokenizer, TEXTS)
    rows = [training.row_of(row) for row in encoded]
    longest = max(len(row.ids) for row in rows)
    joined = training.packed(rows, longest + 3)
    assert len(joined) < len(rows)
    assert sorted(np.concatenate([r.ids for r in joined])) == sorted(np.concatenate([r.ids for r in rows]))
    assert all(len(row.ids) <= longest + 3 for row in joined)
    model = training.attach_lora(tiny_llama(), training.Training())
    with torch.no_grad():
        loss = model(**training.collate(joined, packing=True)).loss.item()
    alone = training.response_losses(model, encoded)
    counts = np.asarray([row.response_mask[1:].sum() for row in encoded])
    assert loss == pytest.approx(float((alone * counts).sum() / counts.sum()), rel=1e-5)
    with torch.no_grad():
        seen = model(**training.collate(joined, packing=False)).loss.item()
    assert seen != pytest.approx(loss, rel=1e-3)  # without their positions they would see each other


@pytest.mark.parametrize(("n", "steps", "batch"), [(10, 7, 3), (5, 1, 4), (3, 4, 5)])
def test_order_is_whole_epochs_sorted_inside_a_step(n: int, steps: int, batch: int) -> None:
    lengths = [7 * i % 5 + 1 for i in range(n)]
    order = training.training_order(lengths, steps, batch, seed=3)
    assert order.shape == (steps * batch,)
    counts = np.bincount(order, minlength=n)
    assert counts.max() - counts.min() <= 1
    for step in order.reshape(steps, batch):
        assert (np.diff(np.asarray(lengths)[step]) <= 0).all()
    assert order.tolist() == training.training_order(lengths, steps, batch, seed=3).tolist()
    assert order.tolist() != training.training_order(lengths, steps, batch, seed=4).tolist()


# ---- interruption and several processes ----


class Stop(training.TrainerCallback):  # type: ignore[misc]
    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt


def test_interrupted_training_ends_in_the_same_adapter(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--dropout", "0.1"]  # its random numbers must go on where they stopped too
    assert lora.main(words(tiny_run, tmp_path / "whole", *more)) == 0
    with monkeypatch.context() as patch:
        usual = training.make_trainer

        def stopping(*arguments: Any) -> Any:
            trainer = usual(*arguments)
            trainer.add_callback(Stop())
            return trainer

        patch.setattr(lora, "make_trainer", stopping)
        assert lora.main(words(tiny_run, tmp_path / "broken", *more)) == 130
    assert not (tmp_path / "broken" / "adapter").exists()
    torn = tmp_path / "broken" / "checkpoints" / "checkpoint-4"  # begun, and not finished
    torn.mkdir()
    assert lora.main(words(tiny_run, tmp_path / "broken", *more)) == 0
    assert "resuming from" in capsys.readouterr().err
    whole, resumed = adapter(tmp_path / "whole"), adapter(tmp_path / "broken")
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-5, atol=1e-7)
    losses = [json.loads((tmp_path / n / "training.json").read_text())["loss"] for n in ("whole", "broken")]
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
    np.testing.assert_allclose(two["loss"], one["loss"], rtol=1e-3)
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


def test_empty_pruned_file(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "manifest.json").write_bytes((tiny_run / "manifest.json").read_bytes())
    assert "Write it: instruct-prune export" in error_of(capsys, *words(run, tmp_path / "out"))
    (run / "pruned.jsonl").write_bytes(b"")
    assert "is empty: it has no rows" in error_of(capsys, *words(run, tmp_path / "out"))
    assert "no such run folder" in error_of(capsys, *words(tmp_path / "none", tmp_path / "out"))


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
    manifest = json.loads((tiny_run / "manifest.json").read_text())
    manifest["stages"]["encode"]["config"]["template_sha256"] = "0" * 64
    run = tmp_path / "run"
    run.mkdir()
    (run / "manifest.json").write_text(json.dumps(manifest))
    (run / "pruned.jsonl").write_bytes((tiny_run / "pruned.jsonl").read_bytes())
    assert "another SHA-256" in error_of(capsys, *words(run, out))


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


def test_4bit_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    source = models.ModelSource("x", "x", None, True)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InputError, match="pip install"):
        training.load_base(source, "float32", "4bit")
    monkeypatch.setitem(sys.modules, "bitsandbytes", object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="needs a CUDA GPU"):
        training.load_base(source, "float32", "4bit")


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

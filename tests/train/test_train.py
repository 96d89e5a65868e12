"""Training sequences, batches, losses, schedule and the Trainer, on tiny models."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from instruct_prune import Encoded, InputError
from instruct_prune.encode.item import Status
from instruct_prune.models import names as models
from instruct_prune.models.causal_lm import CausalLM
from instruct_prune.train import (
    TokenLosses,
    TrainConfig,
    attach_lora,
    collate,
    evaluate,
    pack,
    steps_of,
    train,
    train_by_tokens,
    train_rows,
)
from instruct_prune.train.base import Base
from instruct_prune.train.rows import IGNORED, training_order
from instruct_prune.train.schedule import learning_rate_share


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


def test_head_on_targets_only_gives_the_same_loss_and_gradients(
    tiny_llama: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    rows = train_rows(encoded_rows(tiny_tokenizer, TEXTS))
    losses, gradients = [], []
    for keep_logits in (False, True):
        model = attach_lora(tiny_llama(), TrainConfig(rank=4, dropout=0.0))
        batch = collate(rows, keep_logits=keep_logits)
        if keep_logits:
            assert len(batch["logits_to_keep"]) < batch["input_ids"].shape[1]
        else:  # the reference: the model's own loss, with a mask over the padding
            widths = torch.tensor([[len(row)] for row in rows])
            batch["attention_mask"] = (torch.arange(batch["input_ids"].shape[1]) < widths).long()
        loss = model(**batch).loss
        loss.backward()
        losses.append(loss.item())
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("targets", [("all-linear",), ("q_proj", "lm_head")])
def test_steps_by_tokens_are_steps_of_adamw_on_the_models_own_loss(
    targets: tuple[str, ...], tiny_llama: Callable[..., Any], tiny_tokenizer: Any
) -> None:
    """Also where the adapter is on the output head. A micro-batch takes two of the rows, and a piece ends inside a row."""
    rows = train_rows(encoded_rows(tiny_tokenizer, [*TEXTS, " ".join(["rivers and bread"] * 200)]))
    config = TrainConfig(rank=4, dropout=0.0, dtype="float32", learning_rate=0.01, warmup=0, target_modules=targets)
    plan = steps_of([row.n_targets for row in rows], 3, sum(row.n_targets for row in rows), seed=1)
    assert any(piece.first for step in plan for piece in step)
    held = CausalLM.holding(tiny_llama())
    found = attach_lora(held.module, config)
    train_by_tokens(found, rows, plan, config, held)

    expected = attach_lora(tiny_llama(), config)
    trained = [p for p in expected.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay)
    for number, step in enumerate(plan):
        optimizer.param_groups[0]["lr"] = config.learning_rate * learning_rate_share(number, 3, 0, config.schedule)
        losses = []
        for piece in step:
            ids = torch.from_numpy(rows[piece.row].input_ids)[None]
            logits = expected(ids).logits[0, :-1].log_softmax(-1)
            nll = -logits[range(ids.shape[1] - 1), ids[0, 1:]]
            losses.append(nll[rows[piece.row].labels[1:] != IGNORED][piece.first : piece.last])
        torch.cat(losses).mean().backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    own = [p for p in found.parameters() if p.requires_grad]
    assert len(own) == len(trained)
    for a, b in zip(own, trained, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_packed_rows_do_not_see_each_other(tiny_llama: Callable[..., Any], tiny_tokenizer: Any) -> None:
    encoded = encoded_rows(tiny_tokenizer, TEXTS)
    rows = train_rows(encoded)
    longest = max(len(row) for row in rows)
    joined = pack(rows, longest + 3)
    assert len(joined) < len(rows)
    assert sorted(np.concatenate([r.input_ids for r in joined])) == sorted(np.concatenate([r.input_ids for r in rows]))
    assert all(len(row) <= longest + 3 for row in joined)
    model = attach_lora(tiny_llama(), TrainConfig())
    with torch.no_grad():
        loss = model(**collate(joined, packing=True)).loss.item()
    alone = evaluate(model, encoded)
    assert loss == pytest.approx(alone.values.mean(), rel=1e-5)
    with torch.no_grad():
        seen = model(**collate(joined, packing=False)).loss.item()
    assert seen != pytest.approx(loss, rel=1e-3)  # without their positions they would see each other


@pytest.mark.parametrize(("n", "steps", "batch"), [(10, 7, 3), (5, 1, 4), (3, 4, 5)])
def test_order_is_whole_epochs_sorted_inside_a_step(n: int, steps: int, batch: int) -> None:
    lengths = [7 * i % 5 + 1 for i in range(n)]
    order = training_order(lengths, steps, batch, seed=3)
    assert order.shape == (steps * batch,)
    counts = np.bincount(order, minlength=n)
    assert counts.max() - counts.min() <= 1
    for step in order.reshape(steps, batch):
        assert (np.diff(np.asarray(lengths)[step]) <= 0).all()
    assert order.tolist() == training_order(lengths, steps, batch, seed=3).tolist()
    assert order.tolist() != training_order(lengths, steps, batch, seed=4).tolist()


def test_4bit_where_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    source = models.ModelSource("x", "x", None, True)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InputError, match="pip install"):
        Base(source, None, 512).load(TrainConfig(dtype="float32", quantize="4bit"))
    monkeypatch.setitem(sys.modules, "bitsandbytes", object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="needs a CUDA GPU"):
        Base(source, None, 512).load(TrainConfig(dtype="float32", quantize="4bit"))


# ---- losses ----


def test_losses_by_row() -> None:
    losses = TokenLosses(np.asarray([1, 2, 6, 4], dtype=np.float32), np.asarray([0, 3, 4]))
    assert losses.per_row.tolist() == [3, 4]
    assert losses[0].tolist() == [1, 2, 6]


def test_losses_are_the_models_own(tiny_llama: Callable[..., Any], tiny_tokenizer: Any) -> None:
    encoded = encoded_rows(tiny_tokenizer, [*TEXTS, TEXTS[0] + " and more"])
    model = attach_lora(tiny_llama(), TrainConfig())
    model.train()
    found = evaluate(model, encoded, batch_tokens=64)
    assert model.training  # left as it was
    assert len(found) == len(encoded)
    plain = tiny_llama()
    for i, row in enumerate(encoded):
        ids = torch.from_numpy(row.input_ids.astype(np.int64))
        with torch.no_grad():
            logits = plain(input_ids=ids[None]).logits[0, :-1].float()
        wanted = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")[row.response_mask[1:]]
        np.testing.assert_allclose(found[i], wanted.numpy(), rtol=1e-4)


# ---- schedule ----


def test_learning_rates_by_hand() -> None:
    def shares(steps: int, warmup: int, schedule: Any = "cosine") -> list[float]:
        return [round(learning_rate_share(step, steps, warmup, schedule), 4) for step in range(steps)]

    assert shares(4, 2) == [0.5, 1.0, 0.75, 0.25]  # (1 + cos(pi / 3)) / 2 and (1 + cos(2 pi / 3)) / 2
    assert shares(2, 1) == shares(2, 0) == [1.0, 0.5]
    assert shares(1, 1) == [1.0]
    assert shares(5, 3, "constant") == [0.3333, 0.6667, 1.0, 1.0, 1.0]


# ---- training ----

SMALL = TrainConfig(rank=4, dropout=0.0, batch_size=2, micro_batch=2, dtype="float32", learning_rate=0.01)


def test_the_first_step_learns(tiny_llama: Callable[..., Any], tiny_tokenizer: Any) -> None:
    encoded = encoded_rows(tiny_tokenizer, TEXTS)
    model = attach_lora(tiny_llama(), SMALL)
    before = evaluate(model, encoded).values.mean()
    result = train(model, train_rows(encoded), TrainConfig(**{**vars(SMALL), "max_steps": 1, "warmup": 0.03}))
    assert result.steps == 1
    assert evaluate(model, encoded).values.mean() < before - 1e-3


def test_steps_and_tokens_are_exact(tiny_llama: Callable[..., Any], tiny_tokenizer: Any) -> None:
    encoded = encoded_rows(tiny_tokenizer, TEXTS)
    steps: list[int] = []
    model = attach_lora(tiny_llama(), SMALL)
    options = TrainConfig(**{**vars(SMALL), "max_steps": 4})  # two rows a step: every row twice
    result = train(model, train_rows(encoded), options, on_step=steps.append)
    assert steps == [1, 2, 3, 4]
    assert [step for step, _ in result.losses] == steps
    assert result.tokens == 2 * sum(len(row.input_ids) for row in encoded)
    assert result.response_tokens == 2 * sum(int(row.response_mask[1:].sum()) for row in encoded)
    first = evaluate(
        tiny_llama(), [encoded[i] for i in training_order([len(r) for r in train_rows(encoded)], 4, 2, 0)[:2]]
    )
    assert result.losses[0][1] == pytest.approx(first.values.mean(), rel=1e-3)  # logged with four digits


def test_same_seed_same_adapter_and_the_base_is_left_alone(tiny_llama: Callable[..., Any], tiny_tokenizer: Any) -> None:
    rows = train_rows(encoded_rows(tiny_tokenizer, TEXTS))
    base = tiny_llama()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    found = []
    for seed in (3, 3, 4):
        options = TrainConfig(**{**vars(SMALL), "seed": seed, "dropout": 0.1, "max_steps": 3})
        model = attach_lora(base, options)
        train(model, rows, options)
        found.append({name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad})
        base = model.unload()
    assert all(found[1][name].equal(tensor) for name, tensor in found[0].items())
    assert not all(found[2][name].equal(tensor) for name, tensor in found[0].items())
    after = base.state_dict()
    assert before.keys() == after.keys()
    assert all(after[name].equal(tensor) for name, tensor in before.items())


def test_the_package_and_the_options_import_no_torch() -> None:
    code = "import sys, instruct_prune; from instruct_prune.train import TrainConfig, TrainRow; TrainConfig(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

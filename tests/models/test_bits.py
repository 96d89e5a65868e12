"""On a CPU, what is computed of a row is the same to the last bit, whatever rows it runs with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_causal_lm import held, rows
from tiny_families import families

from instruct_prune.encode.batching import Batch, plan_batches, shared_prefixes
from instruct_prune.encode.item import Tokens
from instruct_prune.measure.engine import run_batch
from instruct_prune.measure.measurement import Measurement, Pass
from instruct_prune.measure.probes import Loss, Probe, State
from instruct_prune.measure.subnet import DENSE
from instruct_prune.models.causal_lm import CausalLM

EXACT = ["llama", "qwen2", "qwen3", "gemma2", "mistral", "gpt2", "phi", "phi3", "granite", "cohere"]
"""Not a mixture of experts: an expert's product is over those tokens of the batch that it is given, be it one. (Nor gradients.)"""


def measured(
    backbone: CausalLM, data: list[Tokens], some: np.ndarray, batch_tokens: int, probes: tuple[Probe, ...], share: bool
) -> np.ndarray:
    """float32 [len(some), d]: these rows, planned among themselves; prefixes are those of all rows."""
    lengths = np.asarray([len(row.ids) for row in data], dtype=np.int32)
    group, prefixes = None, ()
    if share:
        offset = np.concatenate([[0], np.cumsum(lengths)])
        first = np.asarray([int(row.response_mask.argmax()) for row in data], dtype=np.int32)
        group, prefixes = shared_prefixes(
            np.concatenate([row.ids for row in data]), offset, np.arange(len(data)), first
        )
        group = group[some]
    plan = plan_batches(some, lengths[some], batch_tokens=batch_tokens, group=group, prefixes=prefixes)
    a_pass = Pass(DENSE, "full", tuple(Measurement(DENSE, probe) for probe in probes))
    backbone.start_pass(plan, a_pass.depths, a_pass.pooled)
    found: dict[int, np.ndarray] = {}
    for batch in (batch for chunk in plan.chunks for batch in chunk):
        found |= dict(zip(batch.rows.tolist(), run_batch(backbone, a_pass, data, batch).numpy(), strict=True))
    return np.stack([found[int(i)] for i in some])


@pytest.mark.parametrize("probes", ["losses", "states"])
@pytest.mark.parametrize("name", EXACT)
def test_no_bit_depends_on_the_company_of_a_row(name: str, probes: str) -> None:
    wanted: tuple[Probe, ...] = {
        "losses": (Loss(),),
        "states": (Loss(), State("mean"), State("weighted"), State("last"), State("mean", 1)),
    }[probes]
    backbone, data, share = held(families()[name]()), rows(60), True
    every = measured(backbone, data, np.arange(60), 10_000, wanted, share)
    alone = measured(backbone, data, np.arange(60), 1, wanted, share)
    assert np.array_equal(every, alone)
    rng = np.random.default_rng(0)
    for batch_tokens in (40, 200, 2000):
        some = np.sort(rng.choice(60, 31, replace=False))
        assert np.array_equal(measured(backbone, data, some, batch_tokens, wanted, share), every[some])


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
def test_short_rows_by_themselves_are_no_exception(name: str) -> None:
    rng = np.random.default_rng(1)
    data = []
    for length in rng.integers(2, 110, 120).tolist():
        ids = rng.integers(3, 90, length).astype(np.int32)
        data.append(Tokens(ids, np.arange(length) >= max(1, length // 2)))
    backbone, wanted = held(families()[name]()), (Loss(), State("last"))
    every = measured(backbone, data, np.arange(120), 10_000, wanted, False)
    assert np.array_equal(every, measured(backbone, data, np.arange(120), 1, wanted, False))


def test_a_single_target_is_no_exception() -> None:
    """A product with one position is another kernel; a short row in a batch by itself has just that."""
    backbone = held(families()["llama"]())
    data = [Tokens(np.arange(3, 3 + n, dtype=np.int32), np.arange(n) == n - 1) for n in (2, 2, 3, 4, 9, 9)]
    every = measured(backbone, data, np.arange(6), 1000, (Loss(),), False)
    assert np.array_equal(every, measured(backbone, data, np.arange(6), 1, (Loss(),), False))


def test_the_width_is_what_matters() -> None:
    """So that the test above can fail: wider batches do change bits."""
    backbone, data = held(families()["llama"]()), rows(60)
    a_pass = Pass(DENSE, "full", (Measurement(DENSE, Loss()),))
    order = np.argsort([-len(row.ids) for row in data], kind="stable")
    backbone.start_pass(plan_batches(order, np.ones(60, dtype=np.int32), batch_tokens=1), (), False)
    mixed = run_batch(backbone, a_pass, data, Batch(order, -1, 0)).numpy()[:, 0]
    own = measured(backbone, data, order, 1, (Loss(),), False)[:, 0]
    np.testing.assert_allclose(mixed, own, atol=1e-5)
    assert not np.array_equal(mixed, own)
    assert torch.get_num_threads() >= 1

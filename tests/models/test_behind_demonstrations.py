"""Losses of rows behind demonstrations: sharing these changes nothing, with an adapter on either, nor does forgetting them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_folders import save_adapter

from instruct_prune.encode.batching import plan_batches
from instruct_prune.encode.item import Encoded, Status, Tokens
from instruct_prune.encode.shown import Shown
from instruct_prune.encode.store import write_store
from instruct_prune.measure.engine import run_batch
from instruct_prune.measure.measurement import Measurement, Pass
from instruct_prune.measure.probes import Loss
from instruct_prune.measure.subnet import DENSE, FULL, SubnetSpec
from instruct_prune.measure.subnets import subnet
from instruct_prune.models import causal_lm
from instruct_prune.models.causal_lm import CausalLM

ROWS, ASKED = 30, 3


def shown_rows(folder: Path) -> Shown:
    rng = np.random.default_rng(0)

    def some(n: int) -> Tokens:
        return Tokens(rng.integers(3, 390, n).astype(np.int32), np.arange(n) >= n // 2)

    own = [some(int(n)) for n in rng.integers(8, 24, ROWS)]
    encoded = (Encoded(i, one.ids, one.response_mask, Status.OK) for i, one in enumerate(own))
    store = write_store(folder, ((row, "file", row.row_id) for row in encoded))
    asked = [some(20 + i) for i in range(ASKED)]
    return Shown.of(store, asked, (np.arange(ROWS) % ASKED)[:, None], None, longest=512)


def losses(model: CausalLM, items: Shown, share: bool) -> np.ndarray[Any, Any]:
    at = np.arange(ROWS, dtype=np.int64)
    group, prefixes = model.shared_prefixes(items, at) if share else (None, ())
    assert len(prefixes) == ASKED * share
    plan = plan_batches(at, items.lengths, batch_tokens=60, group=group, prefixes=prefixes)
    a_pass = Pass(DENSE, FULL, (Measurement(DENSE, Loss()),))
    model.start_pass(plan, (), pooled=False)
    found = np.full(ROWS, np.nan)
    for batch in [batch for chunk in plan.chunks for batch in chunk]:
        found[batch.rows] = run_batch(model, a_pass, items, batch).numpy()[:, 0]
    return found


@pytest.mark.parametrize("most", [1, 32])
def test_shared_or_not(
    tiny_llama: Callable[..., Any], tmp_path: Path, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(causal_lm, "MOST_PREFIXES", most)
    save_adapter(tiny_llama(), tmp_path / "mine")
    model, items = CausalLM.holding(tiny_llama()), shown_rows(tmp_path / "items")
    dense = losses(model, items, share=False)
    np.testing.assert_allclose(losses(model, items, share=True), dense, atol=1e-4)
    assert len(model._shared) == min(most, ASKED)
    with subnet(model.module, SubnetSpec("adapter", folder=str(tmp_path / "mine"))):
        tuned = losses(model, items, share=False)
        np.testing.assert_allclose(losses(model, items, share=True), tuned, atol=1e-4)
    assert np.abs(tuned - dense).mean() > 0.01

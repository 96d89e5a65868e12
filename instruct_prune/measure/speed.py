"""How fast this machine measures, on a few of the run's own batches."""

from __future__ import annotations

import time

import numpy as np

from instruct_prune.measure.engine import Work, run_batch
from instruct_prune.models.model import Model

TIMED_BATCHES = 4


def measure_speed(model: Model, work: Work) -> float:
    """Padded tokens (or pictures) a second of the first pass, from batches spread over the plan's lengths."""
    plan, items, a_pass = work.plans[0], work.items[0], work.passes[0]
    model.start_pass(plan, a_pass.depths, a_pass.pooled)
    batches = [batch for chunk in plan.chunks for batch in chunk if batch.width]
    if not batches:  # all rows were measured before
        return float("inf")
    chosen = [batches[i] for i in np.unique(np.linspace(0, len(batches) - 1, TIMED_BATCHES).round().astype(int))]
    run_batch(model, a_pass, items, chosen[-1])  # warm-up
    cost, began = 0, time.perf_counter()
    for batch in chosen:
        run_batch(model, a_pass, items, batch).cpu()
        cost += batch.width * len(batch.rows)
    return cost / (time.perf_counter() - began)

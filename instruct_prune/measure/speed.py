"""How fast this machine scores, measured on a few of the run's own batches."""

from __future__ import annotations

import time

import numpy as np

from instruct_prune.measure.engine import Work
from instruct_prune.models.backbone import Backbone

PROBED_BATCHES = 4


def probe_speed(backbone: Backbone, work: Work) -> float:
    """Padded tokens a second of the dense model, from batches spread over the plan's lengths."""
    plan, items = work.plans[0], work.items[0]
    backbone.fit(items)
    backbone.start_pass(work.passes[0].subnets[:1], plan)
    batches = [batch for chunk in plan.chunks for batch in chunk]
    chosen = [batches[i] for i in np.unique(np.linspace(0, len(batches) - 1, PROBED_BATCHES).round().astype(int))]
    backbone.losses(backbone.collate([items[int(i)] for i in chosen[-1].rows], chosen[-1].prefix))  # warm-up
    tokens, began = 0, time.perf_counter()
    for batch in chosen:
        backbone.losses(backbone.collate([items[int(i)] for i in batch.rows], batch.prefix)).cpu()
        tokens += batch.width * len(batch.rows)
    return tokens / (time.perf_counter() - began)

"""The learning rate of every optimiser step."""

from __future__ import annotations

import math
from typing import Literal


def learning_rate_share(step: int, steps: int, warmup_steps: int, schedule: Literal["cosine", "constant"]) -> float:
    """The learning rate of a step as a share of the highest one.

    The n steps of the warm-up have the shares 1/n, 2/n, ..., 1. The schedules of transformers begin at 0 instead, so that their
    first step changes nothing, which is a third of a training of three steps.

    Args:
        step: 0-based.
        steps: of the whole training.
        warmup_steps: how many of them belong to the warm-up.
        schedule: what comes after it.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    highest = max(warmup_steps - 1, 0)  # the step from which the cosine falls
    return 0.5 * (1 + math.cos(math.pi * (step - highest) / (steps - highest)))

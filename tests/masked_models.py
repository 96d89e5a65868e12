"""A model under masks, for the length of a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from instruct_prune.measure.weights import WeightMasker


@contextmanager
def masked_weights(model: nn.Module) -> Iterator[WeightMasker]:
    """A masker, for tests that look at its table."""
    masker = WeightMasker(model)
    try:
        yield masker
    finally:
        masker.restore()

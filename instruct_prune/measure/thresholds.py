"""The k smallest of a large tensor, exactly and in linear time, by counting bit patterns instead of sorting.

The bits of a non-negative IEEE float, read as an integer, have the order of the float. So |w| of a 16-bit weight is
one of 32,768 patterns (``bits & 0x7FFF``), and one histogram gives the exact threshold. A 32-bit pattern is counted in
two passes: its upper 15 bits, then the lower 16 bits of the one bucket in which the k-th smallest lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SLICE = 1 << 24  # elements widened to int64 at a time: bincount would otherwise cost 8 bytes an element

LOW_BITS = 16


@dataclass(frozen=True)
class Cut:
    """Remove every key below ``threshold``, and the first ``n_ties`` (by index) of those equal to it."""

    threshold: int
    n_ties: int


def magnitude_keys(weight: Tensor) -> Tensor:
    """int32 or int16 tensor of the weight's shape whose order is that of ``|weight|``."""
    if weight.element_size() == 2:
        return weight.view(torch.int16) & 0x7FFF
    if weight.dtype == torch.float32:
        return weight.view(torch.int32) & 0x7FFFFFFF
    raise TypeError(f"weights of type {weight.dtype} cannot be masked; load the model in float32, bfloat16 or float16")


def smallest(keys: Sequence[Tensor], k: int) -> Cut:
    """The cut that removes exactly ``k`` of all elements of ``keys`` taken together (non-negative integers).

    Ties at the threshold are broken by index: first tensor first, row-major inside a tensor.

    Raises:
        ValueError: k is negative or larger than the number of elements.
    """
    total = sum(key.numel() for key in keys)
    if not 0 <= k <= total:
        raise ValueError(f"cannot remove {k} of {total} elements")
    if k == 0:
        return Cut(0, 0)
    if all(key.dtype == torch.int16 for key in keys):
        value, before = _kth(_count(keys, 0, None), k)
        return Cut(value, k - before)
    high, below = _kth(_count(keys, LOW_BITS, None), k)
    low, before = _kth(_count(keys, 0, high), k - below)
    return Cut((high << LOW_BITS) | low, k - below - before)


def zero_smallest(weight: Tensor, keys: Tensor, cut: Cut) -> int:
    """Set to zero, in place, what the cut removes from this tensor; return how many ties it used up."""
    below = keys < cut.threshold
    used = 0
    if cut.n_ties:
        ties = keys == cut.threshold
        n = int(ties.sum())
        used = min(n, cut.n_ties)
        if used == n:
            below |= ties
        else:
            # Only the ties themselves are listed: cumsum over the whole matrix would cost 8 bytes an element.
            below.view(-1)[ties.view(-1).nonzero().view(-1)[:used]] = True
    weight.masked_fill_(below, 0)
    return used


def _count(keys: Sequence[Tensor], shift: int, bucket: int | None) -> Tensor:
    bins = 1 << (15 if bucket is None else LOW_BITS)
    counts = torch.zeros(bins, dtype=torch.int64)
    for key in keys:
        for piece in torch.split(key.reshape(-1), SLICE):
            if bucket is not None:
                piece = piece[(piece >> LOW_BITS) == bucket] & 0xFFFF
            counts += torch.bincount((piece >> shift).to(torch.int64), minlength=bins).cpu()
    return counts


def _kth(counts: Tensor, k: int) -> tuple[int, int]:
    """Bin that holds the k-th smallest (1-based), and how many elements lie in earlier bins."""
    cumulative = counts.cumsum(0)
    index = int(torch.searchsorted(cumulative, k))
    return index, int(cumulative[index - 1]) if index else 0

"""Exact counts by counting bit patterns, against a sort."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from instruct_prune.measure.thresholds import magnitude_keys, smallest, zero_smallest

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def removed_by_sort(weight: torch.Tensor, k: int) -> torch.Tensor:
    """The k smallest magnitudes, ties by index, by a stable sort."""
    order = torch.sort(weight.float().abs().reshape(-1), stable=True).indices
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    mask[order[:k]] = True
    return mask.view(weight.shape)


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    values=st.lists(
        st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 1e-8, -3.25, 2.0**-20, 65000.0, 1.0009765625]),
        min_size=1,
        max_size=60,
    ),
    share=st.floats(0, 1),
)
def test_the_k_smallest_are_those_of_a_stable_sort(dtype: torch.dtype, values: list[float], share: float) -> None:
    weight = torch.tensor(values).to(dtype)
    k = round(share * weight.numel())
    expected = weight.masked_fill(removed_by_sort(weight, k), 0)
    masked = weight.clone()
    keys = magnitude_keys(masked)
    zero_smallest(masked, keys, smallest([keys], k))
    assert torch.equal(masked.abs(), expected.abs())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [0.0, 0.2, 0.37, 0.999, 1.0])
def test_random_matrices_lose_exactly_k(dtype: torch.dtype, share: float) -> None:
    weight = torch.randn(61, 47, generator=torch.Generator().manual_seed(1)).to(dtype)
    k = round(share * weight.numel())
    masked = weight.clone()
    keys = magnitude_keys(masked)
    zero_smallest(masked, keys, smallest([keys], k))
    assert torch.equal(masked == 0, removed_by_sort(weight, k) | (weight == 0))


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_several_tensors_share_one_threshold(sizes: list[int], share: float, seed: int) -> None:
    """Global masking: ties go to the first tensor first."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randint(-4, 5, (n,), generator=generator).float() / 4 for n in sizes]
    together = torch.cat(tensors)
    k = round(share * len(together))
    expected = together.masked_fill(removed_by_sort(together, k), 0)
    keys = [magnitude_keys(t) for t in tensors]
    cut = smallest(keys, k)
    for tensor, key in zip(tensors, keys, strict=True):
        used = zero_smallest(tensor, key, cut)
        cut = type(cut)(cut.threshold, cut.n_ties - used)
    assert torch.equal(torch.cat(tensors), expected)


def test_float32_needs_both_counting_passes() -> None:
    """Values that agree in their upper 16 bits are told apart by the lower ones."""
    weight = torch.tensor([1.0 + i * 2.0**-23 for i in (5, 3, 4, 1, 2)])
    keys = magnitude_keys(weight)
    zero_smallest(weight, keys, smallest([keys], 2))
    assert (weight == 0).tolist() == [False, False, False, True, True]


def test_k_out_of_range_is_an_error() -> None:
    with pytest.raises(ValueError, match="cannot remove 4 of 3"):
        smallest([torch.zeros(3, dtype=torch.int32)], 4)


def test_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match="float64"):
        magnitude_keys(torch.zeros(2, dtype=torch.float64))

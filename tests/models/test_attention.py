"""Short attention in bfloat16 on a CPU is PyTorch's own attention, with and without gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from instruct_prune.models import kernels
from instruct_prune.models.kernels import ShortAttention


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the queries that our own attention has taken."""
    seen: list[tuple[int, ...]] = []
    own = kernels.attend

    def attend(query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append(tuple(query.shape))
        return own(query, *args, **kwargs)

    monkeypatch.setattr(kernels, "attend", attend)
    return seen


def drawn(
    t: int = 12, s: int = 12, heads: int = 6, shared: int = 2, dtype: torch.dtype = torch.bfloat16
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, heads, t, 8), (3, shared, s, 8), (3, shared, s, 8)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def causal(t: int, s: int) -> Tensor:
    """bool [3, 1, t, s]: each query sees the keys up to its own place; of the last row the first key is left out."""
    mask = torch.ones(3, 1, t, s, dtype=torch.bool).tril(s - t)
    mask[2, :, 1:, 0] = False
    return mask


FLOATING = torch.linspace(-2, 2, 12 * 12).view(1, 1, 12, 12)
CASES = {
    "bare": ((12, 12), {}),
    "causal": ((12, 12), {"is_causal": True}),
    "mask": ((12, 12), {"attn_mask": causal(12, 12)}),
    "behind a prefix": ((5, 12), {"attn_mask": causal(5, 12)}),
    "added mask": ((12, 12), {"attn_mask": FLOATING.bfloat16()}),
    "scale": ((12, 12), {"scale": 0.7, "is_causal": True}),
    "large scores": (
        (12, 12),
        {"scale": 4.0},
    ),  # up to 60, as in trained models: in bfloat16 they would be rounded by 0.1
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shared", [6, 2])
def test_the_values_and_gradients_are_those_of_pytorch(calls: list[tuple[int, ...]], case: str, shared: int) -> None:
    (t, s), options = CASES[case]
    inputs = drawn(t, s, shared=shared)
    exact = [x.detach().float().requires_grad_() for x in inputs]
    wide = {k: v.float() if isinstance(v, Tensor) and v.dtype != torch.bool else v for k, v in options.items()}
    expected = F.scaled_dot_product_attention(*exact, **wide, enable_gqa=True)
    with ShortAttention():
        found = F.scaled_dot_product_attention(*inputs, **options, enable_gqa=True)
    assert calls == [(3, 6, t, 8)]
    torch.testing.assert_close(found.float(), expected, atol=0.03, rtol=0.03)
    pull = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    for own, wanted in zip(
        torch.autograd.grad(found, inputs, pull.bfloat16()), torch.autograd.grad(expected, exact, pull), strict=True
    ):
        torch.testing.assert_close(own.float(), wanted, atol=0.06, rtol=0.06)


def test_autocast_rounds_no_scores() -> None:
    """A training runs under autocast, which would multiply in bfloat16 what is in float32 for a reason."""
    inputs = drawn()
    with ShortAttention(), torch.no_grad():
        expected = F.scaled_dot_product_attention(*inputs, scale=4.0, enable_gqa=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = F.scaled_dot_product_attention(*inputs, scale=4.0, enable_gqa=True)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        (drawn(dtype=torch.float32), {}),
        (drawn(600, 600, 1, 1), {"is_causal": True}),
        (drawn(), {"dropout_p": 0.5}),
        (drawn(5, 12), {"is_causal": True}),
    ],
    ids=["float32", "long", "dropout", "causal of another shape"],
)
def test_everything_else_goes_its_usual_way(
    calls: list[tuple[int, ...]], inputs: list[Tensor], options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    expected = F.scaled_dot_product_attention(*inputs, **options, enable_gqa=True)
    torch.manual_seed(0)
    with ShortAttention():
        found = F.scaled_dot_product_attention(*inputs, **options, enable_gqa=True)
    assert not calls
    torch.testing.assert_close(found, expected)


def test_a_model_takes_it_in_every_layer(calls: list[tuple[int, ...]]) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=3, vocab_size=50)).bfloat16().eval()
    ids = torch.arange(40).view(2, 20)
    with torch.inference_mode():
        expected = model(ids).logits
        with ShortAttention():
            found = model(ids).logits
    assert calls == [(2, 4, 20, 8)] * 3
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0.02)

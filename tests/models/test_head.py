"""The output head: losses of targets, and the way back to their states, against plain autograd over all logits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instruct_prune.models import head as head_module
from instruct_prune.models.head import Head

ADJUSTMENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda logits: logits,
    "scaled": lambda logits: logits * 0.3,
    "soft-capped": lambda logits: torch.tanh(logits / 2.0) * 2.0,
}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks of positions and of words, the last ones not full."""
    monkeypatch.setattr(head_module, "BLOCK_POSITIONS", 5)
    monkeypatch.setattr(head_module, "BLOCK_WORDS", 16)


@pytest.mark.parametrize("adjustment", ADJUSTMENTS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n", [1, 13, 257])
def test_losses_and_their_gradients_are_those_of_autograd(adjustment: str, bias: bool, n: int) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(8, 50, bias=bias).requires_grad_(False)
    layer.weight *= 8
    states, targets = torch.randn(n, 8, requires_grad=True), torch.randint(0, 50, (n,))
    weights = torch.rand(n)
    adjust = ADJUSTMENTS[adjustment]
    expected = F.cross_entropy(adjust(layer(states)), targets, reduction="none")
    found = Head(layer, adjust).losses(states, targets)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    (wanted,) = torch.autograd.grad((expected * weights).sum(), states)
    (own,) = torch.autograd.grad((found * weights).sum(), states)
    torch.testing.assert_close(own, wanted, atol=1e-5, rtol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(Head(layer, adjust).losses(states, targets), expected.detach(), atol=1e-5, rtol=1e-5)


def test_logits_are_not_kept_for_the_way_back(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(8, 50, bias=False).requires_grad_(False)
    kept: list[tuple[int, ...]] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    states = torch.randn(13, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        Head(layer, ADJUSTMENTS["plain"]).losses(states, torch.arange(13)).sum().backward()
    assert kept == [(13, 8)]
    assert states.grad is not None


def test_a_head_that_is_trained_or_watched_goes_the_usual_way() -> None:
    states, targets = torch.randn(7, 8, requires_grad=True), torch.arange(7)
    layer = nn.Linear(8, 50)
    Head(layer, ADJUSTMENTS["plain"]).losses(states, targets).sum().backward()
    assert layer.weight.grad is not None
    watched = nn.Linear(8, 50).requires_grad_(False)
    seen: list[int] = []
    watched.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    Head(watched, ADJUSTMENTS["plain"]).losses(states, targets).sum().backward()
    assert seen == [7]

"""The output head of a causal language model: from states to the loss of each target."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_POSITIONS = {
    "cpu": 256,
    "other": 4096,
}  # logits over the whole vocabulary are made for so many positions at a time
BLOCK_POSITIONS, BLOCK_WORDS = 1024, 2048  # logits of one block: 8 MB of float32, which a CPU keeps in its cache


class Head:
    """The layer that turns states into logits, and what the model does to these.

    Args:
        module: the layer.
        adjust: soft-capping and scaling of logits.
    """

    def __init__(self, module: nn.Module, adjust: Callable[[Tensor], Tensor]) -> None:
        self.module = module
        self.adjust = adjust

    def losses(self, states: Tensor, targets: Tensor) -> Tensor:
        """float32 [m]: -log p(target), of states [m, h]. Logits exist for a few positions at a time, never for all."""
        if len(states) % HEAD_POSITIONS["cpu"] != 1:
            return self._losses(states, targets)
        # A position left by itself would be a product with a vector, which is added up in another order than with a matrix.
        return self._losses(torch.cat([states, states[-1:]]), torch.cat([targets, targets[-1:]]))[:-1]

    def _losses(self, states: Tensor, targets: Tensor) -> Tensor:
        if states.requires_grad and torch.is_grad_enabled() and self.is_plain and not self.module.weight.requires_grad:
            found: Tensor = FusedLosses.apply(states, targets, self)  # type: ignore[no-untyped-call]
            return found
        if states.device.type == "cpu" and self.is_plain:
            return self._losses_by_block(states, targets)
        step = HEAD_POSITIONS.get(states.device.type, HEAD_POSITIONS["other"])
        nll = torch.empty(len(states), dtype=torch.float32, device=states.device)
        for start in range(0, len(states), step):
            piece = slice(start, start + step)
            logits = self.adjust(self.module(states[piece])).float()
            nll[piece] = F.cross_entropy(logits, targets[piece].to(logits.device), reduction="none").to(nll.device)
        return nll

    def _losses_by_block(self, states: Tensor, targets: Tensor) -> Tensor:
        """The same, the vocabulary in blocks: a log-sum-exp of each block's, so that logits never leave the cache."""
        nll = torch.empty(len(states), dtype=torch.float32)
        for start in range(0, len(states), BLOCK_POSITIONS):
            piece = slice(start, start + BLOCK_POSITIONS)
            own = torch.empty(len(states[piece]), dtype=torch.float32)
            sums = []
            for block, given in self._blocks(states[piece], BLOCK_WORDS):
                logits = self.adjust(given).float()
                sums.append(logits.logsumexp(dim=1))
                here, there = _in_block(targets[piece], block)
                own[here] = logits[here, there]
            nll[piece] = torch.stack(sums).logsumexp(dim=0) - own
        return nll

    def losses_and_gradients(self, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The losses, and the gradient of each with respect to its own state.

        Both come from logits that are made once, in blocks, and not kept: what earlier blocks gave is scaled down as the sum
        over the vocabulary grows, as in FlashAttention (Dao et al., 2022).

        Args:
            states: [m, h].
            targets: int64 [m].

        Returns:
            float32 [m], in nats, and float32 [m, h].
        """
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        words = BLOCK_WORDS if states.device.type == "cpu" else len(weight)
        nll = torch.empty(len(states), dtype=torch.float32, device=states.device)
        gradients = torch.zeros(states.shape, dtype=torch.float32, device=states.device)
        for start in range(0, len(states), BLOCK_POSITIONS):
            piece = slice(start, start + BLOCK_POSITIONS)
            x, y, gradient = states[piece], targets[piece].to(states.device), gradients[piece]
            total = torch.full((len(x),), -torch.inf, device=x.device)
            own, own_slope = torch.empty_like(total), torch.ones_like(total)
            for block, given in self._blocks(x, words):
                adjusted, slope = self._adjusted(given)
                logits = adjusted.float()
                here, there = _in_block(y, block)
                own[here] = logits[here, there]
                before, total = total, torch.logaddexp(total, logits.logsumexp(dim=1))
                p = logits.sub_(total[:, None]).exp_()
                if slope is not None:
                    own_slope[here] = slope[here, there].float()
                    p *= slope
                gradient *= (before - total).exp()[:, None]
                gradient += p.to(x.dtype) @ weight[block]
            nll[piece] = total - own
            gradient -= own_slope[:, None] * weight[y]
        return nll, gradients

    def _blocks(self, x: Tensor, words: int) -> Iterator[tuple[slice, Tensor]]:
        """Which words of the vocabulary, and what the layer gives for them, [m, words], of states [m, h]."""
        weight, bias = self.module.weight, self.module.bias
        for first in range(0, len(weight), words):  # type: ignore[arg-type]
            block = slice(first, first + words)
            yield block, F.linear(x, weight[block], None if bias is None else bias[block])  # type: ignore[index]

    def _adjusted(self, raw: Tensor) -> tuple[Tensor, Tensor | None]:
        """The logits of what the layer gave, and their slopes; None where they are what it gave."""
        with torch.enable_grad():
            leaf = raw.detach().requires_grad_()
            logits = self.adjust(leaf)
            if logits is leaf:
                return raw, None
            return logits.detach(), torch.autograd.grad(logits.sum(), leaf)[0]

    @property
    def is_plain(self) -> bool:
        """Whether the head is its weight and nothing else: not quantised, not offloaded, no adapter on it."""
        return type(self.module) is nn.Linear and not (hasattr(self.module, "_hf_hook") or self.module._forward_hooks)


def _in_block(targets: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """Positions whose target is one of the block's words, and which of them it is."""
    here = ((targets >= block.start) & (targets < block.stop)).nonzero()[:, 0]
    return here, targets[here] - block.start


class FusedLosses(torch.autograd.Function):
    """`Head.losses` whose backward pass needs no logits: the gradient of each state is computed with its loss.

    PyTorch's own ``linear_cross_entropy`` (from 2.13 on) knows no adjustment of logits.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, targets: Tensor, head: Head) -> Tensor:
        nll, gradients = head.losses_and_gradients(states, targets)
        ctx.save_for_backward(gradients)
        ctx.dtype = states.dtype
        return nll

    @staticmethod
    def backward(ctx: Any, *of_losses: Tensor) -> tuple[Tensor, None, None]:
        (gradients,) = ctx.saved_tensors
        return (of_losses[0][:, None] * gradients).to(ctx.dtype), None, None

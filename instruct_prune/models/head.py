"""The output head of a causal language model: from states to the loss of each target."""

from __future__ import annotations

from collections.abc import Callable
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
            found: Tensor = PulledLosses.apply(states, targets, self)  # type: ignore[no-untyped-call]
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
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        nll = torch.empty(len(states), dtype=torch.float32)
        for start in range(0, len(states), BLOCK_POSITIONS):
            piece = slice(start, start + BLOCK_POSITIONS)
            x, y = states[piece], targets[piece]
            own = torch.empty(len(x), dtype=torch.float32)
            sums = []
            for first in range(0, len(weight), BLOCK_WORDS):
                block = slice(first, first + BLOCK_WORDS)
                bias = None if self.module.bias is None else self.module.bias[block]  # type: ignore[index]
                logits = self.adjust(F.linear(x, weight[block], bias)).float()
                sums.append(logits.logsumexp(dim=1))
                here = ((y >= first) & (y < first + BLOCK_WORDS)).nonzero()[:, 0]
                own[here] = logits[here, y[here] - first]
            nll[piece] = torch.stack(sums).logsumexp(dim=0) - own
        return nll

    def losses_and_pulls(self, states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """float32 [m] and [m, h]: the losses, and the gradient of each with respect to its own state.

        Both come from logits that are made once, in blocks, and not kept: what earlier blocks gave is scaled down as the sum
        over the vocabulary grows, as in FlashAttention (Dao et al., 2022).
        """
        on_cpu = states.device.type == "cpu"
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        words = BLOCK_WORDS if on_cpu else len(weight)
        nll = torch.empty(len(states), dtype=torch.float32, device=states.device)
        pulls = torch.zeros(states.shape, dtype=torch.float32, device=states.device)
        for start in range(0, len(states), BLOCK_POSITIONS):
            piece = slice(start, start + BLOCK_POSITIONS)
            x, y, pull = states[piece], targets[piece].to(states.device), pulls[piece]
            total = torch.full((len(x),), -torch.inf, device=x.device)
            own, steep = torch.empty_like(total), torch.ones_like(total)
            for first in range(0, len(weight), words):
                block = slice(first, first + words)
                bias = None if self.module.bias is None else self.module.bias[block]  # type: ignore[index]
                logits, slope = self._adjusted(F.linear(x, weight[block], bias))
                logits = logits.float()
                here = ((y >= first) & (y < first + words)).nonzero()[:, 0]
                own[here] = logits[here, y[here] - first]
                before, total = total, torch.logaddexp(total, logits.logsumexp(dim=1))
                p = logits.sub_(total[:, None]).exp_()
                if slope is not None:
                    steep[here] = slope[here, y[here] - first].float()
                    p *= slope
                pull *= (before - total).exp()[:, None]
                pull += p.to(x.dtype) @ weight[block]
            nll[piece] = total - own
            pull -= steep[:, None] * weight[y]
        return nll, pulls

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


class PulledLosses(torch.autograd.Function):
    """`Head.losses` whose way back needs no logits: each loss has its state's gradient beside it already."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, targets: Tensor, head: Head) -> Tensor:
        nll, pulls = head.losses_and_pulls(states, targets)
        ctx.save_for_backward(pulls.to(states.dtype))
        return nll

    @staticmethod
    def backward(ctx: Any, *of_losses: Tensor) -> tuple[Tensor, None, None]:
        (pulls,) = ctx.saved_tensors
        return (of_losses[0][:, None] * pulls).to(pulls.dtype), None, None

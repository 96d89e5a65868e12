"""The parts of a causal language model of transformers: decoder, final norm, output head, what is done to logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from instruct_prune.errors import InputError


def output_head(model: Any) -> nn.Module:
    """The layer that turns states into logits."""
    head = model.get_output_embeddings()
    if head is None:
        raise InputError(f"{type(model).__name__} has no language-model head; --model must be a causal language model.")
    return head  # type: ignore[no-any-return]


def decoder_of(model: Any) -> nn.Module:
    """The model without its head: token ids in, final states out."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
    if decoder is None or decoder is model:
        decoder = model.base_model
    if decoder is model:  # a class whose base_model_prefix names no part of it
        decoder = getattr(model, "model", model)
    return decoder  # type: ignore[no-any-return]


class UpToHead:
    """The whole model up to its output head, for models that transform states between their decoder and the head.

    The states that enter the head are kept; the head itself is run on one position only, so that logits of all positions
    never exist.
    """

    def __init__(self, model: Any, head: nn.Module) -> None:
        self.model, self.head = model, head
        self.forward = model.forward  # for its signature

    def __call__(self, **inputs: Any) -> Any:
        """The model's output, with ``last_hidden_state`` [b, t, h] as it enters the head."""
        entered: list[Tensor] = []

        def first_only(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            entered.append(args[0])
            # Cut out of longer rows, it would be multiplied row by row, with a copy of the whole head for each.
            return (args[0][:, :1].contiguous(), *args[1:])

        hook = self.head.register_forward_pre_hook(first_only)
        try:
            output = self.model(**inputs)
        finally:
            hook.remove()
        if len(entered) != 1 or entered[0].ndim != 3:
            raise ValueError(f"{type(self.model).__name__} calls its output head {len(entered)} times")
        output.last_hidden_state = entered[0]
        return output

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        yield from self.model.named_modules()


@dataclass(frozen=True)
class Exits:
    """How a loss is read after an inner block.

    Attributes:
        way: what the decoder does after its last block: its final norm, a projection.
        state: for each depth, where its state lies in the ``hidden_states`` of transformers; models differ in that.
    """

    way: nn.Sequential
    state: Mapping[int, int]


def find_exits(decoder: nn.Module | UpToHead, n_blocks: int, device: torch.device) -> Exits:
    """Run one short row: which states the blocks leave, and the modules through which the last one's becomes the last state.

    Args:
        decoder: the model without its head.
        n_blocks: blocks that it has.
        device: where it takes token ids.

    Raises:
        InputError: the states after a block cannot be read, or are not what the block gave.
    """
    calls: list[tuple[str, nn.Module, Tensor, Tensor]] = []

    def seen(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple | list) else output
            if inputs and isinstance(inputs[0], Tensor) and isinstance(first, Tensor):
                calls.append((name, module, inputs[0], first))

        return hook

    hooks = [module.register_forward_hook(seen(name)) for name, module in decoder.named_modules() if name]
    try:
        ids = torch.arange(8, device=device)[None]
        output = decoder(input_ids=ids, use_cache=False, output_hidden_states=True)
    finally:
        for hook in hooks:
            hook.remove()
    kind = type(decoder).__name__
    states = output.hidden_states
    last, way = output.last_hidden_state, list[nn.Module]()
    if states is None or any(state.shape != states[-1].shape for state in states):
        raise InputError(
            f"{kind} does not give one state after each of its {n_blocks} blocks, so no depth can be read."
        )
    while found := [c for c in calls if not _in_stack(c[0], c[1]) and _same(c[3], last) and not _same(c[2], last)]:
        way.insert(0, found[-1][1])
        last = found[-1][2]
    left = [[c[3] for c in calls if c[0].rpartition(".")[2] == str(depth - 1)] for depth in range(1, n_blocks + 1)]
    where = {
        depth: next(
            (
                i
                for i in (depth, depth - 1)
                if i < len(states) and any(_same(states[i], one) for one in left[depth - 1])
            ),
            None,
        )
        for depth in range(1, n_blocks)
    }
    if None in where.values() or not any(_same(last, one) for one in left[-1]):
        raise InputError(f"{kind} changes its states between its blocks, so no state after an earlier one can be read.")
    return Exits(nn.Sequential(*way), {depth: i for depth, i in where.items() if i is not None})


def _in_stack(name: str, module: nn.Module) -> bool:
    """Whether a module is a block, part of one, or has blocks."""
    return any(part.isdigit() for part in name.split(".")) or any(
        isinstance(m, nn.ModuleList) for m in module.modules()
    )


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def long_above(config: Any) -> int | None:
    """Tokens above which a row is computed with other rotary factors than a shorter one (longrope), None where none are.

    The factors are chosen by the longest row of a batch, so longer rows run by themselves.
    """
    text = config.get_text_config()
    found = [getattr(text, "rope_parameters", None), getattr(text, "rope_scaling", None)]
    for entry in list(found):
        found += list(entry.values()) if isinstance(entry, dict) else []
    limits = [
        entry.get("original_max_position_embeddings") or getattr(text, "original_max_position_embeddings", None)
        for entry in found
        if isinstance(entry, dict) and "longrope" in (entry.get("rope_type"), entry.get("type"))
    ]
    return min((limit for limit in limits if limit), default=None)


def logit_adjustment(config: Any) -> Callable[[Tensor], Tensor]:
    """What the model does to logits after the head: Gemma's and xLSTM's soft-capping, Cohere's and Granite's scaling."""
    text = config.get_text_config()
    cap = getattr(text, "final_logit_softcapping", None) or getattr(text, "output_logit_soft_cap", None)
    times = getattr(text, "logit_scale", None)
    divided = getattr(text, "logits_scaling", None)

    def adjust(logits: Tensor) -> Tensor:
        if times is not None:
            logits = logits * times
        if divided is not None:
            logits = logits / divided
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits

    return adjust

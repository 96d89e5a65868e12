"""The parts of a causal language model of transformers: decoder, final norm, output head, what is done to logits."""

from __future__ import annotations

from collections.abc import Callable
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
    return decoder  # type: ignore[no-any-return]


def final_norm(decoder: nn.Module) -> nn.Module:
    """The norm between the last block and the head, by the names that model families give it."""
    for name in ("norm", "ln_f", "final_layernorm", "final_layer_norm", "norm_f"):
        module = getattr(decoder, name, None)
        if isinstance(module, nn.Module):
            return module
    raise InputError(f"{type(decoder).__name__} has no final norm of a known name, so depth subnets cannot exit early.")


def logit_adjustment(config: Any) -> Callable[[Tensor], Tensor]:
    """What the model does to logits after the head: Gemma's soft-capping, Cohere's and Granite's scaling."""
    text = config.get_text_config()
    cap = getattr(text, "final_logit_softcapping", None)
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

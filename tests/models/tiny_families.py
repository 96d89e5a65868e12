"""Tiny seeded models of the families that people score with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

SIZE = {"vocab_size": 90, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
GQA = {**SIZE, "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2}


def _make(config: Any, model: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    return model(config(**options)).eval().requires_grad_(False)


def families() -> dict[str, Callable[[], Any]]:
    import transformers as t

    gemma = {**GQA, "head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 8, "final_logit_softcapping": 3.0}
    mixtral = {**GQA, "num_local_experts": 3, "num_experts_per_tok": 2}
    gpt2 = {"vocab_size": 90, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "initializer_range": 0.2}
    return {
        "llama": lambda: _make(t.LlamaConfig, t.LlamaForCausalLM, **GQA),
        "qwen2": lambda: _make(t.Qwen2Config, t.Qwen2ForCausalLM, **GQA),
        "qwen3": lambda: _make(t.Qwen3Config, t.Qwen3ForCausalLM, **GQA, head_dim=8),
        "gemma2": lambda: _make(t.Gemma2Config, t.Gemma2ForCausalLM, **gemma),
        "mistral": lambda: _make(t.MistralConfig, t.MistralForCausalLM, **GQA, sliding_window=6),
        "gpt2": lambda: _make(t.GPT2Config, t.GPT2LMHeadModel, **gpt2),
        "phi": lambda: _make(t.PhiConfig, t.PhiForCausalLM, **{**GQA, "num_key_value_heads": 4}),
        "phi3": lambda: _make(t.Phi3Config, t.Phi3ForCausalLM, **GQA, pad_token_id=0),
        "mixtral": lambda: _make(t.MixtralConfig, t.MixtralForCausalLM, **mixtral),
        "granite": lambda: _make(t.GraniteConfig, t.GraniteForCausalLM, **GQA, logits_scaling=4.0),
        "cohere": lambda: _make(t.CohereConfig, t.CohereForCausalLM, **GQA, logit_scale=0.3),
    }

"""Tiny seeded models of every causal architecture that the installed transformers has."""

from __future__ import annotations

import inspect
from typing import Any

import torch

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
"""Given to every configuration under the name that it has for them."""
WHERE_KNOWN: dict[str, Any] = {
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "is_decoder": True,
    "sliding_window": 8,
    "attention_chunk_size": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
    "chunk_size": 8,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "index_topk": 8,
    "index_head_dim": 8,
    "index_n_heads": 16,  # with few, all scores of a key can be 0, and the choice among equal ones depends on the length
    "vocab_size_per_layer_input": 96,
    "hidden_size_per_layer_input": 8,
}
MLA: dict[str, Any] = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 8,
    "q_lora_rank": 12,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "head_dim": 4,
}
"""Where keys and values come from a latent (kv_lora_rank)."""
NOT_HERE = {
    "blt": "works on bytes in patches that a second model finds; takes no tokens of a tokenizer",
    "cohere_compass_text": "AutoModelForCausalLM cannot make its rotary embedding from a configuration of its own",
    "dbrx": "its configuration fails in transformers 5.24 (DbrxAttentionConfig has no rope_theta)",
    "dots3_note": "its configuration names layers beyond those of a small model; dots3_note_text is the text part",
    "gemma3n": "needs timm; gemma3n_text is the text part",
    "gemma4_assistant": "drafts for another model, whose states it needs",
    "gemma4_unified_assistant": "drafts for another model, whose states it needs",
    "musicgen": "takes sound codes, not text",
    "musicgen_melody": "takes sound codes, not text",
}
"""Architectures of the auto mapping that are not built, with the reason."""
LINEAR = ["linear_attention", "full_attention"]
OVERRIDES: dict[str, dict[str, Any]] = {
    "axk2": {"head_dim": 12},
    "big_bird": {"attention_type": "original_full"},
    "bailing_hybrid": {"layer_types": LINEAR, "head_dim": 8},
    "codegen": {"rotary_dim": 8},
    "dots3_note_text": {"shared_experts_intermediate_size": 16},
    "falcon": {"head_dim": None},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "laurel_rank": 8,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {"layer_types": LINEAR, "shared_intermediate_size": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"layer_types": LINEAR, "linear_head_dim": 8, "linear_num_heads": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {"ffn_hidden_size": 48, "expert_ffn_hidden_size": 16, "zero_expert_num": 2, "moe_topk": 2},
    "mamba2": {"num_heads": 8, "n_groups": 2, "state_size": 8},
    "minimax": {"layer_types": LINEAR, "block_size": 8},
    "qwen3_5_text": {"layer_types": LINEAR},
    "qwen3_5_moe_text": {"layer_types": LINEAR},
    "qwen3_next": {"layer_types": LINEAR},
    "qwen4_exp_text": {
        "layer_types": LINEAR,
        "ngram_vocab_size_base": 50,
        "hc_lowrank": 8,
        "make_ngram_vocab_size_divisible_by": 2,
        "split_ngram_parts": 2,
        "indexer_n_heads": 16,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "recurrent_gemma": {"block_types": ("recurrent", "attention"), "attention_window_size": 8},
    "zamba": {"layers_block_type": ["mamba", "hybrid", "hybrid"], "num_hidden_layers": 3, "n_mamba_heads": 2},
    "falcon_h1": {"mamba_d_ssm": 64},
    "zaya": {"num_experts_per_tok": 1},
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention"]},
    "dots1": {"n_shared_experts": 1},
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "prophetnet": {"num_hidden_layers": None, "num_encoder_layers": 2, "num_decoder_layers": 2},
    "reformer": {"axial_pos_embds_dim": (16, 16), "axial_pos_shape": (16, 16), "attn_layers": ["local", "lsh"]},
    "xlnet": {"max_position_embeddings": None},
    "xmod": {"languages": ("en_XX",), "default_language": "en_XX"},
    "xlstm": {"autocast_kernel_dtype": "float32", "num_heads": 4, "head_dim": None, "num_attention_heads": None},
    "modernbert-decoder": {"local_attention": 8},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "n_mamba_heads": 8, "adapter_rank": 8},
    "nemotron_h": {
        "layers_block_type": ["mamba", "attention"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "n_groups": 2,
        "ssm_state_size": 8,
    },
    "bamba": {"attn_layer_indices": [1]},
    "olmo_hybrid": {"layer_types": LINEAR},
}


def architectures() -> dict[str, str]:
    """{model type: class name} of the auto mapping."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return dict(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(model_type: str) -> Any:
    from transformers import CONFIG_MAPPING

    return _small(CONFIG_MAPPING[model_type], OVERRIDES.get(model_type, {}))


def _small(config_class: Any, overrides: dict[str, Any]) -> Any:
    known = {name for one in config_class.__mro__ for name in getattr(one, "__annotations__", {})}
    known |= set(inspect.signature(config_class.__init__).parameters)
    renamed = getattr(config_class, "attribute_map", {})
    options = {renamed.get(k, k): v for k, v in SIZES.items()}
    options |= {renamed.get(k, k): v for k, v in WHERE_KNOWN.items() if renamed.get(k, k) in known}
    if "kv_lora_rank" in known:
        options |= {k: v for k, v in MLA.items() if k in known}
    subs = getattr(config_class, "sub_configs", {})
    whole = config_class() if any(not hasattr(sub, "model_type") for sub in subs.values()) else None
    for name, sub in subs.items():
        kind = sub if hasattr(sub, "model_type") else type(getattr(whole, name))
        if hasattr(kind, "model_type"):
            options[name] = _small(kind, OVERRIDES.get(kind.model_type, {}) | overrides.get(name, {}))
    options |= {k: v for k, v in overrides.items() if k not in getattr(config_class, "sub_configs", {})}
    return config_class(**{k: v for k, v in options.items() if v is not None})


def tiny_model(model_type: str) -> Any:
    import transformers

    torch.manual_seed(0)
    config = tiny_config(model_type)
    model = transformers.AutoModelForCausalLM.from_config(config)
    return model.eval().requires_grad_(False)

"""Tiny tokenizers of the five families that matter, each with its chat template's logic; no download."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_backends import byte_level, sentencepiece_like

TEMPLATES = Path(__file__).parent / "chat_templates"


def _with_bos(backend: Any, bos: str) -> Any:
    """Add the BOS as Llama-3 does: after whatever post-processor there is."""
    from tokenizers import processors

    add = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))])
    before = backend.post_processor
    backend.post_processor = processors.Sequence([before, add]) if before is not None else add
    return backend


def _fast(backend: Any, template: str, **specials: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **specials)
    tokenizer.chat_template = (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    return tokenizer


@pytest.fixture(scope="session")
def chat_tokenizers() -> dict[str, Any]:
    """{family: tokenizer}."""
    from tokenizers import normalizers

    llama = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    chatml = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    gemma = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    tools = ["[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"]
    llama2 = ["<unk>", "<s>", "</s>"]
    mistral = ["<unk>", "<s>", "</s>", *tools, "[TOOL_RESULTS]", "[/TOOL_RESULTS]"]
    return {
        "llama3": _fast(
            _with_bos(byte_level(llama), llama[0]), "llama3", bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"
        ),
        "qwen": _fast(byte_level(chatml, normalizers.NFC(), trim_offsets=False), "qwen", eos_token="<|im_end|>"),
        "chatml": _fast(byte_level(chatml), "chatml", eos_token="<|im_end|>", bos_token="<|im_start|>"),
        "gemma": _fast(
            _with_bos(sentencepiece_like(gemma, "replace"), "<bos>"),
            "gemma",
            bos_token="<bos>",
            eos_token="<eos>",
            unk_token="<unk>",
        ),
        "llama2": _fast(
            _with_bos(sentencepiece_like(llama2, "prepend"), "<s>"),
            "llama2",
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>",
        ),
        "mistral": _fast(
            _with_bos(sentencepiece_like(mistral, "metaspace"), "<s>"),
            "mistral",
            bos_token="<s>",
            eos_token="</s>",
            unk_token="<unk>",
        ),
    }

"""Tiny real models and tokenizers, built here: seeded, offline, milliseconds."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from sample_rows import alpaca_rows

settings.register_profile("patient", deadline=None)  # no test asserts a time
settings.load_profile("patient")

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """A byte-level BPE trained on the fixture's own text, with ChatML turns and an end-of-turn EOS."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [value for row in alpaca_rows(60) for value in row.values()]
    backend.train_from_iterator([*texts, "### Instruction:\n### Response:\n### Input:\n"], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", unk_token="<|endoftext|>"
    )
    tokenizer.chat_template = CHATML
    return tokenizer


@pytest.fixture(scope="session")
def tiny_llama() -> Callable[..., Any]:
    """Makes a seeded 2-layer Llama whose losses differ between rows."""

    def make(**options: Any) -> Any:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        size = {
            "vocab_size": 400,
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        }
        size |= {
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
            "initializer_range": 0.15,
        }
        model = LlamaForCausalLM(LlamaConfig(**(size | options), bos_token_id=None, eos_token_id=2, pad_token_id=0))
        return model.eval().requires_grad_(False)

    return make


@pytest.fixture(scope="session")
def tiny_model_folder(
    tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any, tiny_llama: Callable[..., Any]
) -> Path:
    """The tiny Llama, taught the fixture's text for a moment (so that no subnet has collapsed), saved as people do."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    teach(tiny_llama(initializer_range=0.05), tiny_tokenizer).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def teach(model: Any, tokenizer: Any, steps: int = 40) -> Any:
    """A few steps of AdamW on rows as the Alpaca template shows them."""
    import torch

    texts = [f"### Instruction:\n{r['instruction']}\n\n### Response:\n{r['output']}<|im_end|>" for r in alpaca_rows(64)]
    ids = torch.tensor([(tokenizer(t, add_special_tokens=False)["input_ids"] + [0] * 96)[:96] for t in texts])
    model.requires_grad_(True).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(steps):
        batch = ids[step * 16 % 64 :][:16]
        loss = model(batch, labels=batch.masked_fill(batch == 0, -100)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_embedder_folder(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> Path:
    """A 2-layer BERT with mean pooling, as a sentence-transformers folder."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    base = tmp_path_factory.mktemp("tiny-bert")
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=400, max_position_embeddings=128, **size)).save_pretrained(base)
    tiny_tokenizer.save_pretrained(base)
    word = Transformer(str(base), max_seq_length=64)
    folder = tmp_path_factory.mktemp("tiny-embedder")
    SentenceTransformer(modules=[word, Pooling(32)], device="cpu").save(str(folder))
    return folder


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch with one thread, as under torchrun."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

"""Small tokenizers of the two kinds there are: byte-level BPE, and BPE with byte fallback on "▁"."""

from __future__ import annotations

from typing import Any

CORPUS = [
    "You are a helpful assistant. Use the tools. What is 2+2? The answer is 4. Hello there, how are you today?",
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    '### Instruction:\n### Input:\n### Response:\n{"name": "weather", "arguments": {"city": "Paris"}} user assistant',
    "system user model assistant ipython tool It is sunny in Paris. Thank you. Café, naïve, über, größer.",
]


def byte_level(specials: list[str], normalizer: Any = None, trim_offsets: bool = True) -> Any:
    """A byte-level BPE as in Llama-3, Qwen and SmolLM2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.BPE())
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=420, special_tokens=specials, initial_alphabet=alphabet, show_progress=False),
    )
    backend.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    return backend


def sentencepiece_like(specials: list[str], spaces: str) -> Any:
    """A BPE with byte fallback on text whose spaces are "▁", written by "metaspace", "replace" or "prepend"."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    replace = decoders.Replace("▁", " ")
    decode = [replace, decoders.ByteFallback(), decoders.Fuse()]
    if spaces == "metaspace":  # Mistral
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    elif spaces == "prepend":  # Llama-2
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:  # Gemma
        backend.normalizer = normalizers.Replace(" ", "▁")
    if spaces != "replace":
        decode.append(decoders.Strip(content=" ", left=1))
    backend.decoder = decoders.Sequence(decode)
    backend.train_from_iterator(
        [word for text in CORPUS for word in text.split()],
        trainers.BpeTrainer(
            vocab_size=600, special_tokens=[*specials, *fallback], initial_alphabet=["▁"], show_progress=False
        ),
    )
    return backend

"""Tiny seeded vision-language models of transformers with processors of their own, and pictures to show them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

WORDS = [
    "What colour is the bus? Green. How many dogs are there? Two of them. Describe this picture in one sentence, please.",
    "USER ASSISTANT user assistant system model The picture shows a red square beside two small blue circles on white.",
    "Is there a cat? No. Which of these is larger? The left one. Below is an instruction. Hello, how are you today? Fine!",
]
TEXT: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.15, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
    "patch_size": 8, "initializer_range": 0.15,
}  # fmt: skip

IN_PARTS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for part in m['content'] %}{% if part['type'] == 'image' %}@MARK"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>"
    "assistant\n{% endif %}"
)
"""ChatML over lists of parts alone, as most vision-language models have it."""


def picture(seed: int, width: int = 40, height: int = 32) -> Any:
    """A PIL image of random pixels."""
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(seed: int, width: int = 40, height: int = 32) -> bytes:
    out = io.BytesIO()
    picture(seed, width, height).save(out, "PNG")
    return out.getvalue()


def tokenizer_of(specials: Sequence[str], **named: str) -> Any:
    """A byte-level BPE with ChatML's tokens and those of an architecture.

    Args:
        specials: further tokens.
        named: tokens that the processor asks the tokenizer for, by attribute.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    first = ["<pad>", "<bos>", "<|im_end|>", "<|im_start|>", *named.values(), *specials]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=list(dict.fromkeys(first)),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(WORDS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<|im_end|>",
        extra_special_tokens=dict(named),
        model_input_names=["input_ids", "attention_mask"],
    )


def without_video(kind: Any) -> Any:
    """A class of processor without its part for videos, which needs torchvision."""
    wanted = [name for name in kind.get_attributes() if name != "video_processor"]
    return type(kind.__name__, (kind,), {"get_attributes": classmethod(lambda cls: wanted)})


def llava() -> tuple[Any, Any]:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokens = tokenizer_of([], image_token="<image>")
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = LlavaProcessor(
        images, tokens, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=IN_PARTS.replace("@MARK", "<image>\n"),
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=LlamaConfig(**TEXT),
        image_token_index=tokens.image_token_id,
        vision_feature_layer=-1,
    )
    return LlavaForConditionalGeneration(config), processor


def llava_onevision() -> tuple[Any, Any]:
    from transformers import (
        LlavaOnevisionConfig,
        LlavaOnevisionForConditionalGeneration,
        LlavaOnevisionProcessor,
        Qwen2Config,
        SiglipVisionConfig,
    )
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

    tokens = tokenizer_of([], image_token="<image>", video_token="<video>")
    points = [[32, 32], [32, 64], [64, 32]]
    images = LlavaOnevisionImageProcessorPil(size={"height": 32, "width": 32}, image_grid_pinpoints=points)
    processor = without_video(LlavaOnevisionProcessor)(
        images, tokens, num_image_tokens=16, vision_feature_select_strategy="full",
        chat_template=IN_PARTS.replace("@MARK", "<image>"),
    )  # fmt: skip
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**VISION, vision_use_head=False),
        text_config=Qwen2Config(**TEXT),
        image_token_index=tokens.image_token_id,
        video_token_index=tokens.video_token_id,
        image_grid_pinpoints=points,
    )
    return LlavaOnevisionForConditionalGeneration(config), processor


def qwen2_vl() -> tuple[Any, Any]:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    tokens = tokenizer_of(
        ["<|vision_start|>", "<|vision_end|>"], image_token="<|image_pad|>", video_token="<|video_pad|>"
    )
    images = Qwen2VLImageProcessorPil(
        patch_size=8, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    )
    template = IN_PARTS.replace("@MARK", "<|vision_start|><|image_pad|><|vision_end|>")
    processor = without_video(Qwen2VLProcessor)(images, tokens, chat_template=template)
    vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 8}
    config = Qwen2VLConfig(
        text_config=TEXT | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
        vision_config=vision | {"initializer_range": 0.15},
        image_token_id=tokens.image_token_id,
        video_token_id=tokens.video_token_id,
        vision_start_token_id=tokens.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=tokens.convert_tokens_to_ids("<|vision_end|>"),
    )
    return Qwen2VLForConditionalGeneration(config), processor


def idefics3() -> tuple[Any, Any]:
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    rows = [f"<row_{i}_col_{j}>" for i in (1, 2) for j in (1, 2)]
    tokens = tokenizer_of(["<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *rows, "<image>"])
    images = Idefics3ImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    processor = Idefics3Processor(images, tokens, image_seq_len=4, chat_template=IN_PARTS.replace("@MARK", "<image>"))
    config = Idefics3Config(
        text_config={"model_type": "llama", **TEXT},
        vision_config=VISION,
        scale_factor=2,
        image_token_id=tokens.convert_tokens_to_ids("<image>"),
        pad_token_id=0,
    )
    return Idefics3ForConditionalGeneration(config), processor


def internvl() -> tuple[Any, Any]:
    from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLProcessor
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    tokens = tokenizer_of(
        [],
        context_image_token="<IMG_CONTEXT>",
        start_image_token="<img>",
        end_image_token="</img>",
        video_token="<video>",
    )
    images = GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, crop_to_patches=True, max_patches=2)
    processor = without_video(InternVLProcessor)(
        images, tokens, image_seq_length=4, chat_template=IN_PARTS.replace("@MARK", "<IMG_CONTEXT>\n")
    )
    config = InternVLConfig(
        vision_config=VISION | {"image_size": (32, 32), "patch_size": (8, 8)},
        text_config={"model_type": "qwen2", **TEXT},
        image_token_id=tokens.context_image_token_id,
        image_seq_length=4,
    )
    return InternVLForConditionalGeneration(config), processor


def gemma3() -> tuple[Any, Any]:
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3Processor
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    tokens = tokenizer_of(
        [], image_token="<image_soft_token>", boi_token="<start_of_image>", eoi_token="<end_of_image>"
    )
    images = Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    processor = Gemma3Processor(
        images, tokens, image_seq_length=4, chat_template=IN_PARTS.replace("@MARK", "<start_of_image>")
    )
    config = Gemma3Config(
        text_config=TEXT | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16,
                            "layer_types": ["sliding_attention", "full_attention"]},
        vision_config=VISION | {"vision_use_head": False},
        mm_tokens_per_image=4,
        image_token_index=tokens.image_token_id,
        boi_token_index=tokens.boi_token_id,
        eoi_token_index=tokens.eoi_token_id,
        initializer_range=0.15,
    )  # fmt: skip
    return Gemma3ForConditionalGeneration(config), processor


def paligemma() -> tuple[Any, Any]:
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration, PaliGemmaProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    tokens = tokenizer_of([], image_token="<image>")
    images = SiglipImageProcessorPil(size={"height": 32, "width": 32})
    images.image_seq_length = 16
    processor = PaliGemmaProcessor(images, tokens)
    config = PaliGemmaConfig(
        vision_config={"model_type": "siglip_vision_model", **VISION, "vision_use_head": False},
        text_config={"model_type": "gemma", **TEXT, "vocab_size": len(tokens), "head_dim": 8},
        image_token_index=tokens.image_token_id,
        projection_dim=32,
        hidden_size=32,
    )
    return PaliGemmaForConditionalGeneration(config), processor


def mllama() -> tuple[Any, Any]:
    from transformers import MllamaConfig, MllamaForConditionalGeneration, MllamaProcessor
    from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

    tokens = tokenizer_of(["<|python_tag|>"], image_token="<|image|>")
    images = MllamaImageProcessorPil(size={"height": 32, "width": 32}, max_image_tiles=2)
    processor = MllamaProcessor(
        images, tokens, chat_template="{{ bos_token }}" + IN_PARTS.replace("@MARK", "<|image|>")
    )
    config = MllamaConfig(
        vision_config={
            "hidden_size": 16, "attention_heads": 2, "intermediate_size": 24, "num_hidden_layers": 2, "num_global_layers": 1,
            "vision_output_dim": 32, "image_size": 32, "patch_size": 8, "max_num_tiles": 2,
            "intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]], "initializer_range": 0.15,
        },
        text_config=TEXT | {"cross_attention_layers": [1], "num_hidden_layers": 3},
        image_token_index=tokens.image_token_id,
    )  # fmt: skip
    return MllamaForConditionalGeneration(config), processor


ARCHITECTURES: dict[str, Callable[[], tuple[Any, Any]]] = {
    each.__name__: each for each in (llava, llava_onevision, qwen2_vl, idefics3, internvl, gemma3, paligemma, mllama)
}


def made(name: str) -> tuple[Any, Any]:
    """A model in evaluation mode and its processor."""
    import torch

    torch.manual_seed(0)
    model, processor = ARCHITECTURES[name]()
    for (
        parameter
    ) in model.parameters():  # some initialisations leave towers of zeros, in which every picture is the same
        if parameter.ndim and not bool(parameter.any()):
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval().requires_grad_(False), processor


def saved(name: str, folder: Path) -> Path:
    """The model and its processor as a folder that ``from_pretrained`` reads."""
    model, processor = made(name)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def conversations(folder: Path, n: int = 12) -> list[dict[str, Any]]:
    """LLaVA's rows, every fourth of text alone and one with two pictures; their pictures are written to the folder."""
    colours, things = ("red", "green", "blue", "white"), ("bus", "dog", "cat", "square", "circle")
    rows: list[dict[str, Any]] = []
    for i in range(n):
        shown = [] if i % 4 == 3 else [f"{i}.png", f"{i}-more.png"] if i == 2 else [f"{i}.png"]
        for k, name in enumerate(shown):
            (folder / name).write_bytes(png(10 * i + k, 32 + 4 * (i % 3), 36))
        thing = things[i % 5]
        asked = "<image>\n" * len(shown) + f"What colour is the {thing}?"
        said = f"The {thing} is {colours[i % 4]}" + " and very large" * (i % 3) + "."
        row: dict[str, Any] = {"id": str(i)} | ({"image": shown if len(shown) > 1 else shown[0]} if shown else {})
        rows.append(row | {"conversations": [{"from": "human", "value": asked}, {"from": "gpt", "value": said}]})
    return rows

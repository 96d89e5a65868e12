"""The base model of a training: found and checked first, loaded when rows and options are known to be right."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from instruct_prune.config import EncodeConfig, ScoreConfig
from instruct_prune.errors import InputError
from instruct_prune.models import names as models
from instruct_prune.train.config import TrainConfig
from instruct_prune.train.processes import compute_device, resolved_dtype

if TYPE_CHECKING:
    from instruct_prune.models.vision_language import VisionLanguage


@dataclass(frozen=True)
class Base:
    """A model that is there, not loaded yet.

    Attributes:
        source: where it is.
        tokenizer: a fast transformers tokenizer.
        context: the longest sequence that the model takes, in tokens.
    """

    source: models.ModelSource
    tokenizer: Any
    context: int

    @property
    def held(self) -> VisionLanguage | None:
        """The loaded model as it measures, where rows show pictures; None elsewhere."""
        return None

    @property
    def name(self) -> str:
        """As the user wrote it."""
        return self.source.name

    def identity(self) -> dict[str, Any]:
        """Name and content, for records: two models with equal identities have the same weights."""
        return self.source.identity()

    def save_tokenizer(self, folder: Path) -> None:
        """Put what reads rows beside an adapter or a model: the tokenizer, or the processor with it."""
        self.tokenizer.save_pretrained(folder)

    def load(self, config: TrainConfig) -> Any:
        """The model, frozen; in 4 bits for QLoRA.

        Raises:
            InputError: it cannot be loaded, or bitsandbytes cannot run here.
        """
        dtype = resolved_dtype(config.dtype)
        if config.quantize == "none":
            return models.load_causal_lm(self.source, dtype)
        return _load_4bit(self.source, dtype)


@dataclass(frozen=True)
class SightBase(Base):
    """A model for rows that show pictures.

    Attributes:
        model: it, as it measures.
    """

    model: VisionLanguage

    @property
    def held(self) -> VisionLanguage:
        return self.model

    def save_tokenizer(self, folder: Path) -> None:
        self.model.processor.processor.save_pretrained(folder)

    def load(self, config: TrainConfig) -> Any:
        if config.quantize != "none":
            raise InputError("--quantize 4bit is for rows of text alone. Train with --quantize none.")
        self.model.load(resolved_dtype(config.dtype), compute_device())
        return self.model.module


def find_base(name: str, revision: str | None = None, pictures: bool = False) -> Base:
    """Resolve a model's name: Hub id, local folder, GGUF file or embedded default.

    Args:
        name: of the model.
        revision: of a Hub model.
        pictures: whether it is for rows that show pictures.

    Raises:
        InputError: there is no such model, or its tokenizer cannot be loaded.
    """
    source = models.find_model(name, revision)
    if pictures:
        from instruct_prune.models.vision_language import VisionLanguage

        model = VisionLanguage(ScoreConfig(model=name, model_revision=revision), EncodeConfig(), None)
        return SightBase(source, model.tokenizer, models.context_length(source), model)
    return Base(source, models.load_tokenizer(source), models.context_length(source))


def _load_4bit(source: models.ModelSource, dtype: str) -> Any:
    try:
        import bitsandbytes  # type: ignore[import-not-found, unused-ignore]  # noqa: F401
    except ImportError:
        raise InputError(
            "--quantize 4bit needs bitsandbytes: pip install 'instruct-prune[qlora]'. Or train with --quantize none."
        ) from None
    if not torch.cuda.is_available():
        raise InputError(
            "--quantize 4bit needs a CUDA GPU, and this machine shows none. Train with --quantize none: a model that is small "
            "enough for a CPU gains nothing from 4 bits."
        )
    from peft import prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, dtype),
    )
    model = AutoModelForCausalLM.from_pretrained(
        source.location,
        revision=source.revision,
        quantization_config=config,
        device_map={"": torch.cuda.current_device()},
        trust_remote_code=False,
    )
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)

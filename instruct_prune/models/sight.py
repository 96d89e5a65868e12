"""What a vision-language model sees of pictures: features by row, put together for a batch.

The pictures of a row are run through the vision tower by themselves, so that their features do not depend on the batch, and are
kept in memory for the passes that follow, as long as there is room.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from instruct_prune.models.text_batch import TextBatch

ROOM = 2 << 30
"""Bytes of features that a process keeps; the pictures of other rows are run again in each pass."""
FEATURES = ("pooler_output", "deepstack_features")
"""What language parts read of the output of ``get_image_features``."""


@dataclass(frozen=True)
class PicturedBatch(TextBatch):
    """A batch of tokens with what the model is given of the rows' pictures.

    Attributes:
        more: arguments of the model's ``forward``.
    """

    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sight:
    """The pictures of one row, as the language part is given them.

    Attributes:
        features: by name in FEATURES: one tensor [pictures, tokens, h], or a list of tensors.
        more: other arguments of ``forward``: by token [1, t], or by picture [pictures, ...].
        kind: of the output that the features came in.
    """

    features: Mapping[str, Any]
    more: Mapping[str, Tensor]
    kind: type[Any]

    @property
    def size(self) -> int:
        """Bytes of the features."""
        return sum(tensor.nbytes for value in self.features.values() for tensor in _tensors(value))


def _tensors(value: Any) -> Sequence[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


def accepted(function: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs that a function has parameters for."""
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in inputs.items() if name in parameters}


def look(module: Any, inputs: Mapping[str, Tensor]) -> Sight:
    """Run the pictures of a row.

    Args:
        module: of transformers, with ``get_image_features``.
        inputs: what the processor gave of them, on the model's device.
    """
    see = module.base_model.get_image_features
    with torch.inference_mode(False), torch.no_grad():  # they are used in passes with gradients, too
        output = see(**accepted(see, inputs), return_dict=True)
    features = {name: output[name] for name in FEATURES if output.get(name) is not None}
    more = {name: value for name, value in inputs.items() if not name.startswith("pixel")}
    return Sight(features, accepted(module.forward, more), type(output))


class Seen:
    """The pictures of rows, run once as long as there is room.

    Args:
        module: the model.
        room: bytes of features that are kept.
    """

    def __init__(self, module: Any, room: int = ROOM) -> None:
        self.module, self.room = module, room
        self.kept: dict[str, Sight] = {}

    def of(self, key: str, inputs: Any) -> Sight:
        """The pictures of a row.

        Args:
            key: of the row.
            inputs: makes what `look` is given, where they were not kept.
        """
        if key in self.kept:
            return self.kept[key]
        found = look(self.module, inputs())
        if found.size <= self.room:
            self.room -= found.size
            self.kept[key] = found
        return found


def together(sights: Sequence[Sight | None], width: int) -> dict[str, Any]:
    """Arguments of the model's ``forward`` for a batch.

    Args:
        sights: of b rows; None for rows of text alone.
        width: tokens that rows are padded to; text and padding have the token type 0.
    """
    there = [sight for sight in sights if sight is not None]
    features: dict[str, Any] = {}
    for name in there[0].features:
        values = [sight.features[name] for sight in there]
        if isinstance(values[0], Tensor):
            features[name] = torch.cat(values)
        elif name == "pooler_output":  # a tensor a picture
            features[name] = [tensor for value in values for tensor in value]
        else:  # a tensor a layer
            features[name] = [torch.cat(layer) for layer in zip(*values, strict=True)]
    found: dict[str, Any] = {"mm_encoder_outputs": {"image": there[0].kind(**features)}}
    for name, value in there[0].more.items():
        if "token_type" not in name:
            found[name] = torch.cat([sight.more[name] for sight in there])
            continue
        types = value.new_zeros((len(sights), width))
        for i, sight in enumerate(sights):
            if sight is not None:
                own = sight.more[name][0, :width]
                types[i, : len(own)] = own
        found[name] = types
    return found


class LanguagePart(nn.Module):
    """The language model inside a model that sees: its decoder and its head, which subnets act on.

    Args:
        module: of transformers.
        head: its output head.
    """

    def __init__(self, module: Any, head: nn.Module) -> None:
        super().__init__()
        self.decoder: Any = module.get_decoder()
        self.head = head
        self.config = module.config.get_text_config()

    def get_input_embeddings(self) -> nn.Module:
        found: nn.Module = self.decoder.get_input_embeddings()
        return found

    def get_output_embeddings(self) -> nn.Module:
        return self.head

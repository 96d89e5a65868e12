"""Whether a vision-language model may be given kept features of pictures, and rows in batches: tried on the model itself.

A few short rows, with one picture, with two and with none, are run by the model's own forward pass over each alone, and then as
rows are run here. Whatever an architecture does to its pictures, a wrong number is not given.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from instruct_prune.encode.item import PicturedTokens, Tokens
from instruct_prune.encode.rendering import Rendered, Span
from instruct_prune.errors import InputError
from instruct_prune.models.sharing import MODEL_FAULTS, Shortcuts, differs, plain_losses, told_of, tolerance_of
from instruct_prune.rows.row import ImageRef

if TYPE_CHECKING:
    from instruct_prune.models.vision_language import VisionLanguage

SIZES = (((48, 40),), ((40, 56), (64, 36)), ())
"""Pixels (width, height) of the pictures of each row that is tried."""
PROMPTS, ANSWERS = ("What is it? ", "And these two? ", "Is there one? "), ("a red one", "two of them, both small", "no")


@dataclass(frozen=True)
class SightShortcuts(Shortcuts):
    """What rows with pictures may have in common, and whether features of pictures may be computed apart and kept."""

    features: bool = True


class SightTrial:
    """Rows with pictures, and their losses by the model's own forward pass over each alone.

    Args:
        model: with its weights.

    Raises:
        InputError: it cannot be run on a picture.
    """

    def __init__(self, model: VisionLanguage) -> None:
        self.model = model
        kind = type(model.module).__name__
        try:
            made = [self._item(*row) for row in zip(range(len(SIZES)), SIZES, PROMPTS, ANSWERS, strict=True)]
            self.items: list[Tokens] = [item for item in made if item is not None]
            self.wanted = torch.stack([self._plain_loss(item) for item in self.items])
        except MODEL_FAULTS as error:
            raise InputError(
                f"{kind} cannot be run on a picture of {SIZES[0][0][0]} x {SIZES[0][0][1]} pixels: {told_of(error)}"
            ) from error
        if not bool(self.wanted.isfinite().all()):
            raise InputError(f"{kind}: the loss of a row with a picture is no finite number. Try --dtype float32.")

    def shortcuts(self) -> SightShortcuts:
        """What holds, from the fastest way to the plain one."""
        reason = "its forward pass takes none"
        if "mm_encoder_outputs" in self.model._parameters:
            self.model.see_by(features=True)
            reason = self._differs([[i] for i in range(len(self.items))])
            if not reason:
                batches = self._differs([list(range(len(self.items)))])
                return SightShortcuts(not batches, prefixes=False, reason=batches)
        self.model.see_by(features=False)
        plain = SightShortcuts(False, False, reason=f"features of pictures cannot be kept: {reason}", features=False)
        self.model.shortcuts = plain  # rows are not padded then
        wrong = self._differs([[i] for i in range(len(self.items))])
        if wrong:
            raise InputError(
                f"{type(self.model.module).__name__}: {wrong} against its own forward pass. Please report it."
            )
        return plain

    def _item(self, number: int, sizes: Sequence[tuple[int, int]], prompt: str, answer: str) -> Tokens | None:
        """A row; None where the processor takes none without a picture."""
        from PIL import Image

        processor = self.model.processor
        rng = np.random.default_rng(number)
        images = [Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)) for w, h in sizes]
        text = "See " + " and ".join([processor.mark] * len(images)) + prompt + answer
        row = Rendered(text, (Span(len(text) - len(answer), len(text), (answer,)),))
        if not images:
            if processor.by_suffix:
                return None
            ids = processor.tokenizer.encode(text, add_special_tokens=False)
            return Tokens(np.asarray(ids, dtype=np.int32), np.arange(len(ids)) >= len(ids) // 2)
        _, asked, ids = processor.expand(row, images)
        learnt = len(processor.tokenizer.encode(answer, add_special_tokens=False)) + int(
            processor.by_suffix
        )  # its end token
        mask = np.arange(len(ids)) >= len(ids) - learnt
        held = tuple(ImageRef(f"trial-{number}-{i}", _png(image)) for i, image in enumerate(images))
        nothing = Tokens(np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.bool_))
        return PicturedTokens(np.asarray(ids, dtype=np.int32), mask, held, asked, nothing, f"trial:{number}")

    def _plain_loss(self, item: Tokens) -> Tensor:
        more: dict[str, Any] = self.model.inputs_of(item) if isinstance(item, PicturedTokens) else {}
        return plain_losses(self.model.module, item.ids, **more)[item.response_mask[1:]].mean()

    def _differs(self, groups: Sequence[list[int]]) -> str:
        """How rows run together differ from the reference; "" where they agree."""
        tolerance = tolerance_of(self.model.module, self.wanted)
        return differs(self.model, self.items, self.wanted, tolerance, [(-1, group) for group in groups])


def _png(image: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()

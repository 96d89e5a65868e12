"""Processors of vision-language models: what one makes of a text with pictures. Pictures are prepared by Pillow and numpy alone."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from instruct_prune.encode.item import PicturedTokens
from instruct_prune.encode.rendering import Rendered, RenderError, Span
from instruct_prune.errors import InputError
from instruct_prune.models import names
from instruct_prune.models.pretrained import loaded
from instruct_prune.rows.pixels import decode
from instruct_prune.rows.reader import RowError
from instruct_prune.rows.row import ImageRef

NOT_OF_PICTURES = ("input_ids", "attention_mask", "labels", "text_replacement_offsets")
"""What a processor gives beside its pictures, and is made here from the row's own tokens."""
PROCESSOR_FAULTS = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, ZeroDivisionError, OverflowError)


class Processor:
    """A processor of transformers.

    Args:
        processor: with an ``image_token``, its image processor and its tokenizer.

    Attributes:
        mark: what stands for a picture in a text.
        tokenizer: with the processor's chat template.
        by_suffix: whether prompt and response are given apart (PaliGemma), and only the response is causal.

    Raises:
        InputError: it is no processor of texts with pictures, or of a transformers that does not say where it puts them.
    """

    def __init__(self, processor: Any) -> None:
        kind = type(processor).__name__
        if not hasattr(processor, "get_text_with_replacements"):
            import transformers

            raise InputError(
                f"pictures in conversations need a newer transformers than {transformers.__version__}, whose processors say where "
                "they put a picture's tokens. Install 5.24 or later."
            )
        mark = getattr(processor, "image_token", None)
        if not isinstance(mark, str) or not mark:
            raise InputError(f"{kind} has no token that stands for a picture, so pictures have no place in its texts.")
        self.processor, self.mark, self.tokenizer = processor, mark, processor.tokenizer
        self.by_suffix = "suffix" in inspect.signature(type(processor).__call__).parameters
        if getattr(processor, "chat_template", None):
            self.tokenizer.chat_template = processor.chat_template

    @property
    def identity(self) -> str:
        """All that decides what becomes of a picture."""
        said: str = self.processor.image_processor.to_json_string()
        return f"{type(self.processor).__name__} {said}"

    def expand(self, row: Rendered, images: Sequence[Any]) -> tuple[Rendered, str, list[int]]:
        """Put the tokens of pictures into a text.

        Args:
            row: with a mark for each picture.
            images: PIL images, one for each mark, in order.

        Returns:
            The row with its pictures' tokens; what `inputs` is to be asked for, as JSON; the ids that the processor makes of it.

        Raises:
            RenderError: the processor refuses these pictures, or this text.
        """
        asked = self._asked(row)
        try:
            found = self._call(asked, images, return_text_replacement_offsets=True)
            # Some put a BOS or a line break of their own into the text before they look for marks.
            laid: str = self.processor.prepare_inputs_layout(images=list(images), text=[asked["text"]])[1][0]
        except PROCESSOR_FAULTS as error:
            raise RenderError(f"{type(self.processor).__name__}: {' '.join(str(error).split())[:200]}") from None
        if not self.by_suffix and not laid.endswith(row.text):
            raise RenderError(f"{type(self.processor).__name__} changes the text, so responses cannot be found in it")
        text, moved = _replaced(laid, (found.get("text_replacement_offsets") or [[]])[0])
        whole = moved[-1][2] if moved else text.rfind(self.mark) + len(self.mark)

        def place(at: int) -> int:
            there = at + len(laid) - len(row.text)
            return there + sum(growth for end, growth, _ in moved if end <= there)

        if self.by_suffix:  # the response follows whatever the processor makes of the prompt
            said, shift = row.text[row.spans[0].start :], len(text) - row.spans[0].start
            text, spans = text + said, [Span(s.start + shift, s.end + shift, s.said) for s in row.spans]
        else:
            spans = [Span(place(s.start), place(s.end), s.said) for s in row.spans]
        return Rendered(text, tuple(spans), whole), json.dumps(asked), list(found["input_ids"][0])

    def _asked(self, row: Rendered) -> dict[str, str]:
        if not self.by_suffix:
            return {"text": row.text}
        if len(row.spans) != 1 or row.spans[0].end != len(row.text):
            raise RenderError(f"{type(self.processor).__name__} takes one prompt and one response")
        start = row.spans[0].start
        return {"text": row.text[:start].removesuffix("\n"), "suffix": row.text[start:]}

    def _call(self, asked: dict[str, str], images: Sequence[Any], **options: Any) -> Any:
        more = {"suffix": [asked["suffix"]]} if self.by_suffix else {}
        return self.processor(images=list(images), text=[asked["text"]], **more, add_special_tokens=False, **options)

    def inputs(self, item: PicturedTokens) -> dict[str, Tensor]:
        """What the model is given of a row's pictures beside its tokens; what goes by token is as long as these.

        Raises:
            InputError: a picture is not there any more.
        """
        images = [opened_again(picture) for picture in item.pictures]
        found = self._call(json.loads(item.asked), images, return_tensors="pt")
        whole, kept = found["input_ids"].shape[1], len(item.ids)
        tensors = {name: value for name, value in found.items() if name not in NOT_OF_PICTURES}
        by_token = {name for name, value in tensors.items() if "token_type" in name or name == "cross_attention_mask"}
        return {name: value[:, : min(whole, kept)] if name in by_token else value for name, value in tensors.items()}


def _replaced(text: str, replacements: Sequence[Mapping[str, Any]]) -> tuple[str, list[tuple[int, int, int]]]:
    """The text with what stands in each picture's place; of each place its end before, how much longer it is, and its end now."""
    pieces: list[str] = []
    moved: list[tuple[int, int, int]] = []
    last = length = 0
    for one in replacements:
        start, end = one["span"]
        pieces += [text[last:start], one["replacement"]]
        length += len(pieces[-2]) + len(pieces[-1])
        moved.append((end, len(pieces[-1]) - (end - start), length))
        last = end
    return "".join([*pieces, text[last:]]), moved


def opened(picture: ImageRef, number: int) -> tuple[Any, bytes]:
    """A picture as a PIL image in mode RGB, and its bytes.

    Raises:
        RenderError: it cannot be read; the text names it.
    """
    try:
        data = picture.read()
        return decode(data), data
    except OSError as error:
        reason = f"the file cannot be read: {error.strerror}"
    except RowError as error:
        reason = error.reason
    raise RenderError(f"picture {number} ({picture.path}): {reason}")


def opened_again(picture: ImageRef) -> Any:
    """The same of a picture that could be opened when the run began.

    Raises:
        InputError: it cannot be now.
    """
    try:
        return opened(picture, 1)[0]
    except RenderError as error:
        raise InputError(f"a picture could be used when the run began and cannot now: {error}.") from None


def load_processor(source: names.ModelSource) -> Any:
    """The model's processor without its part for videos, which would need torchvision.

    Raises:
        InputError: it has none, or one that needs more than pictures and text.
    """
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    config = names.load_config(source)
    name = PROCESSOR_MAPPING_NAMES.get(config.model_type)
    if name is None or not hasattr(transformers, name):
        raise InputError(
            f"model {source.name!r} ({config.model_type}) takes no pictures beside text. Name a vision-language model, or score "
            "the text alone: --columns with the columns that hold it."
        )
    base: Any = getattr(transformers, name)
    wanted: list[str] = base.get_attributes()
    parts = {"image_processor": names.load_image_processor, "tokenizer": names.load_tokenizer}
    others = [part for part in wanted if part not in (*parts, "video_processor")]
    if others:
        raise InputError(f"model {source.name!r}: its processor needs {', '.join(others)}, which is not used here.")

    class OfPictures(base):  # type: ignore[misc]
        """The same processor, which knows nothing of videos."""

        @classmethod
        def get_attributes(cls) -> list[str]:
            return [part for part in wanted if part != "video_processor"]

    OfPictures.__name__ = base.__name__
    options = loaded(_Options(base), source)
    made = [parts[part](source) if part in parts else None for part in wanted]
    options.pop("video_processor", None)
    try:
        return OfPictures.from_args_and_dict(made, options)
    except (*PROCESSOR_FAULTS, ImportError) as error:
        raise InputError(
            f"model {source.name!r}: its processor cannot be made ({' '.join(str(error).split())[:300]})."
        ) from error


class _Options:
    """Reads ``processor_config.json`` and the chat template."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind

    def from_pretrained(self, location: str, *, revision: str | None, trust_remote_code: bool) -> dict[str, Any]:
        options: dict[str, Any] = self.kind.get_processor_dict(location, revision=revision)[0]
        return options

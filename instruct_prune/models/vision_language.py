"""Vision-language models: a language model that is given the features of pictures among its tokens (docs/multimodal.md).

A row's loss is over its response tokens, with its pictures in the prompt (docs/multimodal.md). Only the language part
has subnets, so that the vision tower's features of a row serve all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from instruct_prune.arrays import Int32
from instruct_prune.config import EncodeConfig, Preset, ScoreConfig
from instruct_prune.encode.batching import Plan
from instruct_prune.encode.item import Encoded, PicturedTokens, Status, Tokens
from instruct_prune.encode.rendering import Rendered
from instruct_prune.encode.store import BLIND, PicturedStore, TokenStore, write_pictured, write_store
from instruct_prune.encode.templates import Blind, WithPictures, choose_template
from instruct_prune.encode.tokenize import Encoder
from instruct_prune.errors import InputError
from instruct_prune.models import names
from instruct_prune.models.causal_lm import CausalLM
from instruct_prune.models.decoder import UpToHead
from instruct_prune.models.model import Advance, States
from instruct_prune.models.processors import Processor, load_processor, opened
from instruct_prune.models.sight import LanguagePart, PicturedBatch, Seen, together
from instruct_prune.models.sight_trial import SightShortcuts, SightTrial
from instruct_prune.models.text_batch import TextBatch
from instruct_prune.models.text_model import batches_of
from instruct_prune.rows.row import Row


class VisionLanguage(CausalLM):
    """A model of transformers for images and text (``AutoModelForImageTextToText``) with its processor."""

    factory = "AutoModelForImageTextToText"
    default = ""
    embeds = True  # by its own states, which have seen the picture
    ladders = {  # noqa: RUF012
        "visual": Preset(
            ("dense", "blind"),
            "visual",
            "how much the picture helps: the loss without it less the loss with it (VisNec)",
        )
    }

    def __init__(
        self, config: ScoreConfig, encode: EncodeConfig, data_format: str | None, loaded: tuple[Any, Any] | None = None
    ) -> None:
        if loaded is None and not config.model:
            raise InputError(names.NO_SIGHT)
        super().__init__(config, encode, data_format, loaded)
        self._expanded: dict[int, tuple[str, list[int], str]] = {}

    # ---- rows become items ----

    @cached_property
    def processor(self) -> Processor:
        """The model's processor."""
        if self._loaded is not None:
            return Processor(self._loaded[1])
        assert self.source is not None
        return Processor(load_processor(self.source))

    @cached_property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @cached_property
    def encoder(self) -> Encoder:
        return self._encoder(pictures=True)

    def _encoder(self, pictures: bool) -> Encoder:
        wanted = self._encode.template
        if wanted == "auto":
            wanted = "chat" if self.tokenizer.chat_template else "plain"
        template = choose_template(wanted, self.tokenizer, self._data_format, self.processor.mark)
        return Encoder(
            self.tokenizer,
            WithPictures(template, self.processor.mark, self._expand, always=self.processor.by_suffix)
            if pictures
            else Blind(template, str(self.tokenizer.bos_token) if self.processor.by_suffix else ""),
            max_length=self._longest(),
            turns=self._encode.turns,
            overlong=self._encode.overlong,
        )

    def _expand(self, sample: Row, row: Rendered) -> Rendered:
        images: list[Any] = []
        digest = hashlib.blake2b(digest_size=16)
        for picture in (picture for message in sample.messages for picture in message.images):
            image, data = opened(picture, len(images) + 1)
            images.append(image)
            digest.update(hashlib.blake2b(data).digest())
        found, asked, ids = self.processor.expand(row, images)
        self._expanded[sample.row_id] = asked, ids, digest.hexdigest()
        return found

    @property
    def encoding(self) -> Mapping[str, Any]:
        return {**super().encoding, "processor": self.processor.identity}

    def write_items(self, folder: Path, rows: Iterable[Row], advance: Advance, strict: bool) -> None:
        """See `Model.write_items`; ``rows`` are gone through twice."""
        write_pictured(folder, self._pictured(rows, advance, strict))
        write_store(folder / BLIND, self._blind(rows, TokenStore.open(folder)))

    def encode(self, rows: Sequence[Row]) -> list[Encoded]:
        found = []
        for row, encoded in zip(rows, self.encoder.encode(rows), strict=True):
            asked, ids, digest = self._expanded.pop(row.row_id, ("", [], ""))
            shown = tuple(picture for message in row.messages for picture in message.images)
            encoded = _checked(encoded, ids, digest) if shown and encoded.status.scored else encoded
            if shown and encoded.status.scored:
                nothing = Tokens(np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.bool_))
                seen = encoded.input_ids, encoded.response_mask
                encoded = replace(encoded, item=PicturedTokens(*seen, shown, asked, nothing, encoded.content_hash))
            found.append(encoded)
        return found

    def _pictured(self, rows: Iterable[Row], advance: Advance, strict: bool) -> Iterator[tuple[Encoded, str, int]]:
        for batch in batches_of(rows):
            for row, encoded in zip(batch, self.encode(batch), strict=True):
                if strict and encoded.status == Status.FAILED:
                    raise InputError(
                        f"{row.source}, line {row.line}: {encoded.reason}. Mend the row, or run without --strict."
                    )
                yield encoded, row.source, row.line
            advance(len(batch))

    def _blind(self, rows: Iterable[Row], store: TokenStore) -> Iterator[tuple[Encoded, str, int]]:
        """Rows that show pictures, without them; no tokens where the same response cannot be told then."""
        encoder, at = self._encoder(pictures=False), 0
        for batch in batches_of(rows):
            shown = [row for row in batch if any(message.images for message in row.messages)]
            found = {row.row_id: one for row, one in zip(shown, encoder.encode(shown), strict=True)} if shown else {}
            for row in batch:
                one = found.get(row.row_id)
                yield _like(one, store[at]) if one is not None else _nothing(row.row_id), row.source, row.line
                at += 1

    def open_items(self, folder: Path) -> PicturedStore:
        return PicturedStore.open(folder)

    def allowed(
        self, group: Int32, prefixes: tuple[Int32, ...], lengths: Int32
    ) -> tuple[Int32 | None, tuple[Int32, ...]]:
        return None, ()  # a beginning may show a picture, or be seen by what comes after

    # ---- items become numbers ----

    def hold(self, module: Any) -> None:
        """Take a loaded transformers model.

        Raises:
            InputError: it cannot be run, or its losses would be wrong.
        """
        self._take(module)
        self._run_by(UpToHead(module, self.head.module))
        self._language = LanguagePart(module, self.head.module)
        self.shortcuts = SightShortcuts()
        with torch.inference_mode():
            self.shortcuts = SightTrial(self).shortcuts()
        self.see_by(self.shortcuts.features)

    def see_by(self, features: bool) -> None:
        """Whether features of pictures are computed apart and kept, or the whole model is run with the pictures each time."""
        self._seen = Seen(self.module) if features else None

    @property
    def backbone(self) -> nn.Module:
        return self._language

    def start_pass(self, plan: Plan, depths: Sequence[int], pooled: bool) -> None:
        super().start_pass(plan, depths, True)  # a picture may stand after the last response

    def collate(self, items: Sequence[Tokens], prefix: int) -> PicturedBatch:
        batch = super().collate(items, prefix)
        shown = [item if isinstance(item, PicturedTokens) else None for item in items]
        seen, width = self._seen, batch.input_ids.shape[1]
        more: dict[str, Any] = {}
        if any(shown) and seen is None:
            more = self.inputs_of(*filter(None, shown))  # rows run one by one
        elif any(shown):
            assert seen is not None
            sights = [None if item is None else seen.of(item.key, partial(self.inputs_of, item)) for item in shown]
            more = together(sights, width)
        if self.processor.by_suffix:  # tokens of a prompt see each other, also where it has lost its pictures
            first = torch.as_tensor([int(item.response_mask.argmax()) for item in items], device=self.device)
            more["token_type_ids"] = (torch.arange(width, device=self.device) >= first[:, None]).long()
        if "token_type_ids" in more:  # what sees all of its kind would see padding, too
            more["attention_mask"] = (torch.arange(width, device=self.device) < batch.lengths[:, None]).long()
        return PicturedBatch(**vars(batch), more=more)

    def blind(self, item: Tokens) -> Tokens:
        return item.blind if isinstance(item, PicturedTokens) else item

    def inputs_of(self, item: PicturedTokens) -> dict[str, Any]:
        """What the processor gives of a row's pictures, on the model's device and in its type."""
        kind = self.module.dtype
        return {
            name: value.to(self.device, kind if value.is_floating_point() else None)
            for name, value in self.processor.inputs(item).items()
        }

    def forward(self, batch: TextBatch) -> States:
        assert isinstance(batch, PicturedBatch)
        with self._fast():
            return self._output({"input_ids": batch.input_ids, "use_cache": False, **batch.more})[0]


def _checked(encoded: Encoded, ids: Sequence[int], digest: str) -> Encoded:
    """The row with its pictures in its hash; without a score where the processor makes other tokens of its text."""
    n = min(len(ids), len(encoded.input_ids))
    if encoded.input_ids[:n].tolist() != list(ids[:n]):
        empty = replace(_nothing(encoded.row_id), status=Status.FAILED)
        return replace(empty, reason="the processor makes other tokens of this row than its tokenizer alone")
    return replace(
        encoded, content_hash=hashlib.blake2b((encoded.content_hash + digest).encode(), digest_size=16).hexdigest()
    )


def _like(blind: Encoded, full: Tokens) -> Encoded:
    """A row without its pictures, its response cut as it is with them."""
    wanted = full.ids[full.response_mask]
    own = np.flatnonzero(blind.response_mask)[: len(wanted)]
    if not len(wanted) or not np.array_equal(blind.input_ids[own], wanted):
        return _nothing(blind.row_id)
    end = int(own[-1]) + 1
    return replace(blind, input_ids=blind.input_ids[:end], response_mask=blind.response_mask[:end])


def _nothing(row_id: int) -> Encoded:
    return Encoded(row_id, np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.bool_), Status.EMPTY_RESPONSE)

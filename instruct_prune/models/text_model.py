"""Models of text: how rows become tokens, once, on disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from instruct_prune.arrays import Int32, Int64
from instruct_prune.config import EncodeConfig, ScoreConfig
from instruct_prune.encode.item import Encoded, Tokens
from instruct_prune.encode.rendering import Counts, Writing
from instruct_prune.encode.store import TokenStore, join_stores, write_store
from instruct_prune.encode.tokenize import Encoder
from instruct_prune.errors import InputError
from instruct_prune.models import names
from instruct_prune.models.model import Advance, Items, Model
from instruct_prune.registry import is_reference
from instruct_prune.rows.row import Row

ENCODE_BATCH, ENCODE_CHARS = 2048, 1 << 22  # rows tokenized at once, and characters: each takes some 100 bytes


class TextModel(Model):
    """A model of a tokenizer's tokens; what it computes of them is for its subclasses to say.

    Args:
        config: its name and how it is run.
        encode: how rows become tokens.
        data_format: ``Source.format``; decides what the template "auto" is.
        loaded: a model and its tokenizer made in Python, in place of those that ``config.model`` names.

    Raises:
        InputError: no such model, no fast tokenizer, a template that does not fit.
    """

    def __init__(
        self, config: ScoreConfig, encode: EncodeConfig, data_format: str | None, loaded: tuple[Any, Any] | None = None
    ) -> None:
        self._encode = encode
        self._data_format = data_format
        self.name = (config.model or self.default) if loaded is None else type(loaded[0]).__name__
        if loaded is None and is_reference(self.name):
            wanted = "for texts, the factory must return (a causal language model of transformers, its tokenizer)"
            loaded = names.call_factory(self.name, wanted)
        self._loaded = loaded
        self._share_prefix = config.share_prefix
        self._own_notes: list[str] = []
        self.source = None if loaded is not None else names.find_model(self.name, config.model_revision)

    @cached_property
    def _configuration(self) -> Any:
        if self._loaded is not None:
            return self._loaded[0].config
        assert self.source is not None
        return names.load_config(self.source)

    @cached_property
    def tokenizer(self) -> Any:
        if self._loaded is not None:
            return self._loaded[1]
        assert self.source is not None
        return names.load_tokenizer(self.source)

    @property
    def context(self) -> int:
        """The longest row that the model takes, in tokens; 2048 where it does not say."""
        return names.context_of(self._configuration)

    @property
    def bos_token_id(self) -> int | None:
        found: int | None = self.tokenizer.bos_token_id
        return found

    def _longest(self) -> int:
        """Tokens of a row at most; `Encoder` refuses fewer than two.

        Raises:
            InputError: the model takes fewer than two.
        """
        wanted = self._encode.max_length
        context = self.context if wanted is None else names.context_of(self._configuration, max(2, wanted))
        if context < 2:
            raise InputError(
                f"model {self.name!r} has {context} positions by its configuration: a row needs at least two tokens."
            )
        if wanted is not None and wanted > context:
            self._own_notes.append(
                f"--max-length {wanted:,}: the model has {context:,} positions, so that is the limit"
            )
        return context if wanted is None else min(wanted, context)

    @cached_property
    def encoder(self) -> Encoder:
        """Rows to tokens, under the template that the options and the data ask for."""
        return Encoder(
            self.tokenizer,
            self._encode.template,
            max_length=self._longest(),
            turns=self._encode.turns,
            overlong=self._encode.overlong,
            data_format=self._data_format,
        )

    def writing(self) -> Writing:
        return self.encoder.writing

    @property
    def encoding(self) -> Mapping[str, Any]:
        # The tokenizer's name may be a path: its hash is what counts.
        return {k: v for k, v in self.encoder.identity.items() if k != "tokenizer"}

    @property
    def notes(self) -> Sequence[str]:
        return (*self._own_notes, *self.encoder.notes)

    def encode(self, rows: Sequence[Row]) -> list[Encoded]:
        """Rows as the model reads them, in memory."""
        return self.encoder.encode(rows)

    def write_items(self, folder: Path, rows: Iterable[Row], advance: Advance, strict: bool) -> None:
        write_store(folder, self._encoded(rows, advance))

    @property
    def splits(self) -> bool:
        own = type(self)
        return own.write_items is TextModel.write_items and own.open_items is TextModel.open_items

    @property
    def counts(self) -> Counts:
        return self.encoder.counts

    def join_items(self, folder: Path, parts: Sequence[Path], counts: Sequence[Counts]) -> None:
        for others in counts[1:]:
            for mine, theirs in zip(self.counts, others, strict=True):
                mine.update(theirs)
        join_stores(folder, parts)

    def _encoded(self, rows: Iterable[Row], advance: Advance) -> Iterator[tuple[Encoded, str, int]]:
        known: int | None = getattr(self._configuration.get_text_config(), "vocab_size", None)
        for batch in batches_of(rows):
            for row, encoded in zip(batch, self.encoder.encode(batch), strict=True):
                if known is not None and (encoded.input_ids >= known).any():
                    raise InputError(self._beyond(int(encoded.input_ids.max()), known, row))
                yield encoded, row.source, row.line
            advance(len(batch))
        if known is not None and len(self.tokenizer) > known:
            self._own_notes.append(f"{self._sizes(known)}: none of the others occurs in these rows")

    def _sizes(self, known: int) -> str:
        return f"the tokenizer has {len(self.tokenizer):,} tokens, the model embeddings for {known:,}"

    def _beyond(self, token: int, known: int, row: Row) -> str:
        """What to say of a token id that the model has no embedding for."""
        said = self.tokenizer.convert_ids_to_tokens(token)
        return (
            f"{row.source}, line {row.line}: token {said!r} has the id {token}, but {self._sizes(known)} only. Tokens were added "
            "and the model was not resized (model.resize_token_embeddings), or the tokenizer is another model's. Take the "
            "tokenizer that belongs to the model."
        )

    def open_items(self, folder: Path) -> TokenStore:
        return TokenStore.open(folder)

    def cost(self, item: Tokens) -> int:
        return len(item.ids)

    def shared_prefixes(self, items: Items, rows: Int64) -> tuple[Int32 | None, tuple[Int32, ...]]:
        if not self._share_prefix:
            return None, ()
        assert isinstance(items, TokenStore)
        return items.shared_prefixes(rows)

    @property
    def identity(self) -> Mapping[str, Any]:
        if self.source is not None:
            return self.source.identity()
        assert self._loaded is not None
        return {"name": self.name, "content": names.weights_hash(self._loaded[0])}


def batches_of(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Rows to be tokenized together: fewer where they are long, so that memory does not grow with their length."""
    batch: list[Row] = []
    chars = 0
    for row in rows:
        batch.append(row)
        chars += row.n_chars
        if len(batch) == ENCODE_BATCH or chars >= ENCODE_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch

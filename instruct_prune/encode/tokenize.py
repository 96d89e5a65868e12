"""Samples -> token ids and response masks: one tokenization of the whole text, the mask by character offsets."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from instruct_prune.arrays import Bool, Int32
from instruct_prune.encode.item import Encoded, Status
from instruct_prune.encode.offsets import bare, leading_specials, token_ranges, tokens_until, truncate, unsaid
from instruct_prune.encode.rendering import Counts, Rendered, RenderError, Span, Template, Writing, counted, trained
from instruct_prune.encode.templates import Wrapped, choose_template
from instruct_prune.errors import InputError
from instruct_prune.rows.row import Row

_SHOWN_KEY, _SHOWN_NOTES = 40, 30
MOST_CHARS = 1 << 22  # of a row, a million tokens: more is not even tokenized to be cut
_NO_IDS = np.zeros(0, dtype=np.int32)


class Encoder:
    """Tokenizes samples under one template.

    Args:
        tokenizer: a transformers tokenizer backed by the tokenizers library ("fast").
        template: "auto", "alpaca", "chat", "plain", the path of a Jinja file, or a template that is made already.
        max_length: tokens per row at most.
        turns: score every assistant turn ("all") or the last trained one only ("last").
        overlong: "truncate" cuts rows longer than max_length (prompt from the left first, then the response from
            the right); "drop" gives them the status too_long.
        data_format: ``Source.format``; decides what "auto" is.

    Attributes:
        template_name: the template in use.
        bos: what is put before every text, as text ("" where the tokenizer adds nothing or the template writes it).

    Raises:
        InputError: no fast tokenizer, no such template, no chat template, max_length below 2.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: str | Template = "auto",
        *,
        max_length: int,
        turns: Literal["all", "last"] = "all",
        overlong: Literal["truncate", "drop"] = "truncate",
        data_format: str | None = None,
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise InputError(
                "this model's tokenizer has no fast version (tokenizers library), so there are no character offsets to"
                " find the response by. Convert it with transformers' convert_slow_tokenizer, or take another model."
            )
        if max_length < 2:
            raise InputError(f"--max-length {max_length}: at least 2 tokens are needed to score one of them.")
        self._template: Template = (
            choose_template(template, tokenizer, data_format) if isinstance(template, str) else template
        )
        self._max_length = max_length
        self._turns = turns
        self._overlong = overlong
        self._name = str(tokenizer.name_or_path)
        self._backend = bare(tokenizer.backend_tokenizer)
        self._unknown = tokenizer.unk_token_id
        self._eos = str(tokenizer.eos_token or "")
        self._counts: Counter[tuple[str, str]] = Counter()
        self.template_name: str = self._template.name
        specials = self._template.writes_specials
        self._leading = leading_specials(tokenizer)
        self._added_text: str = self._backend.decode(self._leading, skip_special_tokens=False)
        self.bos = "" if specials else self._added_text
        self._ids_before = [] if specials else self._leading
        self._ids_after = [] if specials or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        self._eos_text = self._eos if self._ids_after else ""
        if specials and not self._leading and tokenizer.bos_token_id is not None and "bos_token" in self._template.text:
            self._leading = [tokenizer.bos_token_id]

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should be told about the rows encoded so far (a merged system message, ...)."""
        notes = (*self._template.notes, *counted(self._counts))
        if self._template.writes_specials or self._ids_after:
            return notes
        return (*notes, "the tokenizer has no end-of-sequence token, so none is appended")

    @property
    def counts(self) -> Counts:
        """What the notes are made of; what other processes counted is added to it."""
        return (self._counts, *self._template.counts)

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides ids and masks, for the manifest and the fingerprint of a run."""
        text = self._template.text
        return {
            "template": self.template_name,
            "template_text": text,
            "template_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "tokenizer": self._name,
            "tokenizer_sha256": hashlib.sha256(self._backend.to_str().encode()).hexdigest(),
            "ids_before": self._ids_before,
            "ids_after": self._ids_after,
            "max_length": self._max_length,
            "turns": self._turns,
            "overlong": self._overlong,
        }

    @property
    def writing(self) -> Writing:
        """How rows are written, for those who write them for trainers."""
        pieces = self._backend.encode_batch(["a\n", "b", "a\nb"], add_special_tokens=False)
        return Writing(
            template=self.template_name,
            max_length=self._max_length,
            turns=self._turns,
            render=self.render,
            bos=self.bos,
            eos=self._eos,
            added=self._added_text,
            joins=pieces[0].ids + pieces[1].ids == pieces[2].ids,
        )

    def encode(self, batch: Sequence[Row]) -> list[Encoded]:
        """Tokenize rows in one call; a row that cannot be encoded gets a status and a reason, never an exception."""
        prepared = [self._prepare(sample) for sample in batch]
        rows = [row for row in prepared if isinstance(row, Rendered)]
        encodings = self._backend.encode_batch([row.text for row in rows], add_special_tokens=False)
        ranges = [token_ranges(encoding, row) for encoding, row in zip(encodings, rows, strict=True)]
        pieces = [encoding.ids[a:b] for encoding, found in zip(encodings, ranges, strict=True) for a, b in found]
        decoded = iter(self._backend.decode_batch(pieces, skip_special_tokens=False))
        tokenized = zip(encodings, ranges, strict=True)
        encoded = []
        for sample, row in zip(batch, prepared, strict=True):
            if isinstance(row, Rendered):
                encoding, found = next(tokenized)
                encoded.append(self._finish(sample.row_id, encoding, row, found, [next(decoded) for _ in found]))
            else:
                encoded.append(row)
        return encoded

    def render(self, sample: Row) -> list[tuple[str, bool]]:
        """The row's text in pieces, (text, is it response), with the end-of-sequence token and without BOS.

        Raises:
            InputError: the template cannot write this row.
        """
        turns = trained(sample, self._turns)
        try:
            row = self._rendered(sample, turns)
        except RenderError as error:
            raise InputError(f"row {sample.row_id} ({sample.source}, line {sample.line}): {error}.") from None
        pieces: list[tuple[str, bool]] = []
        position = len(self.bos) if row.text.startswith(self.bos) else 0
        for span in row.spans:
            start = max(position, span.start)
            pieces += [(row.text[position:start], False), (row.text[start : span.end], True)]
            position = span.end
        scored = bool(row.spans) and position == len(row.text)
        eos = "" if self._eos_text and row.text.endswith(self._eos_text) else self._eos_text
        pieces += [(row.text[position:], False), (eos, scored)]
        return [(text, response) for text, response in pieces if text]

    def decode(self, row: Encoded) -> list[tuple[str, bool]]:
        """What the ids of an encoded row say, in runs of (text, is it scored), special tokens included."""
        ids, mask = row.input_ids.tolist(), row.response_mask
        borders = [*(np.flatnonzero(mask[1:] != mask[:-1]) + 1).tolist(), len(ids)] if ids else []
        runs: list[tuple[str, bool]] = []
        shown, begin = "", 0
        for end in borders:
            whole = self._backend.decode(ids[:end], skip_special_tokens=False)
            # Tokenizers that write blanks as "\u2581" take one off the beginning, so a run alone may lose its blank.
            alone = self._backend.decode(ids[begin:end], skip_special_tokens=False)
            runs.append((whole[len(shown) :] if whole.startswith(shown) else alone, bool(mask[begin])))
            shown, begin = whole, end
        return runs

    def _prepare(self, sample: Row) -> Rendered | Encoded:
        turns = trained(sample, self._turns)
        if not turns:
            if any(message.trained for message in sample.messages):
                return _without_score(sample.row_id, Status.EMPTY_RESPONSE, "the response is empty")
            return _without_score(sample.row_id, Status.ALL_MASKED, "no turn is trained: every weight is 0")
        n = sample.n_chars
        if n > MOST_CHARS:
            return _without_score(sample.row_id, Status.TOO_LONG, f"{n:,} characters, more than {MOST_CHARS:,}")
        self._count_unread(sample)
        try:
            return self._rendered(sample, turns)
        except RenderError as error:
            return _without_score(sample.row_id, Status.FAILED, str(error))

    def _rendered(self, sample: Row, turns: list[int]) -> Rendered:
        """The row as text. Blanks after an EOS that the data bring are left out, so that it stays the last token."""
        if not isinstance(self._template, Wrapped) and any(message.images for message in sample.messages):
            raise RenderError("the row shows pictures, which are no text: a vision-language model is needed for it")
        row = self._template.render(sample, turns)
        length = len(row.text.rstrip())
        if not self._eos_text or length == len(row.text) or not row.text.endswith(self._eos_text, 0, length):
            return row
        spans = tuple(Span(min(s.start, length), min(s.end, length), s.said) for s in row.spans)
        return Rendered(row.text[:length], spans, row.whole)

    def _count_unread(self, sample: Row) -> None:
        """Count what the turns of a row say of themselves that nobody reads."""
        for message in sample.messages:
            for key in message.extra:
                if not self._template.reads(key):
                    shown = key if len(key) <= _SHOWN_KEY else key[:_SHOWN_KEY] + "..."
                    note = f"the key {shown!r} of turns is not read; exports to messages carry it on"
                    if (note, "turns") not in self._counts and len(self._counts) >= _SHOWN_NOTES:
                        note = "other keys of turns are not read, either"
                    self._counts[note, "turns"] += 1
            for remark in message.remarks:
                self._counts[remark, "turns"] += 1
            if message.reasoning.strip() and not self._template.writes_specials:
                note = f"the template {self.template_name} has no place for thoughts (reasoning_content): they are left out"
                self._counts[note, "turns"] += 1

    def _finish(
        self, row_id: int, encoding: Any, row: Rendered, ranges: list[tuple[int, int]], decoded: list[str]
    ) -> Encoded:
        for span, text, (first, last) in zip(row.spans, decoded, ranges, strict=True):
            missing = unsaid(span, text, self._backend.normalizer)
            if missing and not self._covers(encoding, first, last, span):
                reason = f"the masked tokens do not say the response: {missing[:60]!r}"
                return _without_score(row_id, Status.FAILED, reason)
        ids, mask = self._assemble(encoding, row, ranges)
        status, n_cut, reason = Status.OK, 0, ""
        if len(ids) > self._max_length:
            if self._overlong == "drop":
                return _without_score(row_id, Status.TOO_LONG, f"{len(ids)} tokens, more than {self._max_length}")
            status, reason = Status.TRUNCATED, f"{len(ids)} tokens, cut to {self._max_length}"
            n_before = len(self._leading) if ids[: len(self._leading)].tolist() == self._leading else 0
            whole = len(ids) - len(encoding.ids) + tokens_until(encoding, row.whole) if row.whole else 0
            if whole > self._max_length or (whole and not mask[: self._max_length].any()):
                return _without_score(
                    row_id, Status.TOO_LONG, f"{reason}: pictures are not cut, and they leave no response"
                )
            ids, mask, n_cut = truncate(ids, mask, n_before, self._max_length, whole)
        mask[0] = False  # nothing comes before the first token, so it is never a target
        if not mask.any():
            return _without_score(row_id, Status.ALL_MASKED, "no response token has a token before it")
        return Encoded(row_id, ids, mask, status, n_cut, reason, _hash(ids, mask))

    def _assemble(self, encoding: Any, row: Rendered, ranges: list[tuple[int, int]]) -> tuple[Int32, Bool]:
        tokens = encoding.ids
        # What the data bring along themselves is not added once more.
        after = [] if tokens[-1:] == self._ids_after else self._ids_after
        before = [] if tokens[: len(self._ids_before)] == self._ids_before else self._ids_before
        ids = np.asarray(before + tokens + after, dtype=np.int32)
        mask = np.zeros(len(ids), dtype=np.bool_)
        for first, last in ranges:
            mask[len(before) + first : len(before) + last] = True
        if after:
            mask[-1] = row.spans[-1].end == len(row.text)
        return ids, mask

    def _covers(self, encoding: Any, first: int, last: int, span: Span) -> bool:
        """Whether tokens lie over a span in which characters are unknown to the vocabulary, which decode to nothing."""
        if self._unknown is None or self._unknown not in encoding.ids[first:last]:
            return False
        offsets = encoding.offsets[first:last]
        return bool(offsets[0][0] <= span.start and offsets[-1][1] >= span.end)


def _without_score(row_id: int, status: Status, reason: str) -> Encoded:
    empty = np.zeros(0, dtype=np.bool_)
    return Encoded(row_id, _NO_IDS, empty, status, 0, reason, _hash(_NO_IDS, empty))


def _hash(ids: Int32, mask: Bool) -> str:
    return hashlib.blake2b(ids.tobytes() + mask.tobytes(), digest_size=16).hexdigest()

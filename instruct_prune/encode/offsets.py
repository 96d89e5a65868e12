"""Characters to tokens: which tokens a span overlaps and what they say, which ones a tokenizer adds, which a cut leaves."""

from __future__ import annotations

import unicodedata
from typing import Any

import numpy as np

from instruct_prune.arrays import Bool, Int32
from instruct_prune.encode.rendering import Rendered, Span


def bare(backend: Any) -> Any:
    """A copy that neither adds special tokens, nor pads or cuts, nor trims offsets.

    Byte-level post-processors trim blanks off the offsets, which leaves blank tokens without width; without the
    post-processor every character of the text lies in a token.
    """
    from tokenizers import Tokenizer

    copy = Tokenizer.from_str(backend.to_str())
    copy.no_padding()
    copy.no_truncation()
    copy.post_processor = None
    return copy


def leading_specials(tokenizer: Any) -> list[int]:
    """The ids that the tokenizer itself puts before a text (BOS, where the model has one)."""
    bare: list[int] = tokenizer.encode("a", add_special_tokens=False)
    full: list[int] = tokenizer.encode("a", add_special_tokens=True)
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start]
    return []


def token_ranges(encoding: Any, row: Rendered) -> list[tuple[int, int]]:
    """[first, last) tokens that overlap each span."""
    return [_token_range(encoding, span.start, span.end, len(row.text)) for span in row.spans]


def _token_range(encoding: Any, start: int, end: int, length: int) -> tuple[int, int]:
    first = encoding.char_to_token(start)
    after = len(encoding) if end == length else encoding.char_to_token(end)
    if first is not None and after is not None:
        while after < len(encoding) and encoding.token_to_chars(after)[0] < end:
            after += 1  # a token across the end, or the next one of a character that is several tokens
        return first, after
    # Some characters lie in no token (a normalizer removed them): look at all offsets.
    offsets = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    overlap = (offsets[:, 0] < end) & (offsets[:, 1] > start)
    inside = (offsets[:, 0] == offsets[:, 1]) & (offsets[:, 0] > start) & (offsets[:, 0] < end)
    found = np.flatnonzero(overlap | inside)
    return (int(found[0]), int(found[-1]) + 1) if len(found) else (0, 0)


def tokens_until(encoding: Any, end: int) -> int:
    """How many tokens a text has up to a character, the one that crosses it counted."""
    offsets = np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)
    return int((offsets[:, 0] < end).sum())


def truncate(ids: Int32, mask: Bool, n_before: int, max_length: int, whole: int = 0) -> tuple[Int32, Bool, int]:
    """Cut what comes after the last response token, then the prompt from the left (after BOS), then the right end.

    With ``whole`` tokens at the beginning that must stay, because pictures are among them, only the right end is cut.
    """
    last = len(mask) - int(np.argmax(mask[::-1]))
    ids, mask = ids[: max(last, max_length)], mask[: max(last, max_length)]
    excess = len(ids) - max_length
    if excess <= 0:
        return ids, mask, 0
    prompt = 0 if whole else int(np.argmax(mask)) - n_before
    cut = min(excess, prompt)
    keep = np.r_[0:n_before, n_before + cut : len(ids)]
    ids, mask = ids[keep], mask[keep]
    n_cut = int(mask[max_length:].sum())
    return ids[:max_length], mask[:max_length], n_cut


def unsaid(span: Span, decoded: str, normalizer: Any) -> str:
    """The first piece of a span that its decoded tokens do not say, up to what a normalizer may change; "" if none."""
    for piece in span.said:
        said = piece.strip()
        if said in decoded or _folded(said) in _folded(decoded):
            continue
        left = _folded(normalizer.normalize_str(said)) if normalizer is not None else ""
        if not left or left not in _folded(decoded):
            return said
    return ""


def _folded(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split()).replace("\u2581", "")

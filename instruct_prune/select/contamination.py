"""Rows of the pool that repeat rows which they must not: those of a test, a benchmark, or the target itself.

A row repeats another where their normalised texts are equal, or where they share 13 words in a row. That is the rule of GPT-3
(Brown et al., arXiv 2005.14165, appendix C: any 13-gram, lower case, punctuation out) and of lm-evaluation-harness's Janitor
(``ngram_n=13``). Words are compared by hashes of 64 bits: memory is 12 bytes a word of the reference rows, and the pool is streamed.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from instruct_prune.arrays import Float32, Int64, batched
from instruct_prune.geometry import blocks
from instruct_prune.select.duplicates import text_keys

N = 13
"""Words in a row that two rows must share."""
HOW = ("text", "13-gram", "embedding")
TEXT, NGRAM, EMBEDDING = range(len(HOW))
BATCH = 1024
"""Rows of the pool that are looked at together."""
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
# A run of letters and digits is a word; of scripts without spaces (kana, ideographs) each sign is one.
WORD = re.compile(
    "[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|[^\\W_\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]+"
)

UInt64 = NDArray[np.uint64]
Hash = TypeVar("Hash", np.int64, np.uint64)


@dataclass(frozen=True)
class Repeats:
    """Which rows of a pool of n repeat a reference row.

    Attributes:
        of: int64 [n], place of the first reference row that it repeats, -1 where it repeats none.
        how: int8 [n], an index into HOW, -1 likewise.
    """

    of: Int64
    how: NDArray[np.int8]

    def with_similar(self, similar: Int64) -> Repeats:
        """These, and rows that embeddings alone show to repeat one (int64 [n], as ``of``)."""
        more = (self.of < 0) & (similar >= 0)
        return Repeats(np.where(more, similar, self.of), np.where(more, EMBEDDING, self.how).astype(np.int8))


class References:
    """Rows that the pool must not repeat.

    Args:
        texts: of each row, `Row.text`.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        self._code: dict[str, int] = {}
        keys: list[Int64] = []
        hashes: list[UInt64] = []
        owners: list[Int64] = []
        start = 0
        for batch in batched(texts, BATCH):
            keys.append(text_keys(batch))
            found, at = _ngrams([[self._learn(word) for word in words(text)] for text in batch])
            hashes.append(found)
            owners.append(at + start)
            start += len(batch)
        self._keys, self._key_owner = _first([*keys, np.empty(0, np.int64)], np.arange(start))
        owner = np.concatenate([*owners, np.empty(0, np.int64)])
        self._hashes, self._owner = _first([*hashes, np.empty(0, np.uint64)], owner)

    def _learn(self, word: str) -> int:
        """64 bits for a word, never 0."""
        if word not in self._code:
            digest = hashlib.blake2b(word.encode(errors="surrogatepass"), digest_size=8).digest()
            self._code[word] = int.from_bytes(digest, "little") | 1
        return self._code[word]

    def repeated_by(self, texts: Iterable[str]) -> Repeats:
        """Look through the texts of a pool, in order."""
        parts = [self._batch(batch) for batch in batched(texts, BATCH)]
        empty = Repeats(np.empty(0, np.int64), np.empty(0, np.int8))
        return Repeats(
            np.concatenate([part.of for part in (*parts, empty)]),
            np.concatenate([part.how for part in (*parts, empty)]),
        )

    def _batch(self, texts: Sequence[str]) -> Repeats:
        same = _look_up(text_keys(texts), self._keys, self._key_owner)
        known = self._code.get
        hashes, at = _ngrams([[known(word, 0) for word in words(text)] for text in texts])
        found = _look_up(hashes, self._hashes, self._owner)
        hit = np.flatnonzero(found >= 0)
        rows, first = np.unique(at[hit], return_index=True)
        shared = np.full(len(texts), -1, dtype=np.int64)
        shared[rows] = found[hit[first]]
        how = np.where(same >= 0, TEXT, np.where(shared >= 0, NGRAM, -1)).astype(np.int8)
        return Repeats(np.where(same >= 0, same, shared), how)


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    folded = text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()
    return WORD.findall(folded)


def similar_to(vectors: Float32, at: Int64, references: Float32, threshold: float) -> Int64:
    """int64 [n]: the reference row nearest to each row of a pool where their cosine reaches the threshold, else -1.

    Args:
        vectors: float32 [m, d], L2-normalised, possibly memory-mapped.
        at: int64 [n], where each row stands in them.
        references: float32 [r, d], L2-normalised.
        threshold: in (0, 1].
    """
    found = np.full(len(at), -1, dtype=np.int64)
    best = np.full(len(at), threshold, dtype=np.float32)
    for block in blocks(len(at)):
        mine = np.asarray(vectors[at[block]], dtype=np.float32)
        for some in blocks(len(references)):
            cosine = mine @ references[some].T
            top = cosine.argmax(axis=1)
            value = cosine[np.arange(len(top)), top]
            better = value >= best[block] if some.start == 0 else value > best[block]
            found[block] = np.where(better, top + some.start, found[block])
            best[block] = np.where(better, value, best[block])
    return found


def _ngrams(rows: Sequence[list[int]]) -> tuple[UInt64, Int64]:
    """Hashes of all N words in a row that have codes other than 0, uint64 [g], and which of the rows each is from."""
    lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
    codes = np.fromiter(_joined(rows), dtype=np.uint64, count=int(lengths.sum()))
    row = np.repeat(np.arange(len(rows)), lengths)
    if len(codes) < N:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    unknown = np.concatenate([[0], np.cumsum(codes == 0)])
    within = (unknown[N:] == unknown[:-N]) & (row[N - 1 :] == row[: len(row) - N + 1])
    hashes = codes[: len(codes) - N + 1].copy()
    for j in range(1, N):
        hashes *= MULTIPLIER
        hashes += codes[j : len(codes) - N + 1 + j]
    start = np.flatnonzero(within)
    return hashes[start], row[start]


def _joined(rows: Sequence[list[int]]) -> Iterator[int]:
    for row in rows:
        yield from row


def _first(parts: Sequence[NDArray[Hash]], owner: Int64) -> tuple[NDArray[Hash], NDArray[np.int32]]:
    """The different values, ascending, each with its first owner."""
    values, first = np.unique(np.concatenate(parts), return_index=True)
    return values, owner[first].astype(np.int32)


def _look_up(asked: NDArray[Hash], known: NDArray[Hash], owner: NDArray[np.int32]) -> Int64:
    """int64 [len(asked)]: the owner of each value, -1 where it is not known."""
    if not len(known):
        return np.full(len(asked), -1, dtype=np.int64)
    at = np.minimum(np.searchsorted(known, asked), len(known) - 1)
    return np.where(known[at] == asked, owner[at], -1).astype(np.int64)

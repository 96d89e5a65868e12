"""Which rows run together: token-budget batches, longest first, cut into chunks of equal cost.

The plan depends on the data and the configuration only, never on the number of processes: a chunk is the unit of
work, of resumption and of storage. The width that a row is padded to follows from its own length: then what a CPU computes
of a row is the same to the last bit whatever rows it runs with (docs/updating.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from instruct_prune.arrays import Bool, Int32, Int64

KEY_TOKENS = 16  # rows whose first KEY_TOKENS ids agree may share a prefix
MIN_SHARED = 8  # a prefix shorter than this, or shared by fewer rows, is not worth a cache
CHUNKS_WANTED = 256
ROWS_AT_ONCE = 65536
WIDTH_BITS = 4  # binary digits of a width: 8 widths between a length and its double, 4% padding on average


@dataclass(frozen=True)
class Batch:
    """Rows that run in one forward pass.

    Attributes:
        rows: int64 [b], positions in the store.
        prefix: index into ``Plan.prefixes``, -1 for none.
        width: tokens that each row is padded to, without the shared prefix.
        alone: whether this is a row that shares its forward pass with no other.
    """

    rows: Int64
    prefix: int
    width: int
    alone: bool = False


@dataclass(frozen=True)
class Plan:
    """All batches, in chunks; ``prefixes[k]`` are token ids int32 [p] that every row of a group starts with."""

    chunks: tuple[tuple[Batch, ...], ...]
    prefixes: tuple[Int32, ...]
    n_rows: int
    n_tokens: int
    n_padding: int

    @property
    def padding_share(self) -> float:
        total = self.n_tokens + self.n_padding
        return self.n_padding / total if total else 0.0

    def rows_of(self, chunk: int) -> Int64:
        """int64: the positions in the store that a chunk covers, in batch order."""
        return np.concatenate([batch.rows for batch in self.chunks[chunk]])


def padded(lengths: Int32) -> Int32:
    """int32 [m]: the widths that rows of these lengths are padded to, by each length alone: four binary digits, rounded up."""
    digits = np.frexp(np.maximum(lengths - 1, 0).astype(np.float64))[1]
    step = np.left_shift(1, np.maximum(digits - WIDTH_BITS, 0))
    widths: Int32 = (-(-lengths // step) * step).astype(np.int32)
    return widths


def plan_batches(
    rows: Int64,
    lengths: Int32,
    *,
    batch_tokens: int,
    group: Int32 | None = None,
    prefixes: tuple[Int32, ...] = (),
    alone: Bool | None = None,
) -> Plan:
    """Put rows of one width together, up to ``batch_tokens`` padded tokens (at least one row), and cut into chunks.

    Args:
        rows: int64 [m], positions to score.
        lengths: int32 [m], tokens of each.
        batch_tokens: padded tokens per batch, shared prefix not counted.
        group: int32 [m], index into ``prefixes`` or -1.
        prefixes: shared token ids.
        alone: bool [m], rows that share their forward pass with no other, and are not padded.
    """
    group = np.full(len(rows), -1, dtype=np.int32) if group is None else group
    alone = np.zeros(len(rows), dtype=np.bool_) if alone is None else alone
    shared = np.asarray([len(p) for p in prefixes] + [0], dtype=np.int32)  # -1 takes the last entry
    own = lengths - shared[group]
    width = np.where(alone, own, padded(own))
    # Longest first, whatever the group: memory runs out on the first batch and not at hour six.
    order = np.lexsort((rows, alone, group, -width - shared[group]))
    keys = np.stack([width, group, alone], axis=1)[order]
    starts = np.flatnonzero(np.any(keys[1:] != keys[:-1], axis=1)) + 1
    batches: list[Batch] = []
    for members in np.split(order, starts) if len(order) else []:
        g, w = int(group[members[0]]), int(width[members[0]])
        single = bool(alone[members[0]])
        most = 1 if single else max(1, batch_tokens // max(w, 1))
        batches += [Batch(rows[members[at : at + most]], g, w, single) for at in range(0, len(members), most)]
    computed = sum(b.width * len(b.rows) for b in batches)
    n_tokens = int(own.sum())
    chunks = _cut(batches, max(batch_tokens, computed // CHUNKS_WANTED))
    return Plan(chunks, prefixes, len(rows), n_tokens, computed - n_tokens)


def _cut(batches: list[Batch], chunk_tokens: int) -> tuple[tuple[Batch, ...], ...]:
    chunks: list[tuple[Batch, ...]] = []
    current: list[Batch] = []
    cost = 0
    for batch in batches:
        current.append(batch)
        cost += batch.width * len(batch.rows)
        if cost >= chunk_tokens:
            chunks.append(tuple(current))
            current, cost = [], 0
    if current:
        chunks.append(tuple(current))
    return tuple(chunks)


def shared_prefixes(ids: Int32, offset: Int64, rows: Int64, first_target: Int32) -> tuple[Int32, tuple[Int32, ...]]:
    """Find token prefixes that many rows begin with: a template's preamble, a system prompt.

    Args:
        ids: int32 [total], all tokens.
        offset: int64 [n + 1].
        rows: int64 [m], positions to look at.
        first_target: int32 [m], index of the first response token of each; a prefix ends at least one token
            earlier, so that the state that predicts the first target is computed with the row itself.

    Returns:
        group int32 [m] (index into the prefixes, -1 for none) and the prefixes.
    """
    group = np.full(len(rows), -1, dtype=np.int32)
    long_enough = np.flatnonzero(first_target - 1 >= KEY_TOKENS)
    if len(long_enough) < MIN_SHARED:
        return group, ()
    keys = _first_tokens_hashed(ids, offset[rows[long_enough]])
    _, first, inverse, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    prefixes: list[Int32] = []
    for key in np.flatnonzero(counts >= MIN_SHARED)[np.argsort(first[counts >= MIN_SHARED])]:
        members = long_enough[inverse == key]
        length = _common_length(ids, offset[rows[members]], int(first_target[members].min()) - 1)
        if length < MIN_SHARED:
            continue
        start = offset[rows[members[0]]]
        group[members] = len(prefixes)
        prefixes.append(np.array(ids[start : start + length], dtype=np.int32))
    return group, tuple(prefixes)


def _first_tokens_hashed(ids: Int32, starts: Int64) -> NDArray[np.uint64]:
    """8 bytes a row instead of 64: equal for equal beginnings; a collision only shortens a prefix, found exactly after."""
    factors = np.random.default_rng(0).integers(1, 2**63, KEY_TOKENS, dtype=np.uint64) | np.uint64(1)
    keys = np.empty(len(starts), dtype=np.uint64)
    for at in range(0, len(starts), ROWS_AT_ONCE):
        first = ids[starts[at : at + ROWS_AT_ONCE, None] + np.arange(KEY_TOKENS)].astype(np.uint64)
        keys[at : at + ROWS_AT_ONCE] = (first * factors).sum(axis=1, dtype=np.uint64)  # wraps, as a hash may
    return keys


def _common_length(ids: Int32, starts: Int64, limit: int) -> int:
    reference = ids[starts[0] : starts[0] + limit]
    common = limit
    for block in np.array_split(starts, max(1, len(starts) * limit // 4_000_000)):
        same = (ids[block[:, None] + np.arange(common)] == reference[:common]).all(axis=0)
        common = common if same.all() else int(np.argmin(same))
    return common

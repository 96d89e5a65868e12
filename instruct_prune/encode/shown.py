"""Rows behind demonstrations: some rows of a target, whole, and then the row, whose response alone is scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from instruct_prune.arrays import Int32, Int64
from instruct_prune.encode.batching import MIN_SHARED
from instruct_prune.encode.item import Tokens
from instruct_prune.encode.store import TokenStore


@dataclass(frozen=True)
class Shown(TokenStore):
    """A store whose rows stand behind demonstrations. Each is written by the template as a row of its own, prompt and response.

    The row's own tokens are those of the store, but for a BOS, which only the beginning of all has. So the same response
    tokens are scored as without demonstrations.

    Attributes:
        demonstrations: tokens of each.
        before: int64 [n, k], which of them stand before a row, ascending; -1 for none, at the end.
        bos: the id of the BOS, or None.
    """

    demonstrations: tuple[Tokens, ...] = field(repr=False, kw_only=True)
    before: Int64 = field(repr=False, kw_only=True)
    bos: int | None = field(kw_only=True)

    @classmethod
    def of(
        cls, store: TokenStore, demonstrations: Sequence[Tokens], nearest: Int64, bos: int | None, longest: int
    ) -> Shown:
        """Put as many demonstrations before each row as there is room for, the nearest first.

        Args:
            store: n rows.
            demonstrations: tokens of each.
            nearest: int64 [n, k], the k demonstrations for each row, the nearest first; -1 for rows that are not scored.
            bos: the id of the BOS, or None.
            longest: tokens that the model takes.
        """
        sizes = np.asarray([len(one.ids) for one in demonstrations])
        fits = (nearest >= 0) & (np.cumsum(sizes[nearest], axis=1) + store.lengths[:, None] <= longest)
        # In one order, whatever is nearest: rows with the same demonstrations then begin alike.
        before = np.sort(np.where(fits, nearest, len(sizes)), axis=1)
        before[before == len(sizes)] = -1
        return cls(**vars(store), demonstrations=tuple(demonstrations), before=before, bos=bos)

    def __getitem__(self, i: int) -> Tokens:
        own, beginning = super().__getitem__(i), self._beginning(self.before[i])
        cut = int(len(beginning) > 0 and self._bos_first(own.ids))
        silent = np.zeros(len(beginning), dtype=np.bool_)
        return Tokens(np.concatenate([beginning, own.ids[cut:]]), np.concatenate([silent, own.response_mask[cut:]]))

    @property
    def lengths(self) -> Int32:
        own = np.diff(self.offset)
        with_bos = np.zeros(len(own), dtype=np.bool_)
        with_bos[own > 0] = self.ids[self.offset[:-1][own > 0]] == self.bos
        sizes = np.asarray([*(len(one.ids) for one in self.demonstrations), 0])  # -1 takes the last entry
        bos = np.asarray([*(self._bos_first(one.ids) for one in self.demonstrations), False])
        left_out = bos[self.before].sum(axis=1) - bos[self.before[:, 0]] + (with_bos & (self.before[:, 0] >= 0))
        lengths: Int32 = (own + sizes[self.before].sum(axis=1) - left_out).astype(np.int32)
        return lengths

    def shared_prefixes(self, rows: Int64) -> tuple[Int32, tuple[Int32, ...]]:
        """Rows with the same demonstrations share them, and what they share of their own."""
        own_group, own_prefixes = super().shared_prefixes(rows)
        keys = np.column_stack([self.before[rows], own_group])
        _, first, inverse, counts = np.unique(keys, axis=0, return_index=True, return_inverse=True, return_counts=True)
        group = np.full(len(rows), -1, dtype=np.int32)
        prefixes: list[Int32] = []
        for key in np.flatnonzero(counts >= MIN_SHARED):
            members = np.flatnonzero(inverse.ravel() == key)
            prefix = self._beginning(self.before[rows[first[key]]])
            if own_group[first[key]] >= 0:
                own = own_prefixes[own_group[first[key]]]
                prefix = np.concatenate([prefix, own[int(len(prefix) > 0 and self._bos_first(own)) :]])
            elif (self.first_target[rows[members]] < 2).any():
                continue  # the state that predicts a target must not lie in the prefix
            if len(prefix) >= MIN_SHARED:
                group[members] = len(prefixes)
                prefixes.append(prefix)
        return group, tuple(prefixes)

    def _beginning(self, which: Int64) -> Int32:
        """int32 [p]: some demonstrations, one after the other."""
        ids = [self.demonstrations[q].ids for q in which if q >= 0]
        pieces = [one[int(place > 0 and self._bos_first(one)) :] for place, one in enumerate(ids)]
        return np.concatenate([np.zeros(0, dtype=np.int32), *pieces])

    def _bos_first(self, ids: Int32) -> bool:
        return self.bos is not None and len(ids) > 0 and int(ids[0]) == self.bos

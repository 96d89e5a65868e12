"""Near-duplicates: rows whose text is the same but for case and punctuation, or whose embeddings all but coincide.

Every row that is dropped has a kept row at or above the threshold, and no two kept rows reach it. (Groups by connected
components would also drop rows that resemble nothing that is kept: a like b, b like c, but a unlike c.)
Source: SemDeDup, Abbas et al. (arXiv 2303.09540), which compares rows inside k-means clusters only.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator

import numpy as np

from instruct_prune.datatypes import Float32, Int64, Picks
from instruct_prune.errors import InputError
from instruct_prune.geometry import blocks

CELL = 500
"""Rows of a cell, about. Below eight cells' worth of rows there is one cell, and every pair is compared."""
NEAREST = 256
"""Cells that a row is placed among: those nearest to its region, so that the cost of a row does not grow with n."""
PUNCTUATION = re.compile(r"(?<!\d)[.,]|[.,](?!\d)|[\s;:!?'\"‘’“”…。、¿¡]+")
VISITS = 4
"""Cells a row is compared in: its own, and the nearest others that can hold a row above the threshold."""


def text_keys(texts: Iterable[str]) -> Int64:
    """int64 [n]: equal for texts that differ in case, spacing, Unicode form and ``. , ; : ! ? ' "`` only.

    Operators and brackets count, and so does a point or comma inside a number, so that code and sums stay apart. A key is
    64 bits of the text's BLAKE2 hash; a text of nothing but punctuation is taken as it is.
    """
    hashes = (hashlib.blake2b(_normal(text).encode(errors="surrogatepass"), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(hashes), dtype="<i8").astype(np.int64)


def find_duplicates(
    row_id: Int64,
    priority: Int64,
    *,
    keys: Int64 | None = None,
    vectors: Float32 | None = None,
    threshold: float = 0.95,
) -> Int64:
    """Say which row stands for each row that is superfluous.

    Rows with equal keys come first: one of them stands for the others. Then, in order of priority, a row is kept unless
    its cosine with a row kept before it reaches the threshold. Pairs are looked for in cells around random rows: a row
    is compared with those of its own cell and of up to three neighbouring ones, cells that cannot hold a near-duplicate
    of it left out. Below 4000 rows all pairs are compared. Above, on Alpaca, CodeAlpaca and GSM8K with MiniLM, all
    pairs at 0.95 and more than 99.9% of those at 0.9 were found. Time and memory are linear in the rows.

    Args:
        row_id: int64 [n].
        priority: int64 [n], all different: the lower number stands for the higher.
        keys: int64 [n], from `text_keys`; None compares embeddings only.
        vectors: float32 [n, d], L2-normalised, possibly memory-mapped; None compares keys only.
        threshold: cosine from which two rows are near-duplicates, in (0, 1].

    Returns:
        int64 [n]: the row id that stands for the row, -1 where it stands for itself. It is kept itself.

    Raises:
        InputError: the threshold is out of range.
    """
    if not 0 < threshold <= 1:
        raise InputError(
            f"--dedup {threshold} must lie above 0 and be at most 1: it is the cosine of near-duplicates, as 0.95."
        )
    stand_in = np.arange(len(row_id)) if keys is None else _same_key(keys, priority)
    if vectors is not None:
        rows = np.flatnonzero(stand_in == np.arange(len(row_id)))
        stand_in[rows] = rows[_stars(vectors, rows, priority[rows], threshold)]
        stand_in = stand_in[stand_in]  # a copy of a row that was dropped is stood for by what stands for that row
    return np.where(stand_in == np.arange(len(row_id)), -1, row_id[stand_in])


def duplicate_groups(row_id: Int64, duplicate_of: Int64) -> dict[int, list[int]]:
    """The rows that each kept row stands for, largest group first: what a report of duplicates lists.

    Args:
        row_id: int64 [n].
        duplicate_of: int64 [n], from `find_duplicates`.
    """
    groups: dict[int, list[int]] = {}
    for row, leader in zip(row_id[duplicate_of >= 0].tolist(), duplicate_of[duplicate_of >= 0].tolist(), strict=True):
        groups.setdefault(leader, []).append(row)
    return dict(sorted(groups.items(), key=lambda group: (-len(group[1]), group[0])))


def _normal(text: str) -> str:
    return PUNCTUATION.sub("", unicodedata.normalize("NFKC", text).casefold()) or text


def _same_key(keys: Int64, priority: Int64) -> Picks:
    """int64 [n]: the position of the first row of the same key in order of priority."""
    order = np.lexsort((priority, keys))
    first = (
        np.flatnonzero(np.concatenate([[True], np.diff(keys[order]) != 0]))
        if len(keys)
        else np.empty(0, dtype=np.int64)
    )
    stand_in = np.empty(len(keys), dtype=np.int64)
    stand_in[order] = np.repeat(order[first], np.diff(first, append=len(keys)))
    return stand_in


def _stars(vectors: Float32, rows: Picks, priority: Int64, threshold: float) -> Picks:
    """int64 [m]: for each of the rows, the position in ``rows`` of the one that stands for it (itself, if kept).

    The result is that of going through the rows in order of priority. To do it with little memory, each round looks up
    every row's first neighbour; rows that come before all their neighbours are kept, and their neighbours dropped.
    """
    stand_in = np.arange(len(rows))
    undecided, kept = np.ones(len(rows), dtype=bool), np.zeros(len(rows), dtype=bool)
    while undecided.any():
        taking_part = np.flatnonzero(undecided | kept)
        first = _first_neighbor(
            vectors, rows[taking_part], np.lexsort((priority[taking_part], ~kept[taking_part])), threshold
        )
        lonely = first == np.arange(len(first))
        first = taking_part[first]
        before = kept[first] | (priority[first] < priority[taking_part])
        open_ = undecided[taking_part]
        kept[taking_part[open_ & (lonely | ~before)]] = True
        dropped = open_ & ~lonely & before & kept[first]
        stand_in[taking_part[dropped]] = first[dropped]
        undecided[taking_part] = open_ & ~dropped & ~kept[taking_part]
        kept[taking_part[lonely]] = False  # kept for good, and near to nothing: later rounds need not see it
    return stand_in


def _first_neighbor(vectors: Float32, rows: Picks, order: Picks, threshold: float) -> Picks:
    """int64 [m]: for each row, its neighbour that comes first in ``order``; itself where it has none."""
    rank = np.empty(len(rows), dtype=np.int64)
    rank[order] = np.arange(len(rows))
    first = np.full(len(rows), len(rows), dtype=np.int64)
    for left, right in _near_pairs(vectors, rows, threshold):
        np.minimum.at(first, left, rank[right])
        np.minimum.at(first, right, rank[left])
    return np.where(first < len(rows), order[np.minimum(first, len(rows) - 1)], np.arange(len(rows)))


def _near_pairs(vectors: Float32, rows: Picks, threshold: float) -> Iterator[tuple[Picks, Picks]]:
    """Pairs of positions in ``rows`` whose cosine reaches the threshold, a pair at most twice."""
    cells = len(rows) // CELL if len(rows) >= 8 * CELL else 1
    home, visitor, visited = _cells(vectors, rows, cells, threshold)
    homes, home_starts = _by_cell(home, cells)
    visits, visit_starts = _by_cell(visited, cells)
    for cell in range(cells):
        members = homes[home_starts[cell] : home_starts[cell + 1]]
        guests = visitor[visits[visit_starts[cell] : visit_starts[cell + 1]]]
        queries = np.concatenate([members, guests])
        for right in blocks(len(members)):
            among = vectors[rows[members[right]]]
            for left in blocks(len(queries)):
                if left.stop <= right.start:
                    continue  # this pair of blocks was seen the other way round
                cosine = vectors[rows[queries[left]]] @ among.T
                i, j = np.nonzero(cosine >= threshold)
                i, j = queries[left][i], members[right][j]
                yield i[i != j], j[i != j]


def _cells(vectors: Float32, rows: Picks, cells: int, threshold: float) -> tuple[Picks, Picks, Picks]:
    """Each row's own cell (int64 [m]), and the other cells to look in, as pairs (row, cell).

    A row x in the cell of centre a has a near-duplicate y in that of b only if the plane between a and b lies between
    them, so one of the two is at most half their distance away from it; that one looks in the other's cell.
    """
    if cells == 1:
        none = np.empty(0, dtype=np.int64)
        return np.zeros(len(rows), dtype=np.int64), none, none
    rng = np.random.default_rng(0)
    centers = vectors[rows[np.sort(rng.choice(len(rows), cells, replace=False))]]
    regions = centers[rng.choice(cells, math.isqrt(cells), replace=False)]
    region = np.concatenate([(vectors[rows[block]] @ regions.T).argmax(axis=1) for block in blocks(len(rows))])
    reach = math.sqrt(2 - 2 * threshold) / 2
    home = np.empty(len(rows), dtype=np.int64)
    visitors, visited = [], []
    by_region, starts = _by_cell(region, len(regions))
    for r in range(len(regions)):
        near = np.argsort(-(centers @ regions[r]), kind="stable")[:NEAREST]
        apart = np.sqrt(np.maximum(2 - 2 * (centers[near] @ centers[near].T), 1e-12))
        for block in blocks(starts[r + 1] - starts[r]):
            members = by_region[starts[r] : starts[r + 1]][block]
            cosine = vectors[rows[members]] @ centers[near].T
            best = np.argpartition(-cosine, VISITS, axis=1)[:, :VISITS]
            best = np.take_along_axis(best, np.argsort(-np.take_along_axis(cosine, best, axis=1), axis=1), axis=1)
            ordered = np.take_along_axis(cosine, best, axis=1)
            home[members] = near[best[:, 0]]
            from_plane = (ordered[:, :1] - ordered[:, 1:]) / apart[best[:, :1], best[:, 1:]]
            row, which = np.nonzero(from_plane <= reach)
            visitors.append(members[row])
            visited.append(near[best[row, which + 1]])
    return home, np.concatenate(visitors), np.concatenate(visited)


def _by_cell(cell: Picks, cells: int) -> tuple[Picks, list[int]]:
    """Positions sorted by cell (stable), and where each cell begins."""
    starts = np.concatenate([[0], np.cumsum(np.bincount(cell, minlength=cells))])
    return np.argsort(cell, kind="stable"), starts.tolist()

"""Unit vectors in a quarter of their memory, for searches that go to and fro among more of them than memory holds."""

from __future__ import annotations

import numpy as np

from instruct_prune.arrays import Bool, Float32, Int64
from instruct_prune.geometry import blocks

PAIRS = 1 << 16
"""Pairs that are looked at together."""


class Rounded:
    """Vectors kept as 8-bit integers and a factor for each row, read back as float32.

    Args:
        vectors: float32 [n, d], L2-normalised, possibly memory-mapped; read once, in order.

    Attributes:
        slack: the most by which the cosine of two rows that are read back differs from that of the rows themselves.
    """

    def __init__(self, vectors: Float32) -> None:
        self._whole = vectors
        self._codes = np.empty(vectors.shape, dtype=np.int8)
        self._factor = np.empty((len(vectors), 1), dtype=np.float32)
        away = 0.0
        for block in blocks(len(vectors)):
            x = np.asarray(vectors[block])
            factor = np.maximum(np.abs(x).max(axis=1, keepdims=True) / 127, np.finfo(np.float32).tiny)
            self._codes[block], self._factor[block] = np.rint(x / factor), factor
            away = max(away, float(np.linalg.norm(x - self._codes[block] * factor, axis=1).max()))
        # By the triangle inequality, for rows of length 1; the last term is for the rounding of the products themselves.
        self.slack = 2 * away + away**2 + 1e-5

    def __getitem__(self, rows: Int64) -> Float32:
        """float32 [m, d]: these rows, rounded."""
        return self._codes[rows] * self._factor[rows]

    def reach(self, left: Int64, right: Int64, threshold: float) -> Bool:
        """bool [m]: whether the cosine of each pair of rows, as they are, reaches the threshold."""
        near = [
            np.einsum("ij,ij->i", self._whole[left[part]], self._whole[right[part]]) >= threshold
            for part in blocks(len(left), PAIRS)
        ]
        return np.concatenate(near) if near else np.empty(0, dtype=bool)

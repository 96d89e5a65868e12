"""Sentence embeddings of the rows, in parts, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from instruct_prune.arrays import Float32, batched
from instruct_prune.errors import InputError
from instruct_prune.models.pretrained import PICKLED
from instruct_prune.rows.row import Row
from instruct_prune.storage import array_file, make_folder, write_array

PART_ROWS = 2048


class TextEncoder:
    """A sentence-transformers model.

    Args:
        location: local folder or Hub id.
        name: as the user wrote it, for messages.
        batch_size: rows encoded at a time.
    """

    def __init__(self, location: str, name: str, batch_size: int = 64) -> None:
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            self.model: Any = SentenceTransformer(location, trust_remote_code=False)
        except Exception as error:  # files that others wrote can fail in any way
            if type(error).__name__ == "UnpicklingError":
                raise InputError(PICKLED.format(what=f"--embedder {name}")) from error
            reason = " ".join(str(error).split())[:300]
            raise InputError(
                f"--embedder {name} could not be loaded: {reason} Check the name and the network, or name a local folder. "
                "No other embedder was used in its place."
            ) from error
        self.batch_size = batch_size

    def encode(self, texts: list[str]) -> Float32:
        """float32 [n, d], L2-normalised."""
        vectors = self.model.encode(
            texts, batch_size=self.batch_size, normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
        )
        return np.ascontiguousarray(vectors, dtype=np.float32)


def embed_rows(
    samples: Iterable[Row],
    n: int,
    encoder: Callable[[], TextEncoder],
    parts: Path,
    target: Path,
    advance: Callable[[int], None],
) -> None:
    """Write float32 [n, d] to ``target``, computing only the parts that are missing.

    Args:
        samples: the n rows in order.
        n: how many there are.
        encoder: makes the encoder, called only when a part is missing.
        parts: folder of finished parts (npy, PART_ROWS rows each).
        target: the .npy file.
        advance: called with the rows done.

    Raises:
        InputError: the number of samples is not n (the data changed since it was encoded).
    """
    make_folder(parts)
    made: TextEncoder | None = None
    paths: list[Path] = []
    count = 0
    for piece in batched(samples, PART_ROWS):
        path = parts / f"{len(paths):06d}.npy"
        if _rows_in(path) != len(piece):
            made = made or encoder()
            write_array(path, made.encode([sample.text for sample in piece]))
        paths.append(path)
        count += len(piece)
        advance(len(piece))
    if count != n:
        raise InputError(
            f"the data has {count} rows to embed, but {n} were encoded: it has changed since. Use another --out."
        )
    _join(paths, n, target)


def _rows_in(path: Path) -> int:
    """Rows of a finished part; -1 where it is missing or torn."""
    try:
        return len(np.load(path, mmap_mode="r", allow_pickle=False))
    except (FileNotFoundError, ValueError, EOFError):
        return -1


def _join(paths: list[Path], n: int, target: Path) -> None:
    width = np.load(paths[0], mmap_mode="r", allow_pickle=False).shape[1] if paths else 0
    with array_file(target, np.float32, (n, width)) as whole:
        at = 0
        for path in paths:
            part = np.load(path, allow_pickle=False)
            whole[at : at + len(part)] = part
            at += len(part)

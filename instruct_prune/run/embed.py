"""Embed: one vector for each row that encoding found fit to score."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from instruct_prune.config import EmbedConfig
from instruct_prune.encode.store import TokenStore
from instruct_prune.errors import InputError
from instruct_prune.models import names as models
from instruct_prune.progress import Progress, say
from instruct_prune.rows.row import Row
from instruct_prune.run.encode import source_of
from instruct_prune.run.folder import RunFolder
from instruct_prune.storage import atomic, row_ids_hash, sha256_of


def embed(folder: RunFolder, config: EmbedConfig, restart: bool = False) -> None:
    """``embeddings.npy``: one vector for each row that encoding found fit to score."""
    from instruct_prune.models.sentence_encoder import TextEncoder, check_vectors, embed_rows, save_row_ids

    encoded = folder.require("encode", f"score --data ... --out {folder.path}")
    if encoded.get("images"):
        folder.require("embed", f"score --data ... --out {folder.path}")
        say("embed: the pooled features of scoring")
        return
    store = TokenStore.open(folder / "tokens")
    row_id = store.row_id[store.scorable]
    precomputed = Path(config.embedder).expanduser() if config.embedder.endswith(".npy") else None
    if precomputed is not None:
        if not precomputed.is_file():
            raise InputError(f"--embedder {config.embedder}: there is no such file.")
        identity: dict[str, Any] = {"sha256": sha256_of(precomputed)}
        found = None
    else:
        found = models.find_model(config.embedder, option="--embedder")
        identity = found.identity()
    identity = {
        "embedder": config.embedder,
        "identity": identity,
        "data": encoded["config"]["inputs"],
        "rows": row_ids_hash(row_id),
    }
    parts = folder / "parts" / "embed"
    if restart:
        shutil.rmtree(parts, ignore_errors=True)
    if folder.begin("embed", identity, restart):
        say("embed: done before, skipped")
        return
    began = time.monotonic()
    if precomputed is not None:
        vectors = check_vectors(np.load(precomputed, mmap_mode="r", allow_pickle=False), len(row_id), config.embedder)
        with atomic(folder / "embeddings.npy") as file:
            np.save(file, vectors, allow_pickle=False)
    else:
        assert found is not None
        wanted = set(row_id.tolist())
        samples = (row for row in source_of(folder) if isinstance(row, Row) and row.row_id in wanted)
        location, name = found.location, found.name
        with Progress("embedding", len(row_id), "rows") as progress:
            embed_rows(
                samples, len(row_id), lambda: TextEncoder(location, name, batch_size=config.embed_batch), parts,
                folder / "embeddings.npy", progress.advance,
            )  # fmt: skip
    save_row_ids(folder / "embeddings_rows.npy", row_id)
    folder.finish("embed", seconds=round(time.monotonic() - began, 3))
    shutil.rmtree(parts, ignore_errors=True)

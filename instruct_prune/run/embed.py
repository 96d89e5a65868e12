"""Embed: one vector for each row that encoding found fit to score."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from instruct_prune.arrays import Float32, Int64
from instruct_prune.config import EmbedConfig, ScoreConfig
from instruct_prune.errors import InputError
from instruct_prune.geometry import blocks
from instruct_prune.measure.measurement import Measurement
from instruct_prune.measure.parts import PartStore
from instruct_prune.measure.probes import parse_probe
from instruct_prune.measure.ranks import Ranks
from instruct_prune.measure.stored import Stored, find
from instruct_prune.measure.subnet import DENSE
from instruct_prune.models import names
from instruct_prune.models.model import Items, Model
from instruct_prune.progress import Progress, say
from instruct_prune.run.check import MODEL, TEXT_EMBEDDER
from instruct_prune.run.encode import check_unchanged, model_of
from instruct_prune.run.folder import RunFolder, left_of
from instruct_prune.run.lock import writes
from instruct_prune.run.measure import batch_cost, plan_work, remove_parts, run_work
from instruct_prune.run.records import EmbedFacts, EncodeFacts, ScoreFacts
from instruct_prune.run.rows import rows_of
from instruct_prune.storage import array_file, digest, sha256_of, write_array


def by_model(model: Model, config: EmbedConfig | None) -> str | None:
    """The probe that reads a row's vector off the scoring model itself; None where another embedder does it.

    Raises:
        InputError: there is no such embedder, or it does not fit the rows.
    """
    embedder = embedder_of(model, config or EmbedConfig())
    return _pooling(model, embedder) if _is_model(embedder) else None


def _is_model(embedder: str) -> bool:
    return embedder.partition(":")[0] == MODEL


def _pooling(model: Model, embedder: str) -> str:
    """How ``--embedder model`` pools: as it says itself (model:last@12), or as suits the model."""
    return embedder.partition(":")[2] or model.pooling


def embedder_of(model: Model, config: EmbedConfig) -> str:
    """The embedder that the options ask for, "auto" decided.

    Raises:
        InputError: there is no such embedder, or it is none for these rows.
    """
    embedder = config.embedder
    if embedder == "auto":
        return MODEL if model.embeds else TEXT_EMBEDDER
    if _is_model(embedder):
        parse_probe(_pooling(model, embedder))
    elif embedder.endswith(".npy"):
        if not Path(embedder).expanduser().is_file():
            raise InputError(f"--embedder {embedder}: there is no such file.")
    elif model.writing() is None:
        raise InputError(
            f"--embedder {embedder} embeds texts, and these rows are no text. Leave it out: the vectors are then the pooled "
            "states of the scoring model; or give a .npy file of vectors."
        )
    else:
        names.find_model(embedder, option="--embedder")
    return embedder


def vectors_of(model: Model, config: EmbedConfig) -> dict[str, Any]:
    """What rows' vectors follow from where another than the scoring model makes them; JSON-able."""
    embedder = embedder_of(model, config)
    if embedder.endswith(".npy"):
        return {"embedder": embedder, "sha256": sha256_of(Path(embedder).expanduser())}
    return {"embedder": embedder, "identity": names.find_model(embedder, option="--embedder").identity()}


@writes
def embed(folder: RunFolder, config: EmbedConfig, restart: bool = False, model: Model | None = None) -> None:
    """Write ``embeddings.npy``: L2-normalised float32 [m, d] of the m rows that were fit to score, in input order.

    Args:
        folder: the run.
        config: the options.
        restart: discard what is there.
        model: the scoring model, where it is at hand (and may have no name by which it could be made again).

    Raises:
        InputError: no such embedder, vectors that do not fit the rows, or the folder holds those of another embedder.
    """
    began = time.monotonic()
    model = model or model_of(folder)
    items = model.open_items(folder / "items")
    embedder = embedder_of(model, config)
    if _is_model(embedder):
        items = left_of(items, folder.read_aside())
        done = _by_states(folder, model, items, embedder, restart)
    elif embedder.endswith(".npy"):
        done = _by_file(folder, items, vectors_of(model, config), restart)
    else:
        done = _by_encoder(folder, items, config, vectors_of(model, config), restart)
    if done:
        say("embed: done before, skipped")
        return
    write_array(folder / "embeddings_rows.npy", items.row_id[items.scorable])
    width = np.load(folder / "embeddings.npy", mmap_mode="r", allow_pickle=False).shape[1]
    folder.finish(
        EmbedFacts(embedder=embedder, width=width, seconds=round(time.monotonic() - began, 3)), "embeddings*.npy"
    )
    remove_parts(folder, "embed")


# ---- the scoring model's own states ----


def save_states(folder: Path, items: Items, vectors: Sequence[Stored]) -> None:
    """Write ``states/NAME.npy``, float32 [m, d] for the m rows that were fit to score, of each measurement of vectors, and which
    rows they are."""
    rows = np.flatnonzero(items.scorable).astype(np.int64)
    if vectors:
        write_array(folder / "states" / "rows.npy", items.row_id[rows])
    for one in vectors:
        one.save(folder / "states" / f"{one.measurement.column}.npy", rows)


def _by_states(folder: RunFolder, model: Model, items: Items, embedder: str, restart: bool) -> bool:
    """Write the vectors; True where that was done before. (So do the two below.)"""
    pooling = _pooling(model, embedder)
    measurement = Measurement(DENSE, parse_probe(pooling))
    scored = folder.require(ScoreFacts)
    if folder.begin(EmbedFacts, {"embedder": embedder}, (EncodeFacts, ScoreFacts), restart):
        return True
    states = folder / "states" / f"{measurement.column}.npy"
    if pooling not in scored.config["probes"] or not states.exists():
        _measure(folder, model, items, measurement, dict(scored.config))
    unit_rows(states, folder / "embeddings.npy", centred=not model.compares)
    return False


def _measure(folder: RunFolder, model: Model, items: Items, measurement: Measurement, scored: dict[str, Any]) -> None:
    """One more dense pass, for states that scoring did not read; by the main process, which embeds, alone."""
    ranks = Ranks(alone=True)
    config = ScoreConfig(model=model.name)
    check_unchanged(model, scored)
    model.load(scored["dtype"], ranks.device)
    parts = PartStore(folder / "parts" / "embed", digest([scored, measurement.column, _begun(folder)]))
    work = plan_work(model, items, [measurement], batch_cost(model, config, ranks.device.type), parts)
    run_work(folder, model, work, config, ranks)
    save_states(folder.path, items, [find(work, measurement.column)])


def _begun(folder: RunFolder) -> str:
    """Fingerprint of the stage that is under way: parts of another embedder, or of other rows, are not taken for its own."""
    record = folder.record(EmbedFacts)
    assert record is not None
    return record.fingerprint


def unit_rows(source: Path, target: Path, centred: bool) -> None:
    """The rows of a .npy file L2-normalised into another, in blocks; zero rows and missing ones stay zero.

    With ``centred`` the mean row is taken off first: hidden states of language models share one large direction, which
    says nothing about a row (Mu and Viswanath, "All-but-the-Top", ICLR 2018).
    """
    vectors = np.load(source, mmap_mode="r", allow_pickle=False)
    mean = np.zeros(vectors.shape[1])
    if centred:
        total, count = np.zeros(vectors.shape[1]), 0
        for block in blocks(len(vectors)):
            good = np.isfinite(vectors[block]).all(axis=1)
            total += vectors[block][good].sum(axis=0, dtype=np.float64)
            count += int(good.sum())
        mean = total / max(count, 1)
    with array_file(target, np.float32, vectors.shape) as whole:
        for block in blocks(len(vectors)):
            moved = vectors[block] - mean
            norms = np.linalg.norm(moved, axis=1, keepdims=True)
            whole[block] = np.nan_to_num(moved / np.maximum(norms, 1e-12))


# ---- vectors of the user's own, and embedding models ----


def _by_file(folder: RunFolder, items: Items, made_from: dict[str, Any], restart: bool) -> bool:
    embedder = made_from["embedder"]
    try:
        found = np.load(Path(embedder).expanduser(), mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError):
        raise InputError(
            f"--embedder {embedder} is no .npy file of numbers (nothing else is opened), or it was cut off. Write it with "
            "numpy.save."
        ) from None
    vectors = check_vectors(found, int(items.scorable.sum()), embedder)  # before those that are there are discarded
    if folder.begin(EmbedFacts, made_from, (EncodeFacts,), restart):
        return True
    write_array(folder / "embeddings.npy", vectors)
    return False


def check_vectors(vectors: Float32, n: int, path: str) -> Float32:
    """Precomputed vectors: float [n, d], finite and not zero, returned as float32 and L2-normalised.

    Raises:
        InputError: shape, type or values are wrong.
    """
    if vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.floating):
        raise InputError(f"--embedder {path}: expected a 2-D array of floats, found {vectors.dtype} {vectors.shape}.")
    if len(vectors) != n:
        raise InputError(
            f"--embedder {path} has {len(vectors)} vectors, but {n} rows were encoded. Make one for each of them, in order."
        )
    norms = np.linalg.norm(np.asarray(vectors, dtype=np.float64), axis=1)
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(bad):
        raise InputError(f"--embedder {path}: {len(bad)} of {n} vectors are zero or not finite, vector {bad[0]} first.")
    unit: Float32 = np.divide(vectors, norms[:, None]).astype(np.float32)
    return unit


def _by_encoder(folder: RunFolder, items: Items, config: EmbedConfig, made_from: dict[str, Any], restart: bool) -> bool:
    from instruct_prune.models.sentence_encoder import TextEncoder, embed_rows

    found = names.find_model(made_from["embedder"], option="--embedder")

    def load() -> TextEncoder:
        return TextEncoder(found.location, found.name, batch_size=config.embed_batch)

    loaded = load() if restart else None  # vectors are not discarded for an embedder that cannot be loaded
    if folder.begin(EmbedFacts, made_from, (EncodeFacts,), restart):
        return True
    row_id: Int64 = items.row_id[items.scorable]
    with Progress("embedding", len(row_id), "rows") as progress:
        embed_rows(
            rows_of(folder).take(row_id),
            len(row_id),
            lambda: loaded or load(),
            folder / "parts" / "embed" / _begun(folder),
            folder / "embeddings.npy",
            progress.advance,
        )
    return False


def is_encoder(embedder: str) -> bool:
    """Whether vectors come from an embedding model, which can make those of other texts too."""
    return not (_is_model(embedder) or embedder.endswith(".npy"))


def encode_texts(embedder: str, texts: list[str]) -> Float32:
    """float32 [n, d], L2-normalised: texts as the run's embedder sees them.

    Raises:
        InputError: the vectors of the run come from no embedding model.
    """
    from instruct_prune.models.sentence_encoder import TextEncoder

    if not is_encoder(embedder):
        raise InputError(
            f"rows of other files can be compared with an embedding model's vectors only, and those of this run come from "
            f"{embedder}. Use --by rds (for a target), or embed anew: instruct-prune embed RUN --restart embed --embedder "
            f"{TEXT_EMBEDDER}"
        )
    found = names.find_model(embedder, option="--embedder")
    return TextEncoder(found.location, found.name).encode(texts)

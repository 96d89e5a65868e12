"""Image runs: the same stages over pictures. What differs from text is the index, the backbone and the strata."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from instruct_prune.config import DataConfig, ExportConfig, ScoreConfig, SelectConfig
from instruct_prune.encode.batching import plan_batches
from instruct_prune.encode.pictures import ImageIndex, write_index
from instruct_prune.errors import InputError
from instruct_prune.export.images import write_images
from instruct_prune.measure.engine import Work
from instruct_prune.measure.passes import parse_subnets, plan_passes, score_name_of
from instruct_prune.measure.ranks import Ranks
from instruct_prune.measure.speed import probe_speed
from instruct_prune.measure.subnet import SubnetSpec
from instruct_prune.models import names as models
from instruct_prune.models.image_encoder import (
    FEATURE_PASS,
    FeatureParts,
    FeaturePass,
    ImageBackbone,
    ImageModel,
    KnownFeatures,
    unit_rows,
)
from instruct_prune.models.image_names import DEFAULT, find_image_model, identity_of, load_image_model, size_for
from instruct_prune.models.knn import KnnBackbone
from instruct_prune.progress import Progress, say
from instruct_prune.rows.pixels import thumbnail_of
from instruct_prune.rows.row import Row
from instruct_prune.rows.table import reject_line
from instruct_prune.run.encode import list_rejected, open_image_data, source_of
from instruct_prune.run.folder import PartStore, RunFolder
from instruct_prune.run.image_strata import is_image_run
from instruct_prune.run.merge import merge
from instruct_prune.run.score import finished, say_main, score_share
from instruct_prune.run.select import check_budget
from instruct_prune.score.table import ScoreTable
from instruct_prune.storage import atomic, digest, row_ids_hash, sha256_of

BATCH_IMAGES = {"cpu": 64, "other": 256}  # decoded together; on a CPU each core takes eight at a time
IMAGE_DLC = "magnitude-global:1.0,0.8,0.7"
"""The ladder of ``--subnets dlc``: one threshold over all weights, as released. Of EfficientNet-Lite0 on CIFAR-10 at 224
pixels, 0.9 still ranks pictures as the dense model does (rho 0.99) and 0.6 hardly so any more (0.23)."""
KNN = "knn_lc"


def model_name(config: ScoreConfig) -> str:
    """The model of an image run: the default of text is none for images."""
    return DEFAULT if config.model == ScoreConfig().model else config.model


def parse_image_subnets(config: ScoreConfig, n_stages: int) -> tuple[SubnetSpec, ...]:
    """``--subnets`` for images: presets dlc (global magnitude) and knn_lc (one column a stage), or lists as for text.

    Raises:
        InputError: subnets that images do not have, or knn_lc beside others.
    """
    if KNN in config.subnets:
        if len(config.subnets) > 1:
            raise InputError(f"--subnets {KNN} stands alone: its columns are stages of the dense model, not subnets.")
        return tuple(SubnetSpec("depth", stage + 1) for stage in range(n_stages))
    ladder = parse_subnets([IMAGE_DLC if text == "dlc" else text for text in config.subnets], config.subnet_seeds)
    wrong = next((spec for spec in ladder if spec.kind in ("alone", "depth")), None)
    if wrong is not None:
        raise InputError(
            f"--subnets: {wrong.name} is for text. For images: dlc, {KNN}, dense, magnitude-global:0.9,0.8 (one threshold over "
            "all weights), magnitude:0.9 (layer by layer) or random:0.9."
        )
    return ladder


def score_images(
    folder: RunFolder,
    data: DataConfig,
    config: ScoreConfig,
    select: SelectConfig | None = None,
    image_model: ImageModel | None = None,
) -> ScoreTable | None:
    """Score every picture under every subnet; embeddings are the pooled dense features of the same run.

    Args:
        folder: the run.
        data: what to read.
        config: the model and its subnets.
        select: the selection that will follow.
        image_model: a model made in Python, instead of ``config.model``.

    Returns:
        The table, on the main process; None on the others and for a dry run.

    Raises:
        InputError: something given is wrong.
        IncompleteRunError: parts are missing; the same command completes the run.
    """
    ranks = Ranks()
    if config.device_map == "auto":
        raise InputError("--device-map auto is for language models; an image backbone fits on one device.")
    if config.batch_tokens is not None and config.batch_tokens < 1:
        raise InputError(f"--batch-tokens {config.batch_tokens}: for images, the number of pictures in a forward pass.")
    name = model_name(config) if image_model is None else type(image_model.model).__name__
    config = dataclasses.replace(config, model=name)
    source = (
        models.ModelSource(name, name, None, False) if image_model else find_image_model(name, config.model_revision)
    )
    # Features in bfloat16 would blur the small differences between distances: float32 unless it is asked for.
    dtype = "float32" if config.dtype == "auto" else config.dtype
    ranks.on_main(lambda: index_images(folder, data, config))
    index = ImageIndex.open(folder / "images")
    if select is not None:
        ranks.on_main(lambda: check_budget(select, int(index.scorable.sum())))
    size = size_for(source, index.typical_short_side, config.image_size)
    loaded = image_model or load_image_model(source, dtype, ranks.device, size)
    ladder = parse_image_subnets(config, len(loaded.widths))
    made_here = image_model is not None or ":" in source.name
    identity = {
        "encode": digest(folder.stage("encode")["config"]),
        "model": identity_of(source, loaded if made_here else None),
        "dtype": dtype,
        "image_size": size,
        "subnets": [spec.name for spec in ladder],
        "batch_images": config.batch_tokens or BATCH_IMAGES.get(ranks.device.type, BATCH_IMAGES["other"]),
    }
    if finished(folder, identity, config, ranks):
        say_main(ranks, "score: done before, skipped")
        ranks.close()
        return folder.read_scores() if ranks.is_main else None
    run = ImageRun(folder, index, loaded, ladder, identity, KNN in config.subnets)
    at = f" at {size} x {size} pixels" if size else ""
    say_main(ranks, f"scoring with {name}{at} in {dtype}, {ranks.describe()}: {run.describe()}")
    if config.dry_run:
        if ranks.is_main:
            run.dry_run(ranks)
        ranks.close()
        return None
    extract = FeaturePass(loaded, run.every_stage)
    first = score_share(folder, extract, run.feature_work, config, ranks, compute=extract.compute, unit="images")
    facts = score_share(folder, run.backbone(), run.work, config, ranks, unit="images")
    if not ranks.is_main:
        return None
    facts |= {"feature_seconds": first["seconds"], "images": int(index.scorable.sum())}
    facts["seconds"] = round(facts["seconds"] + first["seconds"], 3)
    save_embeddings(folder, index, run.features, name)
    score_name = "lc" if KNN in config.subnets else score_name_of(config.subnets)
    table = merge(folder, index, run.work, ladder, config, facts, score_name)
    shutil.rmtree(folder / "parts", ignore_errors=True)
    ranks.close()
    return table


class ImageRun:
    """The work of an image run: first the dense features, then the passes that need centroids or neighbours."""

    def __init__(
        self,
        folder: RunFolder,
        index: ImageIndex,
        image_model: ImageModel,
        ladder: tuple[SubnetSpec, ...],
        identity: dict[str, Any],
        knn: bool,
    ) -> None:
        self.index, self.image_model, self.every_stage = index, image_model, knn
        self.rows = np.flatnonzero(index.scorable).astype(np.int64)
        plan = plan_batches(self.rows, index.lengths[self.rows], batch_tokens=identity["batch_images"])
        self.plan = plan
        parts = PartStore(folder / "parts" / "score", digest(identity))
        self.features = FeatureParts(parts, plan, image_model.width)
        self.feature_work = Work((FEATURE_PASS,), (index,), (plan,), parts)
        passes = plan_passes(ladder)
        known = KnownFeatures(self.features, index.labels)
        items = tuple(
            range(len(index)) if knn else known if a_pass.subnets[0].kind == "dense" else index for a_pass in passes
        )
        self.work = Work(passes, items, (plan,) * len(passes), parts)

    def backbone(self) -> Any:
        if self.every_stage:
            return KnnBackbone(self.image_model, self.features, self.index.labels, self.rows)
        return ImageBackbone(self.image_model, lambda: self.features.centroids(self.index))

    def describe(self) -> str:
        names = ", ".join(a_pass.name for a_pass in (FEATURE_PASS, *self.work.passes))
        return (
            f"{len(self.rows):,} images of {len(self.index.classes)} classes, {len(self.work.passes) + 1} passes ({names}), "
            f"{len(self.plan.chunks)} chunks each"
        )

    def dry_run(self, ranks: Ranks) -> None:
        from instruct_prune.progress import clock

        rate = probe_speed(FeaturePass(self.image_model), self.feature_work)
        # The dense losses and k-NN confidences come from features that are there already.
        n_passes = 1 + (0 if self.every_stage else sum(p.subnets[0].kind != "dense" for p in self.work.passes))
        seconds = n_passes * len(self.rows) / rate / ranks.world
        print(
            f"dry run: {self.describe()}\nmeasured {rate:,.1f} images/s a process; {n_passes} forward passes would take about "
            f"{clock(seconds)}"
        )


def index_images(folder: RunFolder, data: DataConfig, config: ScoreConfig) -> None:
    """Decode every picture once; those that cannot be decoded are listed in ``rejected.jsonl`` with the reason."""
    data = dataclasses.replace(data, data=tuple(os.path.abspath(d) if os.path.exists(d) else d for d in data.data))
    source = open_image_data(data)
    assert source is not None
    say(f"data: {source.description}")
    inputs = source.identity()
    options = {k: v for k, v in dataclasses.asdict(data).items() if k not in ("data", "strict")}
    identity = {"inputs": [entry.get("sha256") or entry for entry in inputs], **options}
    if folder.begin("encode", identity, config.restart):
        say("encode: done before, skipped")
        return
    began = time.monotonic()
    counts = {"read": 0, "rejected": 0}
    with Progress("decoding", None, "images") as progress, atomic(folder / "images" / "rejects.jsonl", "w") as listed:

        def pictures() -> Iterator[Row]:
            for row in source:
                counts["read"] += 1
                if isinstance(row, Row):
                    yield row
                    continue
                counts["rejected"] += 1
                listed.write(json.dumps(reject_line(row)) + "\n")

        index = write_index(folder / "images", pictures(), lambda n: progress.advance(n, n), data.strict)
    list_rejected(folder, index, index.status_names)
    if not index.scorable.any():
        raise InputError(
            f"{', '.join(source.files)}: none of the {counts['read']} pictures can be used. See {folder / 'rejected.jsonl'}."
        )
    if len(index.classes) < 2:
        raise InputError(
            f"{', '.join(source.files)}: all pictures are of one class ({index.classes[0]}); scoring needs two or more."
        )
    folder.finish(
        "encode",
        images=True,
        data=dataclasses.asdict(data),
        inputs=inputs,
        description=source.description,
        kind=source.kind,
        classes=list(index.classes),
        notes=[],
        accounting={**counts, "encoded": len(index), "scorable": int(index.scorable.sum())},
        seconds=round(time.monotonic() - began, 3),
    )


def save_embeddings(folder: RunFolder, index: ImageIndex, features: FeatureParts, name: str) -> None:
    """Pooled dense features, L2-normalised, as the run's embeddings."""
    rows = np.flatnonzero(index.scorable).astype(np.int64)
    for target, array in (
        ("embeddings.npy", unit_rows(features.matrix(rows))),
        ("embeddings_rows.npy", index.row_id[rows]),
    ):
        with atomic(folder / target) as file:
            np.save(file, array, allow_pickle=False)
    facts = {"embedder": name, "identity": "pooled dense features", "rows": row_ids_hash(index.row_id[rows])}
    folder.begin("embed", facts, restart=True)
    folder.finish("embed", seconds=0.0)


def export_images(folder: RunFolder, config: ExportConfig) -> Path:
    """Write ``pruned.jsonl`` (path and label of each kept picture), and what ``to`` asks for.

    Raises:
        InputError: there is no selection, the data changed, or an unknown format.
    """
    stage = folder.require("select", f"select --out {folder.path} --keep ...")
    kept = folder.read_selection().kept
    source_of(folder)  # refuses data that changed
    index = ImageIndex.open(folder / "images")
    at = np.searchsorted(index.row_id, kept)
    labels, paths = index.text_columns("label", "path")
    rows = [(paths[i], labels[i], int(i)) for i in at]
    target = folder / "pruned.jsonl"
    with atomic(target, "w") as file:
        for path, label, _ in rows:
            file.write(json.dumps({"path": path, "label": label}, ensure_ascii=False) + "\n")
    if len(rows) != stage["accounting"]["kept"]:
        raise AssertionError(f"{len(rows)} rows were written, {stage['accounting']['kept']} were kept")
    told = write_images(folder.path, config.to, rows, index.encoded)
    folder.begin("export", {"selected": row_ids_hash(kept), "to": list(config.to)}, restart=True)
    folder.finish("export", rows=len(rows), sha256=sha256_of(target), told=told)
    return target


def thumbnail(folder: RunFolder) -> Any:
    """A function Row -> small JPEG, for the report; None for runs over text."""
    if not is_image_run(folder):
        return None
    index = ImageIndex.open(folder / "images")
    position = {int(row): i for i, row in enumerate(index.row_id)}

    def small(sample: Row) -> bytes | None:
        i = position.get(sample.row_id)
        return None if i is None else thumbnail_of(index.encoded(i))

    return small

"""Select: an exact budget from a scored run; no model is needed, so it may be done many times."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from instruct_prune.config import SelectConfig
from instruct_prune.datatypes import Pool, Sample, ScoreTable, Selection, SubnetSpec
from instruct_prune.errors import InputError
from instruct_prune.registry import suggestion
from instruct_prune.run_folder import RunFolder, digest, row_ids_hash
from instruct_prune.select import SELECTORS, build_pool, resolve_budget, select_rows
from instruct_prune.stages.encode import source_of


def check_selection(config: SelectConfig) -> None:
    """What can be known to be wrong before an hour is spent."""
    if config.keep is None and config.keep_tokens is None:
        raise InputError("say how much to keep: --keep 0.3 (a share), --keep 5000 (rows) or --keep-tokens 2000000.")
    if config.method not in SELECTORS:
        raise InputError(
            f"unknown --method {config.method!r}.{suggestion(config.method, SELECTORS)} Known: {', '.join(sorted(SELECTORS))}."
        )
    check_budget(config, None)


def check_budget(config: SelectConfig, n: int | None) -> None:
    if config.keep_tokens is not None and config.keep is None:
        return
    known = n if n is not None else 2**40 if isinstance(config.keep, int) else 10**6
    # A pool of the right length and no memory: only the number of rows matters here.
    empty = np.broadcast_to(np.int32(0), known)
    resolve_budget(config.keep, config.keep_tokens, Pool(empty, empty, empty, empty))  # type: ignore[arg-type]


def select(folder: RunFolder, config: SelectConfig) -> Selection:
    """Draw an exact budget from a scored run; may be called many times with other options."""
    check_selection(config)
    began = time.monotonic()
    stage = folder.require("score", f"score --data ... --out {folder.path}")
    table = _score_for(folder, config, stage)
    embeddings = folder.read_embeddings() if folder.stage("embed").get("complete") else None
    clusters, values, names = None, None, None
    if config.stratify:
        values = _column(folder, config.stratify, table)
    elif config.clusters != "none" and config.method in ("flexrand", "easy_diverse"):
        clusters = _clusters(folder, config, embeddings)
    pool = build_pool(table, embeddings=embeddings, clusters=clusters, values=values, cluster_names=names)
    budget = resolve_budget(config.keep, config.keep_tokens, pool)
    split: float | str = config.split if config.split in ("auto", "mmd") else _number(config.split, "--split")
    selection = select_rows(
        pool,
        budget,
        method=config.method,
        split=split,
        seed=config.seed,
        min_per_stratum=config.min_per_stratum,
    )
    if len(selection) != int(table.scored.sum()):
        raise AssertionError("scored rows were lost in selection")
    folder.write_selection(selection)
    kept = int(selection.selected.sum())
    identity = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}
    folder.begin("select", {"score": digest(stage["config"]), **identity}, restart=True)
    folder.finish(
        "select",
        accounting={"scored": len(selection), "kept": kept, "dropped": len(selection) - kept},
        selected_hash=row_ids_hash(selection.kept),
        params=dict(selection.params),
        strata=len(selection.strata_names),
        seconds=round(time.monotonic() - began, 3),
    )
    return selection


def _score_for(folder: RunFolder, config: SelectConfig, stage: Mapping[str, Any]) -> ScoreTable:
    from instruct_prune.score.passes import parse_subnets
    from instruct_prune.stages.merge import rescored

    table = folder.read_scores()
    name = config.score or table.score_name
    ladder = tuple(SubnetSpec(*spec) for spec in stage["ladder"])
    if config.score_subnets:
        ladder = parse_subnets(config.score_subnets)
    left_out = [] if config.include_collapsed else list(stage["collapsed"])
    return rescored(table, name, tuple(s for s in ladder if s.kind != "alone"), config.score_weights, left_out)


def _number(text: str, option: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{option} {text}: expected a number, auto or mmd.") from None


def _clusters(folder: RunFolder, config: SelectConfig, embeddings: Any) -> Any:
    from instruct_prune.embed.clusters import cluster

    if embeddings is None:
        raise InputError(
            f"{folder.path} has no embeddings, so there are no clusters. Run `instruct-prune embed --out {folder.path}` first, "
            "or select with --clusters none."
        )
    k: int | str = "auto" if config.clusters == "auto" else config.clusters
    if k != "auto":
        if not str(k).isdigit() or int(k) < 1:
            raise InputError(f"--clusters {k}: expected a number of clusters, auto or none.")
        k = int(k)
    clusters = cluster(embeddings, k, config.seed)
    folder.write_clusters(clusters)
    return clusters


def _column(folder: RunFolder, name: str, table: ScoreTable) -> list[Any]:
    """A column of the data, one value for each row of the score table."""
    wanted = set(table.row_id.tolist())
    found = {
        row.row_id: row.columns.get(name)
        for row in source_of(folder)
        if isinstance(row, Sample) and row.row_id in wanted
    }
    if all(value is None for value in found.values()):
        raise InputError(f"--stratify {name}: the data has no column of this name (or it is empty in every row).")
    return [found.get(int(i)) for i in table.row_id]

"""Select: an exact budget from a scored run; no model is needed, so it may be done many times."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from instruct_prune.arrays import Bool, Float32, Int64
from instruct_prune.config import SelectConfig
from instruct_prune.errors import InputError
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.image_strata import with_classes_as_strata
from instruct_prune.run.merge import ladder_of
from instruct_prune.run.row_facts import RowFacts, read_facts
from instruct_prune.score.aggregate import rescored
from instruct_prune.score.health import by_seed, rank_spread
from instruct_prune.score.scores import LADDER, find_score
from instruct_prune.score.table import ScoreTable
from instruct_prune.select import Method, build_pool, find_method, resolve_budget, select_rows
from instruct_prune.select.clusters import cluster, name_clusters
from instruct_prune.select.data import Clusters, Embeddings, Pool, Selection
from instruct_prune.select.duplicates import find_duplicates, keep_priority
from instruct_prune.storage import digest, row_ids_hash


def check_selection(config: SelectConfig) -> None:
    """What can be known to be wrong before an hour is spent.

    Raises:
        InputError: no budget, an impossible one, an unknown method, a split or a number of clusters that is none.
    """
    if config.keep is None and config.keep_tokens is None:
        raise InputError("say how much to keep: --keep 0.3 (a share), --keep 5000 (rows) or --keep-tokens 2000000.")
    method, params = method_of(config)
    method.needs_of(params)
    clusters_wanted(config)
    check_budget(config, None)


def check_budget(config: SelectConfig, n: int | None) -> None:
    """Refuse a budget that ``n`` rows cannot meet; with None, one that no dataset can.

    Raises:
        InputError: as `resolve_budget` says it.
    """
    if config.keep_tokens is not None and config.keep is None:
        return
    known = n if n is not None else 2**40 if isinstance(config.keep, int) else 10**6
    # A pool of the right length and no memory: only the number of rows matters here.
    empty = np.broadcast_to(np.int32(0), known)
    resolve_budget(config.keep, config.keep_tokens, Pool(empty, empty, empty, empty))  # type: ignore[arg-type]


def method_of(config: SelectConfig) -> tuple[Method, dict[str, Any]]:
    """The method, and the parameters that are set; ``--split`` is short for ``--param split=``."""
    method = find_method(config.method)
    return method, method.parse([] if config.split == "auto" else [f"split={config.split}"])


def clusters_wanted(config: SelectConfig) -> int | str:
    """--clusters as a number, "auto" or "none"."""
    if config.clusters in ("auto", "none"):
        return config.clusters
    if not config.clusters.isdigit() or int(config.clusters) < 1:
        raise InputError(f"--clusters {config.clusters}: expected a number of clusters, auto or none.")
    return int(config.clusters)


def select(folder: RunFolder, config: SelectConfig) -> Selection:
    """Draw an exact budget and write ``selection.parquet`` (and ``clusters.parquet``).

    Raises:
        InputError: an option is wrong, or a stage that it needs has not run.
    """
    check_selection(config)
    began = time.monotonic()
    config = with_classes_as_strata(folder, config)
    method, params = method_of(config)
    stage = folder.require("score", f"score --data ... --out {folder.path}")
    table = score_for(folder, config)
    embeddings = _embeddings(folder, config)
    facts = read_facts(folder, table, config)
    clusters, names = None, None
    if facts.strata is None and config.clusters != "none" and method.strata == "clusters":
        clusters, names = _clusters(folder, config, embeddings, facts)
    needed = embeddings if config.dedup or "embeddings" in method.needs_of(params) else None
    make_pool = functools.partial(
        build_pool, embeddings=needed, clusters=clusters, values=facts.strata, cluster_names=names
    )
    draw = functools.partial(_draw, config=config, facts=facts, make_pool=make_pool)
    selection = draw(table)
    if len(selection) != int(table.scored.sum()):
        raise AssertionError("scored rows were lost in selection")
    stability = _seed_stability(folder, config, table, selection, draw)
    folder.write_selection(selection, stability)
    kept = int(selection.selected.sum())
    options = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(config).items()}
    folder.begin("select", {"score": digest(stage["config"]), **options}, restart=True)
    folder.finish(
        "select",
        accounting={"scored": len(selection), "kept": kept, "dropped": len(selection) - kept},
        tokens=_tokens(table, selection),
        score=table.score_name,
        duplicates=0 if selection.duplicate_of is None else int((selection.duplicate_of >= 0).sum()),
        unstable=int(stability["unstable"].sum()) if stability else None,
        selected_hash=row_ids_hash(selection.kept),
        params=dict(selection.params),
        strata=len(selection.strata_names),
        seconds=round(time.monotonic() - began, 3),
    )
    return selection


def _draw(table: ScoreTable, config: SelectConfig, facts: RowFacts, make_pool: Callable[..., Pool]) -> Selection:
    pool = make_pool(table)
    method, params = method_of(config)
    return select_rows(
        pool,
        resolve_budget(config.keep, config.keep_tokens, pool),
        method=method,
        params=params,
        seed=config.seed,
        min_per_stratum=config.min_per_stratum,
        must_keep=facts.must_keep,
        duplicate_of=_duplicates(config, pool, facts, table),
    )


def _duplicates(config: SelectConfig, pool: Pool, facts: RowFacts, table: ScoreTable) -> Int64 | None:
    if config.dedup is None:
        return None
    priority = keep_priority(pool, config.dedup_keep, facts.must_keep)
    keys = None if facts.keys is None else facts.keys[table.scored]
    return find_duplicates(pool.row_id, priority, keys=keys, vectors=pool.embeddings, threshold=config.dedup)


def score_for(folder: RunFolder, config: SelectConfig) -> ScoreTable:
    """The run's table under the score that the selection asks for."""
    from instruct_prune.measure.passes import parse_subnets

    stage = folder.stage("score")
    table = folder.read_scores()
    ladder = parse_subnets(config.score_subnets) if config.score_subnets else ladder_of(stage)
    left_out = [] if config.include_collapsed else list(stage["collapsed"])
    averaged = tuple(s for s in ladder if s.kind != "alone")
    return rescored(
        table,
        config.score or table.score_name,
        subnets=averaged,
        weights=config.score_weights or None,
        leave_out=left_out,
    )


def _embeddings(folder: RunFolder, config: SelectConfig) -> Embeddings | None:
    if folder.stage("embed").get("complete"):
        return folder.read_embeddings()
    method, params = method_of(config)
    wanting = {
        f"--method {config.method}": "embeddings" in method.needs_of(params),
        "--dedup": config.dedup is not None,
        "--clusters": config.clusters != "none" and config.stratify is None and method.strata == "clusters",
    }
    for what, wanted in wanting.items():
        if wanted:
            other = " (or select with --clusters none)" if what == "--clusters" else ""
            raise InputError(
                f"{folder.path} has no embeddings, which {what} needs. Run `instruct-prune embed --out {folder.path}` first{other}."
            )
    return None


def _clusters(
    folder: RunFolder, config: SelectConfig, embeddings: Embeddings | None, facts: RowFacts
) -> tuple[Clusters, tuple[str, ...]]:
    assert embeddings is not None
    clusters = cluster(embeddings, clusters_wanted(config), config.seed)
    labels = clusters.labels[np.searchsorted(clusters.row_id, facts.named_rows)]
    names = list(name_clusters(facts.texts, labels))
    names += [f"cluster {i}" for i in range(len(names), len(clusters.centers))]
    folder.write_clusters(clusters)
    return clusters, tuple(names)


def _seed_stability(
    folder: RunFolder, config: SelectConfig, table: ScoreTable, selection: Selection, draw: Callable[..., Selection]
) -> dict[str, Float32 | Bool] | None:
    """With several mask seeds: how far each row's rank moves, and whether its selection would flip."""
    ladder = ladder_of(folder.stage("score"))
    tables = [
        rescored(table, table.score_name, subnets=members, leave_out=list(folder.stage("score")["collapsed"]))
        for members in by_seed(ladder)
    ]
    if len(tables) < 2 or LADDER not in find_score(table.score_name).needs_of():
        return None
    scored = table.scored
    chosen = np.stack([draw(one).selected for one in tables])
    spread = rank_spread(np.stack([one.score[scored] for one in tables]))
    unstable: Bool = np.logical_and(chosen.any(axis=0), np.logical_not(chosen.all(axis=0)))
    return {"rank_spread": spread, "unstable": unstable}


def _tokens(table: ScoreTable, selection: Selection) -> dict[str, int]:
    """Response tokens and all tokens, of the scored and of the kept rows."""
    response = table.n_response[table.scored].astype(np.int64)
    both = response + table.n_prompt[table.scored]
    kept = selection.selected
    return {
        "scored_response": int(response.sum()),
        "kept_response": int(response[kept].sum()),
        "scored": int(both.sum()),
        "kept": int(both[kept].sum()),
    }

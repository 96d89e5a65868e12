"""Select: an exact budget from a scored run; no model is needed, so it may be done many times."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from instruct_prune.arrays import Bool, Int64
from instruct_prune.config import SelectConfig
from instruct_prune.errors import InputError
from instruct_prune.measure.ladder import parse_subnets
from instruct_prune.rows.table import RowTable
from instruct_prune.run.asked import Asked, ask, check_selection, clusters_wanted, score_params
from instruct_prune.run.chosen import load_target, seed_stability, taken_by, token_counts
from instruct_prune.run.columns import columns_for
from instruct_prune.run.contaminated import Contaminated, find_contaminated
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.records import EmbedFacts, ScoreFacts, SelectFacts
from instruct_prune.run.row_facts import RowFacts, read_facts
from instruct_prune.run.target_facts import COMPARED, TargetFacts
from instruct_prune.score.aggregate import rescored
from instruct_prune.score.table import ScoreTable
from instruct_prune.select import build_pool, resolve_budget, select_rows
from instruct_prune.select.clusters import cluster, name_clusters
from instruct_prune.select.data import Clusters, Embeddings, Pool, Selection
from instruct_prune.select.duplicates import find_duplicates, keep_priority
from instruct_prune.storage import row_ids_hash, sha256_of


def select(folder: RunFolder, config: SelectConfig) -> Selection:
    """Draw an exact budget and write ``selection.parquet`` (and ``clusters.parquet``).

    Raises:
        InputError: an option is wrong, or a stage that it needs has not run or is stale.
    """
    if config.method is None and folder.record(TargetFacts) is not None:
        config = dataclasses.replace(config, method="targeted")
    check_selection(config)
    began = time.monotonic()
    rows = RowTable.open(folder / "rows")
    asked = ask(folder, config, rows.facts.strata)
    scored = folder.facts(ScoreFacts)
    measured = folder.read_scores()
    name = config.score or measured.score_name
    params = score_params(config, name)
    rescore = functools.partial(
        rescored,
        measured,
        name,
        params=params,
        more=columns_for(folder, rows, measured, name),
        leave_out=scored.collapsed,
    )
    table = _under_score(measured, rescore, scored, config)
    embeddings = _embeddings(folder, asked)
    facts = read_facts(folder, table, asked.config, naming=asked.clustered)
    contaminated = find_contaminated(folder, table, config)
    target = None if asked.by is None else load_target(folder, table, asked.by)
    clusters, names = None, None
    if asked.clustered:
        assert embeddings is not None
        clusters, names = _clusters(config, embeddings, facts)
    make_pool = functools.partial(
        build_pool,
        embeddings=embeddings if asked.embeddings else None,
        clusters=clusters,
        values=facts.strata,
        cluster_names=names,
        target=target,
    )
    draw = functools.partial(_draw, asked=asked, facts=facts, make_pool=make_pool, out=contaminated)
    selection = draw(table)
    told: dict[str, Any] = {f"score {key}": value for key, value in params.items() if value is not None}
    told |= {} if asked.by is None else {"by": asked.by}
    selection = dataclasses.replace(selection, params={**selection.params, **told})
    if len(selection) != int(table.scored.sum()):
        raise AssertionError("scored rows were lost in selection")
    more: dict[str, Any] = dict(seed_stability(scored, table, draw, rescore) or {})
    more |= {} if target is None or selection.taken is None else taken_by(target, selection.taken)
    more |= {} if contaminated is None else contaminated.columns()
    _write(folder, asked, table, selection, clusters, more, began)
    return selection


def _write(
    folder: RunFolder,
    asked: Asked,
    table: ScoreTable,
    selection: Selection,
    clusters: Clusters | None,
    more: Mapping[str, Any],
    began: float,
) -> None:
    """The tables of a selection and its record; what an earlier selection left goes."""
    inputs = (ScoreFacts, *((EmbedFacts,) if asked.clustered or asked.embeddings else ()))
    inputs = (*inputs, *(() if asked.by is None else (COMPARED[asked.by],)))
    options = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(asked.config).items()}
    options["decontaminate"] = [[path, _content(path)] for path in asked.config.decontaminate]
    folder.begin(SelectFacts, options, inputs, replace=True)
    folder.write_selection(selection, more)
    if clusters is None:
        (folder / "clusters.parquet").unlink(missing_ok=True)
    else:
        folder.write_clusters(clusters)
    kept = int(selection.selected.sum())
    folder.finish(
        SelectFacts(
            scored=len(selection),
            kept=kept,
            dropped=len(selection) - kept,
            tokens=token_counts(table, selection),
            score=table.score_name,
            duplicates=0 if selection.duplicate_of is None else int((selection.duplicate_of >= 0).sum()),
            contaminated=int((np.asarray(selection.reasons)[selection.reason] == "contaminated").sum()),
            unstable=int(more["unstable"].sum()) if "unstable" in more else None,
            selected_hash=row_ids_hash(selection.kept),
            params=dict(selection.params),
            clustered=clusters is not None,
            strata=len(selection.strata_names),
            seconds=round(time.monotonic() - began, 3),
        )
    )


def _content(path: str) -> str | None:
    file = Path(path).expanduser()
    return sha256_of(file) if file.is_file() else None


def selection_of(folder: RunFolder) -> Selection:
    """The run's selection.

    Raises:
        InputError: there is none, or it is stale.
    """
    facts, selection = folder.facts(SelectFacts), folder.read_selection()
    if facts.selected_hash != row_ids_hash(selection.kept):
        raise InputError(
            f"{folder / 'selection.parquet'} is not the selection that the manifest tells of (interrupted, or edited?). Run "
            f"`instruct-prune select --keep ... --out {folder.path}` again."
        )
    return selection


def _draw(
    table: ScoreTable, asked: Asked, facts: RowFacts, make_pool: Callable[..., Pool], out: Contaminated | None
) -> Selection:
    pool, config = make_pool(table), asked.config
    budget = resolve_budget(config.keep, config.keep_tokens, pool)
    if pool.target is not None and budget.rows is not None and budget.rows < len(pool.target.tasks):
        raise InputError(
            f"the target has {len(pool.target.tasks)} tasks and the budget {budget.rows} rows, so that some task would get none. "
            "Keep more rows, or give fewer tasks."
        )
    contaminated = None if out is None else out.rows
    return select_rows(
        pool,
        budget,
        method=asked.method,
        params=asked.params,
        seed=config.seed,
        min_per_stratum=config.min_per_stratum,
        must_keep=facts.must_keep,
        duplicate_of=_duplicates(config, pool, facts, table, contaminated),
        contaminated=contaminated,
    )


def _duplicates(
    config: SelectConfig, pool: Pool, facts: RowFacts, table: ScoreTable, contaminated: Bool | None
) -> Int64 | None:
    if config.dedup is None:
        return None
    priority = keep_priority(pool, config.dedup_keep, facts.must_keep)
    if contaminated is not None:  # a row that goes must not stand for one that could be kept
        order = np.lexsort((priority, contaminated))
        priority[order] = np.arange(len(priority))
    keys = None if facts.keys is None else facts.keys[table.scored]
    return find_duplicates(pool.row_id, priority, keys=keys, vectors=pool.embeddings, threshold=config.dedup)


def _under_score(
    measured: ScoreTable, rescore: Callable[..., ScoreTable], scored: ScoreFacts, config: SelectConfig
) -> ScoreTable:
    """The run's table under the score that the selection asks for, over the subnets that it names."""
    earned = scored.earned
    if earned is not None and earned.collapsed and config.include_collapsed:
        raise InputError(
            f"--include-collapsed: {', '.join(earned.collapsed)} collapsed on the pilot of --subnets auto, so only the pilot's "
            "rows went through it. Score with --subnets dlc to have it for every row."
        )
    if (
        earned is not None
        and config.score in (None, scored.score)
        and not (config.score_subnets or config.score_weights)
    ):
        return measured  # a predicted score is no average over the subnets that all rows went through
    named = parse_subnets(config.score_subnets) if config.score_subnets else ()
    return rescore(
        subnets=tuple(s for s in named if s.is_full) if named else tuple(s for s in scored.ladder if s.is_averaged),
        weights=config.score_weights or None,
        leave_out=() if config.include_collapsed else scored.collapsed,
    )


def _embeddings(folder: RunFolder, asked: Asked) -> Embeddings | None:
    if folder.find(EmbedFacts) is not None:
        return folder.read_embeddings()
    config = asked.config
    wanting = {
        f"--method {config.method}": "embeddings" in asked.method.needs_of(asked.params),
        "--dedup": config.dedup is not None,
        "--clusters": asked.clustered,
    }
    for what, wanted in wanting.items():
        if wanted:
            other = " (or select with --clusters none)" if what == "--clusters" else ""
            raise InputError(
                f"{folder.path} has no embeddings, which {what} needs. Run `instruct-prune embed --out {folder.path}` first{other}."
            )
    return None


def _clusters(config: SelectConfig, embeddings: Embeddings, facts: RowFacts) -> tuple[Clusters, tuple[str, ...]]:
    clusters = cluster(embeddings, clusters_wanted(config), config.seed)
    labels = clusters.labels[np.searchsorted(clusters.row_id, facts.named_rows)]
    names = list(name_clusters(facts.texts, labels))
    names += [f"cluster {i}" for i in range(len(names), len(clusters.centers))]
    return clusters, tuple(names)

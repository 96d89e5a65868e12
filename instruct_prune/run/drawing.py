"""From what a selection is asked for to what draws it: the pool under its score, its strata, its target."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from instruct_prune.arrays import Bool, Int64
from instruct_prune.config import SelectConfig
from instruct_prune.encode.item import Status
from instruct_prune.errors import InputError
from instruct_prune.measure.ladder import parse_subnets
from instruct_prune.progress import say
from instruct_prune.rows.table import RowTable
from instruct_prune.run.asked import Asked, ask, clusters_wanted, score_params
from instruct_prune.run.chosen import load_target
from instruct_prune.run.contaminated import Contaminated, find_contaminated
from instruct_prune.run.folder import RunFolder
from instruct_prune.run.ranking import refuse_idle_average
from instruct_prune.run.records import EmbedFacts, RowsFacts, ScoreFacts
from instruct_prune.run.row_facts import RowFacts, columns_for, read_facts
from instruct_prune.score.scores import rescored
from instruct_prune.score.table import ScoreTable
from instruct_prune.select import build_pool, resolve_budget, select_rows
from instruct_prune.select.clusters import cluster, name_clusters
from instruct_prune.select.data import Clusters, Embeddings, Pool, Selection
from instruct_prune.select.duplicates import find_duplicates, keep_priority
from instruct_prune.select.methods import LOSSES
from instruct_prune.select.target import Target


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A selection that is ready to be drawn; nothing of it is written yet.

    Attributes:
        asked: what it was asked for.
        scored: of the run.
        table: the rows under the selection's score; those that it says nothing of count as not scored.
        unranked: int64, ids of the scored rows that it says nothing of: an answer of one token, alone, is predicted from nothing.
        facts: what the selection wants of the rows themselves.
        target: what it aims at, or None.
        contaminated: rows that repeat a test, or None.
        clusters: its strata, where clusters are.
        rescore: the run's table under the selection's score, over other subnets.
        make_pool: a pool of such a table.
        told: what `Selection.params` says beside the method's own.
    """

    asked: Asked
    scored: ScoreFacts
    table: ScoreTable
    unranked: Int64
    facts: RowFacts
    target: Target | None
    contaminated: Contaminated | None
    clusters: Clusters | None
    rescore: Callable[..., ScoreTable]
    make_pool: Callable[[ScoreTable], Pool]
    told: dict[str, Any]

    def draw(self, table: ScoreTable, keep_tokens: int | None = None, seed: int | None = None) -> Selection:
        """The selection from a table of `rescore`.

        Args:
            table: the rows.
            keep_tokens: another budget than that of the options.
            seed: another seed.
        """
        config = self.asked.config
        if keep_tokens is not None:
            config = dataclasses.replace(config, keep=None, keep_tokens=keep_tokens)
        if seed is not None:
            config = dataclasses.replace(config, seed=seed)
        pool = self.make_pool(table)
        budget = resolve_budget(config.keep, config.keep_tokens, pool)
        if pool.target is not None and budget.rows is not None and budget.rows < len(pool.target.tasks):
            raise InputError(
                f"the target has {len(pool.target.tasks)} tasks and the budget {budget.rows} rows, so that some task would get none. "
                "Keep more rows, or give fewer tasks."
            )
        contaminated = None if self.contaminated is None else self.contaminated.rows
        selection = select_rows(
            pool,
            budget,
            method=self.asked.method,
            params=self.asked.params,
            seed=config.seed,
            min_per_stratum=config.min_per_stratum,
            balanced=config.balanced,
            must_keep=self.facts.must_keep,
            duplicate_of=duplicates_of(config, pool, self.facts, table, contaminated),
            contaminated=contaminated,
        )
        return dataclasses.replace(selection, params={**selection.params, **self.told})


def prepare(folder: RunFolder, config: SelectConfig, measured: ScoreTable) -> Drawing:
    """All that a selection needs but its budget and seed.

    Args:
        folder: the run.
        config: the options; its method is decided.
        measured: the run's scores, or fewer rows of them (`ScoreTable.status`).

    Raises:
        InputError: an option is wrong, or a stage that it needs has not run or is stale.
    """
    folder.require(RowsFacts)
    rows = RowTable.open(folder / "rows")
    asked = ask(folder, config, rows.facts.strata)
    scored = folder.facts(ScoreFacts)
    name = config.score or measured.score_name
    params = score_params(config, name)
    more = columns_for(folder, rows, measured, name)

    def under(status: NDArray[np.str_]) -> Callable[..., ScoreTable]:
        known = dataclasses.replace(measured, status=status)
        return functools.partial(rescored, known, name, params=params, more=more, leave_out=scored.collapsed)

    table = _under_score(measured, under(measured.status), scored, config)
    unranked = _unranked(table, asked)
    if unranked.any():
        table = dataclasses.replace(table, status=np.where(unranked, Status.NONFINITE.value, table.status))
        say(
            f"note: {int(unranked.sum()):,} scored rows have no {name!r}, or a loss that {asked.method} goes by is missing: dropped"
        )
    rescore = under(table.status)
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
    told: dict[str, Any] = {f"score {key}": value for key, value in params.items() if value is not None}
    told |= {} if asked.by is None else {"by": asked.by}
    return Drawing(
        asked, scored, table, table.row_id[unranked], facts, target, contaminated, clusters, rescore, make_pool, told
    )


def _unranked(table: ScoreTable, asked: Asked) -> Bool:
    """bool [n]: the scored rows of which the score, or a loss that the method reads, is no number."""
    known = np.isfinite(table.score)
    for need in asked.method.needs_of(asked.params):
        for j, spec in enumerate(table.subnets):
            if need == LOSSES + spec.name:
                known &= np.isfinite(table.losses[:, j])
    return table.scored & ~known


def duplicates_of(
    config: SelectConfig, pool: Pool, facts: RowFacts, table: ScoreTable, contaminated: Bool | None
) -> Int64 | None:
    """int64 [n]: the row that stands for each row of the pool, -1 where it stands for itself; None without ``--dedup``."""
    if config.dedup is None:
        return None
    priority = keep_priority(pool, config.dedup_keep or "hardest", facts.must_keep)
    if contaminated is not None:  # a row that goes must not stand for one that could be kept
        order = np.lexsort((priority, contaminated))
        priority[order] = np.arange(len(priority))
    keys, apart = facts.keys[table.scored], facts.apart[table.scored]
    return find_duplicates(
        pool.row_id, priority, keys=keys, apart=apart, vectors=pool.embeddings, threshold=config.dedup
    )


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
    refuse_idle_average(config, config.score or measured.score_name, scored.ladder, scored.collapsed)
    named = parse_subnets(config.score_subnets) if config.score_subnets else ()
    return rescore(
        subnets=named or tuple(s for s in scored.ladder if s.is_averaged),
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
